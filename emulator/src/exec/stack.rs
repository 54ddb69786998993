//! Instructions that push and pop. What an instruction pushes goes to memory in one write, lowest address first.

use super::{Res, Step};
use crate::flags::{AC, ARITH, DF, ID, IF, IOPL, NT, RF, TF, VIF, VIP, VM, mask};
use crate::insn::Seg;
use crate::insn::{Mode, Operand};
use crate::machine::{Access, Exception, Machine};

const RSP: u8 = 4;
const RBP: u8 = 5;

impl<M: Machine> Step<'_, M> {
    /// Bytes of the stack pointer that are in use.
    pub(super) fn stack_size(&self) -> u8 {
        match self.insn.mode {
            Mode::Long64 => 8,
            _ if self.m.segment(Seg::Ss).big() => 4,
            _ => 2,
        }
    }

    /// Offset of the stack's top, `below` bytes down (wrapping).
    fn stack_offset(&self, below: u64) -> u64 {
        self.m.gpr(RSP).wrapping_sub(below) & mask(self.stack_size())
    }

    /// Moves the stack pointer up by `bytes` (down by a wrapped negative number).
    pub(super) fn move_stack(&mut self, bytes: u64) {
        let new = self.m.gpr(RSP).wrapping_add(bytes);
        self.set_reg(RSP, self.stack_size(), new);
    }

    /// Writes up to 32 `values`, the first at the lowest address, below the stack pointer, which stays. `size` bytes each.
    pub(super) fn write_stack(&mut self, values: &[u64], size: u8) -> Res {
        let mut bytes = [0_u8; 256];
        let mut len = 0_usize;
        for value in values {
            for byte in value.to_le_bytes().iter().take(size.into()) {
                let Some(place) = bytes.get_mut(len) else { return super::unhandled() };
                *place = *byte;
                len += 1;
            }
        }
        let linear = self.stack_address(len as u64, len as u64, size, true)?;
        if let Some(part) = bytes.get(..len) {
            self.m.write(linear, part, Access::Data)?;
        }
        Ok(())
    }

    /// Linear address of `len` bytes of stack, `below` bytes under the stack pointer; aligned as items of `size`.
    fn stack_address(&self, below: u64, len: u64, size: u8, write: bool) -> Res<u64> {
        let offset = self.stack_offset(below);
        self.linear(Seg::Ss, offset, size.into(), write)?;
        self.linear(Seg::Ss, offset, len, write)
    }

    /// Pushes one value.
    pub(super) fn push(&mut self, value: u64, size: u8) -> Res {
        let linear = self.stack_address(size.into(), size.into(), size, true)?;
        self.store(linear, size, value)?;
        self.move_stack(u64::from(size).wrapping_neg());
        Ok(())
    }

    /// The `n`th item (0 is the top) of the stack; the stack pointer stays.
    pub(super) fn peek_stack(&mut self, n: u64, size: u8) -> Res<u64> {
        let below = (n * u64::from(size)).wrapping_neg();
        let linear = self.stack_address(below, size.into(), size, false)?;
        self.load(linear, size, Access::Data)
    }

    /// PUSH.
    pub(super) fn push_op(&mut self) -> Res {
        let value = self.read(0)?;
        self.push(value, self.insn.opsize)
    }

    /// POP to a register, a segment register or memory.
    pub(super) fn pop_op(&mut self) -> Res {
        let size = self.insn.opsize;
        let value = self.peek_stack(0, size)?;
        match self.operand(0) {
            Operand::Seg(seg) => {
                self.load_segment(seg, value as u16)?;
                self.move_stack(size.into());
            }
            Operand::Mem { .. } => {
                // An address based on rSP uses its new value.
                let extra = if self.insn.mem.base == Some(RSP) { size.into() } else { 0 };
                let linear = self.address(extra, size, true)?;
                self.store(linear, size, value)?;
                self.move_stack(size.into());
            }
            register => {
                self.move_stack(size.into());
                self.set_register(register, value)?;
            }
        }
        Ok(())
    }

    /// PUSHF; in virtual-8086 mode it needs IOPL 3 (virtual interrupts, CR4.VME, are not implemented).
    pub(super) fn pushf(&mut self) -> Res {
        self.require_iopl3_in_v86()?;
        self.push(self.flags & !(VM | RF), self.insn.opsize)
    }

    /// #GP(0) for the flag instructions in virtual-8086 mode with IOPL below 3.
    pub(super) fn require_iopl3_in_v86(&self) -> Res {
        if self.insn.mode == Mode::V86 && self.flags & IOPL != IOPL {
            return Err(Exception::gp(0).into());
        }
        Ok(())
    }

    /// POPF.
    pub(super) fn popf(&mut self) -> Res {
        self.require_iopl3_in_v86()?;
        let size = self.insn.opsize;
        let value = self.peek_stack(0, size)?;
        self.move_stack(size.into());
        self.set_flags(value, size);
        Ok(())
    }

    /// Flags from `value`, as far as operand size, CPL and IOPL allow.
    pub(super) fn set_flags(&mut self, value: u64, size: u8) {
        let cpl = self.m.cpl();
        let mut writable = ARITH | TF | DF | NT | AC | ID;
        if cpl == 0 {
            writable |= IOPL;
        }
        if u64::from(cpl) << 12 <= self.flags & IOPL {
            writable |= IF;
        }
        if cpl == 0 {
            // Not loaded but cleared.
            self.flags &= if size == 2 { u64::MAX } else { !(VIF | VIP) };
        }
        writable &= mask(size);
        self.flags = self.flags & !writable | value & writable;
    }

    /// PUSHA: eight registers, DI lowest; SP as it was.
    pub(super) fn pusha(&mut self) -> Res {
        let size = self.insn.opsize;
        let mut values = [0; 8];
        for (value, index) in values.iter_mut().zip((0..8).rev()) {
            *value = self.m.gpr(index);
        }
        self.write_stack(&values, size)?;
        self.move_stack((8 * u64::from(size)).wrapping_neg());
        Ok(())
    }

    /// POPA: SP on the stack is skipped.
    pub(super) fn popa(&mut self) -> Res {
        let size = self.insn.opsize;
        let mut values = [0; 8];
        for (value, n) in values.iter_mut().zip(0..) {
            *value = self.peek_stack(n, size)?;
        }
        for (value, index) in values.iter().zip((0..8).rev()) {
            if index != RSP {
                self.set_reg(index, size, *value);
            }
        }
        self.move_stack(8 * u64::from(size));
        Ok(())
    }

    /// ENTER: push rBP, copy `level - 1` frame pointers, push the new frame pointer, reserve space.
    pub(super) fn enter(&mut self) -> Res {
        let size = self.insn.opsize;
        let item = u64::from(size);
        let (space, level) = (self.insn.imm & 0xffff, self.insn.imm >> 16 & 31);
        let old_frame = self.m.gpr(RBP);
        let new_frame = self.m.gpr(RSP).wrapping_sub(item);
        // At most 32 items, in the order of their addresses: last pushed first.
        let mut values = [0_u64; 32];
        let count = level as usize + 1;
        let mut places = values.iter_mut().take(count).rev();
        if let Some(place) = places.next() {
            *place = old_frame;
        }
        for (n, place) in (1..).zip(places) {
            *place = if n == level {
                new_frame
            } else {
                let offset = old_frame.wrapping_sub(n * item) & mask(self.stack_size());
                let linear = self.linear(Seg::Ss, offset, item, false)?;
                self.load(linear, size, Access::Data)?
            };
        }
        self.write_stack(values.get(..count).unwrap_or(&[]), size)?;
        self.move_stack((count as u64 * item + space).wrapping_neg());
        self.set_reg(RBP, size, new_frame);
        Ok(())
    }

    /// LEAVE: rSP = rBP, pop rBP.
    pub(super) fn leave(&mut self) -> Res {
        let (size, stack) = (self.insn.opsize, self.stack_size());
        let frame = self.m.gpr(RBP);
        let linear = self.linear(Seg::Ss, frame & mask(stack), size.into(), false)?;
        let value = self.load(linear, size, Access::Data)?;
        self.set_reg(RSP, stack, frame.wrapping_add(size.into()));
        self.set_reg(RBP, size, value);
        Ok(())
    }
}
