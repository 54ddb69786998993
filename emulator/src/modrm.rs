//! ModRM and SIB: the register number and the memory operand that they encode (APM vol. 3, 1.4).

use crate::insn::{DecodeError, Mem, Seg};
use crate::prefix::{Cursor, Prefixes};

/// The ModRM byte, with REX/VEX extensions added to `reg` and `rm`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModRm {
    pub(crate) byte: u8,
    /// ModRM.reg, 0 to 15.
    pub(crate) reg: u8,
    /// ModRM.rm, 0 to 15; a register if `is_reg`.
    pub(crate) rm: u8,
}

impl ModRm {
    pub(crate) const fn new(byte: u8, p: &Prefixes) -> ModRm {
        ModRm { byte, reg: (byte >> 3) & 7 | p.r, rm: byte & 7 | p.b }
    }

    /// The operand is a register, not memory.
    pub(crate) const fn is_reg(&self) -> bool {
        self.byte >= 0xc0
    }
}

const RBX: u8 = 3;
const RSP: u8 = 4;
const RBP: u8 = 5;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// Reads SIB and displacement of a memory operand. `addrsize` is 2, 4 or 8 bytes.
pub(crate) fn memory(
    c: &mut Cursor<'_>,
    p: &Prefixes,
    modrm: ModRm,
    addrsize: u8,
    long: bool,
) -> Result<Mem, DecodeError> {
    let mut mem = Mem { seg: Seg::Ds, base: None, index: None, scale: 0, disp: 0, rip_relative: false };
    let md = modrm.byte >> 6;
    let rm = modrm.byte & 7;
    // Bytes of displacement: mod 1 has one, mod 2 a full one; mod 0 only in the forms without base.
    let mut disp = match md {
        1 => 1,
        2 => addrsize.min(4),
        _ => 0,
    };
    if addrsize == 2 {
        (mem.base, mem.index) = match rm {
            0 => (Some(RBX), Some(RSI)),
            1 => (Some(RBX), Some(RDI)),
            2 => (Some(RBP), Some(RSI)),
            3 => (Some(RBP), Some(RDI)),
            4 => (Some(RSI), None),
            5 => (Some(RDI), None),
            6 if md == 0 => (None, None),
            6 => (Some(RBP), None),
            _ => (Some(RBX), None),
        };
        if md == 0 && rm == 6 {
            disp = 2;
        }
        if mem.base == Some(RBP) {
            mem.seg = Seg::Ss;
        }
    } else {
        let mut base = rm;
        if rm == RSP {
            let sib = c.u8()?;
            base = sib & 7;
            let index = (sib >> 3) & 7 | p.x;
            if index != RSP {
                mem.index = Some(index);
                mem.scale = sib >> 6;
            }
        }
        if base == RBP && md == 0 {
            disp = 4;
            mem.rip_relative = long && rm != RSP;
        } else {
            mem.base = Some(base | p.b);
            if matches!(base | p.b, RSP | RBP) {
                mem.seg = Seg::Ss;
            }
        }
    }
    mem.disp = c.sint(disp)?;
    mem.seg = p.seg.unwrap_or(mem.seg);
    Ok(mem)
}
