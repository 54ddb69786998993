//! The sections of a vCPU.

use super::Base;
use crate::{MAX_VCPU_ID, Vcpu, Vm};
use arch::NestedRoot;
use core::mem;
use core::sync::atomic::Ordering::{Relaxed, Release};
use host::{Cpu, Host};
use state::{Refused, Section, Sections, State, Writer};

/// Its state but for what follows.
const VCPU: Section = Section::new(*b"vcpu", 1);
/// The processor, as the world switch has it.
const CPU: Section = Section::new(*b"cpu ", 1);
/// The local APIC.
const LAPIC: Section = Section::new(*b"lapc", 1);
/// Counters.
const STATS: Section = Section::new(*b"cpst", 1);

impl<H: Host> Vcpu<H> {
    pub(super) fn save(&self, w: &mut Writer) {
        let Self {
            id,
            // Its place among the sections.
            index,
            // The base's.
            thread: _,
            pages: _,
            // Follow from the local APIC.
            address: _,
            lint0: _,
            pir,
            pending_events,
            stats,
            spin,
            rtc,
            // Not handed over yet: `cannot_move`.
            hyperv: _,
            dirty_ring: _,
            core,
        } = self;
        let number = *index as u32;
        let mut core = core.lock();
        w.section_by(VCPU, number, core.needs(), |w| {
            id.save(w);
            core.fast.lapic.is_some().save(w);
            pir.save(w);
            pending_events.save(w);
            spin.save(w);
            rtc.save(w);
            core.save(w);
        });
        if let Some(lapic) = &core.fast.lapic {
            w.section(LAPIC, number, lapic);
        }
        w.section_by(CPU, number, 1, |w| core.cpu.save_state(w));
        w.section(STATS, number, stats);
    }

    /// The last step of a handover.
    pub(super) fn succeed(&self, old: &Self, roots: [NestedRoot; 2]) {
        let mut core = self.core.lock();
        // Nobody holds it, and who would wait for it has no other: it is only tried, because two of a kind are never waited for.
        let Some(mut was) = old.core.try_lock() else { return };
        mem::swap(&mut core.fpu, &mut was.fpu);
        let root = core.smm.set_roots(roots);
        core.cpu.succeed(&mut was.cpu, root);
    }
}

impl<H: Host> Vm<H> {
    /// Makes the next vCPU, number `index`, from its sections.
    pub(super) fn load_vcpu(&mut self, s: &mut Sections<'_>, index: usize, base: &impl Base<H>) -> Result<(), Refused> {
        let no_memory = |_| Refused::NO_MEMORY;
        let number = index as u32;
        let mut r = s.next(VCPU, number)?;
        let (id, has_lapic): (u32, bool) = r.value()?;
        if id >= MAX_VCPU_ID || self.vcpu_by_id(id).is_some() {
            return Err(r.bad("the id of a vCPU"));
        }
        let (thread, pages) = base.vcpu(index).ok_or(r.bad("the number of vCPUs"))?;
        self.apics.reserve(id).map_err(no_memory)?;
        let mut vcpu = self.new_vcpu(id, index, thread, pages).map_err(no_memory)?;
        if vcpu.core.get_mut().fast.lapic.is_some() != has_lapic {
            return Err(r.bad("where the local APICs are"));
        }
        r.load(&mut vcpu.pir)?;
        r.load(&mut vcpu.pending_events)?;
        r.load(&mut vcpu.spin)?;
        r.load(&mut vcpu.rtc)?;
        let core = vcpu.core.get_mut();
        r.load(core)?;
        r.end()?;
        core.msr.vcpu_id = id;
        if let Some(lapic) = &mut core.fast.lapic {
            s.load(LAPIC, number, lapic)?;
        }
        let mut r = s.next(CPU, number)?;
        core.cpu.load_state(&mut r)?;
        r.end()?;
        core.load_policy(self.msr_filter.get_mut().as_ref());
        let others = core.fast.lapic.as_ref().map(|l| (l.address(), l.lint0()));
        if let Some((address, lint0)) = others {
            vcpu.address.store(address);
            vcpu.lint0.store(lint0 as u8, Relaxed);
        }
        s.load(STATS, number, &mut vcpu.stats)?;
        self.slot(index).map_err(no_memory)?.set(vcpu.into_inner()).map_err(|_| Refused::NO_MEMORY)?;
        self.count.store(index + 1, Release);
        self.apics.insert(id, index);
        Ok(())
    }
}
