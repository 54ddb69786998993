//! KVM_SET_VAPIC_ADDR and KVM_TPR_ACCESS_REPORTING (KVM API document, 4.61 and section 5, KVM_EXIT_TPR_ACCESS): old guests of 32 bits
//! access the TPR in the page of the local APIC all the time. User space is told where they do, patches their code to use a
//! word of the guest's memory instead, and has that word kept up here.
//!
//! The word holds TPR in bits 7:0, the class in service in 15:8, and the highest vector that waits in 31:24. The guest writes TPR only.

use super::{Pv, VAPIC};
use crate::Ctx;
use crate::fast::Armed;
use crate::run::Next;
use crate::user::UserExit;
use crate::vcpu::Core;
use arch::Gpa;
use host::{Cpu, Errno, Host};

impl Pv {
    /// Does the guest find TPR in its memory?
    pub(crate) fn shows_tpr(&self) -> bool {
        self.words & VAPIC != 0
    }
}

impl<H: Host> Core<H> {
    /// How a vector of the local APIC is left with the processor. A guest that finds TPR in its memory raises it without an exit and
    /// without V_TPR: unless it takes the vector `at_once`, TPR is looked at when it can.
    pub(crate) fn left(&self, vector: u8, at_once: bool) -> Armed {
        if at_once || !self.pv.shows_tpr() { Armed::Apic(vector) } else { Armed::Window }
    }
}

impl<H: Host> Ctx<'_, H> {
    /// KVM_SET_VAPIC_ADDR; 0 ends it. Errors: EINVAL (no in-kernel local APIC, no memory there).
    pub fn set_vapic_addr(&mut self, gpa: u64) -> Result<(), Errno> {
        let last = Gpa(gpa.wrapping_add(3));
        let memory = |gpa| self.shared_memory().is_memory(gpa, true);
        if self.core.fast.lapic.is_none() || gpa != 0 && !(memory(Gpa(gpa)) && memory(last)) {
            return Err(Errno::EINVAL);
        }
        let pv = &mut self.core.pv;
        pv.vapic = gpa;
        pv.words = pv.words & !VAPIC | if gpa != 0 { VAPIC } else { 0 };
        self.core.look_who_watches();
        Ok(())
    }

    /// KVM_TPR_ACCESS_REPORTING.
    pub fn report_tpr_accesses(&mut self, on: bool) {
        self.core.pv.reports_tpr = on;
    }

    /// The guest accesses TPR in the page of its local APIC: user space is told once the instruction is complete, of its write
    /// if it does both.
    pub(crate) fn note_tpr_access(&mut self, offset: u32, write: bool) {
        const TPR: u32 = 0x80;
        if self.core.pv.reports_tpr && offset & !0xf == TPR {
            self.core.device_exit = Next::User(UserExit::TprAccess { rip: self.core.cpu.save().rip, write });
        }
    }

    /// Before entry.
    pub(super) fn show_tpr(&mut self) {
        let Some(lapic) = &self.core.fast.lapic else { return };
        let word = u32::from(lapic.tpr()) | u32::from(lapic.isr_max() & 0xf0) << 8 | u32::from(lapic.irr_max()) << 24;
        let shown = self.shared_memory().write_phys(Gpa(self.core.pv.vapic), &word.to_le_bytes());
        // If the memory has gone, what the guest last wrote has gone with it.
        self.core.fast.apic_shared |= shown.is_ok();
    }

    /// After the exit.
    pub(super) fn take_tpr(&mut self) {
        let mut tpr = [0];
        if self.shared_memory().read_phys(Gpa(self.core.pv.vapic), &mut tpr).is_ok() {
            if let Some(lapic) = &mut self.core.fast.lapic {
                let [tpr] = tpr;
                lapic.set_tpr(tpr);
            }
        }
    }
}
