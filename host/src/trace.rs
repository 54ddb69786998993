//! What happens in a VM, as those who trace the host are told (trace events of the kernel's, system `kvm`).
//!
//! Events that belong to an exit are found out by the run loop while somebody wants them ([`TraceSet`]): exits then take
//! a loop of their own (`vm/src/trace.rs`). Others are told where they happen, and nobody listens there most of the time.

/// Which events of the run loop somebody wants now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceSet(pub u32);

impl TraceSet {
    /// Every event of the run loop's.
    pub const ALL: Self = Self((1 << TraceEvent::COUNT) - 1);

    /// Is there any?
    #[inline]
    pub fn any(self) -> bool {
        self.0 != 0
    }

    /// Is it this one?
    #[inline]
    pub fn has(self, event: TraceEvent) -> bool {
        self.0 & 1 << event as u8 != 0
    }
}

/// Events of the run loop's; the number is the place in a [`TraceSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "named like the events: kvm_entry and so on")]
pub enum TraceEvent {
    Entry,
    Exit,
    Mmio,
    Pio,
    Msr,
    Cr,
    Cpuid,
    InjVirq,
    InjException,
    PageFault,
    Apic,
    ApicIpi,
    ApicAcceptIrq,
    Eoi,
    PvEoi,
    Hypercall,
    HaltPollNs,
    VcpuWakeup,
    PleWindow,
    UserspaceExit,
    HvHypercall,
}

impl TraceEvent {
    /// How many there are.
    pub const COUNT: u8 = Self::HvHypercall as u8 + 1;
}

/// The last exit of a vCPU that cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastExit {
    /// Its number.
    pub vcpu: u32,
    /// KVM_EXIT_* that user space is given; KVM_EXIT_UNKNOWN where KVM_RUN fails.
    pub reason: u32,
    /// The suberror, the processor's reason for refusing the VMCB, or the errno.
    pub detail: u64,
    /// EXITCODE as the VMCB holds it, of the last exit there was.
    pub code: u64,
    /// EXITINFO1.
    pub info1: u64,
    /// EXITINFO2.
    pub info2: u64,
    /// EXITINTINFO.
    pub int_info: u64,
    /// Where the guest was.
    pub rip: u64,
}

/// `type` of [`Trace::Mmio`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MmioKind {
    /// User space is asked for what the guest reads.
    UnsatisfiedRead = 0,
    /// This is what it reads.
    Read = 1,
    /// The guest writes.
    Write = 2,
}

/// One event: the name is `kvm_` and the variant's, fields mean what those of the event mean (`events/kvm/*/format` in
/// the kernel's tracefs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "see there")]
pub enum Trace {
    Entry { vcpu: u32, rip: u64, immediate: bool, event_inj: u64 },
    Exit { vcpu: u32, rip: u64, code: u64, info1: u64, info2: u64, int_info: u64, requests: u64 },
    Mmio { kind: MmioKind, len: u32, gpa: u64, value: u64 },
    Pio { write: bool, port: u16, size: u8, count: u32, value: u32 },
    Msr { write: bool, index: u32, value: u64, fault: bool },
    Cr { write: bool, cr: u8, value: u64 },
    Cpuid { function: u32, index: u32, regs: [u32; 4], found: bool, used_max_basic: bool },
    InjVirq { vector: u8, soft: bool, reinjected: bool },
    InjException { vector: u8, error_code: Option<u32>, reinjected: bool },
    PageFault { vcpu: u32, rip: u64, address: u64, error_code: u64 },
    Apic { write: bool, register: u32, value: u64 },
    ApicIpi { icr_low: u32, destination: u32 },
    ApicAcceptIrq { apic_id: u32, vector: u8, level: bool },
    Eoi { apic_id: u32, vector: i32 },
    PvEoi { apic_id: u32, vector: i32 },
    Hypercall { nr: u64, args: [u64; 4] },
    HvHypercall { control: u64, input: u64, output: u64 },
    HaltPollNs { grow: bool, vcpu: u32, new: u32, old: u32 },
    VcpuWakeup { ns: u64, waited: bool, valid: bool },
    PleWindowUpdate { vcpu: u32, new: u32, old: u32 },
    UserspaceExit { reason: u32, errno: i32 },
    // Not of the run loop's.
    SetIrq { gsi: u32, level: bool },
    MsiSetIrq { address: u64, data: u32 },
    IoapicSetIrq { entry: u64, pin: u8, coalesced: bool },
    PicSetIrq { pin: u8, elcr: u8, imr: u8, coalesced: bool },
    AckIrq { chip: u32, pin: u32 },
    SmmTransition { vcpu: u32, smbase: u64, entering: bool },
    DirtyRingPush { index: u32, dirty: u32, reset: u32, slot: u32, offset: u64 },
    DirtyRingReset { index: u32, dirty: u32, reset: u32 },
    DirtyRingExit { vcpu: u32 },
    TryAsyncGetPage { gva: u64, gfn: u64 },
    AsyncPfRepeatedFault { gva: u64, gfn: u64 },
    AsyncPfNotPresent { token: u64, gva: u64 },
    AsyncPfReady { token: u64, gva: u64 },
    WriteTscOffset { vcpu: u32, previous: u64, next: u64 },
    PvclockUpdate { vcpu: u32, version: u32, tsc_timestamp: u64, system_time: u64, mul: u32, shift: i8, flags: u8 },
}
