//! The section of a VM.

use super::handle;
use crate::chips::Resampler;
use crate::{MAX_VCPUS, Vm};
use core::sync::atomic::Ordering::Relaxed;
use host::{Host, Lent, LentFor, Snapshot, in_turns, try_box, try_push};
use irqchip::RoutingTable;
use state::{Refused, Section, Sections, State, Writer};

/// What the vCPUs share, but memory and chips.
const VM: Section = Section::new(*b"vm  ", 2);
/// GSI routing.
const ROUTING: Section = Section::new(*b"rout", 1);
/// Counters.
const STATS: Section = Section::new(*b"vmst", 1);

impl<H: Host> Vm<H> {
    pub(super) fn save_vm(&self, w: &mut Writer) {
        let Self {
            // Lent.
            hrtimers: _,
            // Sections of their own.
            mmu: _,
            chips: _,
            partition: _,
            vcpus: _,
            // The machine.
            host,
            caps: _,
            // A lock.
            shape: _,
            // Follow from the vCPUs.
            vapics_in_nmi_mode: _,
            extint: _,
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
            dead,
            resamplers,
            resamplers_used,
            // Its page is the base's.
            coalesced,
            count,
        } = self;
        let dead = dead.load(Relaxed);
        w.section_by(VM, 0, |w| {
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
            ioevents.read().save(host, w);
            ioevents_used.save(w);
            {
                let resamplers = resamplers.read();
                w.count(resamplers.len());
                in_turns(host, resamplers.iter()).for_each(|r| r.gsi.save(w));
            }
            resamplers_used.save(w);
            coalesced.used.save(w);
            coalesced.zones.lock().save(w);
            if w.since(2, dead) {
                dead.save(w);
            }
        });
        routing.read(|routes| match routes {
            Some(routes) => w.section(ROUTING, 0, routes),
            None => w.section(ROUTING, 0, &RoutingTable::empty()),
        });
        w.section(STATS, 0, stats);
        self.save_partition(w);
    }

    /// Err: see there. Ok: how many vCPUs follow.
    pub(super) fn load_vm(&mut self, s: &mut Sections<'_>, lent: &mut Lent<'_>) -> Result<usize, Refused> {
        let mut r = s.next(VM, 0)?;
        let vcpus: usize = r.value()?;
        if vcpus > MAX_VCPUS {
            return Err(r.bad("the number of vCPUs"));
        }
        r.load(&mut self.config)?;
        // By the rule of the ioctl.
        match *self.config.dirty_ring_size.get_mut() {
            0 => {}
            size if mmu::DirtyRing::<H>::check_size(size).is_ok() => {}
            _ => return Err(r.bad("the size of dirty rings")),
        }
        r.load(self.clock.get_mut())?;
        r.load(&mut self.msrs)?;
        r.load(self.msr_filter.get_mut())?;
        r.load(&mut self.msr_filter_used)?;
        r.load(&mut self.has_devices)?;
        r.load(&mut self.chip)?;
        r.load(&mut self.reserved_pins)?;
        r.load(&mut self.noncoherent_dma)?;
        self.ioevents.get_mut().load(&self.host, &mut r, lent)?;
        r.load(&mut self.ioevents_used)?;
        let resamplers = self.resamplers.get_mut();
        for _ in in_turns(&self.host, 0..r.count()?) {
            let one = Resampler { gsi: r.value()?, event: handle(lent, LentFor::Resampler)? };
            try_push(resamplers, one).map_err(|_| Refused::NO_MEMORY)?;
        }
        r.load(&mut self.resamplers_used)?;
        r.load(&mut self.coalesced.used)?;
        r.load(self.coalesced.zones.get_mut())?;
        if r.version() >= 2 {
            r.load(&mut self.dead)?;
        }
        r.end()?;
        let mut routes = RoutingTable::empty();
        s.load(ROUTING, 0, &mut routes)?;
        self.routing.replace(Some(try_box(|| routes).map_err(|_| Refused::NO_MEMORY)?));
        s.load(STATS, 0, &mut self.stats)?;
        self.load_partition(s, lent)?;
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
