//! Control and debug registers (APM 15.8). Without decode assists the instruction is emulated.

use crate::Ctx;
use crate::run::Next;
use crate::user::UserExit;
use crate::vcpu::Core;
use arch::Exception;
use arch::cr::{Cr0, Cr4, DR6_BD, DR7_GD};
use arch::event::vector;
use host::{Cpu, Host};

/// RIP behind a MOV between a control or debug register and a general register, and the latter's number `gpr`, which decode
/// assists give. None: the instruction has to be read, or is another one (LMSW, SMSW, CLTS).
#[inline]
fn operand<H: Host>(ctx: &Ctx<'_, H>, gpr: Option<u8>) -> Option<(u8, u64)> {
    let next = ctx.core.cpu.control().next_rip;
    gpr.filter(|_| ctx.core.features.nrips && next != 0).map(|gpr| (gpr, next))
}

/// MOV to or from CRn; LMSW, SMSW and CLTS come without a register number.
#[cold]
pub fn cr<H: Host>(ctx: &mut Ctx<'_, H>, n: u8, gpr: Option<u8>, write: bool) -> Next {
    let Some((gpr, next_rip)) = operand(ctx, gpr) else { return ctx.emulate() };
    let long = ctx.in_64bit_mode();
    if !write {
        let value = match n {
            0 => ctx.core.cr0(),
            4 => ctx.core.guest_cr4,
            8 => ctx.cr8(),
            _ => return ctx.emulate(),
        };
        ctx.core.cpu.set_gpr(gpr, if long { value } else { value & 0xffff_ffff });
        return ctx.advance(next_rip);
    }
    let value = ctx.core.cpu.gpr(gpr);
    let value = if long { value } else { value & 0xffff_ffff };
    match ctx.write_cr(n, value) {
        Ok(()) => {
            let tells = core::mem::replace(&mut ctx.core.device_exit, Next::Resume);
            let step = ctx.advance(next_rip);
            ctx.also(tells, step)
        }
        Err(e) => ctx.fault(e),
    }
}

/// MOV to or from DRn.
#[cold]
pub fn dr<H: Host>(ctx: &mut Ctx<'_, H>, n: u8, gpr: Option<u8>, write: bool) -> Next {
    let dr7 = ctx.core.debug.dr7;
    if dr7 & DR7_GD != 0 {
        return ctx.fault(Exception { vector: vector::DB, error_code: None, payload: Some(DR6_BD) });
    }
    let Some((gpr, next_rip)) = operand(ctx, gpr) else { return ctx.emulate() };
    if matches!(n, 4 | 5) && ctx.core.guest_cr4 & Cr4::DE.bits() != 0 {
        return ctx.fault(Exception::UD);
    }
    let mask = if ctx.in_64bit_mode() { !0 } else { 0xffff_ffff };
    if write {
        let value = ctx.core.cpu.gpr(gpr) & mask;
        if let Err(e) = ctx.write_dr(n, value) {
            return ctx.fault(e);
        }
    } else {
        let value = ctx.read_dr(n);
        ctx.core.cpu.set_gpr(gpr, value & mask);
    }
    ctx.advance(next_rip)
}

impl<H: Host> Ctx<'_, H> {
    /// A guest's write of CRn.
    pub(crate) fn write_cr(&mut self, n: u8, value: u64) -> Result<(), Exception> {
        match n {
            0 => {
                let old = self.core.guest_cr0;
                self.core.write_cr0(value)?;
                if !old & self.core.guest_cr0 & Cr0::PG.bits() != 0 {
                    self.pages_may_be_told();
                }
                Ok(())
            }
            2 => {
                self.core.cpu.save_mut(arch::CleanBits::CR2).cr2 = value;
                Ok(())
            }
            3 => self.core.write_cr3(value),
            4 => {
                let old = self.core.guest_cr4;
                self.core.write_cr4(value)?;
                // CPUID repeats these two bits.
                if (old ^ value) & (Cr4::OSXSAVE | Cr4::PKE).bits() != 0 {
                    self.update_cpuid();
                }
                Ok(())
            }
            8 if value >> 4 == 0 => {
                let old = self.cr8();
                self.set_cr8(value);
                if self.core.fast.lapic.is_none() && value < old {
                    // User space has the local APIC, which may have an interrupt that was held back.
                    self.core.device_exit = Next::User(UserExit::SetTpr);
                }
                // The processor does it by itself again, unless the interrupt waits still.
                let armed = self.core.fast.armed.is_some();
                self.core.set_cr8_exits(armed);
                Ok(())
            }
            8 => Err(Exception::gp(0)),
            _ => Err(Exception::UD),
        }
    }

    /// DR0 to DR3, DR6 (also as 4), DR7 (also as 5).
    pub(crate) fn read_dr(&self, n: u8) -> u64 {
        match n {
            0..=3 => self.core.debug.dr.get(usize::from(n)).copied().unwrap_or(0),
            4 | 6 => self.core.debug.dr6,
            _ => self.core.debug.dr7,
        }
    }

    /// A guest's write of a debug register. Err: #GP(0) (upper half of DR6 or DR7).
    pub(crate) fn write_dr(&mut self, n: u8, value: u64) -> Result<(), Exception> {
        if n >= 4 && value >> 32 != 0 {
            return Err(Exception::gp(0));
        }
        match n {
            0..=3 => {
                if let Some(d) = self.core.debug.dr.get_mut(usize::from(n)) {
                    *d = value;
                }
                self.core.load_debug();
            }
            4 | 6 => {
                self.core.debug.dr6 = value & 0xe00f | arch::cr::DR6_RESET;
            }
            _ => {
                self.core.debug.set_dr7(value);
                self.core.load_debug();
            }
        }
        Ok(())
    }
}

impl<H: Host> Core<H> {
    /// Writes of CR8 exit, too, or no more; always without a local APIC in the kernel.
    pub(crate) fn set_cr8_exits(&mut self, on: bool) {
        let on = on || self.fast.lapic.is_none();
        if self.cr8_exits != on {
            self.cr8_exits = on;
            self.load_cr_intercepts();
        }
    }

    /// Which accesses to control registers exit, and what those of them are answered that need no more.
    pub(crate) fn load_cr_intercepts(&mut self) {
        // Where TS and MP change without an exit, CR0 is not known without a look.
        self.fast.cr0 = self.fpu_use.trapping().then_some(self.guest_cr0);
        self.fast.cr4 = Some(self.guest_cr4);
        let cr0 = u16::from(self.cr0_exits);
        self.cpu.set_cr_intercepts(cr0 | u16::from(self.cr4_read_exits) << 4, cr0 | u16::from(self.cr8_exits) << 8);
    }
}
