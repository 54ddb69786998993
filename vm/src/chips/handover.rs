//! The controllers go from one engine to the next (docs/decisions/0034).

use super::{Chips, pit};
use crate::Vm;
use core::sync::atomic::Ordering::Relaxed;
use host::Host;
use irqchip::{Ioapic, Pit};
use state::{Refused, Section, Sections, State, Writer};

/// The 8259s and the IOAPIC.
const CHIPS: Section = Section::new(*b"chip", 1);
/// The PIT. Version 2 has the tick that is owed, and what user space said of the first count.
const PIT: Section = Section::new(*b"pit ", 2);

impl<H: Host> Vm<H> {
    pub(crate) fn save_chips(&self, w: &mut Writer) {
        let Some(Chips { pic, intr, ioapic, ioapic_base, storm, pit, rtc }) = self.chips() else { return };
        w.section_by(CHIPS, 0, |w| {
            pic.lock().save(w);
            intr.save(w);
            ioapic.lock().save(w);
            ioapic_base.save(w);
            storm.save(w);
            rtc.save(w);
        });
        if let Some([pit::PitDevice { pit, speaker, owed }]) = pit.get() {
            let pit = pit.lock();
            w.section_by(PIT, 0, |w| {
                pit.save(w);
                speaker.save(w);
                if w.since(2, owed.load(Relaxed)) {
                    owed.save(w);
                }
            });
        }
    }

    /// There are controllers if the section is there. The timers run on, as they are the host's.
    pub(crate) fn load_chips(&mut self, s: &mut Sections<'_>) -> Result<(), Refused> {
        let Some(mut r) = s.optional(CHIPS, 0)? else { return Ok(()) };
        let no_memory = |_| Refused::NO_MEMORY;
        let mut chips = Chips::<H>::new(Ioapic::new()).map_err(no_memory)?;
        r.load(chips.pic.get_mut())?;
        r.load(&mut chips.intr)?;
        r.load(chips.ioapic.get_mut())?;
        r.load(&mut chips.ioapic_base)?;
        r.load(&mut chips.storm)?;
        r.load(&mut chips.rtc)?;
        r.end()?;
        if let Some(mut r) = s.optional(PIT, 0)? {
            let mut device = pit::PitDevice::new(Pit::new(0, 0), false).map_err(no_memory)?;
            r.load(device.pit.get_mut())?;
            r.load(&mut device.speaker)?;
            if r.version() >= 2 {
                r.load(&mut device.owed)?;
            }
            r.end()?;
            // It was just made: there is none.
            let _ = chips.pit.set(device.into_inner());
        }
        let _ = self.chips.set(chips.into_inner());
        Ok(())
    }
}
