//! Capability numbers (KVM API document, sections 6 to 8; `include/uapi/linux/kvm.h`): those that this crate knows.
#![allow(missing_docs)]

macro_rules! caps {
    ($($name:ident = $n:literal;)*) => {
        $(pub const $name: u32 = $n;)*
        /// All of them by name, to be compared with the kernel's headers.
        pub const ALL: &[(&str, u32)] = &[$((concat!("KVM_CAP_", stringify!($name)), $n)),*];
    };
}

caps! {
    IRQCHIP = 0;
    HLT = 1;
    MMU_SHADOW_CACHE_CONTROL = 2;
    USER_MEMORY = 3;
    SET_TSS_ADDR = 4;
    EXT_CPUID = 7;
    CLOCKSOURCE = 8;
    NR_VCPUS = 9;
    NR_MEMSLOTS = 10;
    PIT = 11;
    NOP_IO_DELAY = 12;
    MP_STATE = 14;
    COALESCED_MMIO = 15;
    SYNC_MMU = 16;
    DESTROY_MEMORY_REGION_WORKS = 21;
    USER_NMI = 22;
    SET_GUEST_DEBUG = 23;
    REINJECT_CONTROL = 24;
    IRQ_ROUTING = 25;
    IRQ_INJECT_STATUS = 26;
    JOIN_MEMORY_REGIONS_WORKS = 30;
    MCE = 31;
    IRQFD = 32;
    PIT2 = 33;
    SET_BOOT_CPU_ID = 34;
    PIT_STATE2 = 35;
    IOEVENTFD = 36;
    SET_IDENTITY_MAP_ADDR = 37;
    ADJUST_CLOCK = 39;
    INTERNAL_ERROR_DATA = 40;
    VCPU_EVENTS = 41;
    PCI_SEGMENT = 47;
    DEBUGREGS = 50;
    X86_ROBUST_SINGLESTEP = 51;
    ENABLE_CAP = 54;
    XSAVE = 55;
    XCRS = 56;
    ASYNC_PF = 59;
    TSC_CONTROL = 60;
    GET_TSC_KHZ = 61;
    MAX_VCPUS = 66;
    TSC_DEADLINE_TIMER = 72;
    SYNC_REGS = 74;
    KVMCLOCK_CTRL = 76;
    SIGNAL_MSI = 77;
    READONLY_MEM = 81;
    IRQFD_RESAMPLE = 82;
    DEVICE_CTRL = 89;
    EXT_EMUL_CPUID = 95;
    IOAPIC_POLARITY_IGNORED = 97;
    ENABLE_CAP_VM = 98;
    IOEVENTFD_NO_LENGTH = 100;
    CHECK_EXTENSION_VM = 105;
    DISABLE_QUIRKS = 116;
    SPLIT_IRQCHIP = 121;
    IOEVENTFD_ANY_LENGTH = 122;
    VCPU_ATTRIBUTES = 127;
    MAX_VCPU_ID = 128;
    X2APIC_API = 129;
    IMMEDIATE_EXIT = 136;
    X86_DISABLE_EXITS = 143;
    GET_MSR_FEATURES = 153;
    MSR_PLATFORM_INFO = 159;
    COALESCED_PIO = 162;
    EXCEPTION_PAYLOAD = 164;
    MANUAL_DIRTY_LOG_PROTECT2 = 168;
    HALT_POLL = 182;
    ASYNC_PF_INT = 183;
    STEAL_TIME = 187;
    X86_USER_SPACE_MSR = 188;
    X86_MSR_FILTER = 189;
    ENFORCE_PV_FEATURE_CPUID = 190;
    SET_GUEST_DEBUG2 = 195;
    SREGS2 = 200;
    EXIT_HYPERCALL = 201;
    BINARY_STATS_FD = 203;
    EXIT_ON_EMULATION_FAILURE = 204;
    XSAVE2 = 208;
    SYS_ATTRIBUTES = 209;
    DISABLE_QUIRKS2 = 213;
    VM_TSC_CONTROL = 214;
    X86_TRIPLE_FAULT_EVENT = 218;
    USER_MEMORY2 = 231;
    MEMORY_FAULT_INFO = 232;
    PRE_FAULT_MEMORY = 236;
    X86_APIC_BUS_CYCLES_NS = 237;
}
