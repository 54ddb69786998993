//! MSR_KVM_PV_EOI_EN: the guest ends an interrupt by clearing a bit in its memory, without an exit.
//!
//! Before an entry with an interrupt in service, or about to be, whose end concerns nobody else, the bit is set; a guest that finds it set
//! clears it instead of writing EOI. After the exit it tells: cleared, the interrupt has ended; still set, it has not,
//! and the bit is taken back. The guest's word is not used by other vCPUs, so that plain reads and writes do.

use super::{ENABLED, EOI, VAPIC};
use crate::Ctx;
use crate::fast::Armed;
use arch::Gpa;
use host::Host;

impl<H: Host> Ctx<'_, H> {
    /// MSR_KVM_PV_EOI_EN. False: the value is refused, because no memory is there.
    pub(crate) fn set_pv_eoi(&mut self, value: u64) -> bool {
        if value & ENABLED != 0 && !self.shared_memory().is_memory(Gpa(value & !ENABLED), true) {
            return false;
        }
        self.core.msr.pv_eoi = value;
        let pv = &mut self.core.pv;
        pv.words = pv.words & !EOI | if value & ENABLED != 0 { EOI } else { 0 };
        true
    }

    /// Before entry, after events were injected: what the guest sees of the local APIC in its memory.
    #[inline]
    pub(crate) fn share_apic(&mut self) {
        if self.core.pv.words != 0 {
            self.share();
        }
    }

    fn share(&mut self) {
        if self.core.pv.words & EOI != 0 {
            self.offer();
        }
        if self.core.pv.words & VAPIC != 0 {
            self.show_tpr();
        }
    }

    fn offer(&mut self) {
        let fast = &self.core.fast;
        let armed = match fast.armed {
            Some(Armed::Apic(vector)) => Some(vector),
            _ => None,
        };
        let Some(vector) = fast.lapic.as_ref().and_then(|l| l.quietly_in_service(armed)) else { return };
        if !self.core.fast.ioapic_eoi.contains(vector) {
            let offered = self.shared_memory().write_phys(self.eoi_word(), &[1]).is_ok();
            (self.core.pv.eoi_offered, self.core.fast.apic_shared) = (offered, offered);
        }
    }

    /// After an exit, or when the entry did not take place.
    #[inline]
    pub(crate) fn look_at_shared_apic(&mut self) {
        if self.core.fast.apic_shared {
            self.look();
        }
    }

    fn look(&mut self) {
        self.core.fast.apic_shared = false;
        if self.core.pv.words & VAPIC != 0 {
            self.take_tpr();
        }
        if core::mem::take(&mut self.core.pv.eoi_offered) {
            self.collect();
        }
    }

    fn collect(&mut self) {
        let (mut byte, word) = ([1], self.eoi_word());
        if self.shared_memory().read_phys(word, &mut byte).is_err() {
            return;
        }
        if byte != [0] {
            // If the memory has gone meanwhile, so has the bit.
            let _ = self.shared_memory().write_phys(word, &[0]);
        } else if let Some(eoi) = self.core.fast.lapic.as_mut().and_then(|l| l.eoi()) {
            if self.core.trace.set.any() {
                self.trace_pv_eoi(eoi.vector);
            }
            // Nobody waits for the end of this vector, or it had not been offered: this always resumes.
            let _ = self.after_eoi(eoi);
        }
    }

    fn eoi_word(&self) -> Gpa {
        Gpa(self.core.msr.pv_eoi & !ENABLED)
    }
}
