//! Multiplication and division.

use super::{Res, Step};
use crate::flags::{ARITH, CF, OF, mask, sext, sign, szp, when};
use crate::insn::{Op, Operand};
use crate::machine::{Exception, Machine};

impl<M: Machine> Step<'_, M> {
    /// MUL and one-operand IMUL: rDX:rAX (AX for bytes) = rAX * operand.
    pub(super) fn mul(&mut self) -> Res {
        let size = self.size(0);
        let (a, b) = (self.reg(0, size), self.read(0)?);
        let bits = u32::from(size) * 8;
        let (product, fits) = if self.insn.op == Op::Mul {
            let p = u128::from(a) * u128::from(b);
            (p, p >> bits == 0)
        } else {
            let p = signed_product(a, b, size);
            (p as u128, p == i128::from(sext(p as u64, size) as i64))
        };
        self.set_pair(size, product as u64, (product >> bits) as u64);
        self.set_overflow(product as u64, size, !fits);
        Ok(())
    }

    /// Two- and three-operand IMUL.
    pub(super) fn imul2(&mut self) -> Res {
        let size = self.size(0);
        let b = self.read(1)?;
        let a = if self.operand(2) == Operand::Imm { self.insn.imm } else { self.read(0)? };
        let p = signed_product(a, b, size);
        self.write(0, p as u64)?;
        self.set_overflow(p as u64, size, p != i128::from(sext(p as u64, size) as i64));
        Ok(())
    }

    /// CF and OF say that the product does not fit; the others are undefined and follow the low half.
    fn set_overflow(&mut self, low: u64, size: u8, overflow: bool) {
        self.flags = self.flags & !ARITH | when(CF | OF, overflow) | szp(low, size);
    }

    /// DIV and IDIV of rDX:rAX (AX for bytes): quotient to rAX (AL), remainder to rDX (AH).
    pub(super) fn div(&mut self) -> Res {
        let size = self.size(0);
        let divisor = self.read(0)?;
        let (low, high) = if size == 1 {
            (self.reg(0, 1), (self.m.gpr(0) >> 8) & 0xff)
        } else {
            (self.reg(0, size), self.reg(2, size))
        };
        let signed = self.insn.op == Op::Idiv;
        let result = if signed { idiv(high, low, divisor, size) } else { div(high, low, divisor, size) };
        let (quotient, remainder) = result.ok_or(Exception::DE)?;
        self.set_pair(size, quotient, remainder);
        Ok(())
    }

    /// rDX:rAX, or AH:AL for bytes.
    fn set_pair(&mut self, size: u8, low: u64, high: u64) {
        if size == 1 {
            self.set_reg(0, 2, low & 0xff | (high & 0xff) << 8);
        } else {
            self.set_reg(0, size, low);
            self.set_reg(2, size, high);
        }
    }
}

/// The product of two `size`-byte numbers, signed.
fn signed_product(a: u64, b: u64, size: u8) -> i128 {
    i128::from(sext(a, size) as i64) * i128::from(sext(b, size) as i64)
}

/// `high:low / divisor`, quotient and remainder; `None` if the quotient does not fit. Up to 128 by 64 bits, so by
/// shifting and subtracting.
fn div(high: u64, low: u64, divisor: u64, size: u8) -> Option<(u64, u64)> {
    if high >= divisor {
        return None;
    }
    let (mut rest, mut quotient) = (u128::from(high), 0_u64);
    for bit in (0..u32::from(size) * 8).rev() {
        rest = rest << 1 | u128::from(low >> bit & 1);
        quotient <<= 1;
        if rest >= u128::from(divisor) {
            rest = rest.wrapping_sub(divisor.into());
            quotient |= 1;
        }
    }
    Some((quotient, rest as u64))
}

/// Signed division, truncating towards zero; the remainder has the sign of the dividend.
fn idiv(high: u64, low: u64, divisor: u64, size: u8) -> Option<(u64, u64)> {
    let negative = high & sign(size) != 0;
    let divisor_negative = divisor & sign(size) != 0;
    let (mut high, mut low) = (high, low);
    if negative {
        low = low.wrapping_neg() & mask(size);
        high = (!high).wrapping_add((low == 0).into()) & mask(size);
    }
    let divisor = if divisor_negative { divisor.wrapping_neg() & mask(size) } else { divisor };
    let (quotient, remainder) = div(high, low, divisor, size)?;
    let opposite = negative != divisor_negative;
    // The most negative quotient has no positive counterpart.
    if quotient >= sign(size) && !(opposite && quotient == sign(size)) {
        return None;
    }
    let quotient = if opposite { quotient.wrapping_neg() } else { quotient };
    let remainder = if negative { remainder.wrapping_neg() } else { remainder };
    Some((quotient & mask(size), remainder & mask(size)))
}
