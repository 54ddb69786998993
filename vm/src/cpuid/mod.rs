//! CPUID: what this hypervisor can offer, and what user space chose to show one guest.
//!
//! [`supported_cpuid`] answers KVM_GET_SUPPORTED_CPUID: the host's features without those that nothing here
//! virtualises, with those that are emulated whatever the host has. [`GuestCpuid`] holds what KVM_SET_CPUID2 brought,
//! answers the guest's CPUID instruction and keeps the few bits up to date that show processor state. [`Flags`] is what
//! the rest of the hypervisor asks.

mod caps;
mod feature;
mod flags;
mod guest;
mod hostinfo;
mod supported;
#[cfg(test)]
pub(crate) mod tests;
mod xstate;

pub use caps::Caps;
pub use feature::{Feature, Word};
pub use flags::Flags;
pub use guest::{GuestCpuid, MAX_ENTRIES, Runtime};
pub use hostinfo::HostInfo;
pub use supported::{emulated_cpuid, supported_cpuid};
pub use xstate::XstateTable;

/// KVM_FEATURE_PV_UNHALT in leaf 0x40000001: a hypercall ends another vCPU's HLT.
pub const KVM_PV_UNHALT: u32 = 1 << 7;
/// KVM_FEATURE_CLOCKSOURCE: the clock behind the old pair of MSRs.
pub const KVM_CLOCKSOURCE: u32 = 1;
/// KVM_FEATURE_CLOCKSOURCE2: the clock behind the new pair of MSRs.
pub const KVM_CLOCKSOURCE2: u32 = 1 << 3;
/// KVM_FEATURE_POLL_CONTROL: the guest may say that it polls before HLT itself.
pub const KVM_GUEST_POLLS: u32 = 1 << 12;
/// KVM_FEATURE_PV_SEND_IPI: a hypercall sends an IPI to up to 128 vCPUs.
pub const KVM_PV_SEND_IPI: u32 = 1 << 11;
/// KVM_FEATURE_PV_SCHED_YIELD: a hypercall gives the CPU to another vCPU.
pub const KVM_PV_SCHED_YIELD: u32 = 1 << 13;
/// KVM_FEATURE_STEAL_TIME: how long the vCPU waited for a CPU.
pub const KVM_PV_STEAL_TIME: u32 = 1 << 5;
/// KVM_FEATURE_PV_EOI: the end of an interrupt without an exit.
pub const KVM_PV_EOI: u32 = 1 << 6;
/// KVM_FEATURE_ASYNC_PF: the guest may be told that a page has to be brought in first.
pub const KVM_PV_ASYNC_PF: u32 = 1 << 4;
/// KVM_FEATURE_ASYNC_PF_VMEXIT: it may ask to be told by an exit where it is a hypervisor itself.
pub const KVM_PV_ASYNC_PF_VMEXIT: u32 = 1 << 10;
/// KVM_FEATURE_ASYNC_PF_INT: an interrupt says that the page is there.
pub const KVM_PV_ASYNC_PF_INT: u32 = 1 << 14;
/// The paravirtual features that are offered (KVM API document, "KVM CPUID bits"): the above, no delay needed after port
/// I/O (bit 1), that a TLB flush may be left in the steal time page (bit 9), and that the clock flag for a stable TSC is
/// valid (bit 24).
pub const KVM_FEATURES: u32 = KVM_CLOCKSOURCE
    | 1 << 1
    | KVM_CLOCKSOURCE2
    | KVM_PV_ASYNC_PF
    | KVM_PV_STEAL_TIME
    | KVM_PV_EOI
    | KVM_PV_UNHALT
    | 1 << 9
    | KVM_PV_ASYNC_PF_VMEXIT
    | KVM_PV_SEND_IPI
    | KVM_PV_SCHED_YIELD
    | KVM_GUEST_POLLS
    | KVM_PV_ASYNC_PF_INT
    | 1 << 24;
