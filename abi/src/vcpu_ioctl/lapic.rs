//! The local APIC from outside (KVM API document 4.47, 4.48, 4.61, 4.62).

use crate::codec::{get, put, read, write};
use crate::uapi::*;
use host::{Errno, Host};
use vm::Ctx;

/// KVM_GET_LAPIC. Errors: EINVAL (no in-kernel local APIC), EFAULT.
#[inline(never)]
pub fn get_lapic<H: Host>(ctx: &mut Ctx<'_, H>, arg: u64) -> Result<(), Errno> {
    let mut state = [0; size_of::<kvm_lapic_state>()];
    ctx.get_lapic(&mut state)?;
    write(&ctx.vm.host, arg, &state)
}

/// KVM_SET_LAPIC. Errors: EINVAL (no in-kernel local APIC, or the ID of another vCPU), EFAULT.
#[inline(never)]
pub fn set_lapic<H: Host>(ctx: &mut Ctx<'_, H>, arg: u64) -> Result<(), Errno> {
    if ctx.core.fast.lapic.is_none() {
        return Err(Errno::EINVAL);
    }
    let mut state = [0; size_of::<kvm_lapic_state>()];
    read(&ctx.vm.host, arg, &mut state)?;
    ctx.set_lapic(&state)
}

/// KVM_SET_VAPIC_ADDR: where the guest finds its TPR. Errors: EINVAL (no in-kernel local APIC, no memory there),
/// EFAULT.
pub fn set_vapic_addr<H: Host>(ctx: &mut Ctx<'_, H>, arg: u64) -> Result<(), Errno> {
    if ctx.core.fast.lapic.is_none() {
        return Err(Errno::EINVAL);
    }
    let a: kvm_vapic_addr = get(&ctx.vm.host, arg)?;
    ctx.set_vapic_addr(a.vapic_addr)
}

/// KVM_TPR_ACCESS_REPORTING. The struct goes back as it came. Errors: EINVAL (flags), EFAULT.
pub fn report_tpr_accesses<H: Host>(ctx: &mut Ctx<'_, H>, arg: u64) -> Result<(), Errno> {
    let control: kvm_tpr_access_ctl = get(&ctx.vm.host, arg)?;
    if control.flags != 0 {
        return Err(Errno::EINVAL);
    }
    ctx.report_tpr_accesses(control.enabled != 0);
    put(&ctx.vm.host, arg, &control)
}
