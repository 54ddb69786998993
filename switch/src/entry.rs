//! The assembly: from the host into the guest and back (APM 15.5, 15.6). The text is `entry.s`; here is its contract,
//! and the offsets it uses, taken from the types.
//!
//! Called with GIF clear and RFLAGS.IF set. In order:
//!
//! 1. Push what the host keeps in registers, then the flag, the physical address of the host save area and the vCPU
//!    pointer, in the inverse order of need. The address comes through GS, so it has to be fetched now: after
//!    #VMEXIT GS is the guest's.
//! 2. SPEC_CTRL, if the guest's differs from the host's. From here to VMRUN no RET and no indirect branch.
//! 3. VMLOAD, general registers, clearing of CPU buffers, VMRUN.
//! 4. On #VMEXIT RAX is the only free register (the hardware saved the guest's): the vCPU pointer goes there. Store
//!    the general registers, VMSAVE, VMLOAD of the host: from here GS is the host's again.
//! 5. Return stack, SPEC_CTRL, branch predictor; then every register that held a guest value is zeroed; then the
//!    first RET.
//!
//! The common case takes no conditional jump: bodies that are seldom needed stand behind the return. The mitigations
//! are the kernel's own macros, whose encoding differs per kernel; they live in the shim and are reached by direct
//! jumps (docs/decisions/0006-mitigations-by-direct-jump.md).
//!
//! An SVM instruction that faults while the machine reboots (SVM was switched off under us) is skipped and noted in
//! the vCPU; any other fault is a bug and meets UD2.
//!
//! The same text is linked into user-space tests, whose signal handler plays the processor; GS has base 0 there. It
//! assembles for i386 as well (`{i386}`), where the per-CPU segment is FS and the arguments come in EAX and EDX. The
//! SEV-ES variant (`{sev_es}`) is in the model only: nothing creates such a guest yet, and the module ships nothing dead.

use crate::{CpuData, VcpuCtx, ctx::SPEC_CTRL_NOT_INTERCEPTED, extable::extable};
use arch::{Vmcb, Vmsa};
use core::mem::offset_of;

// SAFETY: defined by the assembly of this file, with this signature and the C calling convention.
#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    /// Runs the guest once. `flags`: [`SPEC_CTRL_NOT_INTERCEPTED`] or 0.
    ///
    /// # Safety
    /// GIF is clear and RFLAGS.IF is set; this CPU is enabled, its host save area holds this thread's VMSAVE state;
    /// the addresses in `vcpu` are those of VMCBs that nobody else uses.
    pub fn hsave_vcpu_run(vcpu: *mut VcpuCtx, flags: u32);

    /// The same for a guest with encrypted state, whose registers are in the VMSA that its VMCB names; the registers
    /// and `vmcb01` of `vcpu` are not used.
    ///
    /// # Safety
    /// As above, and SEV-ES is enabled in the VMCB.
    #[cfg(test)]
    pub fn hsave_es_vcpu_run(vcpu: *mut VcpuCtx, flags: u32);
}

/// The SEV-ES variant is part of the text.
const SEV_ES: u8 = (cfg!(any(test, feature = "model")) && cfg!(target_arch = "x86_64")) as u8;
/// The text is for a 32-bit host.
const I386: u8 = cfg!(target_arch = "x86") as u8;

core::arch::global_asm!(
    ".macro hsave_extable from, to",
    extable!(),
    "    .balign 4",
    "    .long \\from - .",
    "    .long \\to - .",
    "    .long 1", // EX_TYPE_DEFAULT: continue at `to`.
    "    .popsection",
    ".endm",
    include_str!("entry.s"),
    i386 = const I386,
    sev_es = const SEV_ES,
    hsave_pa = const offset_of!(CpuData, hsave_pa),
    hsave_va = const offset_of!(CpuData, hsave_va),
    regs = const offset_of!(VcpuCtx, regs),
    vmcb01 = const offset_of!(VcpuCtx, vmcb01),
    vmcb = const offset_of!(VcpuCtx, vmcb),
    spec_ctrl = const offset_of!(VcpuCtx, spec_ctrl),
    faulted = const offset_of!(VcpuCtx, faulted),
    stack = const offset_of!(VcpuCtx, stack),
    fast = const VcpuCtx::FAST,
    not_intercepted = const SPEC_CTRL_NOT_INTERCEPTED,
    msr = const arch::msr::SPEC_CTRL,
    host = const offset_of!(Vmcb, save),
    rbx = const offset_of!(Vmsa, rbx),
    rbp = const offset_of!(Vmsa, rbp),
    rsi = const offset_of!(Vmsa, rsi),
    rdi = const offset_of!(Vmsa, rdi),
    r12 = const offset_of!(Vmsa, r12),
    r13 = const offset_of!(Vmsa, r13),
    r14 = const offset_of!(Vmsa, r14),
    r15 = const offset_of!(Vmsa, r15),
);
