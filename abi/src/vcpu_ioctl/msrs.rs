//! MSRs (KVM API document 4.18, 4.19).

use crate::system;
use host::{Errno, Host};
use vm::Ctx;

/// KVM_GET_MSRS: how many were read before the first that could not be. Errors: E2BIG, ENOMEM, EFAULT.
pub fn get_msrs<H: Host>(ctx: &mut Ctx<'_, H>, arg: u64) -> Result<i64, Errno> {
    let vm = ctx.vm;
    system::get_msrs(&vm.host, arg, |index| ctx.get_msr(index).ok())
}

/// KVM_SET_MSRS: how many were written before the first that could not be. Errors: E2BIG, ENOMEM, EFAULT.
pub fn set_msrs<H: Host>(ctx: &mut Ctx<'_, H>, arg: u64) -> Result<i64, Errno> {
    let entries = system::msr_entries(&ctx.vm.host, arg)?;
    let mut written = 0;
    for e in &entries {
        if ctx.set_msr(e.index, e.data).is_err() {
            break;
        }
        written += 1;
    }
    Ok(written)
}
