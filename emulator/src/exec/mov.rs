//! Data moves between general registers, memory and immediates.

use super::{Res, Step};
use crate::address;
use crate::flags::{condition, mask, sext};
use crate::insn::{Operand, Seg};
use crate::machine::{Access, Machine};

impl<M: Machine> Step<'_, M> {
    /// MOV, MOVZX, MOVNTI: values are zero-extended when read.
    pub(super) fn mov(&mut self) -> Res {
        let value = self.read(1)?;
        self.write(0, value)
    }

    /// MOVSX, MOVSXD.
    pub(super) fn movsx(&mut self) -> Res {
        let value = sext(self.read(1)?, self.size(1));
        self.write(0, value)
    }

    /// MOVBE.
    pub(super) fn movbe(&mut self) -> Res {
        let value = swap(self.read(1)?, self.insn.opsize);
        self.write(0, value)
    }

    /// BSWAP; with 16-bit operands the result is undefined (here, as on current CPUs, 0).
    pub(super) fn bswap(&mut self) -> Res {
        let value = if self.insn.opsize == 2 { 0 } else { swap(self.read(0)?, self.insn.opsize) };
        self.write(0, value)
    }

    /// LEA: the offset, no access.
    pub(super) fn lea(&mut self) -> Res {
        let value = address::effective(self.m, self.insn, 0);
        self.write(0, value)
    }

    /// XCHG; with memory always atomic.
    pub(super) fn xchg(&mut self) -> Res {
        let new = self.read(1)?;
        let old = self.modify(true, |old| (new, old))?;
        self.set_register(self.operand(1), old)
    }

    /// CMOVcc: the source is read, and a 32-bit destination zero-extended, in either case.
    pub(super) fn cmov(&mut self) -> Res {
        let source = self.read(1)?;
        let value = if condition(self.insn.cond, self.flags) { source } else { self.read(0)? };
        self.write(0, value)
    }

    /// SETcc.
    pub(super) fn setcc(&mut self) -> Res {
        self.write(0, condition(self.insn.cond, self.flags).into())
    }

    /// XLAT: AL from the table at rBX.
    pub(super) fn xlat(&mut self) -> Res {
        let offset = self.m.gpr(3).wrapping_add(self.reg(0, 1)) & mask(self.insn.addrsize);
        let linear = self.linear(self.insn.segment, offset, 1, false)?;
        let value = self.load(linear, 1, Access::Data)?;
        self.set_reg(0, 1, value);
        Ok(())
    }

    /// MOV to a segment register.
    pub(super) fn mov_seg(&mut self) -> Res {
        let Operand::Seg(seg) = self.operand(0) else { return super::unhandled() };
        let selector = self.read(1)? as u16;
        self.load_segment(seg, selector)
    }

    /// LES, LDS, LSS, LFS, LGS.
    pub(super) fn load_far_pointer(&mut self) -> Res {
        let (offset, selector) = self.read_far_pointer()?;
        let Operand::Seg(seg) = self.operand(2) else { return super::unhandled() };
        self.load_segment(seg, selector)?;
        // LSS leaves no interrupt shadow.
        self.done.shadow = None;
        self.set_register(self.operand(0), offset)
    }

    /// A far pointer in memory: offset of the operand size, then the selector.
    pub(super) fn read_far_pointer(&mut self) -> Res<(u64, u16)> {
        let size = self.insn.opsize;
        let linear = self.address(0, size.wrapping_add(2), false)?;
        let mut bytes = [0; 10];
        if let Some(part) = bytes.get_mut(..usize::from(size) + 2) {
            self.m.read(linear, part, Access::Data)?;
        }
        let whole = bytes.iter().rev().fold(0_u128, |v, b| v << 8 | u128::from(*b));
        Ok((whole as u64 & mask(size), (whole >> (u32::from(size) * 8)) as u16))
    }

    /// Is the stack segment's shadow due after loading `seg`?
    pub(super) fn shadow_after(&mut self, seg: Seg) {
        if seg == Seg::Ss {
            self.done.shadow = Some(super::Shadow::MovSs);
        }
    }
}

/// Reverses the low `size` bytes.
fn swap(value: u64, size: u8) -> u64 {
    match size {
        2 => (value as u16).swap_bytes().into(),
        4 => (value as u32).swap_bytes().into(),
        _ => value.swap_bytes(),
    }
}
