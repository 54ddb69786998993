//! The bytes in front of the opcode: legacy prefixes, REX and VEX (APM vol. 3, 1.2), and the cursor that reads them.

use crate::insn::{DecodeError, Mode, Rep, Seg};

/// The longest instruction, in bytes.
pub(crate) const MAX_LEN: usize = 15;

/// Reads instruction bytes; knows the limit of 15.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, pos: 0 }
    }

    /// Bytes consumed so far; at most 15.
    pub(crate) const fn pos(&self) -> usize {
        self.pos
    }

    /// The next byte without consuming it.
    pub(crate) fn peek(&self) -> Result<u8, DecodeError> {
        if self.pos >= MAX_LEN {
            return Err(DecodeError::TooLong);
        }
        self.bytes.get(self.pos).copied().ok_or(DecodeError::NeedMoreBytes)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        let b = self.peek()?;
        self.pos += 1;
        Ok(b)
    }

    /// A little-endian number of `size` bytes (1, 2, 3, 4 or 8; else 0), zero-extended.
    pub(crate) fn uint(&mut self, size: u8) -> Result<u64, DecodeError> {
        let end = self.pos + usize::from(size);
        if end > MAX_LEN && self.bytes.len() >= MAX_LEN {
            return Err(DecodeError::TooLong);
        }
        let part = self.bytes.get(self.pos..end).ok_or(DecodeError::NeedMoreBytes)?;
        self.pos = end;
        Ok(match *part {
            [a] => a.into(),
            [a, b] => u16::from_le_bytes([a, b]).into(),
            [a, b, c] => u32::from_le_bytes([a, b, c, 0]).into(),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
            [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => 0,
        })
    }

    /// A little-endian number of `size` bytes, sign-extended.
    pub(crate) fn sint(&mut self, size: u8) -> Result<u64, DecodeError> {
        Ok(crate::flags::sext(self.uint(size)?, size))
    }
}

/// Which table the opcode byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Map {
    /// One-byte opcodes.
    One,
    /// 0F xx.
    Two,
    /// 0F 38 xx.
    Three38,
    /// 0F 3A xx.
    Three3A,
}

/// Everything before ModRM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prefixes {
    pub(crate) opsize: bool,
    pub(crate) addrsize: bool,
    pub(crate) seg: Option<Seg>,
    pub(crate) rep: Rep,
    pub(crate) lock: bool,
    /// A REX byte was present: byte registers 4 to 7 are SPL, BPL, SIL, DIL.
    pub(crate) rex: bool,
    /// REX.W or VEX.W.
    pub(crate) w: bool,
    /// REX.R, X, B (or VEX): 0 or 8, to be added to the register number.
    pub(crate) r: u8,
    pub(crate) x: u8,
    pub(crate) b: u8,
    pub(crate) vex: bool,
    /// VEX.L: 256 bits.
    pub(crate) l: bool,
    pub(crate) vvvv: u8,
    pub(crate) map: Map,
    pub(crate) opcode: u8,
}

/// Consumes prefixes and the opcode.
pub(crate) fn parse(c: &mut Cursor<'_>, mode: Mode) -> Result<Prefixes, DecodeError> {
    let mut p = Prefixes {
        opsize: false,
        addrsize: false,
        seg: None,
        rep: Rep::None,
        lock: false,
        rex: false,
        w: false,
        r: 0,
        x: 0,
        b: 0,
        vex: false,
        l: false,
        vvvv: 0,
        map: Map::One,
        opcode: 0,
    };
    let mut rex = 0;
    let opcode = loop {
        let byte = c.u8()?;
        // A REX byte counts only directly before the opcode: whatever prefix follows cancels it.
        let stale = core::mem::replace(&mut rex, 0);
        match byte {
            0x66 => p.opsize = true,
            0x67 => p.addrsize = true,
            0xf0 => p.lock = true,
            0xf2 => p.rep = Rep::Repne,
            0xf3 => p.rep = Rep::Rep,
            0x26 | 0x2e | 0x36 | 0x3e => {
                // Null prefixes in 64-bit mode.
                if !mode.is_long() {
                    p.seg = Seg::from_reg((byte >> 3) & 3);
                }
            }
            0x64 => p.seg = Some(Seg::Fs),
            0x65 => p.seg = Some(Seg::Gs),
            0x40..=0x4f if mode.is_long() => rex = byte,
            _ => {
                rex = stale;
                break byte;
            }
        }
    };
    if rex != 0 {
        p.rex = true;
        p.w = rex & 8 != 0;
        p.r = (rex & 4) << 1;
        p.x = (rex & 2) << 2;
        p.b = (rex & 1) << 3;
    }
    if matches!(opcode, 0xc4 | 0xc5) && is_vex(c, mode)? {
        return vex(c, mode, p, opcode);
    }
    p.opcode = opcode;
    if opcode == 0x0f {
        p.map = Map::Two;
        p.opcode = c.u8()?;
        match p.opcode {
            0x38 => p.map = Map::Three38,
            0x3a => p.map = Map::Three3A,
            _ => return Ok(p),
        }
        p.opcode = c.u8()?;
    }
    Ok(p)
}

/// C4 and C5 are VEX in 64-bit mode, and in protected mode where LES and LDS would have a register operand.
fn is_vex(c: &Cursor<'_>, mode: Mode) -> Result<bool, DecodeError> {
    Ok(mode.is_long() || (!mode.is_realish() && c.peek()? >= 0xc0))
}

/// Consumes the rest of a VEX prefix and the opcode (APM vol. 3, 1.2.7).
fn vex(c: &mut Cursor<'_>, mode: Mode, mut p: Prefixes, first: u8) -> Result<Prefixes, DecodeError> {
    if p.opsize || p.lock || p.rep != Rep::None || p.rex {
        return Err(DecodeError::Invalid);
    }
    let mut byte = c.u8()?;
    p.vex = true;
    p.r = (!byte >> 4) & 8;
    p.map = Map::Two;
    if first == 0xc4 {
        p.x = (!byte >> 3) & 8;
        p.b = (!byte >> 2) & 8;
        p.map = match byte & 0x1f {
            1 => Map::Two,
            2 => Map::Three38,
            3 => Map::Three3A,
            _ => return Err(DecodeError::Unknown),
        };
        byte = c.u8()?;
        p.w = byte & 0x80 != 0;
    }
    p.vvvv = (!byte >> 3) & 15;
    p.l = byte & 4 != 0;
    match byte & 3 {
        0 => {}
        1 => p.opsize = true,
        2 => p.rep = Rep::Rep,
        _ => p.rep = Rep::Repne,
    }
    if !mode.is_long() {
        // Only eight registers of 32 bits; the bits that extend that are ignored.
        (p.r, p.x, p.b, p.w) = (0, 0, 0, false);
    }
    p.opcode = c.u8()?;
    Ok(p)
}
