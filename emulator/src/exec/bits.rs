//! Bit tests, scans and counts.

use super::{Res, Step};
use crate::flags::{CF, ZF, mask, sext, when};
use crate::insn::{Op, Operand};
use crate::machine::{Access, Machine};

impl<M: Machine> Step<'_, M> {
    /// BT, BTS, BTR, BTC. With a memory operand and a register offset the bit may lie anywhere around the operand.
    pub(super) fn bit_test(&mut self) -> Res {
        let (op, size) = (self.insn.op, self.size(0));
        let offset = self.read(1)?;
        let bits = u64::from(size) * 8;
        let bit = 1_u64 << (offset & (bits - 1));
        let change = |old: u64| match op {
            Op::Bts => (old | bit, old),
            Op::Btr => (old & !bit, old),
            Op::Btc => (old ^ bit, old),
            _ => (old, old),
        };
        let old = match (self.operand(0), self.operand(1)) {
            (Operand::Mem { .. }, register) => {
                let extra = match register {
                    // A signed number of operands.
                    Operand::Gpr { .. } => {
                        ((sext(offset, size) as i64 >> bits.trailing_zeros()) as u64) << size.trailing_zeros()
                    }
                    _ => 0,
                };
                if op == Op::Bt {
                    let linear = self.address(extra, size, false)?;
                    self.load(linear, size, Access::Data)?
                } else {
                    let linear = self.address(extra, size, true)?;
                    self.modify_at(linear, size, false, change)?
                }
            }
            _ if op == Op::Bt => self.read(0)?,
            _ => self.modify(false, change)?,
        };
        self.flags = self.flags & !CF | when(CF, old & bit != 0);
        Ok(())
    }

    /// BSF, BSR: a zero source leaves the destination as it was.
    pub(super) fn bit_scan(&mut self) -> Res {
        let source = self.read(1)?;
        self.flags = self.flags & !ZF | when(ZF, source == 0);
        if source == 0 {
            return Ok(());
        }
        let index = if self.insn.op == Op::Bsf { source.trailing_zeros() } else { source.ilog2() };
        self.write(0, index.into())
    }

    /// TZCNT, LZCNT, POPCNT.
    pub(super) fn bit_count(&mut self) -> Res {
        let (size, source) = (self.size(0), self.read(1)?);
        let bits = u32::from(size) * 8;
        let count = match self.insn.op {
            Op::Tzcnt => (source | !mask(size)).trailing_zeros().min(bits),
            Op::Lzcnt => source.leading_zeros() + bits - 64,
            _ => source.count_ones(),
        };
        self.flags = if self.insn.op == Op::Popcnt {
            self.flags & !crate::flags::ARITH | when(ZF, source == 0)
        } else {
            self.flags & !(CF | ZF) | when(CF, source == 0) | when(ZF, count == 0)
        };
        self.write(0, count.into())
    }
}
