//! The opcode maps as tables: which operation an opcode byte is and where its operands come from (APM vol. 3,
//! appendix A).

use crate::arg::flag::*;
use crate::arg::{Arg, Lookup, row, row3};
use crate::insn::{Op, Rep, Seg};
use crate::prefix::Prefixes;

pub(crate) const fn plain(op: Op) -> Lookup {
    row(op, Arg::None, Arg::None, 0)
}

/// Arguments that are the same for the whole group; the operation depends on ModRM.
const fn grouped(a: Arg, b: Arg, flags: u16) -> Lookup {
    row(Op::Nop, a, b, flags | GROUP)
}

/// The eight ALU operations in opcode order.
pub(crate) const fn alu(n: u8) -> Op {
    match n & 7 {
        0 => Op::Add,
        1 => Op::Or,
        2 => Op::Adc,
        3 => Op::Sbb,
        4 => Op::And,
        5 => Op::Sub,
        6 => Op::Xor,
        _ => Op::Cmp,
    }
}

/// CMP does not write: no LOCK.
pub(crate) const fn alu_lock(n: u8) -> u16 {
    if n & 7 == 7 { 0 } else { LOCK }
}

const fn seg(n: u8) -> Arg {
    match Seg::from_reg(n) {
        Some(s) => Arg::S(s),
        None => Arg::None,
    }
}

/// One-byte opcodes.
const fn one(b: u8) -> Lookup {
    use Arg::*;
    match b {
        0x00..=0x3f if b & 7 < 6 => {
            let (op, lock) = (alu(b >> 3), alu_lock(b >> 3));
            match b & 7 {
                0 => row(op, Eb, Gb, lock | BYTE),
                1 => row(op, Ev, Gv, lock),
                2 => row(op, Gb, Eb, BYTE),
                3 => row(op, Gv, Ev, 0),
                4 => row(op, Al, Ib, BYTE),
                _ => row(op, Ax, Iz, 0),
            }
        }
        0x06 | 0x0e | 0x16 | 0x1e => row(Op::Push, seg(b >> 3), None, NO64),
        0x07 | 0x17 | 0x1f => row(Op::Pop, seg(b >> 3), None, NO64),
        0x40..=0x47 => row(Op::Inc, Zv, None, NO64),
        0x48..=0x4f => row(Op::Dec, Zv, None, NO64),
        0x50..=0x57 => row(Op::Push, Zv, None, D64),
        0x58..=0x5f => row(Op::Pop, Zv, None, D64),
        0x60 => row(Op::Pusha, None, None, NO64),
        0x61 => row(Op::Popa, None, None, NO64),
        0x63 => row(Op::Movsx, Gv, Ez, ONLY64),
        0x68 => row(Op::Push, Iz, None, D64),
        0x69 => row3(Op::Imul2, Gv, Ev, Iz, 0),
        0x6a => row(Op::Push, Ibs, None, D64),
        0x6b => row3(Op::Imul2, Gv, Ev, Ibs, 0),
        0x6c => row(Op::Ins, None, None, BYTE),
        0x6d => row(Op::Ins, None, None, MAX32),
        0x6e => row(Op::Outs, None, None, BYTE),
        0x6f => row(Op::Outs, None, None, MAX32),
        0x70..=0x7f => row(Op::Jcc, Jb, None, D64 | COND),
        0x80 => grouped(Eb, Ib, BYTE),
        0x81 => grouped(Ev, Iz, 0),
        0x82 => grouped(Eb, Ib, BYTE | NO64),
        0x83 => grouped(Ev, Ibs, 0),
        0x84 => row(Op::Test, Eb, Gb, BYTE),
        0x85 => row(Op::Test, Ev, Gv, 0),
        0x86 => row(Op::Xchg, Eb, Gb, LOCK | BYTE),
        0x87 => row(Op::Xchg, Ev, Gv, LOCK),
        0x88 => row(Op::Mov, Eb, Gb, BYTE),
        0x89 => row(Op::Mov, Ev, Gv, 0),
        0x8a => row(Op::Mov, Gb, Eb, BYTE),
        0x8b => row(Op::Mov, Gv, Ev, 0),
        0x8c => row(Op::Mov, EvMw, Sw, 0),
        0x8d => row(Op::Lea, Gv, M, 0),
        0x8e => row(Op::MovSeg, Sw, Ew, 0),
        0x8f => grouped(Ev, None, D64),
        0x90..=0x97 => row(Op::Xchg, Zv, Ax, 0),
        0x98 => plain(Op::Cbw),
        0x99 => plain(Op::Cwd),
        0x9a => row(Op::CallFar, Ap, None, NO64),
        0x9c => row(Op::Pushf, None, None, D64),
        0x9d => row(Op::Popf, None, None, D64),
        0x9e => plain(Op::Sahf),
        0x9f => plain(Op::Lahf),
        0xa0 => row(Op::Mov, Al, Ob, BYTE),
        0xa1 => row(Op::Mov, Ax, Ov, 0),
        0xa2 => row(Op::Mov, Ob, Al, BYTE),
        0xa3 => row(Op::Mov, Ov, Ax, 0),
        0xa4 => row(Op::Movs, None, None, BYTE),
        0xa5 => plain(Op::Movs),
        0xa6 => row(Op::Cmps, None, None, BYTE),
        0xa7 => plain(Op::Cmps),
        0xa8 => row(Op::Test, Al, Ib, BYTE),
        0xa9 => row(Op::Test, Ax, Iz, 0),
        0xaa => row(Op::Stos, None, None, BYTE),
        0xab => plain(Op::Stos),
        0xac => row(Op::Lods, None, None, BYTE),
        0xad => plain(Op::Lods),
        0xae => row(Op::Scas, None, None, BYTE),
        0xaf => plain(Op::Scas),
        0xb0..=0xb7 => row(Op::Mov, Zb, Ib, BYTE),
        0xb8..=0xbf => row(Op::Mov, Zv, Iv, 0),
        0xc0 => grouped(Eb, Ib, BYTE),
        0xc1 => grouped(Ev, Ib, 0),
        0xc2 => row(Op::Ret, Iw, None, D64),
        0xc3 => row(Op::Ret, None, None, D64),
        0xc4 => row3(Op::Les, Gv, Mp, S(Seg::Es), NO64),
        0xc5 => row3(Op::Les, Gv, Mp, S(Seg::Ds), NO64),
        0xc6 => grouped(Eb, Ib, BYTE),
        0xc7 => grouped(Ev, Iz, 0),
        0xc8 => row(Op::Enter, IwIb, None, D64),
        0xc9 => row(Op::Leave, None, None, D64),
        0xca => row(Op::RetFar, Iw, None, 0),
        0xcb => plain(Op::RetFar),
        0xcc => plain(Op::Int3),
        0xcd => row(Op::Int, Ib, None, 0),
        0xce => row(Op::Into, None, None, NO64),
        0xcf => plain(Op::Iret),
        0xd0 => grouped(Eb, One, BYTE),
        0xd1 => grouped(Ev, One, 0),
        0xd2 => grouped(Eb, Cl, BYTE),
        0xd3 => grouped(Ev, Cl, 0),
        0xd9 | 0xdd => grouped(None, None, 0),
        0xd7 => row(Op::Xlat, None, None, BYTE),
        0xe0 => row(Op::Loopne, Jb, None, D64),
        0xe1 => row(Op::Loope, Jb, None, D64),
        0xe2 => row(Op::Loop, Jb, None, D64),
        0xe3 => row(Op::Jcxz, Jb, None, D64),
        0xe4 => row(Op::In, Al, Ib, BYTE),
        0xe5 => row(Op::In, Eax, Ib, MAX32),
        0xe6 => row(Op::Out, Ib, Al, BYTE),
        0xe7 => row(Op::Out, Ib, Eax, MAX32),
        0xe8 => row(Op::Call, Jz, None, D64),
        0xe9 => row(Op::Jmp, Jz, None, D64),
        0xea => row(Op::JmpFar, Ap, None, NO64),
        0xeb => row(Op::Jmp, Jb, None, D64),
        0xec => row(Op::In, Al, Dx, BYTE),
        0xed => row(Op::In, Eax, Dx, MAX32),
        0xee => row(Op::Out, Dx, Al, BYTE),
        0xef => row(Op::Out, Dx, Eax, MAX32),
        0xf1 => plain(Op::Icebp),
        0xf4 => plain(Op::Hlt),
        0xf5 => plain(Op::Cmc),
        0xf6 => grouped(Eb, None, BYTE),
        0xf7 => grouped(Ev, None, 0),
        0xf8 => plain(Op::Clc),
        0xf9 => plain(Op::Stc),
        0xfa => plain(Op::Cli),
        0xfb => plain(Op::Sti),
        0xfc => plain(Op::Cld),
        0xfd => plain(Op::Std),
        0xfe => grouped(Eb, None, BYTE),
        0xff => grouped(Ev, None, 0),
        _ => Option::None,
    }
}

/// Opcodes 0F xx, except the vector ones.
const fn two(b: u8) -> Lookup {
    use Arg::*;
    match b {
        0x00 | 0x01 => grouped(None, None, 0),
        0x06 => plain(Op::Clts),
        0x08 => plain(Op::Invd),
        0x09 => plain(Op::Wbinvd),
        // PREFETCH and the hints: no effect, whatever the operand.
        0x0d | 0x18..=0x1f => row(Op::Nop, None, None, MODRM),
        0x20 => row(Op::MovFromCr, Rd, Cd, 0),
        0x21 => row(Op::MovFromDr, Rd, Dd, 0),
        0x22 => row(Op::MovToCr, Cd, Rd, 0),
        0x23 => row(Op::MovToDr, Dd, Rd, 0),
        0x30 => plain(Op::Wrmsr),
        0x31 => plain(Op::Rdtsc),
        0x32 => plain(Op::Rdmsr),
        0x33 => plain(Op::Rdpmc),
        0x40..=0x4f => row(Op::Cmov, Gv, Ev, COND),
        0x80..=0x8f => row(Op::Jcc, Jz, None, D64 | COND),
        0x90..=0x9f => row(Op::Set, Eb, None, BYTE | COND),
        0xa0 | 0xa8 => row(Op::Push, seg(b >> 3 & 7), None, D64),
        0xa1 | 0xa9 => row(Op::Pop, seg(b >> 3 & 7), None, D64),
        0xa2 => plain(Op::Cpuid),
        0xa3 => row(Op::Bt, Ev, Gv, 0),
        0xa4 => row3(Op::Shld, Ev, Gv, Ib, 0),
        0xa5 => row3(Op::Shld, Ev, Gv, Cl, 0),
        0xaa => plain(Op::Rsm),
        0xab => row(Op::Bts, Ev, Gv, LOCK),
        0xac => row3(Op::Shrd, Ev, Gv, Ib, 0),
        0xad => row3(Op::Shrd, Ev, Gv, Cl, 0),
        0xae => grouped(None, None, 0),
        0xaf => row(Op::Imul2, Gv, Ev, 0),
        0xb0 => row(Op::Cmpxchg, Eb, Gb, LOCK | BYTE),
        0xb1 => row(Op::Cmpxchg, Ev, Gv, LOCK),
        0xb2 => row3(Op::Les, Gv, Mp, S(Seg::Ss), 0),
        0xb3 => row(Op::Btr, Ev, Gv, LOCK),
        0xb4 => row3(Op::Les, Gv, Mp, S(Seg::Fs), 0),
        0xb5 => row3(Op::Les, Gv, Mp, S(Seg::Gs), 0),
        0xb6 => row(Op::Movzx, Gv, Eb, 0),
        0xb7 => row(Op::Movzx, Gv, Ew, 0),
        0xba => grouped(Ev, Ib, 0),
        0xbb => row(Op::Btc, Ev, Gv, LOCK),
        0xbc => row(Op::Bsf, Gv, Ev, 0),
        0xbd => row(Op::Bsr, Gv, Ev, 0),
        0xbe => row(Op::Movsx, Gv, Eb, 0),
        0xbf => row(Op::Movsx, Gv, Ew, 0),
        0xc0 => row(Op::Xadd, Eb, Gb, LOCK | BYTE),
        0xc1 => row(Op::Xadd, Ev, Gv, LOCK),
        0xc3 => row(Op::Movnti, My, Gy, 0),
        0xc7 => grouped(None, None, 0),
        0xc8..=0xcf => row(Op::Bswap, Zv, None, 0),
        _ => Option::None,
    }
}

const fn table(build_two: bool) -> [Lookup; 256] {
    let mut t = [None; 256];
    let mut i = 0;
    while i < 256 {
        t[i] = if build_two { two(i as u8) } else { one(i as u8) };
        i += 1;
    }
    t
}

static ONE: [Lookup; 256] = table(false);
static TWO: [Lookup; 256] = table(true);

/// The row of a one-byte opcode, with those that F3 and REX.B change. REX.B makes 90 an XCHG of RAX and R8, with F3 as well:
/// only without it is F3 90 PAUSE (seen on AMD's processors; Intel's see PAUSE in both).
pub(crate) fn lookup_one(p: &Prefixes) -> Lookup {
    match (p.opcode, p.rep, p.b) {
        (0x90, Rep::Rep, 0) => return plain(Op::Pause),
        (0x90, _, 0) => return plain(Op::Nop),
        _ => {}
    }
    ONE.get(usize::from(p.opcode)).copied().flatten()
}

/// The row of an opcode 0F xx.
pub(crate) fn lookup_two(p: &Prefixes) -> Lookup {
    use Arg::{Ev, Gv};
    match (p.opcode, p.rep) {
        (0xb8, Rep::Rep) => row(Op::Popcnt, Gv, Ev, 0),
        (0xbc, Rep::Rep) => row(Op::Tzcnt, Gv, Ev, 0),
        (0xbd, Rep::Rep) => row(Op::Lzcnt, Gv, Ev, 0),
        // MOVNTI has no prefixed forms.
        (0xc3, _) if p.opsize || p.rep != Rep::None => None,
        _ => TWO.get(usize::from(p.opcode)).copied().flatten(),
    }
}

/// The row of an opcode 0F 38 xx: MOVBE.
pub(crate) fn lookup_three(p: &Prefixes) -> Lookup {
    use Arg::{Gv, Mv};
    match (p.opcode, p.rep) {
        (0xf0, Rep::None) => row(Op::Movbe, Gv, Mv, 0),
        (0xf1, Rep::None) => row(Op::Movbe, Mv, Gv, 0),
        _ => None,
    }
}
