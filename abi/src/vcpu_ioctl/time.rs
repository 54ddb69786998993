//! A vCPU's time stamp counter (KVM API document 4.55, 4.56, and vcpu device attributes).

use crate::codec::{get, put};
use crate::uapi::ioctl::{KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR};
use crate::uapi::*;
use host::{Errno, Host};
use vm::Ctx;

/// KVM_HAS/GET/SET_DEVICE_ATTR: the one attribute is the TSC offset. Errors: ENXIO (another), EFAULT.
pub fn attribute<H: Host>(ctx: &mut Ctx<'_, H>, cmd: u32, a: &kvm_device_attr) -> Result<(), Errno> {
    if a.group != KVM_VCPU_TSC_CTRL || a.attr != KVM_VCPU_TSC_OFFSET {
        return Err(Errno::ENXIO);
    }
    let host = &ctx.vm.host;
    match cmd {
        KVM_GET_DEVICE_ATTR => put(host, a.addr, &ctx.tsc_offset())?,
        KVM_SET_DEVICE_ATTR => ctx.set_tsc_offset(get(host, a.addr)?),
        _ => {}
    }
    Ok(())
}
