//! MSR_KVM_PV_EOI_EN: the guest ends an interrupt by clearing a bit in its memory, without an exit.
//!
//! Before an entry with an interrupt in service, or about to be, whose end concerns nobody else, the bit is set; a guest that finds it set
//! clears it instead of writing EOI. After the exit it tells: cleared, the interrupt has ended; still set, it has not,
//! and the bit is taken back. The guest's word is not used by other vCPUs, so that plain reads and writes do.

use super::ENABLED;
use crate::Ctx;
use crate::fast::Armed;
use arch::Gpa;
use host::Host;

impl<H: Host> Ctx<'_, H> {
    /// MSR_KVM_PV_EOI_EN. False: the value is refused, because no memory is there.
    pub(crate) fn set_pv_eoi(&mut self, value: u64) -> bool {
        if value & ENABLED != 0 && !self.vm.mmu.is_memory(Gpa(value & !ENABLED), true) {
            return false;
        }
        self.core.msr.pv_eoi = value;
        true
    }

    /// Before entry, after events were injected.
    #[inline]
    pub(crate) fn offer_eoi(&mut self) {
        if self.core.msr.pv_eoi & ENABLED != 0 {
            self.offer();
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
            self.core.fast.eoi_offered = self.vm.mmu.write_phys(self.eoi_word(), &[1]).is_ok();
        }
    }

    /// After an exit, or when the entry did not take place.
    #[inline]
    pub(crate) fn collect_eoi(&mut self) {
        if self.core.fast.eoi_offered {
            self.collect();
        }
    }

    fn collect(&mut self) {
        self.core.fast.eoi_offered = false;
        let (mut byte, word) = ([1], self.eoi_word());
        if self.vm.mmu.read_phys(word, &mut byte).is_err() {
            return;
        }
        if byte != [0] {
            // If the memory has gone meanwhile, so has the bit.
            let _ = self.vm.mmu.write_phys(word, &[0]);
        } else if let Some(eoi) = self.core.fast.lapic.as_mut().and_then(|l| l.eoi()) {
            // Nobody waits for the end of this vector, or it had not been offered: this always resumes.
            let _ = self.after_eoi(eoi);
        }
    }

    fn eoi_word(&self) -> Gpa {
        Gpa(self.core.msr.pv_eoi & !ENABLED)
    }
}
