//! A VM goes from one engine to the next (docs/decisions/0033, 0034).
//!
//! In three steps, with all vCPUs outside of KVM_RUN ([`Request::HandOver`](host::Request::HandOver) brings them there) and
//! nobody calling into the VM:
//! 1. [`Vm::save`] writes its state. It changes nothing.
//! 2. [`Vm::load`] makes a VM of that in the new engine. What belongs to the base it gets as further handles ([`Base`]). All that
//!    can fail is in here; if it does, what was made is dropped and the old VM goes on.
//! 3. [`Vm::succeed`] takes over what cannot be in two places: nested tables, bitmaps, FPU state, timers. It cannot fail. Then the
//!    old VM is dropped, and each KVM_RUN is called again.
//!
//! [`state`]: the section of a VM; [`vcpu`]: those of its vCPUs.

mod state;
mod vcpu;

use crate::Vm;
use crate::chips::Resampler;
use crate::coalesced::Coalesced;
use crate::ioeventfd::IoEventSpec;
use ::state::{Refused, Sections, Writer};
use alloc::vec::Vec;
use core::mem;
use host::{Host, OneBox};
use mmu::{Mmu, Space};

/// Bytes of the sections of a VM, and of each vCPU, nearly always.
const ROOM: (usize, usize) = (4096, 16384);

/// What the machine below keeps for a VM, whatever engine has it: each call gives another handle to the same. None: there is no
/// such thing.
pub trait Base<H: Host> {
    /// The ring of coalesced writes.
    fn ring(&self) -> H::SharedPage;
    /// Thread and pages of the vCPU that was made as number `index`.
    fn vcpu(&self, index: usize) -> Option<(H::Thread, [H::SharedPage; 2])>;
    /// How many eventfds there are that guests write to, and that are told of the end of interrupts.
    fn eventfds(&self) -> (usize, usize);
}

impl<H: Host> Base<H> for Vm<H> {
    fn ring(&self) -> H::SharedPage {
        self.coalesced.page.clone()
    }
    fn vcpu(&self, index: usize) -> Option<(H::Thread, [H::SharedPage; 2])> {
        self.vcpu(index).map(|v| (v.thread.clone(), v.pages.clone()))
    }
    fn eventfds(&self) -> (usize, usize) {
        let ioevents = self.ioevents.read().specs().len();
        (ioevents, self.resamplers.read().len())
    }
}

/// What is known of eventfds that are still the old engine's.
#[derive(Default)]
pub(crate) struct Waiting {
    ioevents: Vec<IoEventSpec>,
    /// GSIs.
    resamplers: Vec<u32>,
}

impl<H: Host> Vm<H> {
    /// Why this VM cannot be handed over yet, if it cannot.
    fn cannot_move(&self) -> Option<&'static str> {
        if self.partition.is_used() || self.vcpus().any(|v| v.hyperv.get().is_some()) {
            return Some("the state of a Hyper-V guest is not handed over yet");
        }
        if self.vcpus().any(|v| v.dirty_ring.is_some()) {
            return Some("dirty rings are not handed over yet");
        }
        None
    }

    /// Writes the state. Errors: no memory; the VM has something that is not handed over. Nothing has changed, whatever comes
    /// of it.
    pub fn save(&self) -> Result<Vec<u8>, Refused> {
        if let Some(why) = self.cannot_move() {
            return Err(Refused::cannot(why));
        }
        let (vm, vcpu) = ROOM;
        let mut w = Writer::new(vm.saturating_add(vcpu.saturating_mul(self.vcpus().count())));
        self.mmu.save_state(&mut w);
        self.save_vm(&mut w);
        self.save_chips(&mut w);
        self.vcpus().for_each(|v| v.save(&mut w));
        Ok(w.finish()?)
    }

    /// A VM with that state, but for what [`succeed`](Self::succeed) takes over. Errors: no memory, what this engine does not
    /// know, what cannot be.
    pub fn load(host: H, bytes: &[u8], base: &impl Base<H>) -> Result<OneBox<Self>, Refused> {
        let mut s = Sections::new(bytes)?;
        let mmu = Mmu::load_state(host.clone(), &mut s)?;
        let mut vm = Self::with(host, mmu, Coalesced::new(base.ring())).map_err(|_| Refused::NO_MEMORY)?;
        let vcpus = vm.load_vm(&mut s, base)?;
        vm.load_chips(&mut s)?;
        for index in 0..vcpus {
            vm.load_vcpu(&mut s, index, base)?;
        }
        vm.rebuild_apics();
        vm.recount_lint0();
        s.end()?;
        Ok(vm)
    }

    /// The last step: this VM takes the place of `old`, of whose state it was made, and which nobody uses any more. (Who has told
    /// the host's timers where the VM is tells them again.)
    ///
    /// **Memory safety hangs on the caller**: see [`Mmu::succeed`].
    pub fn succeed(&mut self, old: &mut Self) {
        mem::swap(&mut self.hrtimers, &mut old.hrtimers);
        self.mmu.succeed(&mut old.mmu);
        let Waiting { ioevents, resamplers } = mem::take(&mut self.waiting);
        self.ioevents.get_mut().succeed(&ioevents, old.ioevents.get_mut());
        let mine = self.resamplers.get_mut();
        for (gsi, was) in resamplers.into_iter().zip(mem::take(old.resamplers.get_mut())) {
            if mine.len() < mine.capacity() {
                mine.push(Resampler { gsi, event: was.event });
            }
        }
        let roots = Space::ALL.map(|space| self.mmu.root(space));
        for (new, old) in self.vcpus().zip(old.vcpus()) {
            new.succeed(old, roots);
        }
    }
}
