//! Near transfers of control.

use super::{Res, Step};
use crate::address::canonical;
use crate::flags::{ZF, condition, mask};
use crate::insn::{Op, Operand, Seg};
use crate::machine::{Exception, Machine};

const RCX: u8 = 1;

impl<M: Machine> Step<'_, M> {
    /// Checks a branch target (#GP(0) outside the code segment or not canonical), truncated to the operand size.
    pub(super) fn target(&self, rip: u64) -> Res<u64> {
        let rip = rip & mask(self.insn.opsize);
        let good =
            if self.insn.mode.is_long() { canonical(self.m, rip) } else { rip <= self.m.segment(Seg::Cs).limit.into() };
        if good { Ok(rip) } else { Err(Exception::gp(0).into()) }
    }

    /// The target of JMP or CALL: relative to the next instruction, or absolute from register or memory.
    fn branch_target(&mut self) -> Res<u64> {
        let rip = match self.operand(0) {
            Operand::Imm => self.next.wrapping_add(self.insn.imm),
            _ => self.read(0)?,
        };
        self.target(rip)
    }

    pub(super) fn jmp(&mut self) -> Res {
        self.next = self.branch_target()?;
        Ok(())
    }

    pub(super) fn call(&mut self) -> Res {
        let target = self.branch_target()?;
        self.push(self.next, self.insn.opsize)?;
        self.next = target;
        Ok(())
    }

    pub(super) fn jcc(&mut self) -> Res {
        if condition(self.insn.cond, self.flags) { self.jmp() } else { Ok(()) }
    }

    /// LOOP, LOOPE, LOOPNE count rCX of the address size down; JCXZ only looks at it.
    pub(super) fn loop_cc(&mut self) -> Res {
        let size = self.insn.addrsize;
        let zero = self.flags & ZF != 0;
        if self.insn.op == Op::Jcxz {
            return if self.reg(RCX, size) == 0 { self.jmp() } else { Ok(()) };
        }
        let count = self.reg(RCX, size).wrapping_sub(1) & mask(size);
        let taken = count != 0
            && match self.insn.op {
                Op::Loope => zero,
                Op::Loopne => !zero,
                _ => true,
            };
        if taken {
            self.jmp()?;
        }
        self.set_reg(RCX, size, count);
        Ok(())
    }

    /// RET, with `imm` more bytes to release.
    pub(super) fn ret(&mut self) -> Res {
        let size = self.insn.opsize;
        let rip = self.peek_stack(0, size)?;
        self.next = self.target(rip)?;
        self.move_stack(u64::from(size) + self.released());
        Ok(())
    }

    /// Bytes that RET and RETF release beyond the return address.
    pub(super) fn released(&self) -> u64 {
        if self.operand(0) == Operand::Imm { self.insn.imm } else { 0 }
    }
}
