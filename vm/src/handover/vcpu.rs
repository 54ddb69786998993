//! The sections of a vCPU.

use super::handle;
use crate::vm::OfTheMachine;
use crate::{Core, MAX_VCPU_ID, Vcpu, Vm};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release},
};
use host::{Cpu, Host, Lent, LentFor, Numbers};
use mmu::{DirtyRing, Space};
use state::{Refused, Section, Sections, State, Why, Writer};

/// Its state but for what follows.
const VCPU: Section = Section::new(*b"vcpu", 3);
/// The processor, as the world switch has it.
const CPU: Section = Section::new(*b"cpu ", 1);
/// The local APIC.
const LAPIC: Section = Section::new(*b"lapc", 1);
/// What of the dirty ring is not in its pages.
const RING: Section = Section::new(*b"ring", 1);
/// Counters.
const STATS: Section = Section::new(*b"cpst", 1);

impl<H: Host> Vcpu<H> {
    pub(super) fn save(&self, w: &mut Writer) -> Result<(), Refused> {
        let Self {
            id,
            // Its place among the sections.
            index,
            // Lent.
            thread: _,
            pages: _,
            // Follow from the local APIC.
            address: _,
            lint0: _,
            // Follow from the core.
            tsc: _,
            pir,
            pending_events,
            stats,
            spin,
            rtc,
            // With the core's part.
            hyperv: _,
            dirty_ring,
            core,
        } = self;
        let number = *index as u32;
        let mut core = core.try_lock().ok_or(Refused::frame(Why::Busy))?;
        if let Some(ring) = dirty_ring {
            w.section_by(RING, number, |w| ring.save(w));
        }
        w.section_by(VCPU, number, |w| {
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
        w.section_by(CPU, number, |w| core.cpu.save_state(w));
        w.section(STATS, number, stats);
        self.save_hyperv(core.hyperv.as_deref(), w);
        Ok(())
    }

    /// Dirty ring, thread, pages and FPU state.
    pub(super) fn lend(&self, to: &mut Numbers) -> Result<(), Refused> {
        let core = self.core.try_lock().ok_or(Refused::frame(Why::Busy))?;
        let [run, pio] = &self.pages;
        let ring = self.dirty_ring.as_ref().map_or(Ok(()), |ring| ring.lend(to));
        let thread = ring.and_then(|()| to.lend(LentFor::Vcpu, &self.thread));
        let pages = thread.and_then(|()| to.lend(LentFor::Run, run)).and_then(|()| to.lend(LentFor::Pio, pio));
        pages.and_then(|()| to.lend(LentFor::Vcpu, &core.fpu)).map_err(|_| Refused::NO_MEMORY)
    }
}

impl<H: Host> Vm<H> {
    /// Makes the next vCPU, number `index`, from its sections.
    pub(super) fn load_vcpu(&mut self, s: &mut Sections<'_>, index: usize, lent: &mut Lent<'_>) -> Result<(), Refused> {
        let no_memory = |_| Refused::NO_MEMORY;
        let number = index as u32;
        let dirty_ring = match *self.config.dirty_ring_size.get_mut() {
            0 => None,
            bytes => {
                let missing = Refused { section: Some((RING.id, number)), why: Why::Missing };
                let mut r = s.optional(RING, number)?.ok_or(missing)?;
                let ring = DirtyRing::arrive(number, bytes, &mut r, lent)?;
                r.end()?;
                Some(ring)
            }
        };
        let mut r = s.next(VCPU, number)?;
        let (id, has_lapic): (u32, bool) = r.value()?;
        if id >= MAX_VCPU_ID || self.vcpu_by_id(id).is_some() {
            return Err(r.bad("the id of a vCPU"));
        }
        let thread = handle(lent, LentFor::Vcpu)?;
        let pages = [handle(lent, LentFor::Run)?, handle(lent, LentFor::Pio)?];
        self.apics.reserve(id).map_err(no_memory)?;
        let lent = OfTheMachine { thread, pages, fpu: handle(lent, LentFor::Vcpu)?, dirty_ring };
        let mut vcpu = self.new_vcpu(id, index, lent).map_err(no_memory)?;
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
        let root = core.smm.set_roots(Space::ALL.map(|space| self.mmu.root(space)));
        core.cpu.set_root(root);
        let mut r = s.next(CPU, number)?;
        core.cpu.load_state(&mut r)?;
        r.end()?;
        core.msr.pat = core.cpu.save().g_pat;
        core.load_policy(self.msr_filter.get_mut().as_ref());
        if let Some(what) = core.wrong_host_register() {
            return Err(Refused { section: Some((CPU.id, number)), why: Why::Value(what) });
        }
        // The offset is right only if the processor counts at the ratio that it was computed for (tsc_scaling=0 is a parameter).
        if core.cpu.extra().tsc_ratio != 0 && !core.features.tsc_scaling {
            return Err(Refused {
                section: Some((CPU.id, number)),
                why: Why::Cannot("this engine does not scale TSCs"),
            });
        }
        let others = core.fast.lapic.as_ref().map(|l| (l.address(), l.lint0()));
        if let Some((address, lint0)) = others {
            vcpu.address.store(address);
            vcpu.lint0.store(lint0 as u8, Relaxed);
        }
        s.load(STATS, number, &mut vcpu.stats)?;
        self.load_hyperv_vcpu(s, &mut vcpu)?;
        let Vcpu { core, stats, tsc, .. } = &mut *vcpu;
        let core = core.get_mut();
        // Whoever wants something else from now on makes a request of the thread, which goes along.
        core.go_on_tracing(self.host.traced(), stats);
        *tsc = [core.clock.tsc_offset(), core.clock.tsc_ratio()].map(AtomicU64::new);
        self.slot(index).map_err(no_memory)?.set(vcpu.into_inner()).map_err(|_| Refused::NO_MEMORY)?;
        self.count.store(index + 1, Release);
        self.apics.insert(id, index);
        Ok(())
    }
}

impl<H: Host> Core<H> {
    /// What the world switch loads into the host's own registers as it is. A value that no ioctl and no guest could have brought
    /// there faults in the kernel, or stays with the host.
    fn wrong_host_register(&self) -> Option<&'static str> {
        /// SSBD.
        const VIRT_SPEC_CTRL: u64 = 1 << 2;
        /// Bits of the TSC ratio that are not reserved (APM 15.30.5).
        const TSC_RATIO: u64 = (1 << 40) - 1;
        let extra = self.cpu.extra();
        let wrong = [
            (!self.cpuid.xcr0_is_possible(extra.xcr0), "XCR0"),
            (extra.xss != 0, "XSS"),
            (extra.spec_ctrl & !self.msr.spec_ctrl_supported != 0, "SPEC_CTRL"),
            (extra.virt_spec_ctrl & !VIRT_SPEC_CTRL != 0, "VIRT_SPEC_CTRL"),
            (extra.tsc_aux > u32::MAX.into(), "TSC_AUX"),
            (extra.tsc_ratio & !TSC_RATIO != 0, "the TSC ratio"),
            // No guest has any of it.
            (self.cpu.save().dbgctl != 0, "DEBUGCTL"),
            // It is in the registers only while KVM_RUN goes on, and then comes back there.
            (self.fpu_use.is_loaded() && self.resumes.is_none(), "where the FPU state is"),
        ];
        wrong.into_iter().find(|(wrong, _)| *wrong).map(|(_, what)| what)
    }
}
