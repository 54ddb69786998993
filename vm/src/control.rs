//! Requests that others make, and what `kvm_run` reports about the state of interrupts.

use crate::run::Next;
use crate::user::{Pending, UserExit};
use crate::{Ctx, MpState};
use core::sync::atomic::Ordering::AcqRel;
use host::{Cpu, Errno, Host, Request, Requests, Trace, VcpuThread};
use irqchip::TimerEffect;

impl<H: Host> Ctx<'_, H> {
    /// What the last exit to user space waits for.
    pub fn pending(&self) -> Pending {
        self.core.pending
    }

    /// Can user space hand over an interrupt with KVM_INTERRUPT (`ready_for_interrupt_injection`)?
    /// Always, where that is of no use because the PIC is in the kernel, as on stock.
    pub fn ready_for_interrupt(&self) -> bool {
        self.vm.chips().is_some()
            || self.accepts_external()
                && self.core.inject.external.is_none()
                && !self.core.inject.busy()
                && self.core.interruptible()
    }

    /// Does the guest take interrupts of a PIC at all? Waiting for its window otherwise would never end.
    pub(crate) fn accepts_external(&self) -> bool {
        self.core.accepts_external()
    }

    /// `if_flag`: RFLAGS.IF.
    pub fn if_flag(&self) -> bool {
        self.core.cpu.save().rflags & arch::cr::Rflags::IF.bits() != 0
    }

    /// CR8 as the guest sees it, 0..16.
    pub fn cr8(&self) -> u64 {
        self.core.fast.lapic.as_ref().map_or(self.core.cr8, |l| l.cr8().into())
    }

    /// IA32_APIC_BASE.
    pub fn apic_base(&self) -> u64 {
        self.core.fast.lapic.as_ref().map_or(self.core.apic_base, |l| l.base())
    }

    /// Does everything that was requested. Without a request it costs one load.
    #[inline]
    pub(crate) fn service_requests(&mut self) -> Result<(), Next> {
        if self.me.thread.requests().pending() { self.serve() } else { Ok(()) }
    }

    #[cold]
    fn serve(&mut self) -> Result<(), Next> {
        let requests = self.me.thread.requests().take_all();
        self.look_at_caches();
        if requests.has(Request::VmDead) {
            self.me.thread.requests().make_request(Request::VmDead);
            self.note_end(0, Errno::EIO as u64);
            return Err(Next::Fail(Errno::EIO, UserExit::Shutdown));
        }
        if requests.has(Request::Trace) {
            self.trace_changed();
        }
        if requests.has(Request::TlbFlush) {
            self.core.cpu.flush_tlb();
            self.me.stats.tlb_flush.count();
        }
        if requests.has(Request::StealUpdate) {
            self.scheduled();
        }
        if requests.has(Request::ApfReady) {
            self.tell_pages();
        }
        if requests.has(Request::Event) {
            self.me.stats.req_event.count();
            self.process_pending_events();
        }
        if requests.has(Request::Timer) {
            self.expire_timer();
        }
        if requests.has(Request::ClockUpdate) {
            self.update_clock();
        }
        if requests.has(Request::Hyperv) || requests.has(Request::Timer) {
            // Behind the clocks, by which they are.
            self.process_stimers();
        }
        if requests.has(Request::ScanIoapic) {
            self.scan_ioapic();
        }
        if requests.has(Request::MsrFilter) {
            self.apply_msr_policy();
        }
        // User space sees what was shut down as it was, not the handler of an SMI.
        if self.core.inject.smi_pending && !self.core.inject.triple_fault {
            self.take_smi();
        }
        if let Err(leave) = self.tell_user_space(requests) {
            // What was not come to is asked again when KVM_RUN goes on.
            let later =
                [Request::Hyperv, Request::HandOver, Request::Trace].into_iter().filter(|what| requests.has(*what));
            later.for_each(|what| self.me.thread.requests().make_request(what));
            if self.core.inject.smi_pending {
                self.me.thread.requests().make_request(Request::Event);
            }
            return Err(leave);
        }
        // After all else.
        if requests.leaves_quietly() { Err(Next::HandOver) } else { Ok(()) }
    }

    /// Leaves for user space if it has to be told something, one thing at a time.
    fn tell_user_space(&mut self, requests: Requests) -> Result<(), Next> {
        if requests.has(Request::DirtyRingFull) && self.me.dirty_ring.as_ref().is_some_and(|ring| ring.soft_full()) {
            // Until user space has emptied it.
            self.me.thread.requests().make_request(Request::DirtyRingFull);
            self.vm.host.tell(|| Trace::DirtyRingExit { vcpu: self.me.id });
            return Err(Next::User(UserExit::DirtyRingFull));
        }
        if core::mem::take(&mut self.core.inject.triple_fault) {
            self.note_end(UserExit::Shutdown.reason(), 0);
            return Err(Next::User(UserExit::Shutdown));
        }
        if requests.has(Request::Hyperv) { self.hyperv_exit() } else { Ok(()) }
    }

    /// Takes what other threads posted and what changes no register: interrupts and NMIs. User space may look at events, or
    /// restore them, between other parts of the state: INIT would wipe those out.
    pub(crate) fn process_interrupts(&mut self) {
        if let Some(lapic) = &mut self.core.fast.lapic {
            self.me.pir.drain_into(lapic);
        }
        let nmi = self.me.pending_events.nmi_queued.swap(0, AcqRel);
        // One may be latched while a handler runs, two before the first is taken (APM 8.1.9 allows one pending).
        let limit = if self.core.inject.nmi_masked || self.core.inject.nmi_injected { 1 } else { 2 };
        self.core.inject.nmi_pending = (u32::from(self.core.inject.nmi_pending).saturating_add(nmi)).min(limit) as u8;
    }

    /// Takes everything that other threads posted: interrupts, NMIs, INIT, SIPI and SMIs.
    pub(crate) fn process_pending_events(&mut self) {
        self.process_interrupts();
        self.process_init();
        // INIT would make it undone.
        self.latch_smi();
    }

    fn process_init(&mut self) {
        if self.in_smm() {
            return self.me.pending_events.init_sipi.hold();
        }
        let (init, sipi) = self.me.pending_events.init_sipi.take();
        if init {
            self.init();
        }
        if let Some(vector) = sipi {
            self.core.sipi_vector = vector;
            if self.core.mp_state == MpState::InitReceived {
                self.start_at(vector);
            }
        }
    }

    fn expire_timer(&mut self) {
        let (now, tsc) = (self.vm.host.now_ns(), self.guest_tsc());
        self.core.fast.timer_at = 0;
        if let Some(hv) = &mut self.core.hyperv {
            // Which of them it was shows at their deadlines.
            hv.timers.lapic = u64::MAX;
            hv.timers.expire(now);
            self.set_host_timer();
        }
        if let Some(lapic) = &mut self.core.fast.lapic {
            let effect = lapic.expire(now, tsc);
            self.apply_timer(effect);
        }
    }

    /// Arms or cancels the host timer behind the local APIC's.
    pub(crate) fn apply_timer(&mut self, effect: TimerEffect) {
        if effect != TimerEffect::Keep {
            self.core.fast.timer_at = 0;
        }
        match effect {
            TimerEffect::Keep => {}
            TimerEffect::Cancel => self.set_lapic_timer(u64::MAX),
            TimerEffect::ArmNs(deadline) if deadline <= self.vm.host.now_ns() => self.timer_is_due(),
            TimerEffect::ArmNs(deadline) => self.set_lapic_timer(deadline),
            TimerEffect::ArmTsc(deadline) => {
                let ahead = deadline.saturating_sub(self.guest_tsc());
                if ahead == 0 {
                    return self.timer_is_due();
                }
                let ns = self.core.clock.guest_cycles_to_ns(ahead);
                self.set_lapic_timer(self.vm.host.now_ns().saturating_add(ns));
                self.core.fast.timer_at = deadline;
            }
        }
    }

    /// The guest need not wait for an interrupt of the host's timer: it would run on until that comes.
    fn timer_is_due(&mut self) {
        self.set_lapic_timer(u64::MAX);
        self.me.thread.requests().make_request(Request::Timer);
    }

    /// The guest's TSC now.
    pub(crate) fn guest_tsc(&self) -> u64 {
        self.core.clock.guest_tsc(self.vm.host.tsc())
    }
}
