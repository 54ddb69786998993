//! ioctls on a vCPU (KVM API document, section 4, "Type: vcpu ioctl").

mod cpuid;
mod debug;
pub(crate) mod events;
mod fpu;
mod lapic;
mod msrs;
pub(crate) mod regs;
mod time;

use crate::codec::{Abi, Field, get, put};
use crate::run::{Ran, run};
use crate::uapi::ioctl::*;
use crate::uapi::*;
use host::{Errno, Host, PAGE_SIZE, linux_version};
use vm::{Ctx, Vcpu, Vm};

/// What the caller has to do after [`vcpu_ioctl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuReply {
    /// Return this number.
    Value(i64),
    /// KVM_SET_SIGNAL_MASK: block these signals while KVM_RUN runs (None: leave the thread's mask alone); return 0.
    SignalMask(Option<u64>),
    /// Return a file that reads as the vCPU's statistics.
    Stats,
}

/// KVM_RUN on a vCPU file. Waits for others on the same vCPU. Errors: EINVAL (`arg` is not 0), EINTR (killed while it waits),
/// EIO (the VM is dead), and those of [`vm::Ctx::run`].
#[inline]
pub fn vcpu_run<H: Host>(vm: &Vm<H>, vcpu: &Vcpu<H>, arg: u64) -> Result<Ran, Errno> {
    vm.check_alive()?;
    if arg != 0 {
        return Err(Errno::EINVAL);
    }
    vm.with_vcpu(vcpu, run)?
}

/// Any other ioctl on a vCPU file. Waits for others on the same vCPU. Errors: as each ioctl documents; EINTR (killed while it
/// waits); EIO (the VM is dead); EINVAL for those that do not exist here, as on stock.
pub fn vcpu_ioctl<H: Host>(vm: &Vm<H>, vcpu: &Vcpu<H>, cmd: u32, arg: u64) -> Result<VcpuReply, Errno> {
    vm.check_alive()?;
    if cmd == KVM_SET_SIGNAL_MASK {
        return signal_mask(&vm.host, arg).map(VcpuReply::SignalMask);
    }
    if cmd == KVM_GET_STATS_FD {
        return Ok(VcpuReply::Stats);
    }
    vm.with_vcpu(vcpu, |ctx| dispatch(ctx, cmd, arg))?.map(VcpuReply::Value)
}

fn dispatch<H: Host>(ctx: &mut Ctx<'_, H>, cmd: u32, arg: u64) -> Result<i64, Errno> {
    let result = match cmd {
        KVM_GET_REGS => give(ctx, arg, |c| regs::get_regs(c)),
        KVM_SET_REGS => take(ctx, arg, regs::set_regs),
        KVM_GET_SREGS => give(ctx, arg, |c| regs::get_sregs(c)),
        KVM_SET_SREGS => take(ctx, arg, regs::set_sregs),
        KVM_GET_SREGS2 => give(ctx, arg, |c| regs::get_sregs2(c)),
        KVM_SET_SREGS2 => take(ctx, arg, regs::set_sregs2),
        KVM_TRANSLATE => regs::translate(ctx, arg),

        KVM_PRE_FAULT_MEMORY => pre_fault(ctx, arg),

        KVM_GET_FPU => give(ctx, arg, |c| fpu::get_fpu(c)),
        KVM_SET_FPU => take(ctx, arg, fpu::set_fpu),
        KVM_GET_XSAVE => fpu::get_xsave(ctx, arg),
        KVM_GET_XSAVE2 => fpu::get_xsave2(ctx, arg),
        KVM_SET_XSAVE => fpu::set_xsave(ctx, arg),
        KVM_GET_XCRS => give(ctx, arg, |c| fpu::get_xcrs(c)),
        KVM_SET_XCRS => take(ctx, arg, fpu::set_xcrs),

        KVM_GET_MSRS => return msrs::get_msrs(ctx, arg),
        KVM_SET_MSRS => return msrs::set_msrs(ctx, arg),
        KVM_SET_CPUID => cpuid::set_cpuid(ctx, arg),
        KVM_SET_CPUID2 => cpuid::set_cpuid2(ctx, arg),
        KVM_GET_CPUID2 => cpuid::get_cpuid2(ctx, arg),
        KVM_GET_SUPPORTED_HV_CPUID => cpuid::get_supported_hv_cpuid(ctx, arg),
        KVM_X86_SETUP_MCE => take(ctx, arg, |c, mcg_cap| c.setup_mce(*mcg_cap)),
        KVM_X86_SET_MCE => take(ctx, arg, set_mce),

        KVM_GET_LAPIC => lapic::get_lapic(ctx, arg),
        KVM_SET_LAPIC => lapic::set_lapic(ctx, arg),
        KVM_TPR_ACCESS_REPORTING => lapic::report_tpr_accesses(ctx, arg),
        KVM_SET_VAPIC_ADDR => lapic::set_vapic_addr(ctx, arg),
        KVM_INTERRUPT => take(ctx, arg, |c, i: &kvm_interrupt| c.interrupt(i.irq)),
        KVM_NMI => {
            ctx.nmi();
            Ok(())
        }
        KVM_SMI => {
            ctx.smi();
            Ok(())
        }

        KVM_GET_MP_STATE => give(ctx, arg, events::get_mp_state),
        KVM_SET_MP_STATE => take(ctx, arg, events::set_mp_state),
        KVM_GET_VCPU_EVENTS => give(ctx, arg, events::get_events),
        KVM_SET_VCPU_EVENTS => take(ctx, arg, events::set_events),
        KVM_GET_NESTED_STATE => events::get_nested_state(&ctx.vm.host, arg),
        KVM_SET_NESTED_STATE => take(ctx, arg, |_, s| events::set_nested_state(s)),
        KVM_GET_DEBUGREGS => give(ctx, arg, |c| debug::get_debugregs(c)),
        KVM_SET_DEBUGREGS => take(ctx, arg, debug::set_debugregs),
        KVM_SET_GUEST_DEBUG => take(ctx, arg, debug::set_guest_debug),

        KVM_ENABLE_CAP => take(ctx, arg, enable_cap),
        KVM_KVMCLOCK_CTRL => ctx.kvmclock_ctrl(),
        KVM_SET_TSC_KHZ => ctx.set_tsc_khz(arg as u32),
        KVM_GET_TSC_KHZ => return Ok(ctx.tsc_khz().into()),
        KVM_HAS_DEVICE_ATTR | KVM_GET_DEVICE_ATTR | KVM_SET_DEVICE_ATTR => {
            take(ctx, arg, |c, a| time::attribute(c, cmd, a))
        }
        // Which Intel's TDX has for vCPUs, too.
        KVM_MEMORY_ENCRYPT_OP if ctx.vm.host.linux_version() >= linux_version(6, 16) => Err(Errno::ENOTTY),
        _ => Err(Errno::EINVAL),
    };
    result.map(|()| 0)
}

/// KVM_ENABLE_CAP on a vCPU. Errors: EINVAL (unknown flags, or a capability that is not a vCPU's; no local APIC in the
/// kernel), ENOTTY (what is for nested guests), ENOMEM.
fn enable_cap<H: Host>(ctx: &mut Ctx<'_, H>, c: &kvm_enable_cap) -> Result<(), Errno> {
    let [arg, ..] = c.args;
    match (c.flags, c.cap) {
        (0, cap::ENFORCE_PV_FEATURE_CPUID) => ctx.core.msr.enforce_pv = arg != 0,
        (0, cap::HYPERV_SYNIC) => ctx.enable_synic(false)?,
        (0, cap::HYPERV_SYNIC2) if arg == 0 => ctx.enable_synic(true)?,
        (0, cap::HYPERV_ENFORCE_CPUID) => ctx.enforce_hv_cpuid(arg != 0)?,
        (0, cap::HYPERV_ENLIGHTENED_VMCS | cap::HYPERV_DIRECT_TLBFLUSH) => return Err(Errno::ENOTTY),
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// KVM_X86_SET_MCE.
fn set_mce<H: Host>(ctx: &mut Ctx<'_, H>, m: &kvm_x86_mce) -> Result<(), Errno> {
    let kvm_x86_mce { status, addr, misc, mcg_status, bank, .. } = *m;
    ctx.set_mce(&vm::msr::MachineCheck { status, addr, misc, mcg_status, bank })
}

/// Hands a struct to user space. A function of its own for each struct, so that no stack frame holds two of them.
#[inline(never)]
fn give<H: Host, T: Abi>(ctx: &mut Ctx<'_, H>, arg: u64, f: impl FnOnce(&mut Ctx<'_, H>) -> T) -> Result<(), Errno> {
    let value = f(ctx);
    put(&ctx.vm.host, arg, &value)
}

/// Takes a struct from user space.
#[inline(never)]
fn take<H: Host, T: Abi>(
    ctx: &mut Ctx<'_, H>,
    arg: u64,
    f: impl FnOnce(&mut Ctx<'_, H>, &T) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let value = get(&ctx.vm.host, arg)?;
    f(ctx, &value)
}

/// KVM_PRE_FAULT_MEMORY: what is left of the range goes back to user space. Errors: EINVAL (flags, a range that is
/// empty, wraps or is not page aligned), EFAULT, and those of [`Ctx::pre_fault`].
fn pre_fault<H: Host>(ctx: &mut Ctx<'_, H>, arg: u64) -> Result<(), Errno> {
    let r: kvm_pre_fault_memory = get(&ctx.vm.host, arg)?;
    let aligned = (r.gpa | r.size) % PAGE_SIZE as u64 == 0;
    if r.flags != 0 || !aligned || r.gpa.wrapping_add(r.size) <= r.gpa {
        return Err(Errno::EINVAL);
    }
    let (gpa, size, result) = ctx.pre_fault(r.gpa, r.size);
    put(&ctx.vm.host, arg, &kvm_pre_fault_memory { gpa, size, ..r })?;
    result
}

/// KVM_SET_SIGNAL_MASK: no argument takes the mask away. Errors: EINVAL (a mask that is not 64 signals), EFAULT.
fn signal_mask<H: Host>(host: &H, arg: u64) -> Result<Option<u64>, Errno> {
    if arg == 0 {
        return Ok(None);
    }
    if get::<H, kvm_signal_mask>(host, arg)?.len as usize != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    get(host, arg.wrapping_add(kvm_signal_mask::SIZE as u64)).map(Some)
}
