//! FPU and extended state (KVM API document 4.22, 4.23, 4.42 to 4.45, 4.133).

use crate::codec::{Field, read, write};
use crate::uapi::*;
use host::{Errno, Fpu, Host, try_filled};
use vm::Ctx;

/// Size of the struct of KVM_GET/SET_XSAVE.
const XSAVE: usize = 4096;

/// Offsets in the legacy part of the XSAVE area (APM volume 2, figure 11-8).
mod legacy {
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    pub const FTW: usize = 4;
    pub const FOP: usize = 6;
    pub const FIP: usize = 8;
    pub const FDP: usize = 16;
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
    pub const SIZE: usize = 512;
    /// XSTATE_BV, the first word of the header.
    pub const XSTATE_BV: usize = SIZE;
    /// Legacy part and header.
    pub const WITH_HEADER: usize = 576;
}

fn field<T: Field>(area: &[u8], at: usize) -> T {
    // INDEX: a constant of ours.
    T::take(area.get(at..).unwrap_or(&[]))
}

fn set_field<T: Field>(area: &mut [u8], at: usize, v: T) {
    // INDEX: a constant of ours.
    v.give(area.get_mut(at..).unwrap_or(&mut []));
}

/// KVM_GET_FPU. MXCSR is not part of what the call transfers, here as on stock.
pub fn get_fpu<H: Host>(ctx: &Ctx<'_, H>) -> kvm_fpu {
    let mut area = [0; legacy::WITH_HEADER];
    ctx.get_xsave(&mut area);
    kvm_fpu {
        fpr: field(&area, legacy::ST),
        fcw: field(&area, legacy::FCW),
        fsw: field(&area, legacy::FSW),
        ftwx: field(&area, legacy::FTW),
        pad1: 0,
        last_opcode: field(&area, legacy::FOP),
        last_ip: field(&area, legacy::FIP),
        last_dp: field(&area, legacy::FDP),
        xmm: field(&area, legacy::XMM),
        mxcsr: 0,
        pad2: 0,
    }
}

/// KVM_SET_FPU: x87 and SSE registers; all other state and MXCSR stay. Errors: ENOMEM.
pub fn set_fpu<H: Host>(ctx: &mut Ctx<'_, H>, f: &kvm_fpu) -> Result<(), Errno> {
    let mut area = try_filled(0u8, ctx.core.fpu.user_size())?;
    ctx.whole_xsave(&mut area);
    set_field(&mut area, legacy::ST, f.fpr);
    set_field(&mut area, legacy::FCW, f.fcw);
    set_field(&mut area, legacy::FSW, f.fsw);
    set_field(&mut area, legacy::FTW, f.ftwx);
    set_field(&mut area, legacy::FOP, f.last_opcode);
    set_field(&mut area, legacy::FIP, f.last_ip);
    set_field(&mut area, legacy::FDP, f.last_dp);
    set_field(&mut area, legacy::XMM, f.xmm);
    // Both components are no longer in their initial state.
    let present: u64 = field(&area, legacy::XSTATE_BV);
    set_field(&mut area, legacy::XSTATE_BV, present | 3);
    ctx.set_xsave(&area)
}

/// KVM_GET_XSAVE. Errors: EINVAL (the state does not fit into its struct), ENOMEM, EFAULT.
pub fn get_xsave<H: Host>(ctx: &Ctx<'_, H>, arg: u64) -> Result<(), Errno> {
    if ctx.core.fpu.user_size() > XSAVE { Err(Errno::EINVAL) } else { get_xsave2(ctx, arg) }
}

/// KVM_GET_XSAVE2: as many bytes as KVM_CAP_XSAVE2 says. Errors: ENOMEM, EFAULT.
pub fn get_xsave2<H: Host>(ctx: &Ctx<'_, H>, arg: u64) -> Result<(), Errno> {
    let mut area = try_filled(0u8, ctx.core.fpu.user_size())?;
    ctx.get_xsave(&mut area);
    write(&ctx.vm.host, arg, &area)
}

/// KVM_SET_XSAVE: as many bytes as KVM_CAP_XSAVE2 says. Errors: EINVAL (unsupported components or MXCSR bits), ENOMEM,
/// EFAULT.
pub fn set_xsave<H: Host>(ctx: &mut Ctx<'_, H>, arg: u64) -> Result<(), Errno> {
    let mut area = try_filled(0u8, ctx.core.fpu.user_size())?;
    read(&ctx.vm.host, arg, &mut area)?;
    ctx.set_xsave(&area)
}

/// KVM_GET_XCRS: XCR0, or nothing if the processor has no XSAVE.
pub fn get_xcrs<H: Host>(ctx: &Ctx<'_, H>) -> kvm_xcrs {
    let mut x = kvm_xcrs::default();
    if ctx.vm.host.host_xcr0() != 0 {
        x.nr_xcrs = 1;
        if let Some(first) = x.xcrs.first_mut() {
            first.value = ctx.get_xcr0();
        }
    }
    x
}

/// KVM_SET_XCRS; registers other than XCR0 are passed over. Errors: EINVAL (no XSAVE, too many registers, flags, a
/// value that XSETBV would refuse).
pub fn set_xcrs<H: Host>(ctx: &mut Ctx<'_, H>, x: &kvm_xcrs) -> Result<(), Errno> {
    if ctx.vm.host.host_xcr0() == 0 || x.flags != 0 {
        return Err(Errno::EINVAL);
    }
    // INDEX: how many entries count is chosen by the caller, who may see all of them.
    let given = x.xcrs.get(..x.nr_xcrs as usize).ok_or(Errno::EINVAL)?;
    match given.iter().find(|r| r.xcr == 0) {
        Some(xcr0) => ctx.set_xcr0(xcr0.value),
        None => Ok(()),
    }
}
