//! RFLAGS bits, and results with flags of the ALU operations on 1, 2, 4 or 8 byte values.

use crate::insn::Op;

pub(crate) const CF: u64 = 1;
pub(crate) const PF: u64 = 1 << 2;
pub(crate) const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
pub(crate) const SF: u64 = 1 << 7;
pub(crate) const TF: u64 = 1 << 8;
pub(crate) const IF: u64 = 1 << 9;
pub(crate) const DF: u64 = 1 << 10;
pub(crate) const OF: u64 = 1 << 11;
pub(crate) const IOPL: u64 = 3 << 12;
pub(crate) const NT: u64 = 1 << 14;
pub(crate) const RF: u64 = 1 << 16;
pub(crate) const VM: u64 = 1 << 17;
pub(crate) const AC: u64 = 1 << 18;
pub(crate) const VIF: u64 = 1 << 19;
pub(crate) const VIP: u64 = 1 << 20;
pub(crate) const ID: u64 = 1 << 21;
/// The bit that is always set.
pub(crate) const FIXED: u64 = 2;

/// The six flags that arithmetic sets.
pub(crate) const ARITH: u64 = CF | PF | AF | ZF | SF | OF;

/// All ones in the low `size` bytes. `size` 8 and above is everything.
pub(crate) const fn mask(size: u8) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 }
}

/// The sign bit of a `size`-byte value.
pub(crate) const fn sign(size: u8) -> u64 {
    mask(size) ^ (mask(size) >> 1)
}

/// Sign-extends the low `size` bytes to 64 bits; 0 bytes are 0.
pub(crate) const fn sext(v: u64, size: u8) -> u64 {
    let v = v & mask(size);
    if v & sign(size) != 0 { v | !mask(size) } else { v }
}

/// `flag` if `cond`.
pub(crate) const fn when(flag: u64, cond: bool) -> u64 {
    if cond { flag } else { 0 }
}

/// SF, ZF and PF of a result.
pub(crate) const fn szp(v: u64, size: u8) -> u64 {
    let v = v & mask(size);
    when(SF, v & sign(size) != 0) | when(ZF, v == 0) | when(PF, (v as u8).count_ones() % 2 == 0)
}

/// `a op b`, and RFLAGS with the arithmetic flags replaced. CMP returns the difference; the caller drops it.
pub(crate) fn alu(op: Op, a: u64, b: u64, flags: u64, size: u8) -> (u64, u64) {
    let (a, b) = (a & mask(size), b & mask(size));
    let carry_in = flags & CF;
    let (v, cf, of) = match op {
        Op::Add | Op::Adc => {
            let c = if matches!(op, Op::Adc) { carry_in } else { 0 };
            let (t, o1) = a.overflowing_add(b);
            let (t, o2) = t.overflowing_add(c);
            let v = t & mask(size);
            (v, o1 | o2 | (t & !mask(size) != 0), !(a ^ b) & (a ^ v) & sign(size) != 0)
        }
        Op::Sub | Op::Sbb | Op::Cmp => {
            let c = if matches!(op, Op::Sbb) { carry_in } else { 0 };
            let (t, o1) = a.overflowing_sub(b);
            let (t, o2) = t.overflowing_sub(c);
            let v = t & mask(size);
            (v, o1 | o2, (a ^ b) & (a ^ v) & sign(size) != 0)
        }
        Op::And | Op::Test => (a & b, false, false),
        Op::Or => (a | b, false, false),
        _ => (a ^ b, false, false),
    };
    // AF is undefined after logic; real CPUs clear it.
    let af = match op {
        Op::Add | Op::Adc | Op::Sub | Op::Sbb | Op::Cmp => (a ^ b ^ v) & 0x10,
        _ => 0,
    };
    let out = when(CF, cf) | when(OF, of) | when(AF, af != 0) | szp(v, size);
    (v, flags & !ARITH | out)
}

/// Does condition code `cond` (low nibble of Jcc) hold?
pub(crate) const fn condition(cond: u8, flags: u64) -> bool {
    let less = (flags & SF != 0) != (flags & OF != 0);
    let holds = match (cond >> 1) & 7 {
        0 => flags & OF != 0,
        1 => flags & CF != 0,
        2 => flags & ZF != 0,
        3 => flags & (CF | ZF) != 0,
        4 => flags & SF != 0,
        5 => flags & PF != 0,
        6 => less,
        _ => less || flags & ZF != 0,
    };
    holds != (cond & 1 != 0)
}
