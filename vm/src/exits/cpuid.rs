//! CPUID (APM 15.12).

use crate::Ctx;
use crate::run::Next;
use arch::Exception;
use emulator::Known;
use host::{Cpu, Host};

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;

pub fn handle<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    if ctx.core.msr.cpuid_faulting() && ctx.core.cpu.save().cpl != 0 {
        return ctx.fault(Exception::gp(0));
    }
    let cpu = &mut ctx.core.cpu;
    let (function, index) = (cpu.gpr(RAX) as u32, cpu.gpr(RCX) as u32);
    let [a, b, c, d] = ctx.core.cpuid.lookup(function, index);
    if !ctx.core.msr.cpuid_faulting() {
        ctx.core.fast.know_cpuid(function, index, [a, b, c, d]);
    }
    cpu.set_gpr(RAX, a.into());
    cpu.set_gpr(RBX, b.into());
    cpu.set_gpr(RCX, c.into());
    cpu.set_gpr(RDX, d.into());
    ctx.skip(Known::Cpuid)
}
