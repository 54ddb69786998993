//! The handlers of rare exits.

use super::unexpected;
use crate::cpuid::{KVM_PV_SCHED_YIELD, KVM_PV_SEND_IPI, KVM_PV_UNHALT};
use crate::debug::{SINGLESTEP, USE_HW_BP, USE_SW_BP};
use crate::quirks::MWAIT_NEVER_UD_FAULTS;
use crate::run::Next;
use crate::user::{Pending, UserExit};
use crate::{Ctx, MpState};
use arch::event::vector;
use arch::{Exception, Gpa, cr};
use core::sync::atomic::Ordering::Relaxed;
use emulator::Known;
use host::{Cpu, Host, VcpuThread};
use irqchip::Accept;

/// HLT: the loop sleeps until something wakes the guest.
pub fn hlt<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    ctx.me.stats.halt_exits.count();
    let rip = match ctx.next_rip(Known::Hlt) {
        Ok(rip) => rip,
        Err(stop) => return stop,
    };
    let step = ctx.advance(rip);
    if ctx.core.fast.lapic.is_none() {
        return ctx.also(Next::User(UserExit::Hlt), step);
    }
    // A debugger that steps is told so, and the guest sleeps when it runs again.
    ctx.core.mp_state = MpState::Halted;
    step
}

/// PAUSE in a loop: somebody else may hold what the guest waits for.
#[cold]
pub fn pause<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    ctx.yield_to_others();
    ctx.core.grow_pause_filter(ctx.vm.host.pause_parameters());
    ctx.skip(Known::Pause)
}

/// MONITOR and MWAIT (APM volume 3) do nothing, unless they are undefined for a guest without them.
#[cold]
pub fn idle_hint<H: Host>(ctx: &mut Ctx<'_, H>, what: Known) -> Next {
    // CPUID Fn1 ECX bit 3.
    let has = || ctx.core.cpuid.get(1, 0).is_some_and(|e| e.regs[2] & 8 != 0);
    if !ctx.vm.config.has_quirk(MWAIT_NEVER_UD_FAULTS) && !has() {
        return ctx.fault(Exception::UD);
    }
    ctx.skip(what)
}

/// WBINVD matters where a device reads memory past the caches; elsewhere they are coherent, and it does nothing.
pub fn wbinvd<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    if ctx.vm.noncoherent_dma.load(Relaxed) {
        ctx.me.thread.wbinvd();
    }
    ctx.skip(Known::Wbinvd)
}

/// RDPMC: no performance counters are offered (APM 13.2.2).
#[cold]
pub fn rdpmc<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    ctx.fault(Exception::gp(0))
}

/// XSETBV (APM 11.5.2). It is #UD without CR4.OSXSAVE before it is intercepted; but QEMU's emulation intercepts it first.
#[cold]
pub fn xsetbv<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    if ctx.core.guest_cr4 & cr::Cr4::OSXSAVE.bits() == 0 {
        return ctx.fault(Exception::UD);
    }
    let cpu = &ctx.core.cpu;
    let index = cpu.gpr(1) as u32;
    let value = cpu.gpr(0) & 0xffff_ffff | cpu.gpr(2) << 32;
    if index != 0 || cpu.save().cpl != 0 || ctx.set_xcr0(value).is_err() {
        return ctx.fault(Exception::gp(0));
    }
    ctx.skip(Known::Xsetbv)
}

/// KVM hypercall numbers (KVM's hypercalls document).
const KVM_HC_VAPIC_POLL_IRQ: u64 = 1;
const KVM_HC_KICK_CPU: u64 = 5;
const KVM_HC_SEND_IPI: u64 = 10;
const KVM_HC_SCHED_YIELD: u64 = 11;
const KVM_HC_CLOCK_PAIRING: u64 = 9;
const KVM_HC_MAP_GPA_RANGE: u64 = 12;
const KVM_ENOSYS: u64 = -1000i64 as u64;
const KVM_EINVAL: u64 = -22i64 as u64;
const KVM_EPERM: u64 = -1i64 as u64;

/// VMMCALL.
pub fn vmmcall<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    ctx.me.stats.hypercalls.count();
    if ctx.takes_hyperv_calls() {
        return ctx.hyperv_call();
    }
    let long = ctx.in_64bit_mode();
    let mask = if long { !0 } else { 0xffff_ffff };
    let arg = |n| ctx.core.cpu.gpr(n) & mask;
    let (nr, args) = (arg(0), [arg(3), arg(1), arg(2), arg(6), arg(7), 0]);
    let result = if ctx.core.cpu.save().cpl != 0 {
        KVM_EPERM
    } else {
        match nr {
            KVM_HC_VAPIC_POLL_IRQ => 0,
            KVM_HC_CLOCK_PAIRING => ctx.pair_clocks(Gpa(args[0]), args[1]),
            KVM_HC_KICK_CPU if ctx.core.has_pv(KVM_PV_UNHALT) => {
                ctx.kick_apic_id(args[1] as u32);
                ctx.yield_to_apic_id(args[1] as u32);
                0
            }
            KVM_HC_SEND_IPI if ctx.core.has_pv(KVM_PV_SEND_IPI) => {
                let [low, high, min, icr, ..] = args;
                ctx.vm.send_pv_ipi([low, high], min, icr as u32, if long { 64 } else { 32 })
            }
            KVM_HC_SCHED_YIELD if ctx.core.has_pv(KVM_PV_SCHED_YIELD) => {
                ctx.yield_to_apic_id(args[0] as u32);
                0
            }
            KVM_HC_MAP_GPA_RANGE if ctx.vm.config.exit_hypercall.load(Relaxed) & 1 << nr != 0 => {
                let [gpa, pages, attributes, ..] = args;
                // User space relies on a range that is one.
                if gpa & 0xfff != 0 || pages == 0 || (gpa >> 12).checked_add(pages).is_none() {
                    KVM_EINVAL
                } else {
                    ctx.core.pending = Pending::Hypercall;
                    ctx.core.exit_words = [gpa, pages, attributes, 0, 0, 0, 0, 0];
                    return Next::User(UserExit::Hypercall { nr, longmode: long });
                }
            }
            _ => KVM_ENOSYS,
        }
    };
    ctx.core.cpu.set_gpr(0, result & mask);
    ctx.skip(Known::Vmmcall)
}

/// User space's answer to KVM_EXIT_HYPERCALL.
pub fn complete_hypercall<H: Host>(ctx: &mut Ctx<'_, H>, ret: u64) -> Next {
    let mask = if ctx.in_64bit_mode() { !0 } else { 0xffff_ffff };
    ctx.core.cpu.set_gpr(0, ret & mask);
    ctx.skip(Known::Vmmcall)
}

/// The processor has met a triple fault: the save area is undefined afterwards (APM 15.14.3), also what INIT leaves alone and
/// what nothing here ever looks at, but the processor does. So all of it is put into a defined state, as on stock: that after INIT,
/// but that the vCPU does not wait for SIPI.
#[cold]
pub fn shutdown<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    ctx.note_end(UserExit::Shutdown.reason(), 0);
    let save = ctx.core.cpu.save_mut(arch::CleanBits::all());
    *save = arch::Zero::ZERO;
    save.g_pat = ctx.core.msr.pat;
    ctx.start_over();
    Next::User(UserExit::Shutdown)
}

/// VMRUN refused the VMCB.
#[cold]
pub fn invalid<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    super::dump::vmcb(ctx);
    // User space has always been shown the low half of this exit code, -1.
    let reason = arch::exit::code::INVALID & 0xffff_ffff;
    let why = UserExit::FailEntry { reason, cpu: ctx.core.cpu.last_cpu() };
    ctx.note_end(why.reason(), reason);
    Next::User(why)
}

/// An exit code that nobody asked for.
#[cold]
pub fn unknown<H: Host>(ctx: &mut Ctx<'_, H>, code: u64) -> Next {
    ctx.vm.host.unexpected_exit(ctx.me.id, ctx.core.cpu.save().rip, code);
    super::dump::vmcb(ctx);
    unexpected(ctx, code)
}

/// Each exception is intercepted for a reason of its own: #BP for the debugger in user space; #DB for it, too, and, as #AC,
/// because a guest could keep the processor in an endless delivery of it (APM 15.12.5); #NM while the guest's FPU state is not
/// loaded (docs/decisions/0009); #UD for the same, and for what is emulated (`undefined`); #MC because the host has to handle it.
#[cold]
pub fn exception<H: Host>(ctx: &mut Ctx<'_, H>, v: u8, error_code: u32) -> Next {
    let debug = ctx.core.debug.control;
    match v {
        // It runs again with the guest's own CR0, and faults on its own account if that says so.
        vector::NM if ctx.core.fpu_use.trapping() => {
            ctx.core.need_fpu();
            Next::Resume
        }
        vector::UD if ctx.core.hides_osxsave() => {
            ctx.core.need_fpu();
            Next::Resume
        }
        vector::MC => Next::Resume, // The world switch handed it to the host.
        vector::DB => {
            let Some(dr6) = ctx.core.take_debug_status() else { return Next::Resume };
            if debug & (SINGLESTEP | USE_HW_BP) != 0 {
                return debug_exit(ctx, vector::DB, dr6);
            }
            ctx.fault(Exception { vector: v, error_code: None, payload: Some(dr6 ^ cr::DR6_RESET) })
        }
        vector::UD => ctx.undefined(),
        vector::BP if debug & USE_SW_BP != 0 => debug_exit(ctx, vector::BP, 0),
        vector::AC => ctx.fault(Exception { vector: v, error_code: Some(error_code), payload: None }),
        // NMIs have an exit code of their own; this one cannot be injected as an exception (APM 15.20).
        vector::NMI => unexpected(ctx, arch::exit::code::EXCP0 + u64::from(v)),
        _ => {
            let code = Exception::pushes_error_code(v).then_some(error_code);
            ctx.fault(Exception { vector: v, error_code: code, payload: None })
        }
    }
}

/// KVM_EXIT_DEBUG.
#[cold]
pub fn debug_exit<H: Host>(ctx: &mut Ctx<'_, H>, v: u8, dr6: u64) -> Next {
    let save = ctx.core.cpu.save();
    let (pc, dr7) = (save.cs.base.wrapping_add(save.rip), save.dr7);
    Next::User(UserExit::Debug { exception: v.into(), pc, dr6, dr7 })
}

impl<H: Host> Ctx<'_, H> {
    /// KVM_HC_KICK_CPU: ends HLT of the vCPU with this APIC ID.
    fn kick_apic_id(&self, apic_id: u32) {
        if let Some(v) = self.vm.vcpu_by_id(apic_id) {
            v.deliver(Accept::Unhalt);
        }
    }
}
