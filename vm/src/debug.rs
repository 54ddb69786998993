//! Debug registers: the guest's own, and those of a debugger in user space that stand in for them while it works
//! (KVM_SET_GUEST_DEBUG, KVM API document, 4.87).

use crate::Ctx;
use crate::vcpu::Core;
use arch::cr::{DR6_RESET, DR7_ENABLED, DR7_RESET, Rflags};
use arch::event::vector;
use arch::{CleanBits, Exception};
use host::{Cpu, Errno, Host};

/// KVM_GUESTDBG_ENABLE: without it, none of the others counts.
pub const ENABLE: u32 = 1;
/// KVM_GUESTDBG_SINGLESTEP.
pub const SINGLESTEP: u32 = 2;
/// KVM_GUESTDBG_USE_SW_BP: #BP goes to user space.
pub const USE_SW_BP: u32 = 0x1_0000;
/// KVM_GUESTDBG_USE_HW_BP: the debugger's DR0 to DR3 and DR7 are in force.
pub const USE_HW_BP: u32 = 0x2_0000;
/// KVM_GUESTDBG_INJECT_DB: a #DB that user space had been shown was the guest's.
pub const INJECT_DB: u32 = 0x4_0000;
/// KVM_GUESTDBG_INJECT_BP: the same for #BP.
pub const INJECT_BP: u32 = 0x8_0000;
/// KVM_GUESTDBG_BLOCKIRQ: neither interrupts nor NMIs reach the guest, so that a debugger can step through its code.
pub const BLOCKIRQ: u32 = 0x10_0000;
/// Every control bit that is known.
pub const ALL: u32 = ENABLE | SINGLESTEP | USE_SW_BP | USE_HW_BP | INJECT_DB | INJECT_BP | BLOCKIRQ;

/// Bits 16 and 11 of DR6 are ones unless #DB clears them; the others of DR6_RESET are ones always (APM 13.1.1.3).
const DR6_RTM: u64 = 1 << 16;
const DR6_FIXED: u64 = DR6_RESET & !(DR6_RTM | 1 << 11);
/// A bit of the payload that DR6 does not have.
const DR6_ENABLED_BREAKPOINT: u64 = 1 << 12;

/// Debug state of one vCPU.
#[derive(Clone, Copy, Debug)]
pub struct DebugState {
    /// The guest's DR0 to DR3.
    pub dr: [u64; 4],
    /// The guest's DR6. The processor's is DR6_RESET whenever the guest runs (MOV from and to DR6 exit), so that it tells
    /// what this #DB is about and nothing else: a debugger's exceptions leave no trace in the guest's.
    pub dr6: u64,
    /// The guest's DR7.
    pub dr7: u64,
    /// KVM_SET_GUEST_DEBUG control bits.
    pub control: u32,
    /// The debugger's DR0 to DR3.
    debugger_dr: [u64; 4],
    /// The debugger's DR7.
    debugger_dr7: u64,
}

::state::state! {
    place DebugState { dr, dr6, dr7, control, debugger_dr, debugger_dr7 }
}

impl Default for DebugState {
    fn default() -> Self {
        Self { dr: [0; 4], dr6: DR6_RESET, dr7: DR7_RESET, control: 0, debugger_dr: [0; 4], debugger_dr7: DR7_RESET }
    }
}

impl DebugState {
    /// Sets the guest's DR7; reserved bits keep their fixed values (APM 13.1.1.4).
    pub fn set_dr7(&mut self, value: u64) {
        self.dr7 = value & 0xffff_2bff | DR7_RESET;
    }

    /// What a #DB does to the guest's DR6 (APM 13.1.1.3). `payload` has the bits that it sets, and as ones those that it
    /// clears of the bits that are otherwise set.
    pub fn deliver(&mut self, payload: u64) {
        let raised = self.dr6 & !0xf | DR6_RTM;
        let dr6 = raised & !(payload & DR6_RESET) | payload & !DR6_RESET;
        self.dr6 = dr6 & !DR6_ENABLED_BREAKPOINT & 0xffff_ffff | DR6_FIXED;
    }

    /// Does the debugger step through single instructions?
    pub fn steps(&self) -> bool {
        self.control & SINGLESTEP != 0
    }
}

impl<H: Host> Core<H> {
    /// Puts the registers in force into the processor: the debugger's if it uses breakpoints, else the guest's.
    pub(crate) fn load_debug(&mut self) {
        let d = &self.debug;
        let (dr, dr7) = if d.control & USE_HW_BP != 0 { (d.debugger_dr, d.debugger_dr7) } else { (d.dr, d.dr7) };
        self.cpu.save_mut(CleanBits::DRX).dr7 = dr7;
        let extra = self.cpu.extra_mut();
        extra.dr = dr;
        extra.load_dr = dr7 & DR7_ENABLED != 0;
    }

    /// RFLAGS without the trap flag that the debugger, not the guest, has set.
    pub(crate) fn visible_rflags(&self) -> u64 {
        let hidden = if self.debug.steps() { Rflags::TF.bits() } else { 0 };
        self.cpu.save().rflags & !hidden
    }

    /// Breakpoint instructions exit for the debugger, #NM while the guest's FPU state is elsewhere.
    pub(crate) fn load_exception_intercepts(&mut self) {
        let breakpoints = if self.debug.control & USE_SW_BP != 0 { 1 << vector::BP } else { 0 };
        // #UD may be a VMCALL that is to be patched.
        self.cpu.set_exception_intercepts(breakpoints | 1 << vector::UD | self.fpu_use.exceptions());
    }

    /// Sets the trap flag for the debugger.
    #[inline]
    pub(crate) fn arm_single_step(&mut self) {
        if self.debug.steps() {
            self.set_trap_flag(true);
        }
    }

    /// The trap flag, also of an instruction that waits for user space with registers of its own.
    pub(crate) fn set_trap_flag(&mut self, on: bool) {
        let with = |rflags: u64| if on { rflags | Rflags::TF.bits() } else { rflags & !Rflags::TF.bits() };
        let save = self.cpu.save_mut(CleanBits::empty());
        save.rflags = with(save.rflags);
        if let Some(begun) = &mut self.mmio_fragments.begun {
            begun.rflags = with(begun.rflags);
        }
    }
}

impl<H: Host> Ctx<'_, H> {
    /// KVM_SET_GUEST_DEBUG. `dr` are DR0 to DR7. Unknown control bits mean nothing, as on stock. Errors: EBUSY (an exception
    /// or shutdown waits already, so that none can be injected). With one that is being delivered it combines.
    pub fn set_guest_debug(&mut self, control: u32, dr: &[u64; 8]) -> Result<(), Errno> {
        if control & (INJECT_DB | INJECT_BP) != 0 {
            let inject = &self.core.inject;
            if inject.exception.is_some() && !inject.exception_reinjected || inject.triple_fault {
                return Err(Errno::EBUSY);
            }
            // If it is a triple fault, that is seen when KVM_RUN begins.
            let v = if control & INJECT_DB != 0 { vector::DB } else { vector::BP };
            self.core.inject.queue(Exception::plain(v));
        }
        let stepped = self.core.debug.steps();
        let control = if control & ENABLE != 0 { control } else { 0 };
        self.core.debug.control = control;
        self.core.look_who_watches();
        if stepped && !self.core.debug.steps() {
            self.core.set_trap_flag(false);
        }
        let [d0, d1, d2, d3, _, _, _, d7] = *dr;
        self.core.debug.debugger_dr = [d0, d1, d2, d3];
        self.core.debug.debugger_dr7 = d7 & 0xffff_2bff | DR7_RESET;
        self.core.load_exception_intercepts();
        self.core.load_debug();
        self.core.arm_single_step();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debug_exception_in_dr6() {
        let after = |dr6, payload| {
            let mut d = DebugState { dr6, ..Default::default() };
            d.deliver(payload);
            d.dr6
        };
        assert_eq!(after(DR6_RESET, 1 << 14), 0xffff_4ff0, "a step");
        assert_eq!(
            after(0xffff_4ff1, 2),
            0xffff_4ff2,
            "which breakpoint is always anew, the rest is the guest's to clear"
        );
        assert_eq!(after(DR6_RESET, 1 << 16 | 1 << 12 | 1), 0xfffe_0ff1, "as VMX has it: inside a transaction");
        assert_eq!(after(0, 0), 0xffff_07f0 & !(1 << 11), "user space may have set anything");
    }
}
