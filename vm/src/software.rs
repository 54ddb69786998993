//! Events that come from an instruction: INTn, INT3 and INTO (KVM's `soft_int`). Their handlers return behind it.

use crate::Ctx;
use crate::inject::Injection;
use crate::run::Next;
use crate::vcpu::Core;
use arch::CleanBits;
use arch::event::vector;
use emulator::Op;
use host::{Cpu, Host};

/// The origin of an event that is to be injected and comes from an instruction. Its handler returns behind that, so the
/// processor has to be told where: by VMCB.nRIP, or by moving RIP there for as long as the delivery takes (APM 15.20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Software {
    /// Base of CS, with which RIP is compared: user space may have put the guest elsewhere.
    pub cs_base: u64,
    /// Where the instruction is.
    pub rip: u64,
    /// Where the next one is.
    pub next_rip: u64,
    /// RIP was moved there for this entry.
    pub moved: bool,
}

::state::state! {
    value Software { cs_base, rip, next_rip, moved }
}

/// Does the exception come from an instruction (#BP, #OF)? Its handler returns behind that.
pub(crate) fn is_software(vector: u8) -> bool {
    matches!(vector, vector::BP | vector::OF)
}

impl Injection {
    /// The vector of the event that comes from an instruction, if it is one that goes first.
    pub(crate) fn software_vector(&self) -> Option<u8> {
        match (self.exception, self.interrupt) {
            (Some(e), _) => Some(e.vector).filter(|v| is_software(*v)),
            (None, Some(i)) if !self.nmi_injected => Some(i.vector).filter(|_| i.soft),
            _ => None,
        }
    }

    /// There is no such instruction: the event is dropped, and the guest does whatever is there.
    pub(crate) fn drop_software(&mut self) {
        if self.exception.take().is_none() {
            self.interrupt = None;
        }
    }
}

impl<H: Host> Core<H> {
    /// Tells the processor where the handler of an event that comes from an instruction returns. Where NRIPS is not used the
    /// processor may have it all the same (the parameter `nrips`): then it pushes VMCB.nRIP, otherwise RIP.
    pub(crate) fn set_return_address(&mut self) {
        let Some(software) = &mut self.inject.software else { return };
        self.cpu.set_next_rip(software.next_rip);
        if !self.features.nrips {
            software.moved = true;
            self.cpu.save_mut(CleanBits::empty()).rip = software.next_rip;
        }
    }

    /// The entry is over, or did not come about: RIP is where the instruction is, unless its event was delivered.
    pub(crate) fn take_back_rip(&mut self, delivered: bool) {
        let Some(software) = &mut self.inject.software else { return };
        let moved = core::mem::take(&mut software.moved);
        if moved {
            // A processor without NRIPS leaves it there, where it would be taken for what it says of the exit.
            self.cpu.set_next_rip(0);
        }
        let save = self.cpu.save_mut(CleanBits::empty());
        // The handler of another exception, whose delivery was cut short, has to return to the instruction as well.
        if moved && !delivered && (save.rip, save.cs.base) == (software.next_rip, software.cs_base) {
            save.rip = software.rip;
        }
    }
}

impl<H: Host> Ctx<'_, H> {
    /// User space may have queued the event of an instruction (KVM_GUESTDBG_INJECT_BP, KVM_SET_VCPU_EVENTS) without saying
    /// how long that is: RIP has to be at it. If it is not there is no such event, and the guest goes on where it is.
    /// Err: the instruction cannot be read now, and KVM_RUN ends; the event is kept.
    #[cold]
    pub(crate) fn find_software_event(&mut self) -> Result<(), Next> {
        let Some(v) = self.core.inject.software_vector() else { return Ok(()) };
        let (rip, cs_base) = (self.core.cpu.save().rip, self.core.cpu.save().cs.base);
        if self.core.inject.software.is_some_and(|s| (s.rip, s.cs_base) == (rip, cs_base)) {
            return Ok(());
        }
        self.core.host_stop = None;
        let fetched = emulator::fetch(self, &[]).ok();
        match self.core.host_stop.take() {
            // SIGBUS is pending, and ends KVM_RUN before the guest is entered.
            Some(Next::Resume) => return Ok(()),
            Some(next) => return Err(next),
            None => {}
        }
        let insn = fetched.filter(|i| match i.op {
            Op::Int3 => v == vector::BP,
            Op::Into => v == vector::OF,
            Op::Int => i.imm as u8 == v,
            _ => false,
        });
        self.core.inject.software = insn.map(|i| Software { cs_base, rip, next_rip: i.next_rip(rip), moved: false });
        if self.core.inject.software.is_none() {
            self.core.inject.drop_software();
        }
        Ok(())
    }
}
