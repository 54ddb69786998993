//! Numbers of the interface between Hyper-V and its guests (Hypervisor Top Level Functional Specification, "TLFS"): MSRs,
//! hypercalls, status codes, bits of CPUID.

pub const GUEST_OS_ID: u32 = 0x4000_0000;
pub const HYPERCALL: u32 = 0x4000_0001;
pub const VP_INDEX: u32 = 0x4000_0002;
pub const RESET: u32 = 0x4000_0003;
pub const VP_RUNTIME: u32 = 0x4000_0010;
pub const TIME_REF_COUNT: u32 = 0x4000_0020;
pub const REFERENCE_TSC: u32 = 0x4000_0021;
pub const TSC_FREQUENCY: u32 = 0x4000_0022;
pub const APIC_FREQUENCY: u32 = 0x4000_0023;
pub const EOI: u32 = 0x4000_0070;
pub const ICR: u32 = 0x4000_0071;
pub const TPR: u32 = 0x4000_0072;
pub const VP_ASSIST_PAGE: u32 = 0x4000_0073;
pub const SCONTROL: u32 = 0x4000_0080;
pub const SVERSION: u32 = 0x4000_0081;
pub const SIEFP: u32 = 0x4000_0082;
pub const SIMP: u32 = 0x4000_0083;
pub const EOM: u32 = 0x4000_0084;
pub const SINT0: u32 = 0x4000_0090;
pub const SINT15: u32 = 0x4000_009f;
/// Configuration of the first synthetic timer; its count follows, then the next timer.
pub const STIMER0_CONFIG: u32 = 0x4000_00b0;
pub const STIMER3_COUNT: u32 = 0x4000_00b7;
pub const SYNDBG_CONTROL: u32 = 0x4000_00f1;
pub const SYNDBG_STATUS: u32 = 0x4000_00f2;
pub const SYNDBG_SEND_BUFFER: u32 = 0x4000_00f3;
pub const SYNDBG_RECV_BUFFER: u32 = 0x4000_00f4;
pub const SYNDBG_PENDING_BUFFER: u32 = 0x4000_00f5;
/// The last of those that lie together.
pub const SYNDBG_LAST: u32 = 0x4000_00f5;
pub const SYNDBG_OPTIONS: u32 = 0x4000_00ff;
pub const CRASH_P0: u32 = 0x4000_0100;
pub const CRASH_P4: u32 = 0x4000_0104;
pub const CRASH_CTL: u32 = 0x4000_0105;
pub const REENLIGHTENMENT_CONTROL: u32 = 0x4000_0106;
pub const TSC_EMULATION_CONTROL: u32 = 0x4000_0107;
pub const TSC_EMULATION_STATUS: u32 = 0x4000_0108;
pub const TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;

/// Bit 0 of the MSRs that name a page.
pub const PAGE_ENABLED: u64 = 1;
/// The rest of them: the page's address.
pub const PAGE_ADDRESS: u64 = !0xfff;
/// CRASH_CTL: the parameters are complete, tell whoever wants to know.
pub const CRASH_NOTIFY: u64 = 1 << 63;
/// TSC_INVARIANT_CONTROL: CPUID may say that the TSC is invariant.
pub const EXPOSE_INVARIANT_TSC: u64 = 1;
/// SYNDBG_OPTIONS: the debugger is reached by hypercalls.
pub const SYNDBG_USE_HCALLS: u64 = 1 << 2;

/// Leaf 0x40000001 EAX: "Hv#1".
pub const INTERFACE: u32 = 0x3123_7648;

/// Bits of leaf 0x40000003 EAX: which MSRs there are.
pub mod privilege {
    pub const VP_RUNTIME: u32 = 1;
    pub const TIME_REF_COUNT: u32 = 1 << 1;
    pub const SYNIC: u32 = 1 << 2;
    pub const SYNTIMER: u32 = 1 << 3;
    pub const APIC_ACCESS: u32 = 1 << 4;
    pub const HYPERCALL: u32 = 1 << 5;
    pub const VP_INDEX: u32 = 1 << 6;
    pub const RESET: u32 = 1 << 7;
    pub const REFERENCE_TSC: u32 = 1 << 9;
    pub const FREQUENCY: u32 = 1 << 11;
    pub const REENLIGHTENMENT: u32 = 1 << 13;
    pub const TSC_INVARIANT: u32 = 1 << 15;
}

/// Bits of leaf 0x40000003 EBX: which hypercalls there are.
pub mod calls {
    pub const POST_MESSAGES: u32 = 1 << 4;
    pub const SIGNAL_EVENTS: u32 = 1 << 5;
    pub const DEBUGGING: u32 = 1 << 11;
    pub const EXTENDED: u32 = 1 << 20;
}

/// Bits of leaf 0x40000003 EDX: what else there is.
pub mod feature {
    pub const GUEST_DEBUGGING: u32 = 1 << 1;
    pub const XMM_INPUT: u32 = 1 << 4;
    pub const FREQUENCY_MSRS: u32 = 1 << 8;
    pub const CRASH_MSRS: u32 = 1 << 10;
    pub const DEBUG_MSRS: u32 = 1 << 11;
    pub const EXT_GVA_RANGES_FLUSH: u32 = 1 << 14;
    pub const STIMER_DIRECT: u32 = 1 << 19;
}

/// Bits of leaf 0x40000004 EAX: what the guest had better use.
pub mod hint {
    pub const REMOTE_TLB_FLUSH: u32 = 1 << 2;
    pub const APIC_ACCESS: u32 = 1 << 3;
    pub const RELAXED_TIMING: u32 = 1 << 5;
    pub const DEPRECATING_AEOI: u32 = 1 << 9;
    pub const CLUSTER_IPI: u32 = 1 << 10;
    pub const EX_PROCESSOR_MASKS: u32 = 1 << 11;
    pub const NO_NONARCH_CORESHARING: u32 = 1 << 18;
}

/// Leaf 0x40000082 EAX: kernel debugging is allowed.
pub const SYNDBG_ALLOWED: u32 = 1 << 1;
/// Leaf 0x4000000a EAX: a hypervisor in the guest may say that its MSR bitmap has not changed.
pub const NESTED_MSR_BITMAP: u32 = 1 << 19;

/// Codes of hypercalls.
pub mod call {
    pub const FLUSH_ADDRESS_SPACE: u16 = 2;
    pub const FLUSH_ADDRESS_LIST: u16 = 3;
    pub const NOTIFY_LONG_SPIN_WAIT: u16 = 8;
    pub const SEND_IPI: u16 = 0xb;
    pub const FLUSH_ADDRESS_SPACE_EX: u16 = 0x13;
    pub const FLUSH_ADDRESS_LIST_EX: u16 = 0x14;
    pub const SEND_IPI_EX: u16 = 0x15;
    pub const POST_MESSAGE: u16 = 0x5c;
    pub const SIGNAL_EVENT: u16 = 0x5d;
    pub const POST_DEBUG_DATA: u16 = 0x69;
    pub const RETRIEVE_DEBUG_DATA: u16 = 0x6a;
    pub const RESET_DEBUG_SESSION: u16 = 0x6b;
    /// The extended ones, which are user space's.
    pub const EXTENDED_FIRST: u16 = 0x8001;
    pub const EXTENDED_LAST: u16 = 0x8041;
}

/// HV_STATUS_*.
pub mod status {
    pub const SUCCESS: u64 = 0;
    pub const INVALID_HYPERCALL_CODE: u64 = 2;
    pub const INVALID_HYPERCALL_INPUT: u64 = 3;
    pub const INVALID_ALIGNMENT: u64 = 4;
    pub const INVALID_PARAMETER: u64 = 5;
    pub const ACCESS_DENIED: u64 = 6;
    pub const OPERATION_DENIED: u64 = 8;
    pub const INVALID_PORT_ID: u64 = 0x11;
}
