//! KVM_CHECK_EXTENSION: the one table of what is offered (KVM API document, 4.4 and sections 6 to 8).
//!
//! A capability is here when all of it works; everything else is 0, so clients do without it. Values are those of
//! stock KVM for the same feature.

use crate::uapi::cap;
use crate::uapi::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_CLOCK_TSC_STABLE, KVM_GUESTDBG_VALID_MASK};
use host::Host;
use vm::cpuid::Caps;

/// KVM_X2APIC_API_USE_32BIT_IDS and KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK.
pub const X2APIC_API: u64 = 3;
/// Reasons for which an MSR access may go to user space: KVM_MSR_EXIT_REASON_INVAL, _UNKNOWN, _FILTER.
pub const MSR_EXIT_REASONS: u64 = 7;
/// Hypercalls that can go to user space: KVM_HC_MAP_GPA_RANGE.
pub const EXIT_HYPERCALLS: u64 = 1 << 12;
/// Banks of machine-check registers (KVM_MAX_MCE_BANKS).
pub const MCE_BANKS: u32 = 32;
/// Most bytes of a dirty ring.
pub const DIRTY_RING_BYTES: u32 = vm::mmu::MAX_DIRTY_ENTRIES * vm::mmu::DIRTY_GFN;
/// What KVM_GET_CLOCK can report.
pub const CLOCK_FLAGS: u32 = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;

/// The value of a capability, the same on /dev/kvm and on a VM; 0 if it is absent.
pub fn check_extension<H: Host>(host: &H, capability: u64) -> i64 {
    let Ok(capability) = u32::try_from(capability) else { return 0 };
    match capability {
        // Memory.
        cap::USER_MEMORY | cap::USER_MEMORY2 | cap::READONLY_MEM | cap::SYNC_MMU | cap::PRE_FAULT_MEMORY => 1,
        cap::MMU_SHADOW_CACHE_CONTROL | cap::DESTROY_MEMORY_REGION_WORKS | cap::JOIN_MEMORY_REGIONS_WORKS => 1,
        cap::NR_MEMSLOTS => vm::mmu::USER_SLOTS.into(),
        cap::MANUAL_DIRTY_LOG_PROTECT2 => vm::mmu::MANUAL_DIRTY_LOG_BITS as i64,
        cap::SET_TSS_ADDR | cap::SET_IDENTITY_MAP_ADDR => 1,
        cap::MULTI_ADDRESS_SPACE => vm::mmu::ADDRESS_SPACES.into(),
        // Bytes of the largest ring. There is no backup bitmap on x86: nothing is written but by a vCPU.
        cap::DIRTY_LOG_RING | cap::DIRTY_LOG_RING_ACQ_REL => DIRTY_RING_BYTES.into(),
        cap::MEMORY_FAULT_INFO => 1,

        // vCPUs.
        // As many as can run at once; more may be made.
        cap::NR_VCPUS => i64::from(host.online_cpus()).min(vm::MAX_VCPUS as i64),
        cap::MAX_VCPUS => vm::MAX_VCPUS as i64,
        cap::MAX_VCPU_ID => vm::MAX_VCPU_ID.into(),
        cap::SYNC_REGS => crate::uapi::run::sync::ALL as i64,
        cap::SET_BOOT_CPU_ID | cap::IMMEDIATE_EXIT | cap::HLT => 1,
        cap::MP_STATE | cap::VCPU_EVENTS | cap::DEBUGREGS | cap::SREGS2 | cap::XSAVE => 1,
        cap::XCRS => (host.host_xcr0() != 0).into(),
        cap::XSAVE2 => xsave_size(host),
        cap::EXCEPTION_PAYLOAD | cap::X86_TRIPLE_FAULT_EVENT | cap::USER_NMI => 1,
        cap::SET_GUEST_DEBUG | cap::X86_ROBUST_SINGLESTEP => 1,
        cap::SET_GUEST_DEBUG2 => KVM_GUESTDBG_VALID_MASK.into(),
        cap::VCPU_ATTRIBUTES | cap::SYS_ATTRIBUTES => 1,
        cap::MCE => MCE_BANKS.into(),
        cap::INTERNAL_ERROR_DATA | cap::EXIT_ON_EMULATION_FAILURE | cap::LAST_CPU | cap::SYSTEM_EVENT_DATA => 1,
        cap::X86_SMM => 1,

        // CPUID and MSRs.
        cap::EXT_CPUID | cap::EXT_EMUL_CPUID | cap::GET_MSR_FEATURES => 1,
        cap::ASYNC_PF | cap::ASYNC_PF_INT => 1,
        cap::MSR_PLATFORM_INFO | cap::ENFORCE_PV_FEATURE_CPUID => 1,
        cap::X86_USER_SPACE_MSR | cap::X86_MSR_FILTER => 1,
        cap::EXIT_HYPERCALL => EXIT_HYPERCALLS as i64,
        cap::X86_DISABLE_EXITS => host.idle_exits().into(),
        cap::HALT_POLL => 1,
        cap::DISABLE_QUIRKS => 1,
        cap::DISABLE_QUIRKS2 => vm::quirks::all(host) as i64,

        // What only nested guests use is absent: HYPERV_ENLIGHTENED_VMCS, HYPERV_DIRECT_TLBFLUSH.
        cap::HYPERV
        | cap::HYPERV_VAPIC
        | cap::HYPERV_SPIN
        | cap::HYPERV_TIME
        | cap::HYPERV_SYNIC
        | cap::HYPERV_SYNIC2
        | cap::HYPERV_VP_INDEX
        | cap::HYPERV_EVENTFD
        | cap::HYPERV_TLBFLUSH
        | cap::HYPERV_SEND_IPI
        | cap::HYPERV_CPUID
        | cap::SYS_HYPERV_CPUID
        | cap::HYPERV_ENFORCE_CPUID => 1,

        // Interrupts.
        cap::VAPIC
        | cap::IRQCHIP
        | cap::PIT
        | cap::PIT2
        | cap::PIT_STATE2
        | cap::REINJECT_CONTROL
        | cap::IOAPIC_POLARITY_IGNORED
        | cap::SPLIT_IRQCHIP
        | cap::TSC_DEADLINE_TIMER => 1,
        cap::X2APIC_API => X2APIC_API as i64,
        // Nanoseconds, unless it is changed.
        cap::X86_APIC_BUS_CYCLES_NS => 1,
        cap::SIGNAL_MSI | cap::IRQ_INJECT_STATUS | cap::IRQFD | cap::IRQFD_RESAMPLE => 1,
        cap::IRQ_ROUTING => vm::irqchip::MAX_ROUTES as i64,
        // The page of the vCPU file's mapping.
        cap::COALESCED_MMIO => 2,
        cap::COALESCED_PIO => 1,
        cap::IOEVENTFD | cap::IOEVENTFD_NO_LENGTH | cap::IOEVENTFD_ANY_LENGTH => 1,
        // The VFIO device.
        cap::DEVICE_CTRL | cap::PCI_SEGMENT => 1,

        // Time.
        cap::CLOCKSOURCE | cap::KVMCLOCK_CTRL | cap::GET_TSC_KHZ | cap::NOP_IO_DELAY => 1,
        cap::TSC_CONTROL | cap::VM_TSC_CONTROL => host.features().tsc_scaling.into(),
        cap::STEAL_TIME => host.run_delay_ns().is_some().into(),
        cap::ADJUST_CLOCK => CLOCK_FLAGS.into(),

        // The interface itself.
        cap::ENABLE_CAP | cap::ENABLE_CAP_VM | cap::CHECK_EXTENSION_VM | cap::BINARY_STATS_FD => 1,
        _ => 0,
    }
}

/// KVM_CAP_XSAVE2: bytes of the user format of all components that a guest may have, at least 4096.
fn xsave_size<H: Host>(host: &H) -> i64 {
    let caps = Caps::new(host);
    caps.xstate().required(caps.xcr0(), false).max(4096).into()
}

/// The XCR0 bits that a guest may be offered.
pub fn guest_xcr0<H: Host>(host: &H) -> u64 {
    Caps::new(host).xcr0()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_in_the_header() {
        macro_rules! same {
            ($($name:ident = $theirs:ident)*) => {$( assert_eq!(cap::$name, kvm_bindings::$theirs); )*};
        }
        same! {
            IRQCHIP = KVM_CAP_IRQCHIP
            USER_MEMORY = KVM_CAP_USER_MEMORY
            NR_MEMSLOTS = KVM_CAP_NR_MEMSLOTS
            MCE = KVM_CAP_MCE
            IRQFD = KVM_CAP_IRQFD
            ADJUST_CLOCK = KVM_CAP_ADJUST_CLOCK
            XSAVE2 = KVM_CAP_XSAVE2
            SPLIT_IRQCHIP = KVM_CAP_SPLIT_IRQCHIP
            MANUAL_DIRTY_LOG_PROTECT2 = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
            X86_USER_SPACE_MSR = KVM_CAP_X86_USER_SPACE_MSR
            X86_TRIPLE_FAULT_EVENT = KVM_CAP_X86_TRIPLE_FAULT_EVENT
            USER_MEMORY2 = KVM_CAP_USER_MEMORY2
            MEMORY_FAULT_INFO = KVM_CAP_MEMORY_FAULT_INFO
            X86_SMM = KVM_CAP_X86_SMM
            MULTI_ADDRESS_SPACE = KVM_CAP_MULTI_ADDRESS_SPACE
            DIRTY_LOG_RING = KVM_CAP_DIRTY_LOG_RING
            DIRTY_LOG_RING_ACQ_REL = KVM_CAP_DIRTY_LOG_RING_ACQ_REL
            LAST_CPU = KVM_CAP_LAST_CPU
            SYSTEM_EVENT_DATA = KVM_CAP_SYSTEM_EVENT_DATA
        }
    }
}
