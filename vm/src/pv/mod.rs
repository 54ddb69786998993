//! What a guest that knows KVM shares with it in its own memory: the end of interrupts, the time that the host took, and
//! pages that the host has to bring in first (KVM's MSR document). The clock pages are [`clock`](crate::clock)'s.

pub(crate) mod async_pf;
mod eoi;
mod pairing;
mod steal;
mod vapic;

use crate::Vm;
use crate::vcpu::Core;
use host::Host;

/// Bit 0 of the MSRs that name a place in guest memory.
pub(crate) const ENABLED: u64 = 1;

/// In [`Pv::words`]: the guest ends interrupts by a word.
const EOI: u8 = 1;
/// In [`Pv::words`]: TPR and what waits for it are in a word.
const VAPIC: u8 = 2;

/// One vCPU's part.
#[derive(Default)]
pub struct Pv {
    /// The thread's total wait for a CPU, in ns, up to which steal time has been accounted.
    waited: u64,
    /// The thread notes in guest memory that it lost its CPU.
    noted: bool,
    /// Which words in guest memory show a part of the local APIC: [`EOI`], [`VAPIC`].
    words: u8,
    /// The end of the interrupt in service is offered to the guest.
    eoi_offered: bool,
    /// Guest physical address of the word of KVM_SET_VAPIC_ADDR, if [`VAPIC`].
    vapic: u64,
    /// KVM_TPR_ACCESS_REPORTING.
    pub(crate) reports_tpr: bool,
    /// Asynchronous page faults.
    async_pf: async_pf::AsyncPf,
}

::state::state! {
    place Pv { waited, noted, async_pf, words, eoi_offered, vapic, reports_tpr }
}

impl<H: Host> Core<H> {
    /// Does the guest have the paravirtual feature? Unless user space wants it enforced, all that are offered work.
    pub(crate) fn has_pv(&self, feature: u32) -> bool {
        !self.msr.enforce_pv || self.cpuid.flags().kvm_features & feature != 0
    }

    /// INIT and reset end what the guest has asked for.
    pub(crate) fn reset_pv(&mut self) {
        (self.msr.pv_eoi, self.msr.steal_time) = (0, 0);
        (self.pv.words, self.pv.eoi_offered, self.fast.apic_shared) = (0, false, false);
        self.look_who_watches();
        self.reset_async_pf();
    }
}

impl<H: Host> Vm<H> {
    /// Slots of memory have changed: nobody writes to guest memory any more by an address that he has noted.
    pub(crate) fn forget_noted(&self) {
        use host::{Request, VcpuThread};
        for v in self.vcpus() {
            v.thread.note_preemption(None);
            v.thread.requests().make_request(Request::StealUpdate);
        }
    }
}
