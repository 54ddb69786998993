//! The section of a VM.

use super::{Base, Waiting};
use crate::ioeventfd::IoEventSpec;
use crate::{MAX_VCPUS, Vm};
use core::sync::atomic::Ordering::Relaxed;
use host::Host;
use state::{Refused, Section, Sections, State, Writer};

/// What the vCPUs share, but memory and chips.
const VM: Section = Section::new(*b"vm  ", 1);
/// GSI routing.
const ROUTING: Section = Section::new(*b"rout", 1);
/// Counters.
const STATS: Section = Section::new(*b"vmst", 1);

impl<H: Host> Vm<H> {
    pub(super) fn save_vm(&self, w: &mut Writer) {
        let Self {
            // Taken over, or sections of their own.
            hrtimers: _,
            mmu: _,
            chips: _,
            vcpus: _,
            // The machine.
            host: _,
            caps: _,
            // Nothing is in it: `cannot_move`.
            partition: _,
            // A lock.
            shape: _,
            // Follow from the vCPUs.
            vapics_in_nmi_mode: _,
            waiting: _,
            apics: _,
            config,
            clock,
            msrs,
            stats,
            msr_filter,
            msr_filter_used,
            routing,
            ioevents,
            ioevents_used,
            has_devices,
            chip,
            reserved_pins,
            noncoherent_dma,
            resamplers,
            resamplers_used,
            // Its page is the base's.
            coalesced,
            count,
        } = self;
        w.section_by(VM, 0, config.needs(), |w| {
            count.save(w);
            config.save(w);
            clock.lock().save(w);
            msrs.save(w);
            msr_filter.read().save(w);
            msr_filter_used.save(w);
            has_devices.save(w);
            chip.save(w);
            reserved_pins.save(w);
            noncoherent_dma.save(w);
            {
                let ioevents = ioevents.read();
                w.count(ioevents.specs().len());
                ioevents.specs().for_each(|spec| spec.save(w));
            }
            ioevents_used.save(w);
            {
                let resamplers = resamplers.read();
                w.count(resamplers.len());
                resamplers.iter().for_each(|r| r.gsi.save(w));
            }
            resamplers_used.save(w);
            coalesced.used.save(w);
            coalesced.zones.lock().save(w);
        });
        w.section(ROUTING, 0, &*routing.lock());
        w.section(STATS, 0, stats);
    }

    /// Err: see there. Ok: how many vCPUs follow.
    pub(super) fn load_vm(&mut self, s: &mut Sections<'_>, base: &impl Base<H>) -> Result<usize, Refused> {
        let mut r = s.next(VM, 0)?;
        let vcpus: usize = r.value()?;
        if vcpus > MAX_VCPUS {
            return Err(r.bad("the number of vCPUs"));
        }
        r.load(&mut self.config)?;
        r.load(self.clock.get_mut())?;
        r.load(&mut self.msrs)?;
        r.load(self.msr_filter.get_mut())?;
        r.load(&mut self.msr_filter_used)?;
        r.load(&mut self.has_devices)?;
        r.load(&mut self.chip)?;
        r.load(&mut self.reserved_pins)?;
        r.load(&mut self.noncoherent_dma)?;
        let no_memory = |_| Refused::NO_MEMORY;
        r.load(&mut self.waiting.ioevents)?;
        r.load(&mut self.ioevents_used)?;
        r.load(&mut self.waiting.resamplers)?;
        r.load(&mut self.resamplers_used)?;
        let Waiting { ioevents, resamplers } = &self.waiting;
        if (ioevents.len(), resamplers.len()) != base.eventfds() {
            return Err(r.bad("the number of eventfds"));
        }
        if !ioevents.is_sorted_by_key(IoEventSpec::key) {
            return Err(r.bad("the order of ioeventfds"));
        }
        self.ioevents.get_mut().reserve(ioevents.len()).map_err(no_memory)?;
        self.resamplers.get_mut().try_reserve_exact(resamplers.len()).map_err(|_| Refused::NO_MEMORY)?;
        r.load(&mut self.coalesced.used)?;
        r.load(self.coalesced.zones.get_mut())?;
        r.end()?;
        s.load(ROUTING, 0, self.routing.get_mut())?;
        s.load(STATS, 0, &mut self.stats)?;
        self.reserve_vcpus(vcpus)?;
        Ok(vcpus)
    }

    /// Room for as many vCPUs. Errors: no memory.
    fn reserve_vcpus(&self, vcpus: usize) -> Result<(), Refused> {
        (0..vcpus).try_for_each(|n| self.slot(n).map(drop)).map_err(|_| Refused::NO_MEMORY)?;
        self.count.store(0, Relaxed);
        Ok(())
    }
}
