//! Loads and stores of devices by a plain MOV: most of what drivers do there, and so without the whole emulator.
//!
//! The exit says what emulation would find out: the processor has checked the access, segment and guest tables included,
//! and EXITINFO2 is where it led (docs/decisions/0013). What is left is to move the bytes. Anything unusual is not done here.

use crate::Ctx;
use crate::mmio::{Faulted, Wanted};
use crate::run::Next;
use crate::user::{Pending, UserExit};
use arch::cr::Rflags;
use emulator::{Insn, Mode, Op, Operand, Stop};
use host::{Cpu, Host};

/// A load whose value user space is asked for.
#[derive(Clone, Copy)]
pub struct Load {
    rip: u64,
    linear: u64,
    /// Number and size of the register that it goes to.
    gpr: u8,
    size: u8,
    /// Bytes of the value.
    len: u8,
}

::state::state! {
    value Load { rip, linear, gpr, size, len }
}

impl<H: Host> Ctx<'_, H> {
    /// Carries out `insn`, the instruction at RIP that has just `faulted`. None: nothing was done.
    #[inline]
    pub(crate) fn plain_move(&mut self, insn: &Insn, faulted: Faulted) -> Option<Next> {
        if !matches!(insn.op, Op::Mov | Op::Movzx | Op::Movnti) || insn.mode != Mode::Long64 || self.single_steps() {
            return None;
        }
        let (at, [a, b, _]) = (faulted.gpa(), insn.operands);
        let ((Operand::Mem { size: len }, _) | (_, Operand::Mem { size: len })) = (a, b) else { return None };
        let linear = emulator::checked_address(self, insn);
        // An access to two pages faults on either; the local APIC has more to do.
        if (at ^ linear) & 0xfff != 0 || (at & 0xfff) + u64::from(len) > 0x1000 || self.is_apic(at) {
            return None;
        }
        match (a, b) {
            (Operand::Gpr { index, size }, _) if !faulted.is_write() => {
                let load = Load { rip: self.core.cpu.save().rip, linear, gpr: index, size, len };
                let mut data = [0; 8];
                if self.device_read(at, data.get_mut(..len.into())?) {
                    return Some(self.finish_load(insn, load, data));
                }
                let t = &mut self.core.mmio_fragments;
                (t.insn, t.load, t.faulted) = (Some(*insn), Some(load), Some(faulted.at(linear)));
                t.wanted = Some(Wanted::Mmio { gpa: at, len });
                Some(self.stopped(Stop::NeedUser))
            }
            (_, Operand::Gpr { index, .. }) if faulted.is_write() => {
                let value = self.core.cpu.gpr(index);
                Some(self.plain_store(insn, at, len, value))
            }
            (_, Operand::Imm) if faulted.is_write() => Some(self.plain_store(insn, at, len, insn.imm)),
            _ => None,
        }
    }

    fn plain_store(&mut self, insn: &Insn, gpa: u64, len: u8, value: u64) -> Next {
        let kept = u64::MAX >> (64 - 8 * u32::from(len.clamp(1, 8)));
        let data = (value & kept).to_le_bytes();
        let done = self.device_write(gpa, data.get(..len.into()).unwrap_or(&data));
        let next = self.retire(insn);
        if done {
            return next;
        }
        self.me.stats.mmio_exits.count();
        self.core.pending = Pending::MmioWrite;
        Next::User(UserExit::Mmio { gpa, data, len, write: true })
    }

    /// User space has answered `load`. None: it has changed registers, so that this is another access now.
    pub(crate) fn answered_load(&mut self, load: Load, data: [u8; 8]) -> Option<Next> {
        let insn = self.core.mmio_fragments.insn.filter(|_| load.rip == self.core.cpu.save().rip)?;
        if emulator::checked_address(self, &insn) != load.linear || self.single_steps() {
            return None;
        }
        self.core.mmio_fragments.clear();
        Some(self.finish_load(&insn, load, data))
    }

    fn finish_load(&mut self, insn: &Insn, load: Load, data: [u8; 8]) -> Next {
        let low = |bytes: u8| u64::MAX >> (64 - 8 * u32::from(bytes.clamp(1, 8)));
        let value = u64::from_le_bytes(data) & low(load.len);
        // Four bytes clear the upper half, fewer keep the rest.
        let rest = if load.size >= 4 { 0 } else { self.core.cpu.gpr(load.gpr) & !low(load.size) };
        self.core.cpu.set_gpr(load.gpr, rest | value);
        self.retire(insn)
    }

    fn retire(&mut self, insn: &Insn) -> Next {
        let next = insn.next_rip(self.core.cpu.save().rip);
        self.advance(next)
    }

    fn single_steps(&self) -> bool {
        self.core.cpu.save().rflags & Rflags::TF.bits() != 0
    }
}
