//! A VM goes from one engine to the next (docs/decisions/0033, 0034, 0036).
//!
//! In three steps, with all vCPUs outside of KVM_RUN ([`Vm::call_out`] brings them there) and nobody calling into the VM:
//! 1. [`Vm::leave`]: the old engine writes its state, and the numbers of what both have to have ([`host::Lend`]). It changes
//!    nothing.
//! 2. [`Vm::arrive`]: the new engine makes a VM of that. All that can fail is in these two; if it does, what was made is dropped
//!    and the old VM goes on.
//! 3. [`Vm::give`] and [`Vm::take`]: the nested tables go from the one to the other. The kernel does not call either in between.
//!    They cannot fail. Then the old VM is dropped, and each KVM_RUN is called again.
//!
//! The guest waits meanwhile, and perhaps others for the CPU: each step costs as much as there is to hand over, whatever user space has set up,
//! and gives the CPU away in between.
//!
//! [`state`]: the section of a VM; [`vcpu`]: those of its vCPUs.

mod state;
mod vcpu;

use crate::Vm;
use crate::coalesced::Coalesced;
use crate::stats::VmStats;
use ::state::{NoRoom, Sections, Writer};
pub use ::state::{Refused, Why};
use alloc::vec::Vec;
use host::{Errno, Host, Lend, Lent, LentFor, Numbers, OneBox, Request, VcpuThread, in_turns};
use mmu::Mmu;
pub use mmu::handover::{ABSENT, MOVED, Moved, TABLE};

/// Bytes of the sections of a VM, and of each vCPU, nearly always.
const ROOM: (usize, usize) = (4096, 16384);

/// What goes from one engine to the next before the last step.
pub struct Parcel {
    /// The sections.
    pub state: Vec<u8>,
    /// The numbers of what the new engine makes further handles to. They are good as long as the VM lives that they are of.
    pub lent: Vec<u64>,
}

impl<H: Host> Vm<H> {
    /// Asks every vCPU that is in KVM_RUN to leave it, without user space noticing. One that is not does so at its next KVM_RUN.
    /// Task context, and waits for none of them.
    pub fn call_out(&self) {
        for v in in_turns(&self.host, self.vcpus()) {
            v.thread.requests().make_request(Request::HandOver);
            v.thread.wake();
        }
    }

    /// Writes what the VM is made of again. Errors: no memory; somebody uses a vCPU, for whom it does not wait. Nothing has changed, whatever comes of it.
    pub fn leave(&self) -> Result<Parcel, Refused> {
        Ok(Parcel { state: self.save()?, lent: self.lend()? })
    }

    fn save(&self) -> Result<Vec<u8>, Refused> {
        let (vm, vcpu) = ROOM;
        let mut room = vm.saturating_add(vcpu.saturating_mul(self.vcpus().count()));
        loop {
            let mut w = Writer::new(room);
            self.mmu.save_state(&mut w);
            self.save_vm(&mut w);
            self.save_chips(&mut w);
            self.vcpus().try_for_each(|v| {
                self.host.cond_resched();
                v.save(&mut w)
            })?;
            match w.finish() {
                Ok(state) => return Ok(state),
                // Many slots, routes or ioeventfds.
                Err(NoRoom { needs }) if needs > room => room = needs,
                Err(_) => return Err(Refused::NO_MEMORY),
            }
        }
    }

    /// In the order in which [`arrive`](Self::arrive) takes them.
    fn lend(&self) -> Result<Vec<u64>, Refused> {
        let mut lent = Numbers::default();
        let all = self.mmu.lend(&mut lent).and_then(|()| self.lend_vm(&mut lent));
        all.map_err(|_| Refused::NO_MEMORY)?;
        in_turns(&self.host, self.vcpus()).try_for_each(|v| v.lend(&mut lent))?;
        Ok(lent.into_inner())
    }

    fn lend_vm(&self, to: &mut Numbers) -> Result<(), Errno> {
        to.lend(LentFor::CoalescedRing, &self.coalesced.page)?;
        to.lend(LentFor::Devices, &self.hrtimers)?;
        self.ioevents.read().lend(&self.host, to)?;
        in_turns(&self.host, self.resamplers.read().iter()).try_for_each(|r| to.lend(LentFor::Resampler, &r.event))?;
        self.lend_partition(to)
    }

    /// A VM with that state. Nobody may use it before [`take`](Self::take). Errors: no memory, what this engine does not know, what
    /// cannot be.
    ///
    /// **Memory safety hangs on the caller**: `lent` was written by [`leave`](Self::leave) of a VM that lives and that nobody has
    /// used since.
    pub fn arrive(host: H, state: &[u8], lent: &[u64]) -> Result<OneBox<Self>, Refused> {
        let (mut s, mut lent) = (Sections::new(state)?, Lent::new(lent));
        let mmu = Mmu::load_state(host.clone(), &mut s, &mut lent)?;
        let ring = handle(&mut lent, LentFor::CoalescedRing)?;
        let hrtimers = handle(&mut lent, LentFor::Devices)?;
        let mut vm = Self::with(host, mmu, Coalesced::new(ring), hrtimers).map_err(|_| Refused::NO_MEMORY)?;
        let vcpus = vm.load_vm(&mut s, &mut lent)?;
        vm.load_chips(&mut s)?;
        for index in 0..vcpus {
            vm.host.cond_resched();
            vm.load_vcpu(&mut s, index, &mut lent)?;
        }
        vm.rebuild_apics();
        vm.recount_lint0();
        s.end()?;
        if lent.is_over() { Ok(vm) } else { Err(Refused::cannot("more was lent than there is")) }
    }

    /// The old engine's last step: its memory is another VM's from now on, and it is only dropped.
    ///
    /// **Memory safety hangs on the caller**: see [`Mmu::give`].
    pub fn give(&self) -> Moved {
        let VmStats { remote_tlb_flush, remote_tlb_flush_requests, .. } = &self.stats;
        let moved = self.mmu.give();
        Moved {
            remote_tlb_flush: remote_tlb_flush.get(),
            remote_tlb_flush_requests: remote_tlb_flush_requests.get(),
            ..moved
        }
    }

    /// The new engine's last step: from now on this VM runs.
    ///
    /// **Memory safety hangs on the caller**: see [`Mmu::take`].
    pub fn take(&self, moved: &Moved) {
        self.mmu.take(moved);
        self.stats.remote_tlb_flush.become_it(moved.remote_tlb_flush);
        self.stats.remote_tlb_flush_requests.become_it(moved.remote_tlb_flush_requests);
    }
}

/// The next handle of those that were lent, which is for this.
pub(crate) fn handle<T: Lend>(lent: &mut Lent<'_>, what_for: LentFor) -> Result<T, Refused> {
    lent.handle(what_for).ok_or(Refused::cannot("something that was to be lent is missing, or something else"))
}
