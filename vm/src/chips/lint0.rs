//! LINT0 of the local APICs, where the 8259s' interrupt and the PIT's tick arrive. What it takes is noted for other threads, which
//! may not look at all vCPUs for it: lines are raised in any context.

use super::Chips;
use crate::{Vcpu, Vm};
use core::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use host::Host;
use irqchip::{Accept, Lint0, Pic};

impl<H: Host> Vm<H> {
    /// Lets other threads know what LINT0 of a vCPU's local APIC takes.
    pub(crate) fn publish_lint0(&self, v: &Vcpu<H>, now: Lint0) {
        let before = v.lint0.swap(now as u8, SeqCst);
        match (before == Lint0::Nmi as u8, now == Lint0::Nmi) {
            (false, true) => self.vapics_in_nmi_mode.fetch_add(1, Relaxed),
            (true, false) => self.vapics_in_nmi_mode.fetch_sub(1, Relaxed),
            _ => 0,
        };
        if before != now as u8 && [before, now as u8].contains(&(Lint0::ExtInt as u8)) {
            self.look_for_extint();
        }
    }

    /// Counts again what is counted of the vCPUs, which are complete.
    pub(crate) fn recount_lint0(&self) {
        let nmi = self.vcpus().filter(|v| v.lint0.load(Relaxed) == Lint0::Nmi as u8).count();
        self.vapics_in_nmi_mode.store(nmi, Relaxed);
        self.look_for_extint();
    }

    /// Notes the first vCPU that takes the 8259s' interrupts. Who changes its LINT0, or appears, and calls this is among those
    /// that are looked at.
    pub(crate) fn look_for_extint(&self) {
        let _one_at_a_time = self.apics.look_at_all();
        let first = self.vcpus().position(|v| v.lint0.load(SeqCst) == Lint0::ExtInt as u8);
        self.extint.store(first.map_or(0, |n| n.saturating_add(1)), SeqCst);
    }

    /// Tells the vCPU whose LINT0 takes the 8259s' interrupts that there is one.
    pub(super) fn publish_intr(&self, chips: &Chips<H>, pic: &Pic) {
        let now = pic.output();
        if chips.intr.swap(now, AcqRel) || !now {
            return;
        }
        // One that takes them since looks for itself before it enters the guest or sleeps.
        let first = self.extint.load(SeqCst).checked_sub(1);
        if let Some(v) = first.and_then(|n| self.vcpu(n)) {
            v.thread_ring_event();
        }
    }
}

impl<H: Host> Vcpu<H> {
    /// LINT0 has the 8259s' interrupts come as NMI: the PIT's tick is one.
    pub(super) fn nmi_watchdog_tick(&self) {
        if self.lint0.load(Relaxed) == Lint0::Nmi as u8 {
            self.deliver(Accept::Nmi);
        }
    }
}
