//! Events on their way into the guest as user space sees, saves and restores them (KVM_GET/SET_VCPU_EVENTS, and
//! `interrupt_bitmap` of KVM_GET/SET_SREGS).

use crate::inject::QueuedInterrupt;
use crate::software::is_software;
use crate::{Ctx, Events, MpState};
use arch::Exception;
use arch::event::vector;
use arch::vmcb::INT_SHADOW;
use core::sync::atomic::Ordering::{Relaxed, Release};
use host::{Cpu, Errno, Host};

impl<H: Host> Ctx<'_, H> {
    /// The interrupt that is past its controller and has not reached the guest, as user space is shown it: none of an
    /// instruction, which comes again by itself. Without local APIC it may be one that waits for the guest to take it.
    pub(crate) fn hard_interrupt(&self) -> Option<u8> {
        let inject = &self.core.inject;
        let waits = inject.external.filter(|_| self.core.fast.lapic.is_none());
        inject.interrupt.filter(|i| !i.soft).map(|i| i.vector).or(waits)
    }

    /// User space brings back what [`hard_interrupt`](Self::hard_interrupt) has shown.
    pub(crate) fn queue_interrupt(&mut self, vector: Option<u8>) {
        let inject = &mut self.core.inject;
        inject.interrupt = None;
        if self.core.fast.lapic.is_none() {
            inject.external = vector;
        } else {
            inject.interrupt = vector.map(|vector| QueuedInterrupt { vector, soft: false });
        }
    }

    /// Without KVM_CAP_EXCEPTION_PAYLOAD user space cannot save what an exception that waits brings along for DR6 or CR2: it
    /// is there as soon as user space looks.
    pub(crate) fn deliver_payload_early(&mut self) {
        let inject = &mut self.core.inject;
        if self.vm.config.exception_payload.load(Relaxed) || inject.exception_reinjected {
            return;
        }
        if let Some(e) = &mut inject.exception {
            let payload = e.payload.take();
            let vector = e.vector;
            self.core.deliver_payload(vector, payload);
        }
    }

    /// KVM_GET_VCPU_EVENTS. What comes from an instruction is not shown: user space could not say how long that is, and as
    /// RIP is still at it it comes again.
    pub fn get_events(&mut self) -> Events {
        self.process_interrupts();
        self.latch_smi();
        self.deliver_payload_early();
        let interrupt = self.hard_interrupt();
        let inject = &self.core.inject;
        let payloads = self.vm.config.exception_payload.load(Relaxed);
        let exception = inject.exception;
        let shown = exception.is_some_and(|e| !is_software(e.vector));
        let waiting = exception.is_some() && !inject.exception_reinjected;
        Events {
            // Without the capability it is reported as both, and comes back as injected.
            exception_injected: shown && (inject.exception_reinjected || !payloads),
            exception_pending: shown && waiting,
            exception_nr: exception.map_or(0, |e| e.vector),
            exception_error_code: exception.and_then(|e| e.error_code),
            exception_payload: exception.and_then(|e| e.payload).filter(|_| waiting && payloads),
            interrupt_injected: interrupt.is_some(),
            interrupt_nr: interrupt.or(inject.interrupt.map(|i| i.vector)).unwrap_or(0),
            interrupt_soft: false,
            shadow: Some(if self.core.cpu.control().int_state & INT_SHADOW != 0 { 3 } else { 0 }),
            nmi_injected: inject.nmi_injected,
            nmi_pending: Some(inject.nmi_pending),
            nmi_masked: inject.nmi_masked,
            sipi_vector: None,
            smi: Some(self.smi_events()),
            latched_init: Some(self.core.fast.lapic.is_some() && self.me.pending_events.init_sipi.is_latched()),
            triple_fault: Some(inject.triple_fault),
        }
    }

    /// KVM_SET_VCPU_EVENTS. Errors: EINVAL (vector out of range, NMI as exception, a payload without its capability, system
    /// management mode where INIT was received).
    pub fn set_events(&mut self, e: &Events) -> Result<(), Errno> {
        let payloads = self.vm.config.exception_payload.load(Relaxed);
        let has_exception = e.exception_injected || e.exception_pending;
        if has_exception && (e.exception_nr > 31 || e.exception_nr == vector::NMI)
            || e.exception_pending && (!payloads || e.exception_injected)
            || e.smi.is_some_and(|smi| smi.smm || smi.pending) && self.core.mp_state == MpState::InitReceived
        {
            return Err(Errno::EINVAL);
        }
        self.process_interrupts();
        self.latch_smi();
        let inject = &mut self.core.inject;
        inject.exception = has_exception.then_some(Exception {
            vector: e.exception_nr,
            error_code: e.exception_error_code,
            payload: e.exception_payload,
        });
        inject.exception_reinjected = e.exception_injected;
        inject.software = None;
        inject.nmi_injected = e.nmi_injected;
        inject.nmi_masked = e.nmi_masked;
        // The mask may be that of another handler, whose IRET has not been met.
        (inject.iret_rip, inject.step, inject.stepped) = (None, None, None);
        if let Some(triple) = e.triple_fault {
            inject.triple_fault = triple;
        }
        self.queue_interrupt(Some(e.interrupt_nr).filter(|_| e.interrupt_injected && !e.interrupt_soft));
        if e.interrupt_injected && e.interrupt_soft {
            self.core.inject.interrupt = Some(QueuedInterrupt { vector: e.interrupt_nr, soft: true });
        }
        if let Some(pending) = e.nmi_pending {
            // How many of them may wait is seen to when they are looked at.
            self.core.inject.nmi_pending = 0;
            self.me.pending_events.nmi_queued.store(pending.min(2).into(), Release);
        }
        if let Some(smi) = e.smi {
            self.set_smi_events(smi);
        }
        if let Some(shadow) = e.shadow {
            self.core.cpu.set_interrupt_shadow(shadow != 0);
        }
        self.core.cpu.set_intercept(arch::Intercepts::IRET, e.nmi_masked);
        if self.core.fast.lapic.is_some() {
            if let Some(v) = e.sipi_vector {
                self.core.sipi_vector = v as u8;
            }
            if let Some(init) = e.latched_init {
                self.me.pending_events.init_sipi.set_latched(init);
            }
        }
        self.me.thread_ring_event();
        Ok(())
    }
}
