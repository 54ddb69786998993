//! What a vCPU says to user space when KVM_RUN returns, and what user space answers (KVM API document, section 5).

/// Why KVM_RUN returned, with what `kvm_run` has to say. The ABI crate writes it into the shared page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserExit {
    /// KVM_EXIT_IO: the data lies in (or goes to) the PIO page, `size * count` bytes from its start.
    Io { input: bool, size: u8, port: u16, count: u32 },
    /// KVM_EXIT_MMIO: `len` is 1 to 8; `data` matters for writes.
    Mmio { gpa: u64, data: [u8; 8], len: u8, write: bool },
    /// KVM_EXIT_HLT: only without in-kernel local APIC.
    Hlt,
    /// KVM_EXIT_SET_TPR: the guest has lowered CR8, without in-kernel local APIC.
    SetTpr,
    /// KVM_EXIT_TPR_ACCESS: RIP of the instruction, which is complete (KVM_TPR_ACCESS_REPORTING).
    TprAccess { rip: u64, write: bool },
    /// KVM_EXIT_IRQ_WINDOW_OPEN.
    IrqWindowOpen,
    /// KVM_EXIT_SHUTDOWN: triple fault.
    Shutdown,
    /// KVM_EXIT_FAIL_ENTRY with the hardware's reason and the physical CPU.
    FailEntry { reason: u64, cpu: u32 },
    /// KVM_EXIT_INTERNAL_ERROR; the first `ndata` of [`Core::exit_words`](crate::Core::exit_words) are its data.
    InternalError { suberror: u32, ndata: u32 },
    /// KVM_EXIT_IOAPIC_EOI: split irqchip, level-triggered vector.
    IoapicEoi { vector: u8 },
    /// KVM_EXIT_X86_RDMSR or _WRMSR (KVM_CAP_X86_USER_SPACE_MSR).
    Msr { write: bool, reason: u32, index: u32, data: u64 },
    /// KVM_EXIT_HYPERCALL; the first six of [`Core::exit_words`](crate::Core::exit_words) are its arguments.
    Hypercall { nr: u64, longmode: bool },
    /// KVM_EXIT_DEBUG (KVM_SET_GUEST_DEBUG).
    Debug { exception: u32, pc: u64, dr6: u64, dr7: u64 },
    /// KVM_EXIT_SYSTEM_EVENT.
    SystemEvent { kind: u32 },
    /// KVM_EXIT_HYPERV of this kind (KVM_EXIT_HYPERV_*); the first six of [`Core::exit_words`](crate::Core::exit_words) are what
    /// follows.
    Hyperv { kind: u32 },
    /// KVM_EXIT_DIRTY_RING_FULL.
    DirtyRingFull,
    /// KVM_EXIT_INTR together with -EINTR.
    Interrupted,
    /// Nothing was done, together with -EINTR or -EAGAIN: `kvm_run` keeps the reason that it held.
    Unchanged,
    /// KVM_EXIT_MEMORY_FAULT together with -EFAULT: the VMM's memory behind this guest physical address cannot be used.
    MemoryFault { gpa: u64 },
}

impl UserExit {
    /// `exit_reason` of `kvm_run` (KVM_EXIT_*). 0 where it stays as it is.
    pub const fn reason(&self) -> u32 {
        match self {
            Self::Unchanged => 0,
            Self::Io { .. } => 2,
            Self::Hypercall { .. } => 3,
            Self::Debug { .. } => 4,
            Self::Hlt => 5,
            Self::Mmio { .. } => 6,
            Self::IrqWindowOpen => 7,
            Self::Shutdown => 8,
            Self::FailEntry { .. } => 9,
            Self::Interrupted => 10,
            Self::SetTpr => 11,
            Self::TprAccess { .. } => 12,
            Self::InternalError { .. } => 17,
            Self::SystemEvent { .. } => 24,
            Self::IoapicEoi { .. } => 26,
            Self::Hyperv { .. } => 27,
            Self::Msr { write: false, .. } => 29,
            Self::Msr { write: true, .. } => 30,
            Self::DirtyRingFull => 31,
            Self::MemoryFault { .. } => 39,
        }
    }
}

/// What an exit that needs an answer waits for. Asked at the next KVM_RUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pending {
    /// Nothing.
    #[default]
    None,
    /// An MMIO read of this many bytes (1 to 8).
    MmioRead { len: u8 },
    /// An MMIO write was reported, or something else that needs no answer; more fragments or nothing may follow.
    MmioWrite,
    /// INS: `size * count` bytes of the PIO page.
    PioIn { size: u8, count: u32 },
    /// A port write was reported, and its instruction is complete.
    PioOut,
    /// IN, whose answer is the first bytes of the PIO page.
    FastPioIn { size: u8 },
    /// OUT, which is complete once user space has seen it.
    FastPioOut,
    /// KVM_EXIT_X86_RDMSR.
    Rdmsr,
    /// KVM_EXIT_X86_WRMSR.
    Wrmsr,
    /// KVM_EXIT_HYPERCALL.
    Hypercall,
    /// KVM_EXIT_HYPERV_HCALL.
    HypervCall,
    /// KVM_EXIT_HYPERV_SYNDBG.
    Syndbg,
    /// KVM_EXIT_MEMORY_FAULT, met by an instruction that a device has been read for: it goes on once the memory is there.
    Memory,
}

impl Pending {
    /// Does an instruction go on that is not complete, and that the registers of its beginning belong to?
    pub(crate) fn resumes_instruction(&self) -> bool {
        matches!(self, Self::MmioRead { .. } | Self::PioIn { .. } | Self::Memory)
    }
}

/// The answer to [`Pending`], taken from `kvm_run` by the ABI crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing was asked, or the answer lies in the PIO page, or none is needed.
    Done,
    /// MMIO read data.
    Mmio([u8; 8]),
    /// MSR exits: `error` nonzero injects #GP.
    Msr { data: u64, error: bool },
    /// The hypercall's return value.
    Hypercall { ret: u64 },
    /// The synthetic debugger's status after MSR `index` was written.
    Syndbg { index: u32, status: u64 },
}

/// What user space asked for in `kvm_run` at the start of KVM_RUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunRequest {
    /// `request_interrupt_window`.
    pub interrupt_window: bool,
    /// `immediate_exit`.
    pub immediate_exit: bool,
    /// `cr8`: taken only without in-kernel local APIC.
    pub cr8: u64,
}

::state::state! {
    value RunRequest { interrupt_window, immediate_exit, cr8 }
}

::state::tagged! {
    UserExit {
        0 = Io { input, size, port, count },
        1 = Mmio { gpa, data, len, write },
        2 = Hlt,
        3 = SetTpr,
        4 = IrqWindowOpen,
        5 = Shutdown,
        6 = FailEntry { reason, cpu },
        7 = InternalError { suberror, ndata },
        8 = IoapicEoi { vector },
        9 = Msr { write, reason, index, data },
        10 = Hypercall { nr, longmode },
        11 = Debug { exception, pc, dr6, dr7 },
        12 = SystemEvent { kind },
        13 = Interrupted,
        14 = Unchanged,
        15 = MemoryFault { gpa },
        16 = TprAccess { rip, write },
        17 = Hyperv { kind },
        18 = DirtyRingFull,
    }
    Pending {
        0 = None,
        1 = MmioRead { len },
        2 = MmioWrite,
        3 = PioIn { size, count },
        4 = PioOut,
        5 = FastPioIn { size },
        6 = FastPioOut,
        7 = Rdmsr,
        8 = Wrmsr,
        9 = Hypercall,
        10 = HypervCall,
        11 = Syndbg,
        12 since 2 = Memory,
    }
}

/// KVM_INTERNAL_ERROR_* suberrors.
pub mod suberror {
    /// The emulator met an instruction that it cannot do.
    pub const EMULATION: u32 = 1;
    /// Unexpected exits in a row.
    pub const SIMUL_EX: u32 = 2;
    /// An exit while an event was being delivered that the event cannot have caused.
    pub const DELIVERY_EV: u32 = 3;
    /// The hardware reported an exit that nobody asked for.
    pub const UNEXPECTED_EXIT_REASON: u32 = 4;
}
