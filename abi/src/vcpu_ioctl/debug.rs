//! Debug registers and debugging of the guest from outside (KVM API document 4.33, 4.34, 4.87).

use crate::uapi::*;
use host::{Errno, Host};
use vm::{Ctx, DebugRegs};

/// KVM_GET_DEBUGREGS.
pub fn get_debugregs<H: Host>(ctx: &mut Ctx<'_, H>) -> kvm_debugregs {
    let DebugRegs { db, dr6, dr7 } = ctx.get_debugregs();
    kvm_debugregs { db, dr6, dr7, flags: 0, reserved: [0; 9] }
}

/// KVM_SET_DEBUGREGS. Errors: EINVAL (flags, or more than 32 bits in DR6 or DR7).
pub fn set_debugregs<H: Host>(ctx: &mut Ctx<'_, H>, d: &kvm_debugregs) -> Result<(), Errno> {
    if d.flags != 0 {
        return Err(Errno::EINVAL);
    }
    ctx.set_debugregs(&DebugRegs { db: d.db, dr6: d.dr6, dr7: d.dr7 })
}

/// KVM_SET_GUEST_DEBUG. Errors: EBUSY (an exception to be injected while another one, or shutdown, waits).
pub fn set_guest_debug<H: Host>(ctx: &mut Ctx<'_, H>, d: &kvm_guest_debug) -> Result<(), Errno> {
    ctx.set_guest_debug(d.control, &d.arch.debugreg)
}
