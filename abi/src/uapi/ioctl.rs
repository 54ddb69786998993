//! ioctl numbers (`include/uapi/asm-generic/ioctl.h`, KVM API document section 4): direction, size, type and number.

use super::*;
use crate::codec::Field;

/// The ioctl type of KVM.
pub const KVMIO: u32 = 0xae;

const fn number(dir: u32, nr: u32, size: usize) -> u32 {
    dir << 30 | (size as u32) << 16 | KVMIO << 8 | nr
}
/// No argument, or a plain number.
pub const fn io(nr: u32) -> u32 {
    number(0, nr, 0)
}
/// User space writes a `T`.
pub const fn iow<T: Field>(nr: u32) -> u32 {
    number(1, nr, T::SIZE)
}
/// User space reads a `T`.
pub const fn ior<T: Field>(nr: u32) -> u32 {
    number(2, nr, T::SIZE)
}
/// User space does both.
pub const fn iowr<T: Field>(nr: u32) -> u32 {
    number(3, nr, T::SIZE)
}
/// Is this one of KVM's numbers?
pub const fn is_kvm(cmd: u32) -> bool {
    cmd >> 8 & 0xff == KVMIO
}

/// KVM_X86_SET_MSR_FILTER as 32-bit programs have it: its struct is [`MSR_FILTER_COMPAT_SIZE`] bytes long.
pub const KVM_X86_SET_MSR_FILTER_COMPAT: u32 = number(1, 0xc6, MSR_FILTER_COMPAT_SIZE);

macro_rules! numbers {
    ($($name:ident = $e:expr;)*) => {
        $(#[allow(missing_docs)] pub const $name: u32 = $e;)*
        /// All of them by name, to be compared with the kernel's headers.
        pub const ALL: &[(&str, u32)] = &[$((stringify!($name), $name)),*];
    };
}

numbers! {
    // /dev/kvm
    KVM_GET_API_VERSION = io(0x00);
    KVM_CREATE_VM = io(0x01);
    KVM_GET_MSR_INDEX_LIST = iowr::<kvm_msr_list>(0x02);
    KVM_CHECK_EXTENSION = io(0x03);
    KVM_GET_VCPU_MMAP_SIZE = io(0x04);
    KVM_GET_SUPPORTED_CPUID = iowr::<kvm_cpuid2>(0x05);
    KVM_GET_EMULATED_CPUID = iowr::<kvm_cpuid2>(0x09);
    KVM_GET_MSR_FEATURE_INDEX_LIST = iowr::<kvm_msr_list>(0x0a);
    KVM_X86_GET_MCE_CAP_SUPPORTED = ior::<u64>(0x9d);
    // VM
    KVM_CREATE_VCPU = io(0x41);
    KVM_GET_DIRTY_LOG = iow::<kvm_dirty_log>(0x42);
    KVM_SET_NR_MMU_PAGES = io(0x44);
    KVM_SET_USER_MEMORY_REGION = iow::<kvm_userspace_memory_region>(0x46);
    KVM_SET_TSS_ADDR = io(0x47);
    KVM_SET_IDENTITY_MAP_ADDR = iow::<u64>(0x48);
    KVM_SET_USER_MEMORY_REGION2 = iow::<kvm_userspace_memory_region2>(0x49);
    KVM_CREATE_IRQCHIP = io(0x60);
    KVM_IRQ_LINE = iow::<kvm_irq_level>(0x61);
    KVM_GET_IRQCHIP = iowr::<kvm_irqchip>(0x62);
    KVM_SET_IRQCHIP = ior::<kvm_irqchip>(0x63);
    KVM_IRQ_LINE_STATUS = iowr::<kvm_irq_level>(0x67);
    KVM_CREATE_PIT = io(0x64);
    KVM_GET_PIT = iowr::<kvm_pit_state>(0x65);
    KVM_SET_PIT = ior::<kvm_pit_state>(0x66);
    KVM_REGISTER_COALESCED_MMIO = iow::<kvm_coalesced_mmio_zone>(0x67);
    KVM_UNREGISTER_COALESCED_MMIO = iow::<kvm_coalesced_mmio_zone>(0x68);
    KVM_SET_GSI_ROUTING = iow::<kvm_irq_routing>(0x6a);
    KVM_REINJECT_CONTROL = io(0x71);
    KVM_IRQFD = iow::<kvm_irqfd>(0x76);
    KVM_CREATE_PIT2 = iow::<kvm_pit_config>(0x77);
    KVM_SET_BOOT_CPU_ID = io(0x78);
    KVM_IOEVENTFD = iow::<kvm_ioeventfd>(0x79);
    KVM_SET_CLOCK = iow::<kvm_clock_data>(0x7b);
    KVM_GET_CLOCK = ior::<kvm_clock_data>(0x7c);
    KVM_GET_PIT2 = ior::<kvm_pit_state2>(0x9f);
    KVM_SET_PIT2 = iow::<kvm_pit_state2>(0xa0);
    KVM_SIGNAL_MSI = iow::<kvm_msi>(0xa5);
    KVM_HYPERV_EVENTFD = iow::<kvm_hyperv_eventfd>(0xbd);
    KVM_CLEAR_DIRTY_LOG = iowr::<kvm_clear_dirty_log>(0xc0);
    KVM_RESET_DIRTY_RINGS = io(0xc7);
    KVM_X86_SET_MSR_FILTER = iow::<kvm_msr_filter>(0xc6);
    KVM_CREATE_DEVICE = iowr::<kvm_create_device>(0xe0);
    // VM and vCPU
    KVM_GET_STATS_FD = io(0xce);
    KVM_SET_TSC_KHZ = io(0xa2);
    KVM_GET_TSC_KHZ = io(0xa3);
    KVM_ENABLE_CAP = iow::<kvm_enable_cap>(0xa3);
    KVM_SET_DEVICE_ATTR = iow::<kvm_device_attr>(0xe1);
    KVM_GET_DEVICE_ATTR = iow::<kvm_device_attr>(0xe2);
    KVM_HAS_DEVICE_ATTR = iow::<kvm_device_attr>(0xe3);
    // vCPU
    KVM_RUN = io(0x80);
    KVM_GET_REGS = ior::<kvm_regs>(0x81);
    KVM_SET_REGS = iow::<kvm_regs>(0x82);
    KVM_GET_SREGS = ior::<kvm_sregs>(0x83);
    KVM_SET_SREGS = iow::<kvm_sregs>(0x84);
    KVM_TRANSLATE = iowr::<kvm_translation>(0x85);
    KVM_INTERRUPT = iow::<kvm_interrupt>(0x86);
    KVM_GET_MSRS = iowr::<kvm_msrs>(0x88);
    KVM_SET_MSRS = iow::<kvm_msrs>(0x89);
    KVM_SET_CPUID = iow::<kvm_cpuid>(0x8a);
    KVM_SET_SIGNAL_MASK = iow::<kvm_signal_mask>(0x8b);
    KVM_GET_FPU = ior::<kvm_fpu>(0x8c);
    KVM_SET_FPU = iow::<kvm_fpu>(0x8d);
    KVM_GET_LAPIC = ior::<kvm_lapic_state>(0x8e);
    KVM_SET_LAPIC = iow::<kvm_lapic_state>(0x8f);
    KVM_SET_CPUID2 = iow::<kvm_cpuid2>(0x90);
    KVM_GET_CPUID2 = iowr::<kvm_cpuid2>(0x91);
    KVM_TPR_ACCESS_REPORTING = iowr::<kvm_tpr_access_ctl>(0x92);
    KVM_SET_VAPIC_ADDR = iow::<kvm_vapic_addr>(0x93);
    KVM_GET_MP_STATE = ior::<kvm_mp_state>(0x98);
    KVM_SET_MP_STATE = iow::<kvm_mp_state>(0x99);
    KVM_NMI = io(0x9a);
    KVM_SET_GUEST_DEBUG = iow::<kvm_guest_debug>(0x9b);
    KVM_X86_SETUP_MCE = iow::<u64>(0x9c);
    KVM_X86_SET_MCE = iow::<kvm_x86_mce>(0x9e);
    KVM_GET_VCPU_EVENTS = ior::<kvm_vcpu_events>(0x9f);
    KVM_SET_VCPU_EVENTS = iow::<kvm_vcpu_events>(0xa0);
    KVM_GET_DEBUGREGS = ior::<kvm_debugregs>(0xa1);
    KVM_SET_DEBUGREGS = iow::<kvm_debugregs>(0xa2);
    KVM_GET_XSAVE = ior::<[u8; 4096]>(0xa4);
    KVM_SET_XSAVE = iow::<[u8; 4096]>(0xa5);
    KVM_GET_XCRS = ior::<kvm_xcrs>(0xa6);
    KVM_SET_XCRS = iow::<kvm_xcrs>(0xa7);
    KVM_KVMCLOCK_CTRL = io(0xad);
    KVM_SMI = io(0xb7);
    KVM_MEMORY_ENCRYPT_OP = iowr::<u64>(0xba);
    KVM_GET_NESTED_STATE = iowr::<kvm_nested_state>(0xbe);
    KVM_SET_NESTED_STATE = iow::<kvm_nested_state>(0xbf);
    KVM_GET_SUPPORTED_HV_CPUID = iowr::<kvm_cpuid2>(0xc1);
    KVM_GET_SREGS2 = ior::<kvm_sregs2>(0xcc);
    KVM_SET_SREGS2 = iow::<kvm_sregs2>(0xcd);
    KVM_PRE_FAULT_MEMORY = iowr::<kvm_pre_fault_memory>(0xd5);
    KVM_GET_XSAVE2 = ior::<[u8; 4096]>(0xcf);
}
