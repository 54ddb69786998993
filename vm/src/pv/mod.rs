//! What a guest that knows KVM shares with it in its own memory: the end of interrupts, the time that the host took, and
//! pages that the host has to bring in first (KVM's MSR document). The clock pages are [`clock`](crate::clock)'s.

pub(crate) mod async_pf;
mod eoi;
mod pairing;
mod steal;

use crate::Vm;
use crate::vcpu::Core;
use host::Host;

/// Bit 0 of the MSRs that name a place in guest memory.
pub(crate) const ENABLED: u64 = 1;

/// One vCPU's part.
#[derive(Default)]
pub struct Pv {
    /// The thread's total wait for a CPU, in ns, up to which steal time has been accounted.
    waited: u64,
    /// The thread notes in guest memory that it lost its CPU.
    noted: bool,
    /// Asynchronous page faults.
    async_pf: async_pf::AsyncPf,
}

impl<H: Host> Core<H> {
    /// Does the guest have the paravirtual feature? Unless user space wants it enforced, all that are offered work.
    pub(crate) fn has_pv(&self, feature: u32) -> bool {
        !self.msr.enforce_pv || self.cpuid.flags().kvm_features & feature != 0
    }

    /// INIT and reset end what the guest has asked for.
    pub(crate) fn reset_pv(&mut self) {
        (self.msr.pv_eoi, self.msr.steal_time) = (0, 0);
        self.fast.eoi_offered = false;
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
