//! Arithmetic and logic with flags, and the compare-and-exchange family.

use super::{Halt, Res, Step};
use crate::flags::{self, ARITH, CF, ZF, mask, sext};
use crate::insn::{Op, Operand};
use crate::machine::{Access, Exception, Machine};

impl<M: Machine> Step<'_, M> {
    /// ADD, OR, ADC, SBB, AND, SUB, XOR.
    pub(super) fn alu(&mut self) -> Res {
        let (op, size, flags, b) = (self.insn.op, self.size(0), self.flags, self.read(1)?);
        self.flags = self.modify(false, |a| flags::alu(op, a, b, flags, size))?;
        Ok(())
    }

    /// CMP and TEST.
    pub(super) fn compare(&mut self) -> Res {
        let (a, b) = (self.read(0)?, self.read(1)?);
        (_, self.flags) = flags::alu(self.insn.op, a, b, self.flags, self.size(0));
        Ok(())
    }

    /// INC and DEC: like ADD and SUB of 1 but CF stays.
    pub(super) fn inc_dec(&mut self) -> Res {
        let op = if self.insn.op == Op::Inc { Op::Add } else { Op::Sub };
        let (size, flags) = (self.size(0), self.flags);
        let new = self.modify(false, |a| flags::alu(op, a, 1, flags, size))?;
        self.flags = new & !CF | flags & CF;
        Ok(())
    }

    /// NOT (no flags) and NEG.
    pub(super) fn not_neg(&mut self) -> Res {
        let (op, size, flags) = (self.insn.op, self.size(0), self.flags);
        self.flags = self.modify(false, |a| match op {
            Op::Not => (!a, flags),
            _ => flags::alu(Op::Sub, 0, a, flags, size),
        })?;
        Ok(())
    }

    /// CMPXCHG. Memory is written in either case, as on hardware; of registers only the one that changes.
    pub(super) fn cmpxchg(&mut self) -> Res {
        let (size, flags, source) = (self.size(0), self.flags, self.read(1)?);
        let accumulator = self.reg(0, size);
        let compare = |old| {
            let (_, new_flags) = flags::alu(Op::Cmp, accumulator, old, flags, size);
            (new_flags & ZF != 0, new_flags)
        };
        let (old, (equal, new_flags)) = if let Operand::Mem { .. } = self.operand(0) {
            self.modify(false, |old| {
                let result = compare(old);
                (if result.0 { source } else { old }, (old, result))
            })?
        } else {
            let old = self.read(0)?;
            let result = compare(old);
            if result.0 {
                self.set_register(self.operand(0), source)?;
            }
            (old, result)
        };
        self.flags = new_flags;
        if !equal {
            self.set_reg(0, size, old);
        }
        Ok(())
    }

    /// CMPXCHG8B and CMPXCHG16B.
    pub(super) fn cmpxchg_wide(&mut self) -> Res {
        let size = self.size(0);
        let half = size / 2;
        let linear = self.address(0, size, true)?;
        if size == 16 && linear & 15 != 0 {
            return Err(Exception::gp(0).into());
        }
        let mut bytes = [0; 16];
        if let Some(part) = bytes.get_mut(..size.into()) {
            self.m.read(linear, part, Access::Modify)?;
        }
        let old = u128::from_le_bytes(bytes);
        let shift = u32::from(half) * 8;
        let pair = |high: u64, low: u64| u128::from(high) << shift | u128::from(low);
        let expected = pair(self.reg(2, half), self.reg(0, half));
        let equal = old == expected;
        let new = if equal { pair(self.reg(1, half), self.reg(3, half)) } else { old };
        if self.insn.lock {
            if self.m.cmpxchg(linear, size, old, new, Access::Data)? != old {
                return Err(Halt::LostRace);
            }
        } else if let Some(part) = new.to_le_bytes().get(..size.into()) {
            self.m.write(linear, part, Access::Data)?;
        }
        self.flags &= !ZF;
        if equal {
            self.flags |= ZF;
        } else {
            self.set_reg(0, half, old as u64);
            self.set_reg(2, half, (old >> shift) as u64);
        }
        Ok(())
    }

    /// XADD: the destination's old value goes to the source register.
    pub(super) fn xadd(&mut self) -> Res {
        let (size, flags, b) = (self.size(0), self.flags, self.read(1)?);
        let (old, new_flags) = self.modify(false, |a| {
            let (sum, new_flags) = flags::alu(Op::Add, a, b, flags, size);
            (sum, (a, new_flags))
        })?;
        // With both operands the same register the sum stays.
        if self.operand(0) != self.operand(1) {
            self.set_register(self.operand(1), old)?;
        }
        self.flags = new_flags;
        Ok(())
    }

    /// CBW, CWDE, CDQE: sign-extend the accumulator from half the operand size.
    pub(super) fn cbw(&mut self) -> Res {
        let size = self.insn.opsize;
        let value = sext(self.m.gpr(0), size / 2);
        self.set_reg(0, size, value);
        Ok(())
    }

    /// CWD, CDQ, CQO: the accumulator's sign into rDX.
    pub(super) fn cwd(&mut self) -> Res {
        let size = self.insn.opsize;
        let value = if sext(self.m.gpr(0), size) >> 63 != 0 { mask(size) } else { 0 };
        self.set_reg(2, size, value);
        Ok(())
    }

    /// LAHF, SAHF and the instructions that change one flag.
    pub(super) fn flag_op(&mut self) -> Res {
        use crate::flags::{DF, FIXED, OF};
        match self.insn.op {
            Op::Lahf => {
                let low = self.flags & (ARITH & !OF) | FIXED;
                let rest = self.m.gpr(0) & !0xff00;
                self.m.set_gpr(0, rest | low << 8);
            }
            Op::Sahf => {
                let low = ARITH & !OF;
                self.flags = self.flags & !low | (self.m.gpr(0) >> 8) & low;
            }
            Op::Clc => self.flags &= !CF,
            Op::Stc => self.flags |= CF,
            Op::Cmc => self.flags ^= CF,
            Op::Cld => self.flags &= !DF,
            _ => self.flags |= DF,
        }
        Ok(())
    }
}
