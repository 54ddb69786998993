//! Bytes to [`Insn`]: prefixes, table look-up, operands, immediates, and the checks that make an encoding undefined.

use crate::arg::{Arg, Lookup, flag};
use crate::flags::mask;
use crate::group;
use crate::insn::{DecodeError, Insn, Mem, Mode, Op, Operand, Seg};
use crate::modrm::{self, ModRm};
use crate::opmap;
use crate::prefix::{self, Cursor, Map, Prefixes};
use crate::vecmap;

/// Decodes the instruction at the start of `bytes`.
///
/// Bytes after it are ignored. Where AMD and Intel differ (operand size of near branches in 64-bit mode, LOCK MOV CR0),
/// this is AMD.
pub fn decode(bytes: &[u8], mode: Mode) -> Result<Insn, DecodeError> {
    let mut c = Cursor::new(bytes);
    let mut p = prefix::parse(&mut c, mode)?;
    let mut modrm = None;
    let mut row = lookup(&p, &mut c, &mut modrm)?.ok_or(DecodeError::Unknown)?;
    if row.flags & flag::GROUP != 0 {
        let m = ModRm::new(c.u8()?, &p);
        modrm = Some(m);
        row = group::group(row, &p, m).ok_or(DecodeError::Unknown)?;
    }
    if row.flags & flag::NO64 != 0 && mode.is_long() || row.flags & flag::ONLY64 != 0 && !mode.is_long() {
        return Err(if row.op == Op::Movsx { DecodeError::Unknown } else { DecodeError::Invalid });
    }
    if modrm.is_none() && row.flags & flag::MODRM != 0 {
        modrm = Some(ModRm::new(c.u8()?, &p));
    }
    if p.lock && matches!(row.op, Op::MovFromCr | Op::MovToCr) {
        // AMD's other name for CR8 (CPUID Fn8000_0001_ECX[AltMovCr8]).
        p.r |= 8;
        p.lock = false;
        modrm = modrm.map(|m| ModRm::new(m.byte, &p));
    }

    let segment = p.seg.unwrap_or(Seg::Ds);
    let mut insn = Insn {
        len: 0,
        mode,
        op: row.op,
        cond: if row.flags & flag::COND != 0 { p.opcode & 15 } else { 0 },
        opsize: operand_size(&p, mode, row.flags),
        addrsize: address_size(&p, mode),
        rep: p.rep,
        lock: p.lock,
        vex: p.vex,
        segment,
        operands: [Operand::None; 3],
        mem: Mem { seg: segment, base: None, index: None, scale: 0, disp: 0, rip_relative: false },
        imm: 0,
    };
    let modrm = modrm.unwrap_or(ModRm::new(0xc0, &p));
    if !modrm.is_reg() && row.flags & flag::NO_MEM == 0 {
        insn.mem = modrm::memory(&mut c, &p, modrm, insn.addrsize, mode.is_long())?;
    }
    for (n, arg) in row.args.into_iter().enumerate() {
        if arg == Arg::None {
            break;
        }
        let operand = operand(&mut c, &p, modrm, arg, &mut insn)?;
        if let Some(place) = insn.operands.get_mut(n) {
            *place = operand;
        }
    }
    check(&insn, p.vvvv, row.flags)?;
    // At most MAX_LEN.
    insn.len = c.pos() as u8;
    Ok(insn)
}

/// The effective address size in bytes (APM vol. 3, 1.2.3).
fn address_size(p: &Prefixes, mode: Mode) -> u8 {
    match mode {
        Mode::Long64 => 8 >> u8::from(p.addrsize),
        Mode::Prot32 => 4 >> u8::from(p.addrsize),
        Mode::Real | Mode::V86 | Mode::Prot16 => 2 << u8::from(p.addrsize),
    }
}

/// Finds the row; the vector moves need the ModRM byte for it.
fn lookup(p: &Prefixes, c: &mut Cursor<'_>, modrm: &mut Option<ModRm>) -> Result<Lookup, DecodeError> {
    let vector = p.map == Map::Two && vecmap::is_vector(p.opcode) || p.map == Map::Three38 && p.opcode == 0x2a;
    if vector {
        let m = ModRm::new(c.u8()?, p);
        *modrm = Some(m);
        return Ok(vecmap::lookup(p, m));
    }
    Ok(match p.map {
        _ if p.vex => None,
        Map::One => opmap::lookup_one(p),
        Map::Two => opmap::lookup_two(p),
        Map::Three38 => opmap::lookup_three(p),
        Map::Three3A => None,
    })
}

/// The effective operand size in bytes (APM vol. 3, 1.2.2).
fn operand_size(p: &Prefixes, mode: Mode, flags: u16) -> u8 {
    let size = match mode {
        Mode::Long64 if p.w => 8,
        Mode::Long64 if p.opsize => 2,
        Mode::Long64 if flags & flag::D64 != 0 => 8,
        Mode::Long64 => 4,
        Mode::Prot32 => 4 >> u8::from(p.opsize),
        Mode::Real | Mode::V86 | Mode::Prot16 => 2 << u8::from(p.opsize),
    };
    if flags & flag::BYTE != 0 {
        1
    } else if flags & flag::MAX32 != 0 {
        size.min(4)
    } else {
        size
    }
}

/// A general register operand; without REX, byte registers 4 to 7 are AH, CH, DH and BH.
fn gpr(p: &Prefixes, index: u8, size: u8) -> Operand {
    if size == 1 && !p.rex && matches!(index, 4..=7) {
        Operand::HighByte { index: index & 3 }
    } else {
        Operand::Gpr { index, size }
    }
}

/// Decodes one argument; immediates are read from `c`, in the order of the arguments, into `insn`.
#[inline(never)] // inlined, everything that any argument might want is computed for each instruction
fn operand(c: &mut Cursor<'_>, p: &Prefixes, modrm: ModRm, arg: Arg, insn: &mut Insn) -> Result<Operand, DecodeError> {
    let (opsize, long) = (insn.opsize, insn.mode.is_long());
    let y = if p.w { 8 } else { 4 };
    let wide = if p.l { 32 } else { 16 };
    let z = opsize.min(4);
    let e = |reg_size, mem_size| {
        if modrm.is_reg() { gpr(p, modrm.rm, reg_size) } else { Operand::Mem { size: mem_size } }
    };
    let m = |size| if modrm.is_reg() { Err(DecodeError::Invalid) } else { Ok(Operand::Mem { size }) };
    let w = |size| {
        if modrm.is_reg() { Operand::Vec { index: modrm.rm, size } } else { Operand::Mem { size } }
    };
    Ok(match arg {
        Arg::None => Operand::None,
        Arg::Eb => e(1, 1),
        Arg::Ew => e(2, 2),
        Arg::Ez => e(z, z),
        Arg::Ev => e(opsize, opsize),
        Arg::EvMw => e(opsize, 2),
        Arg::Ey => e(y, y),
        Arg::Gb => gpr(p, modrm.reg, 1),
        Arg::Gv => Operand::Gpr { index: modrm.reg, size: opsize },
        Arg::Gy => Operand::Gpr { index: modrm.reg, size: y },
        Arg::Zb => gpr(p, p.opcode & 7 | p.b, 1),
        Arg::Zv => Operand::Gpr { index: p.opcode & 7 | p.b, size: opsize },
        Arg::Rd => Operand::Gpr { index: modrm.rm, size: if long { 8 } else { 4 } },
        Arg::Al => Operand::Gpr { index: 0, size: 1 },
        Arg::Ax => Operand::Gpr { index: 0, size: opsize },
        Arg::Eax => Operand::Gpr { index: 0, size: z },
        Arg::Cl => Operand::Gpr { index: 1, size: 1 },
        Arg::Dx => Operand::Gpr { index: 2, size: 2 },
        Arg::Ib | Arg::Iw | Arg::Iz | Arg::Iv | Arg::Ibs | Arg::Jb | Arg::Jz | Arg::IwIb | Arg::Ap | Arg::One => {
            insn.imm = match arg {
                Arg::Ib => c.uint(1)?,
                Arg::Iw => c.uint(2)?,
                Arg::Iz => c.sint(z)? & mask(opsize),
                Arg::Iv => c.uint(opsize)?,
                Arg::Ibs => c.sint(1)? & mask(opsize),
                Arg::Jb => c.sint(1)?,
                Arg::Jz => c.sint(z)?,
                Arg::IwIb => c.uint(3)?,
                Arg::Ap => {
                    let offset = c.uint(z)?;
                    offset | c.uint(2)? << 32
                }
                _ => 1,
            };
            Operand::Imm
        }
        Arg::M => m(0)?,
        Arg::Mv => m(opsize)?,
        Arg::My => m(y)?,
        Arg::Mq2 => m(y * 2)?,
        Arg::Mp => m(opsize + 2)?,
        Arg::Ob | Arg::Ov => {
            insn.mem.disp = c.uint(insn.addrsize)?;
            Operand::Mem { size: opsize }
        }
        Arg::Sw => Operand::Seg(Seg::from_reg(modrm.reg & 7).ok_or(DecodeError::Invalid)?),
        Arg::Cd => Operand::Cr(modrm.reg),
        Arg::Dd => Operand::Dr(modrm.reg),
        Arg::S(seg) => Operand::Seg(seg),
        Arg::V(size) => Operand::Vec { index: modrm.reg, size },
        // REX reaches no further: there are eight.
        Arg::P(size) => Operand::Mmx { index: modrm.reg & 7, size },
        Arg::Q(size) if modrm.is_reg() => Operand::Mmx { index: modrm.rm & 7, size },
        Arg::Q(size) => m(size)?,
        Arg::Vx => Operand::Vec { index: modrm.reg, size: wide },
        Arg::W(size) | Arg::U(size) => w(size),
        Arg::Wx => w(wide),
        Arg::H(size) => Operand::Vec { index: if long { p.vvvv } else { p.vvvv & 7 }, size },
    })
}

/// Encodings that are undefined although the opcode exists.
fn check(insn: &Insn, vvvv: u8, flags: u16) -> Result<(), DecodeError> {
    let memory_destination = matches!(insn.operands.first(), Some(Operand::Mem { .. }));
    let bad = insn.lock && !(flags & flag::LOCK != 0 && memory_destination)
        || insn.vex && vvvv != 0 && flags & flag::VVVV == 0
        || insn.vex && insn.mode.is_realish()
        || match (insn.op, insn.operands) {
            (Op::MovSeg, [Operand::Seg(Seg::Cs), ..]) => true,
            (Op::MovFromCr, [_, Operand::Cr(n), _]) | (Op::MovToCr, [Operand::Cr(n), ..]) => {
                !matches!(n, 0 | 2 | 3 | 4 | 8)
            }
            (Op::MovFromDr, [_, Operand::Dr(n), _]) | (Op::MovToDr, [Operand::Dr(n), ..]) => n > 7,
            _ => false,
        };
    if bad { Err(DecodeError::Invalid) } else { Ok(()) }
}
