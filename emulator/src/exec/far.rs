//! Far transfers: to any segment in real and virtual-8086 mode, to code of the same privilege in protected mode.
//! Gates, task switches and changes of privilege are not implemented.

use super::{Res, Step, unhandled};
use crate::flags::{AC, ARITH, DF, ID, IF, IOPL, NT, RF, TF, mask};
use crate::insn::{Mode, Op, Operand, Seg};
use crate::machine::{Exception, Machine, Segment};

const EFER_LMA: u64 = 1 << 10;

impl<M: Machine> Step<'_, M> {
    /// JMP FAR and CALL FAR, pointer in the instruction or in memory.
    pub(super) fn jump_far(&mut self) -> Res {
        let size = self.insn.opsize;
        let (offset, selector) = match self.operand(0) {
            Operand::Imm => (self.insn.imm & mask(4), (self.insn.imm >> 32) as u16),
            _ => self.read_far_pointer()?,
        };
        let cs = self.code_segment(selector, false)?;
        let rip = self.far_target(&cs, offset)?;
        if self.insn.op == Op::CallFar {
            let old = u64::from(self.m.segment(Seg::Cs).selector);
            self.write_stack(&[self.next & mask(size), old], size)?;
            self.move_stack((2 * u64::from(size)).wrapping_neg());
        }
        self.m.set_segment(Seg::Cs, cs);
        self.next = rip;
        Ok(())
    }

    /// RETF.
    pub(super) fn ret_far(&mut self) -> Res {
        let size = self.insn.opsize;
        let rip = self.peek_stack(0, size)?;
        let selector = self.peek_stack(1, size)? as u16;
        let cs = self.code_segment(selector, true)?;
        self.next = self.far_target(&cs, rip)?;
        self.m.set_segment(Seg::Cs, cs);
        self.move_stack(2 * u64::from(size) + self.released());
        Ok(())
    }

    /// IRET in real and virtual-8086 mode.
    pub(super) fn iret(&mut self) -> Res {
        if !self.insn.mode.is_realish() {
            return unhandled();
        }
        self.require_iopl3_in_v86()?;
        let size = self.insn.opsize;
        let rip = self.peek_stack(0, size)?;
        let selector = self.peek_stack(1, size)? as u16;
        let flags = self.peek_stack(2, size)?;
        let cs = self.code_segment(selector, true)?;
        self.next = self.far_target(&cs, rip)?;
        self.m.set_segment(Seg::Cs, cs);
        self.move_stack(3 * u64::from(size));
        let mut writable = ARITH | TF | IF | DF | NT | RF | AC | ID;
        if self.insn.mode == Mode::Real {
            writable |= IOPL;
        }
        writable &= mask(size);
        self.flags = self.flags & !(writable | RF) | flags & writable;
        Ok(())
    }

    /// The new CS for `selector`, checked (APM vol. 2, 4.11): code of the current privilege.
    fn code_segment(&mut self, selector: u16, ret: bool) -> Res<Segment> {
        match self.insn.mode {
            Mode::Real => return Ok(self.real_segment(Seg::Cs, selector)),
            Mode::V86 => {
                let base = u64::from(selector) << 4;
                return Ok(Segment { selector, base, ..self.m.segment(Seg::Cs) });
            }
            _ => {}
        }
        if selector & !3 == 0 {
            return Err(Exception::gp(0).into());
        }
        let error = u32::from(selector & !3);
        let (cpl, rpl) = (self.m.cpl(), (selector & 3) as u8);
        let descriptor = self.read_descriptor(selector)?;
        if !descriptor.is_user() || ret && rpl > cpl {
            // A gate or a task, or a return to an outer level.
            return unhandled();
        }
        let s = descriptor.segment(selector);
        let conforming = s.attr & 4 != 0;
        let privilege = match (conforming, ret) {
            (true, false) => s.dpl() <= cpl,
            (true, true) => rpl == cpl && s.dpl() <= rpl,
            (false, false) => rpl <= cpl && s.dpl() == cpl,
            (false, true) => rpl == cpl && s.dpl() == rpl,
        };
        let long = self.m.efer() & EFER_LMA != 0;
        if !s.code() || !privilege || long && s.long() && s.big() {
            return Err(Exception::gp(error).into());
        }
        if !s.present() {
            return Err(Exception::np(error).into());
        }
        self.mark_accessed(descriptor)?;
        Ok(Segment { selector: selector & !3 | u16::from(cpl), attr: s.attr | 1, ..s })
    }

    /// Checks `offset` against the new code segment.
    fn far_target(&self, cs: &Segment, offset: u64) -> Res<u64> {
        let rip = offset & mask(self.insn.opsize);
        let long = self.m.efer() & EFER_LMA != 0 && cs.long() && !self.insn.mode.is_realish();
        let good = if long { crate::address::canonical(self.m, rip) } else { rip <= cs.limit.into() };
        if good { Ok(rip) } else { Err(Exception::gp(0).into()) }
    }
}
