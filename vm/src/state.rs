//! A vCPU's state as user space gets and sets it, in plain form; the ABI crate translates to `struct kvm_*`.

use crate::SmiEvents;
use arch::Segment;

/// KVM_GET/SET_REGS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    /// In the processor's own order: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
}

/// KVM_GET/SET_SREGS(2). Segments carry VMCB attributes; the ABI's `unusable` is the complement of P.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sregs {
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    /// TR.
    pub tr: Segment,
    /// LDTR.
    pub ldtr: Segment,
    /// GDTR base and limit.
    pub gdt: (u64, u16),
    /// IDTR base and limit.
    pub idt: (u64, u16),
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8 (the local APIC's TPR class).
    pub cr8: u64,
    /// EFER without SVME.
    pub efer: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// KVM_SET_SREGS: an interrupt that was accepted but not delivered (`interrupt_bitmap`), at most one.
    pub interrupt: Option<u8>,
}

/// KVM_GET/SET_VCPU_EVENTS. On set, a None in an Option field of the second part leaves that state alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// `exception.injected`.
    pub exception_injected: bool,
    /// `exception.pending` (needs KVM_CAP_EXCEPTION_PAYLOAD).
    pub exception_pending: bool,
    /// Vector, 0..32 (2 is refused).
    pub exception_nr: u8,
    /// Error code, if there is one.
    pub exception_error_code: Option<u32>,
    /// Payload (CR2, DR6), if `exception_has_payload`.
    pub exception_payload: Option<u64>,
    /// `interrupt.injected`.
    pub interrupt_injected: bool,
    /// `interrupt.nr`.
    pub interrupt_nr: u8,
    /// `interrupt.soft`.
    pub interrupt_soft: bool,
    /// `interrupt.shadow`: bit 0 MOV SS, bit 1 STI (KVM_X86_SHADOW_INT_*).
    pub shadow: Option<u8>,
    /// `nmi.injected`.
    pub nmi_injected: bool,
    /// `nmi.pending`: how many; at most 2 count, or 1 while NMIs are masked.
    pub nmi_pending: Option<u8>,
    /// `nmi.masked`.
    pub nmi_masked: bool,
    /// `sipi_vector`.
    pub sipi_vector: Option<u32>,
    /// `smi`: system management mode, and an SMI that waits.
    pub smi: Option<SmiEvents>,
    /// `smi.latched_init`: INIT arrived and has not had its effect.
    pub latched_init: Option<bool>,
    /// `triple_fault.pending` (KVM_CAP_X86_TRIPLE_FAULT_EVENT).
    pub triple_fault: Option<bool>,
}

/// KVM_GET/SET_DEBUGREGS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugRegs {
    /// DR0 to DR3.
    pub db: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
}

/// KVM_MP_STATE_*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum MpState {
    /// Runs.
    #[default]
    Runnable = 0,
    /// Waits for INIT (application processors after reset).
    Uninitialized = 1,
    /// Got INIT, waits for SIPI.
    InitReceived = 2,
    /// Executed HLT.
    Halted = 3,
    /// Got SIPI (never seen from outside for long).
    SipiReceived = 4,
    /// A guest with encrypted state holds this processor in reset: sleeps as in HLT.
    ApResetHold = 9,
}

impl MpState {
    /// Does an event end this state and let the processor run on?
    pub fn sleeps(self) -> bool {
        matches!(self, Self::Halted | Self::ApResetHold)
    }
}

::state::state! {
    value Regs { gpr, rip, rflags }
    value CpuidEntry { function, index, flags, regs }
}

::state::tagged! {
    MpState {
        0 = Runnable,
        1 = Uninitialized,
        2 = InitReceived,
        3 = Halted,
        4 = SipiReceived,
        9 = ApResetHold,
    }
}

/// One entry of KVM_SET_CPUID2 / KVM_GET_SUPPORTED_CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidEntry {
    /// Leaf.
    pub function: u32,
    /// Subleaf.
    pub index: u32,
    /// KVM_CPUID_FLAG_*: bit 0 the subleaf matters.
    pub flags: u32,
    /// EAX, EBX, ECX, EDX.
    pub regs: [u32; 4],
}

/// KVM_CPUID_FLAG_SIGNIFCANT_INDEX.
pub const CPUID_SUBLEAF_MATTERS: u32 = 1;
