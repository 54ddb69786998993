//! Which MSRs a guest reaches without an exit (APM 15.11).

use super::{MsrFilter, MsrState};
use crate::cpuid::GuestCpuid;
use arch::msr::*;

/// System-call and segment MSRs: VMLOAD and VMSAVE (or VMRUN) switch them, and the processor checks what is written.
const SWITCHED: [u32; 10] =
    [STAR, LSTAR, CSTAR, SYSCALL_MASK, FS_BASE, GS_BASE, KERNEL_GS_BASE, SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP];

/// Calls `apply(msr, intercept_reads, intercept_writes)` for each MSR that may ever pass; all others stay intercepted.
/// Needed again after KVM_SET_CPUID2, after a change of the filter and after
/// [`MsrEffect::SpecCtrl`](super::MsrEffect::SpecCtrl).
pub fn passthrough(
    cpuid: &GuestCpuid,
    state: &MsrState,
    filter: Option<&MsrFilter>,
    apply: &mut impl FnMut(u32, bool, bool),
) {
    let flags = cpuid.flags();
    let mut set = |msr, read: bool, write: bool| {
        let allowed = |w| filter.is_none_or(|f| f.allowed(msr, w));
        apply(msr, !(read && allowed(false)), !(write && allowed(true)));
    };
    for msr in SWITCHED {
        // The processor keeps 32 bits of these two; a guest that believes to be on Intel expects 64.
        let pass = !matches!(msr, SYSENTER_ESP | SYSENTER_EIP) || flags.is_amd;
        set(msr, pass, pass);
    }
    // Until the guest uses it, the world switch need not touch SPEC_CTRL; where it is virtualised it costs nothing.
    let spec_ctrl = flags.spec_ctrl && (state.spec_ctrl_used() || state.spec_ctrl_virtual);
    set(SPEC_CTRL, spec_ctrl, spec_ctrl);
    set(PRED_CMD, false, flags.ibpb || flags.sbpb);
    set(FLUSH_CMD, false, flags.flush_l1d);
}
