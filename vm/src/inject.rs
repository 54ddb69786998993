//! Events on their way into the guest: what waits, what goes first, and how it reaches the VMCB (APM 15.20, 15.21).
//!
//! Exceptions and NMIs go through EVENTINJ, and so does what a PIC sends while the guest can take it. Interrupts of the
//! local APIC, and others that the guest cannot take yet, are left with the processor as a virtual interrupt (V_IRQ), which
//! delivers it without an exit as soon as RFLAGS.IF, the shadow and V_TPR allow. After the exit a cleared V_IRQ tells that
//! it was taken (docs/decisions/0017).
//!
//! An event goes through these states; KVM's names are in brackets. It *waits* (`pending`) until an entry injects it, it *is
//! being delivered* (`injected`) from then on, and the next exit tells what came of that: EXITINTINFO holds the event if the
//! exit cut its delivery short, and then the next entry injects it again; otherwise the handler has begun.
//!
//! | what waits | goes into EVENTINJ when | else |
//! |---|---|---|
//! | an exception | always, before all others | |
//! | an SMI ([`smm`](crate::smm)) | never: it is taken before the entry if nothing of the above or the next waits | exits right after the injection |
//! | what was cut short: NMI, interrupt | no exception waits | |
//! | an NMI | nothing of the above, not masked, no shadow | see below |
//! | an interrupt of a PIC | nothing of the above, RFLAGS.IF, no shadow | V_IRQ |
//! | one of the local APIC | never | V_IRQ |
//!
//! For an NMI that waits, the entry sees to an exit at the right time. (The guest's GIF is always set: CLGI is not offered.)
//!
//! | masked | another event goes first | shadow | this entry |
//! |---|---|---|---|
//! | no | no | no | injects the NMI |
//! | no | no | yes | runs one instruction (RFLAGS.TF), which ends the shadow |
//! | no | yes | | exits right after the injection of the other one |
//! | by a handler | | | intercepts the IRET that ends it |
//! | by a handler at its IRET | no | | runs one instruction, the IRET |
//! | by a handler at its IRET | yes | | exits right after the injection of the other one |

use crate::fast::Armed;
use crate::software::{Software, is_software};
use crate::vcpu::Core;
use arch::cr::{DR6_BS, DR6_RESET, DR7_GD};
use arch::event::vector;
use arch::exit::code;
use arch::vmcb::INT_SHADOW;
use arch::{CleanBits, EventInj, EventType, Exception, Intercepts, cr::Rflags};
use host::{Cpu, Host};

/// What waits for injection into one vCPU.
#[derive(Default)]
pub struct Injection {
    /// An exception that has to be delivered before anything else.
    pub exception: Option<Exception>,
    /// The exception was already being delivered when the guest exited.
    pub exception_reinjected: bool,
    /// An interrupt that was acknowledged but whose delivery was cut short.
    pub interrupt: Option<QueuedInterrupt>,
    /// The instruction whose event waits or is being delivered: INTn, INT3 or INTO.
    pub(crate) software: Option<Software>,
    /// A vector from the userspace PIC (KVM_INTERRUPT), not acknowledged by the guest yet. With a local APIC in the kernel it waits
    /// until LINT0 lets it through.
    pub external: Option<u8>,
    /// An NMI whose delivery was cut short.
    pub nmi_injected: bool,
    /// NMIs that wait, 0 to 2.
    pub nmi_pending: u8,
    /// An SMI waits.
    pub smi_pending: bool,
    /// An NMI handler runs (until IRET).
    pub nmi_masked: bool,
    /// RIP of the IRET that will end the mask, once it was met.
    pub iret_rip: Option<u64>,
    /// This entry runs one instruction, after which an NMI that waits may be taken.
    pub(crate) step: Option<NmiStep>,
    /// The #DB that this exit is about was asked for by `step`.
    pub(crate) stepped: Option<NmiStep>,
    /// A triple fault happened (KVM_CAP_X86_TRIPLE_FAULT_EVENT, or found while queueing).
    pub triple_fault: bool,
}

/// An interrupt that is past the interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedInterrupt {
    /// 0 to 255.
    pub vector: u8,
    /// It comes from an INTn instruction (`interrupt.soft` of KVM_SET_VCPU_EVENTS).
    pub soft: bool,
}

/// An event that was being delivered at the exit.
#[derive(Default)]
pub(crate) struct Delivered {
    pub exception: Option<Exception>,
    interrupt: Option<QueuedInterrupt>,
    software: Option<Software>,
    nmi: bool,
}

/// The guest before it was made to trap after one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NmiStep {
    /// It traps anyway.
    trap_flag: bool,
}

::state::state! {
    value QueuedInterrupt { vector, soft }
    value NmiStep { trap_flag }
    place Injection {
        exception, exception_reinjected, interrupt, software, external, nmi_injected, nmi_pending, smi_pending, nmi_masked, iret_rip, step,
        stepped, triple_fault,
    }
}

/// Classes of exceptions for double-fault detection (APM 8.2.9).
fn is_contributory(v: u8) -> bool {
    matches!(v, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP)
}

impl Injection {
    /// Queues an exception that the guest has caused. If one is being delivered already the two combine as the
    /// processor combines them: #DF, or shutdown.
    pub fn queue(&mut self, e: Exception) {
        let Some(first) = self.exception else {
            self.exception = Some(e);
            self.exception_reinjected = false;
            return;
        };
        let (a, b) = (first.vector, e.vector);
        if a == vector::DF {
            self.exception = None;
            self.triple_fault = true;
        } else if is_contributory(a) && is_contributory(b) || a == vector::PF && (is_contributory(b) || b == vector::PF)
        {
            self.exception = Some(Exception { vector: vector::DF, error_code: Some(0), payload: None });
        } else {
            // Benign after anything: the second is delivered, the first happens again when its cause is met again.
            self.exception = Some(e);
        }
        self.exception_reinjected = false;
    }

    /// Is an event queued that goes into the next EVENTINJ whatever the guest's interrupt flag says?
    #[inline]
    pub fn busy(&self) -> bool {
        self.exception.is_some() || self.interrupt.is_some() || self.nmi_injected
    }

    /// The event that was being delivered at the exit is delivered in another way.
    pub(crate) fn take_delivered(&mut self) -> Delivered {
        Delivered {
            exception: self.exception.take(),
            interrupt: self.interrupt.take(),
            software: self.software.take(),
            nmi: core::mem::take(&mut self.nmi_injected),
        }
    }

    /// It was not delivered.
    pub(crate) fn put_back(&mut self, d: Delivered) {
        (self.exception, self.interrupt, self.software, self.nmi_injected) =
            (d.exception, d.interrupt, d.software, d.nmi);
    }

    /// Forgets everything (INIT, reset).
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

impl<H: Host> Core<H> {
    /// True if RFLAGS.IF and the interrupt shadow let the guest take a maskable interrupt.
    #[inline]
    pub fn interruptible(&self) -> bool {
        self.cpu.save().rflags & Rflags::IF.bits() != 0 && self.cpu.control().int_state & INT_SHADOW == 0
    }

    /// Does the guest take interrupts of a PIC, in the kernel or in user space? LINT0 may keep them from it.
    pub(crate) fn accepts_external(&self) -> bool {
        self.fast.lapic.as_ref().is_none_or(|l| l.accepts_pic_intr())
    }

    /// The vector from the PIC in user space, unless LINT0 keeps it from the guest.
    pub(crate) fn external(&self) -> Option<u8> {
        self.inject.external.filter(|_| self.accepts_external())
    }

    /// Moves waiting events into the VMCB, as the last thing before entry. `window` is user space's wish to know when
    /// the guest can take an interrupt.
    #[inline]
    pub fn inject_pending(&mut self, window: bool) {
        let (tpr, waiting) = match &self.fast.lapic {
            Some(lapic) => (lapic.cr8(), lapic.has_irr()),
            None => (self.cr8 as u8, false),
        };
        if tpr != self.vtpr {
            self.vtpr = tpr;
            self.cpu.set_vtpr(tpr);
        }
        if waiting || window || self.fast.armed.is_some() || !self.inject.nothing() {
            self.inject_events(window);
        }
    }

    fn inject_events(&mut self, window: bool) {
        // An IRET may have been carried out here, as a task switch is.
        self.look_at_iret();
        let injected = self.inject_exception() || self.inject_reinjected();
        let blocked = self.debug.control & crate::debug::BLOCKIRQ != 0;
        if injected || blocked {
            // Nothing else can go with it.
        } else if self.inject.nmi_pending > 0 && self.nmi_allowed() {
            self.inject.nmi_pending -= 1;
            self.inject_nmi();
        } else if self.interruptible() {
            if let Some(v) = self.external() {
                self.inject.external = None;
                self.inject.interrupt = Some(QueuedInterrupt { vector: v, soft: false });
                self.inject_interrupt(EventType::Intr, v);
            } else if let Some(v) = self.endless() {
                if let Some(lapic) = &mut self.fast.lapic {
                    lapic.take_without_end(v);
                }
                self.inject.interrupt = Some(QueuedInterrupt { vector: v, soft: false });
                self.inject_interrupt(EventType::Intr, v);
            }
        }
        self.arm_virq(window, blocked);
        if self.inject.smi_pending && !blocked && !self.smm.active() {
            // It was not taken before this entry, so something else goes first.
            self.cpu.exit_after_injection();
            self.fast.look_at_smi();
        }
        if self.inject.nmi_pending > 0 && !blocked {
            self.await_nmi(self.inject.busy());
        }
    }

    /// The interrupt that is next, if it has no end (Hyper-V's sources with automatic end). It goes through EVENTINJ when the
    /// guest can take it: no EOI would tell when it is the turn of one below it.
    #[inline]
    fn endless(&self) -> Option<u8> {
        let hv = self.hyperv.as_ref()?;
        self.fast.lapic.as_ref()?.pending_vector().filter(|v| hv.vectors.auto_eoi.contains(*v))
    }

    fn inject_exception(&mut self) -> bool {
        let Some(e) = self.inject.exception else { return false };
        self.deliver_payload(e.vector, e.payload);
        if e.vector == vector::DB && !self.inject.exception_reinjected && self.debug.dr7 & DR7_GD != 0 {
            self.debug.dr7 &= !DR7_GD;
            self.load_debug();
        }
        if !self.inject.exception_reinjected && is_fault(e.vector) {
            self.cpu.save_mut(CleanBits::empty()).rflags |= Rflags::RF.bits();
        }
        if is_software(e.vector) {
            self.set_return_address();
        }
        let code = if Exception::pushes_error_code(e.vector) { e.error_code.or(Some(0)) } else { None };
        let code = if self.cpu.save().cr0 & 1 == 0 { None } else { code };
        self.inject.exception_reinjected = true;
        if let Some(x) = &mut self.inject.exception {
            x.payload = None;
        }
        self.cpu.set_event_inj(EventInj::new(EventType::Exception, e.vector, code));
        true
    }

    /// What an exception brings along reaches CR2 or DR6.
    pub(crate) fn deliver_payload(&mut self, vector: u8, payload: Option<u64>) {
        match (vector, payload) {
            (vector::PF, Some(cr2)) => self.cpu.save_mut(CleanBits::CR2).cr2 = cr2,
            (vector::DB, Some(bits)) => self.debug.deliver(bits),
            _ => {}
        }
    }

    fn inject_reinjected(&mut self) -> bool {
        if self.inject.nmi_injected {
            self.inject_nmi();
        } else if let Some(QueuedInterrupt { vector, soft }) = self.inject.interrupt {
            if soft {
                self.set_return_address();
            }
            let kind = if soft { EventType::Soft } else { EventType::Intr };
            self.inject_interrupt(kind, vector);
        } else {
            return false;
        }
        true
    }

    /// The processor was not entered, or refused the guest: what was about to be injected still waits.
    pub(crate) fn cancel_injection(&mut self) {
        self.cpu.set_event_inj(EventInj::NONE);
        self.end_step(false);
        self.take_back_rip(false);
    }

    fn inject_interrupt(&mut self, kind: EventType, vector: u8) {
        self.fast.count_injections(1);
        self.cpu.set_event_inj(EventInj::new(kind, vector, None));
    }

    fn inject_nmi(&mut self) {
        self.fast.count_injections(1 << 32);
        self.inject.nmi_injected = true;
        self.inject.nmi_masked = true;
        self.cpu.set_intercept(Intercepts::IRET, true);
        self.cpu.set_event_inj(EventInj::new(EventType::Nmi, vector::NMI, None));
    }

    fn nmi_allowed(&self) -> bool {
        !self.inject.nmi_masked && self.cpu.control().int_state & INT_SHADOW == 0
    }

    /// Leaves with the processor what the guest takes as soon as it can; nothing if a debugger `blocked` interrupts.
    fn arm_virq(&mut self, window: bool, blocked: bool) {
        let can_take = self.interruptible() && !self.inject.busy();
        let want = if window {
            Some(Armed::Window)
        } else if blocked {
            None
        } else if let Some(v) = self.external() {
            Some(Armed::External(v))
        } else if self.endless().is_some() {
            Some(Armed::Window)
        } else {
            self.fast.lapic.as_ref().and_then(|l| l.pending_vector()).map(|v| self.left(v, can_take))
        };
        // As on stock, the hypervisor sees TPR change while an interrupt waits, for that as well. QEMU's emulation depends
        // on it: it aborts where the guest writes CR8 with RFLAGS.IF clear and V_IRQ set, as OVMF's exception handlers do.
        let waits_for_tpr = || self.fast.lapic.as_ref().is_some_and(|l| l.waits_for_tpr());
        if want.map_or_else(waits_for_tpr, |_| !can_take) {
            self.set_cr8_exits(true);
        }
        let armed = core::mem::replace(&mut self.fast.armed, want);
        if want == armed {
            return;
        }
        if matches!(want, Some(Armed::Window)) != matches!(armed, Some(Armed::Window)) {
            self.cpu.set_intercept(Intercepts::VINTR, matches!(want, Some(Armed::Window)));
        }
        match want {
            Some(Armed::Apic(v)) => self.cpu.set_virq(v, v >> 4, false),
            Some(Armed::External(v)) => self.cpu.set_virq(v, 15, true),
            Some(Armed::Window) => self.cpu.set_virq(0, 15, true),
            None => self.cpu.clear_virq(),
        }
    }

    /// Sees to it that the guest exits when it can take the NMI that waits. IRET ends the mask of the one before it;
    /// otherwise another event goes first, or one instruction: IRET itself, or that in the interrupt shadow.
    fn await_nmi(&mut self, injecting: bool) {
        if self.inject.nmi_masked && self.inject.iret_rip.is_none() {
            self.cpu.set_intercept(Intercepts::IRET, true);
        } else if injecting {
            self.cpu.exit_after_injection();
        } else {
            let save = self.cpu.save_mut(CleanBits::empty());
            self.inject.step = Some(NmiStep { trap_flag: save.rflags & Rflags::TF.bits() != 0 });
            save.rflags |= Rflags::TF.bits();
        }
    }

    /// The entry is over, or did not come about (`entered` is false): the trap flag is the guest's again.
    pub(crate) fn end_step(&mut self, entered: bool) {
        let Some(step) = self.inject.step.take() else { return };
        // Without an entry the exit code is that of the exit before.
        let traps = entered && self.cpu.control().exit_code == code::EXCP0 + u64::from(vector::DB);
        self.inject.stepped = traps.then_some(step);
        let save = self.cpu.save_mut(CleanBits::empty());
        // IRET has loaded flags that are the guest's own.
        let loaded = entered && self.inject.iret_rip.is_some_and(|rip| rip != save.rip);
        if !step.trap_flag && !loaded {
            save.rflags &= !Rflags::TF.bits();
        }
    }

    /// A #DB was intercepted: what it is about, as DR6 has it; without what our own step has put there. None: nothing of it
    /// is anybody else's.
    pub(crate) fn take_debug_status(&mut self) -> Option<u64> {
        let ours = self.inject.stepped.take().is_some_and(|s| !s.trap_flag);
        let save = self.cpu.save_mut(CleanBits::DRX);
        let dr6 = core::mem::replace(&mut save.dr6, DR6_RESET);
        // The processor reports breakpoints that are not enabled as well: they alone cause no exception.
        let watches = save.dr7 & arch::cr::DR7_ENABLED != 0;
        match ours {
            true if self.debug.steps() => Some(dr6),
            true => Some(dr6 & !DR6_BS).filter(|dr6| watches && dr6 & 15 != 0),
            false => Some(dr6),
        }
    }
}

impl Injection {
    #[inline]
    fn nothing(&self) -> bool {
        !self.busy() && self.external.is_none() && self.nmi_pending == 0
    }
}

/// Faults push RFLAGS.RF set (APM 3.1.6); traps and interrupts do not.
fn is_fault(v: u8) -> bool {
    !matches!(v, vector::DB | vector::NMI | vector::BP | vector::OF | vector::DF | vector::MC)
}
