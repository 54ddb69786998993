//! RDMSR and WRMSR (APM 15.11), and their way through user space (KVM API document, 7.21 and 7.22).

use crate::Ctx;
use crate::fast::{changes_no_answer, is_constant};
use crate::msr::MsrError;
use crate::run::Next;
use crate::user::{Pending, UserExit};
use arch::Exception;
use core::sync::atomic::Ordering::Relaxed;
use emulator::Known;
use host::{Cpu, Host};

/// KVM_MSR_EXIT_REASON_*.
const INVALID: u32 = 1;
const UNKNOWN: u32 = 2;
const FILTER: u32 = 4;

pub fn read<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    let index = ctx.core.cpu.gpr(1) as u32;
    match ctx.guest_read_msr(index) {
        Ok(value) => {
            if is_constant(index) {
                ctx.core.fast.know_msr(index, value, false);
            }
            set_edx_eax(ctx, value);
            ctx.skip(Known::Rdmsr)
        }
        Err(e) => refused(ctx, e, false, index, 0),
    }
}

pub fn write<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    let cpu = &ctx.core.cpu;
    let index = cpu.gpr(1) as u32;
    let value = cpu.gpr(0) & 0xffff_ffff | cpu.gpr(2) << 32;
    // Before anything has happened: where the instruction cannot be read now it begins anew.
    let rip = match ctx.next_rip(Known::Wrmsr) {
        Ok(rip) => rip,
        Err(stop) => return stop,
    };
    if !changes_no_answer(index) {
        ctx.core.fast.forget_msrs();
    }
    match ctx.guest_write_msr(index, value) {
        Ok(effect) => {
            // It may hold something else than what was written. To write the same again will take no exit.
            if is_constant(index) {
                if let Ok(value) = ctx.guest_read_msr(index) {
                    ctx.core.fast.know_msr(index, value, true);
                }
            }
            let step = ctx.advance(rip);
            ctx.also(effect, step)
        }
        Err(e) => refused(ctx, e, true, index, value),
    }
}

fn set_edx_eax<H: Host>(ctx: &mut Ctx<'_, H>, value: u64) {
    ctx.core.cpu.set_gpr(0, value & 0xffff_ffff);
    ctx.core.cpu.set_gpr(2, value >> 32);
}

/// #GP, or user space's business if it asked for such accesses.
fn refused<H: Host>(ctx: &mut Ctx<'_, H>, e: MsrError, write: bool, index: u32, data: u64) -> Next {
    let reason = match e {
        MsrError::Invalid => INVALID,
        MsrError::Unknown => UNKNOWN,
        MsrError::Filtered => FILTER,
    };
    if ctx.vm.config.user_space_msr.load(Relaxed) & reason == 0 {
        return ctx.fault(Exception::gp(0));
    }
    ctx.core.pending = if write { Pending::Wrmsr } else { Pending::Rdmsr };
    Next::User(UserExit::Msr { write, reason, index, data })
}

/// User space's answer.
pub fn complete<H: Host>(ctx: &mut Ctx<'_, H>, write: bool, data: u64, error: bool) -> Next {
    if error {
        return ctx.fault(Exception::gp(0));
    }
    if write {
        return ctx.skip(Known::Wrmsr);
    }
    set_edx_eax(ctx, data);
    ctx.skip(Known::Rdmsr)
}
