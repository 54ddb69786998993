//! After an exit: what became of the events that were handed to the processor (KVM's `svm_complete_interrupts`).

use crate::fast::Armed;
use crate::inject::QueuedInterrupt;
use crate::software::is_software;
use crate::vcpu::Core;
use arch::{EventInj, EventType, Exception, Intercepts};
use host::{Cpu, Host};

impl<H: Host> Core<H> {
    /// After an exit: what became of the events that were handed over.
    #[inline]
    pub fn collect_events(&mut self) {
        if self.inject.step.is_some() {
            self.end_step(true);
        }
        let tpr = (self.cpu.control().int_ctl & 0xf) as u8;
        if tpr != self.vtpr {
            self.vtpr = tpr;
            match &mut self.fast.lapic {
                Some(lapic) => lapic.set_cr8(tpr),
                None => self.cr8 = tpr.into(),
            }
        }
        match self.fast.taken(self.cpu.control()) {
            None | Some(Armed::Apic(_)) => {}
            Some(Armed::External(_)) => self.inject.external = None,
            Some(Armed::Window) => self.cpu.set_intercept(Intercepts::VINTR, false),
        }
        let info = self.cpu.control().exit_int_info;
        if info.valid() || self.inject.busy() {
            self.requeue(info);
        }
        self.look_at_iret();
    }

    /// The IRET of an NMI handler ends the mask once it has run.
    #[inline]
    pub(crate) fn look_at_iret(&mut self) {
        if self.inject.iret_rip.is_some_and(|rip| rip != self.cpu.save().rip) {
            self.inject.iret_rip = None;
            self.inject.nmi_masked = false;
        }
    }

    /// The event in EXITINTINFO was being delivered when the guest exited; it is delivered again. What the guest has begun
    /// itself by INTn, INT3 or INTO is left out: RIP still points at the instruction, which runs again. Not so what was
    /// injected in its place: there it would come to the debugger once more.
    #[cold]
    fn requeue(&mut self, info: EventInj) {
        self.inject.exception = None;
        self.inject.interrupt = None;
        self.inject.nmi_injected = false;
        let exception_or_software = matches!(info.kind(), Some(EventType::Soft | EventType::Exception));
        self.take_back_rip(!(info.valid() && exception_or_software));
        // The injected one may have been delivered long ago, and this be the guest's own.
        let save = self.cpu.save();
        let software = self.inject.software.take().filter(|s| (s.rip, s.cs_base) == (save.rip, save.cs.base));
        if !info.valid() {
            return;
        }
        let v = info.vector();
        match info.kind() {
            Some(EventType::Nmi) => self.inject.nmi_injected = true,
            // No exception has such a vector (APM 8.2). QEMU's emulation says so of a virtual interrupt whose delivery
            // met a nested fault, and has V_IRQ still set: then it comes again by itself. VMRUN would refuse it.
            Some(EventType::Exception) if v >= 32 => {
                if self.fast.armed.is_none() {
                    self.inject.interrupt = Some(QueuedInterrupt { vector: v, soft: false });
                }
            }
            Some(EventType::Exception) if !is_software(v) || software.is_some() => {
                self.inject.exception = Some(Exception { vector: v, error_code: info.error_code(), payload: None });
                self.inject.exception_reinjected = true;
                self.inject.software = software.filter(|_| is_software(v));
            }
            Some(EventType::Intr) => {
                self.inject.interrupt = Some(QueuedInterrupt { vector: v, soft: false });
                // EXITINTINFO says that it was taken, whatever V_IRQ says: it must not come a second time.
                self.disarm_taken(v);
            }
            Some(EventType::Soft) if software.is_some() => {
                self.inject.interrupt = Some(QueuedInterrupt { vector: v, soft: true });
                self.inject.software = software;
            }
            Some(EventType::Soft | EventType::Exception) | None => {}
        }
    }

    /// The interrupt that was left with the processor is the one that it has taken.
    fn disarm_taken(&mut self, v: u8) {
        if !matches!(self.fast.armed, Some(Armed::Apic(a) | Armed::External(a)) if a == v) {
            return;
        }
        self.cpu.clear_virq();
        if let Some(Armed::External(_)) = self.fast.taken(self.cpu.control()) {
            self.inject.external = None;
        }
    }

    /// IRET of an NMI handler is about to run: it ends the mask once it has.
    pub fn on_iret(&mut self) {
        self.cpu.set_intercept(Intercepts::IRET, false);
        self.inject.iret_rip = Some(self.cpu.save().rip);
    }
}
