//! A virtual processor goes from one engine to the next (docs/decisions/0034).

use crate::{Platform, Svm, ctx::VcpuCtx, svm::NextEntry};
use ::state::{Reader, Refused, State, Writer};
use host::GuestState;

impl<P: Platform> Svm<P> {
    fn guest_state(&mut self) -> GuestState<'_> {
        // SAFETY: as for `vmcb`; registers and the rest lie elsewhere.
        let vmcb: &mut arch::Vmcb = unsafe { self.vmcb_page().cast().as_mut() };
        GuestState {
            regs: &mut self.ctx.regs,
            save: &mut vmcb.save,
            control: &mut vmcb.control,
            extra: &mut self.extra,
        }
    }

    /// See [`host::Cpu::save_state`].
    pub(crate) fn save_section(&mut self, w: &mut Writer) {
        self.guest_state().save(w);
        let Self {
            machine: _,
            vmcb: _,
            extra: _,
            // Follows from what the run loop sets.
            msrpm: _,
            flags: _,
            // The registers were written; the rest is made anew at each entry.
            ctx: VcpuCtx { regs: _, vmcb01: _, vmcb: _, spec_ctrl: _, faulted: _, stack: _, link: _ },
            // The VMCB moves to another page: nothing of it is cached, and nobody has its state loaded.
            id: _,
            clean: _,
            loaded: _,
            host_debugctl: _,
            host_virt_spec_ctrl: _,
            // KVM_RUN finds out anew.
            broken: _,
            // It takes a new ASID, in whose name nothing is cached: no number that was read can stand for another guest's.
            asid_generation: _,
            // Said when something goes wrong.
            last_cpu,
            flush,
            next_entry,
            // Said before each entry that is told.
            vcpu: _,
        } = self;
        last_cpu.save(w);
        flush.save(w);
        next_entry.has(NextEntry::EXITS_AT_ONCE).save(w);
    }

    /// See [`host::Cpu::load_state`].
    pub(crate) fn load_section(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        self.guest_state().load(r)?;
        self.last_cpu.load(r)?;
        self.flush.load(r)?;
        // Who wants to be told of entries says so before each.
        let mut exits_at_once = false;
        exits_at_once.load(r)?;
        if exits_at_once {
            self.next_entry.add(NextEntry::EXITS_AT_ONCE);
        }
        Ok(())
    }
}
