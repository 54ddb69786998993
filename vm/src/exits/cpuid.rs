//! CPUID (APM 15.12).

use crate::Ctx;
use crate::run::Next;
use arch::Exception;
use emulator::Known;
use host::{Cpu, Host};

/// Fn8000_0007 EDX: the TSC's frequency never changes.
const POWER: u32 = 0x8000_0007;
const INVARIANT_TSC: u32 = 1 << 8;
const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;

pub fn handle<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    if ctx.core.msr.cpuid_faulting() && ctx.core.cpu.save().cpl != 0 {
        return ctx.fault(Exception::gp(0));
    }
    let cpu = &ctx.core.cpu;
    let (function, index) = (cpu.gpr(RAX) as u32, cpu.gpr(RCX) as u32);
    let [a, b, c, mut d] = ctx.core.cpuid.lookup(function, index);
    // Another vCPU may change it.
    let settled = function != POWER || ctx.core.hyperv.is_none();
    if !settled && ctx.hides_invariant_tsc() {
        d &= !INVARIANT_TSC;
    }
    let cpu = &mut ctx.core.cpu;
    if settled && !ctx.core.msr.cpuid_faulting() {
        ctx.core.fast.know_cpuid(function, index, [a, b, c, d]);
    }
    cpu.set_gpr(RAX, a.into());
    cpu.set_gpr(RBX, b.into());
    cpu.set_gpr(RCX, c.into());
    cpu.set_gpr(RDX, d.into());
    ctx.skip(Known::Cpuid)
}
