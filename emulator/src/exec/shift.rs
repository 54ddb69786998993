//! Shifts and rotates. OF follows the one-bit formula for every count (it is undefined for the others).

use super::{Res, Step};
use crate::flags::{ARITH, CF, OF, mask, sext, sign, szp, when};
use crate::insn::Op;
use crate::machine::Machine;

impl<M: Machine> Step<'_, M> {
    /// ROL, ROR, RCL, RCR, SHL, SHR, SAR.
    pub(super) fn shift(&mut self) -> Res {
        let (op, size, flags) = (self.insn.op, self.size(0), self.flags);
        let count = self.shift_count(1, size)?;
        self.flags = self.modify(false, |a| match op {
            _ if count == 0 => (a, flags),
            Op::Rol | Op::Ror | Op::Rcl | Op::Rcr => rotate(op, a, count, flags, size),
            _ => shift(op, a, count, flags, size),
        })?;
        Ok(())
    }

    /// SHLD, SHRD.
    pub(super) fn shift_double(&mut self) -> Res {
        let (op, size, flags) = (self.insn.op, self.size(0), self.flags);
        let (count, b) = (self.shift_count(2, size)?, self.read(1)?);
        self.flags =
            self.modify(false, |a| if count == 0 { (a, flags) } else { double(op, a, b, count, flags, size) })?;
        Ok(())
    }

    /// The count operand, masked as the processor does.
    fn shift_count(&mut self, n: usize, size: u8) -> Res<u32> {
        let count = self.read(n)?;
        Ok((count & if size == 8 { 63 } else { 31 }) as u32)
    }
}

/// `count` is 1 to 63.
fn shift(op: Op, a: u64, count: u32, flags: u64, size: u8) -> (u64, u64) {
    // One bit less first, so that the last bit shifted out can be seen.
    let before = count.wrapping_sub(1);
    let (value, carry, overflow) = match op {
        Op::Shl => {
            let last = a.checked_shl(before).unwrap_or(0);
            let carry = last & sign(size) != 0;
            let value = last << 1;
            (value, carry, carry != (value & sign(size) != 0))
        }
        Op::Shr => {
            let last = a.checked_shr(before).unwrap_or(0);
            (last >> 1, last & 1 != 0, a & sign(size) != 0)
        }
        _ => {
            let last = sext(a, size) as i64 >> (before & 63);
            ((last >> 1) as u64, last & 1 != 0, false)
        }
    };
    let value = value & mask(size);
    (value, flags & !ARITH | when(CF, carry) | when(OF, overflow) | szp(value, size))
}

/// Rotates change CF and OF only. `count` is 1 to 63.
fn rotate(op: Op, a: u64, count: u32, flags: u64, size: u8) -> (u64, u64) {
    let bits = u32::from(size) * 8;
    let top = |v: u64| v & sign(size) != 0;
    let (value, carry) = match op {
        Op::Rol | Op::Ror => {
            // The width is a power of two.
            let width_mask = bits.wrapping_sub(1);
            let left = if op == Op::Rol { count } else { count.wrapping_neg() } & width_mask;
            // As a double-width value, so that a rotation by nothing needs no special case.
            let wide = u128::from(a) << left;
            let value = (wide | wide >> bits) as u64 & mask(size);
            (value, if op == Op::Rol { value & 1 != 0 } else { top(value) })
        }
        _ => {
            // Through carry: a rotation of `bits + 1` bits, carry on top.
            let width = bits + 1;
            let n = count % width;
            let left = if op == Op::Rcl { n } else { (width - n) % width };
            let ring = u128::from(a) | u128::from(flags & CF) << bits;
            let ring_mask = (1_u128 << width) - 1;
            let turned = (ring << left | ring >> (width - left)) & ring_mask;
            (turned as u64 & mask(size), turned >> bits != 0)
        }
    };
    let overflow = match op {
        Op::Rol | Op::Rcl => carry != top(value),
        _ => top(value) != top(value << 1),
    };
    (value, flags & !(CF | OF) | when(CF, carry) | when(OF, overflow))
}

/// `count` is 1 to 63; above the operand's width (16-bit operands) the result is undefined.
fn double(op: Op, a: u64, b: u64, count: u32, flags: u64, size: u8) -> (u64, u64) {
    let bits = u32::from(size) * 8;
    let (a128, b128) = (u128::from(a & mask(size)), u128::from(b & mask(size)));
    let (value, carry) = if op == Op::Shld {
        let pair = a128 << bits | b128;
        let last = pair << count.wrapping_sub(1);
        ((last << 1 >> bits) as u64, last >> (2 * bits - 1) & 1 != 0)
    } else {
        let pair = b128 << bits | a128;
        let last = pair >> count.wrapping_sub(1);
        ((last >> 1) as u64, last & 1 != 0)
    };
    let value = value & mask(size);
    let overflow = (a ^ value) & sign(size) != 0;
    (value, flags & !ARITH | when(CF, carry) | when(OF, overflow) | szp(value, size))
}
