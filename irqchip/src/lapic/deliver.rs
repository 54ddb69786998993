//! From acceptance to EOI: IRR, ISR, TMR, priorities, local interrupts and errors. APM volume 2 sections 16.4 and 16.6.

use super::regs::{LVT_MASKED, Lvt, SVR_DIRECTED_EOI};
use super::{Eoi, Lapic, Mode};
use crate::address::Accept;
use crate::bits::Bits256;
use crate::message::{DeliveryMode, Message, Shorthand};

/// Where a signal at LINT0 goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Lint0 {
    /// Nowhere, or into IRR.
    Other = 0,
    /// The 8259's vector is taken.
    ExtInt = 1,
    /// NMI: the NMI watchdog of old.
    Nmi = 2,
}

/// ESR bits, APM volume 2 section 16.4.6.
const SENT_ILLEGAL_VECTOR: u32 = 1 << 5;
const RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
const ILLEGAL_REGISTER: u32 = 1 << 7;

impl Lapic {
    /// Task priority register.
    #[inline]
    pub fn tpr(&self) -> u8 {
        self.tpr
    }

    /// Writes the task priority register.
    #[inline]
    pub fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
        self.update_ppr();
    }

    /// CR8: the priority class in the upper half of TPR, 0 to 15.
    #[inline]
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8; bits 7:4 of `cr8` must be zero and are dropped.
    #[inline]
    pub fn set_cr8(&mut self, cr8: u8) {
        self.set_tpr(cr8 << 4);
    }

    /// Processor priority register.
    #[inline]
    pub fn ppr(&self) -> u8 {
        self.ppr
    }

    /// Highest vector in IRR, 0 when empty.
    #[inline]
    pub fn irr_max(&self) -> u8 {
        self.irr_max
    }

    /// Highest vector in ISR, 0 when empty.
    #[inline]
    pub fn isr_max(&self) -> u8 {
        self.isr_max
    }

    /// Whether IRR holds anything, deliverable or not.
    #[inline]
    pub fn has_irr(&self) -> bool {
        self.irr_max != 0
    }

    /// Vectors that wait.
    pub fn irr(&self) -> &Bits256 {
        &self.irr
    }

    /// Which of them are level-triggered.
    pub fn tmr(&self) -> &Bits256 {
        &self.tmr
    }

    /// Whether `vector` waits in IRR or awaits its EOI in ISR.
    pub fn in_service_or_pending(&self, vector: u8) -> bool {
        self.irr.contains(vector) || self.isr.contains(vector)
    }

    /// The vector to inject: the highest in IRR if its class is above that of PPR. None while hardware-disabled.
    #[inline]
    pub fn pending_vector(&self) -> Option<u8> {
        (self.irr_max >> 4 > self.ppr >> 4 && self.hw_enabled).then_some(self.irr_max)
    }

    /// The CPU has taken `vector` by itself, as a virtual interrupt (APM volume 2 section 15.21.4): it moves from IRR to
    /// ISR. TPR may have changed since, so it is not looked at; nothing happens if `vector` is not in IRR.
    #[inline(always)]
    pub fn take(&mut self, vector: u8) {
        if !self.irr.contains(vector) {
            return;
        }
        self.irr.clear(vector);
        self.irr_max = self.irr.highest().unwrap_or(0);
        self.isr.set(vector);
        self.isr_max = self.isr_max.max(vector);
        self.update_ppr();
    }

    /// `vector` leaves IRR and is never in service: whoever takes it does not end it (Hyper-V's interrupts with automatic
    /// end).
    pub fn take_without_end(&mut self, vector: u8) {
        self.irr.clear(vector);
        self.irr_max = self.irr.highest().unwrap_or(0);
    }

    /// Is there a vector in IRR that only TPR holds back?
    #[inline]
    pub fn waits_for_tpr(&self) -> bool {
        self.irr_max >> 4 > self.isr_max >> 4 && self.irr_max >> 4 <= self.ppr >> 4 && self.hw_enabled
    }

    /// The vector whose turn to end is next, if the guest may end it without telling at once: it is edge-triggered, and
    /// nothing waits in IRR. `armed`: what the CPU is about to take by itself; then it is that one, if nothing is in
    /// service, so that its end cannot be taken for another's.
    #[inline]
    pub fn quietly_in_service(&self, armed: Option<u8>) -> Option<u8> {
        let (vector, waits) = match armed {
            Some(_) if self.isr_max != 0 => return None,
            Some(vector) => {
                let mut rest = self.irr;
                rest.clear(vector);
                (vector, rest.highest().is_some())
            }
            None => (self.isr_max, self.irr_max != 0),
        };
        (vector != 0 && !waits && !self.tmr.contains(vector)).then_some(vector)
    }

    /// End of interrupt: the highest vector leaves ISR. None when nothing was in service.
    #[inline]
    pub fn eoi(&mut self) -> Option<Eoi> {
        let vector = self.isr_max;
        if vector == 0 {
            return None;
        }
        self.isr.clear(vector);
        self.isr_max = self.isr.highest().unwrap_or(0);
        self.update_ppr();
        Some(Eoi { vector, level: self.tmr.contains(vector), suppressed: self.svr & SVR_DIRECTED_EOI != 0 })
    }

    /// End of interrupt by x2APIC's register, if nothing follows from it: nothing waits in IRR, and nobody wants to know
    /// of the vector's end (`notify`, or its being level-triggered). False: nothing was changed.
    #[inline(always)]
    pub fn quiet_eoi(&mut self, notify: &Bits256) -> bool {
        let vector = self.isr_max;
        if self.mode() != Mode::X2Apic || self.irr_max != 0 || self.tmr.contains(vector) || notify.contains(vector) {
            return false;
        }
        if vector != 0 {
            self.isr.clear(vector);
            self.isr_max = self.isr.highest().unwrap_or(0);
            self.update_ppr();
        }
        true
    }

    /// Sets `vector` in IRR and its trigger mode in TMR. Vectors below 16 are illegal and dropped.
    #[inline]
    pub fn set_irr(&mut self, vector: u8, level: bool) {
        if vector < 16 {
            return;
        }
        self.irr.set(vector);
        self.tmr.put(vector, level);
        self.irr_max = self.irr_max.max(vector);
    }

    /// Takes over what was posted by others: `level` wins where a vector is in both.
    pub(crate) fn merge(&mut self, edge: Bits256, level: Bits256) {
        let (e, l) = (legal(edge).words(), legal(level).words());
        let combine = |of: &Bits256, f: fn(u64, u64, u64) -> u64| {
            let [a, b, c, d] = of.words();
            let ([e0, e1, e2, e3], [l0, l1, l2, l3]) = (e, l);
            Bits256::from_words([f(a, e0, l0), f(b, e1, l1), f(c, e2, l2), f(d, e3, l3)])
        };
        self.irr = combine(&self.irr, |irr, e, l| irr | e | l);
        self.tmr = combine(&self.tmr, |tmr, e, l| tmr & !e | l);
        self.irr_max = self.irr.highest().unwrap_or(0);
    }

    /// The maxima after IRR and ISR were replaced. IRR keeps vectors below 16, as on stock: their class is above none,
    /// so they are shown and never delivered.
    pub(super) fn recount(&mut self) {
        (self.isr, self.tmr) = (legal(self.isr), legal(self.tmr));
        self.irr_max = self.irr.highest().unwrap_or(0);
        self.isr_max = self.isr.highest().unwrap_or(0);
        self.update_ppr();
    }

    /// APM volume 2 section 16.6.4: the greater of TPR and of the class in service.
    #[inline(always)]
    pub(super) fn update_ppr(&mut self) {
        let in_service = self.isr_max & 0xf0;
        self.ppr = if self.tpr & 0xf0 >= in_service { self.tpr } else { in_service };
    }

    /// A message to this APIC itself. What comes back as `Interrupt` is already in IRR; the rest is the caller's.
    pub fn accept(&mut self, m: &Message) -> Accept {
        let what = self.address().accept(m);
        match what {
            Accept::Interrupt { vector, level } => self.set_irr(vector, level),
            Accept::Refused if self.is_illegal(m) => self.error(RECEIVED_ILLEGAL_VECTOR),
            _ => {}
        }
        what
    }

    fn is_illegal(&self, m: &Message) -> bool {
        let plain = matches!(m.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        plain && m.vector < 16 && self.hw_enabled && self.sw_enabled()
    }

    /// A local interrupt source fires. ExtInt at LINT0 is refused here: see
    /// [`accepts_pic_intr`](Self::accepts_pic_intr).
    pub fn local(&mut self, entry: Lvt) -> Accept {
        let lvt = self.lvt(entry);
        if lvt & LVT_MASKED != 0 {
            return Accept::Refused;
        }
        self.accept(&Message {
            mode: DeliveryMode::from_bits(lvt >> 8),
            vector: lvt as u8,
            level: lvt & 1 << 15 != 0,
            assert: true,
            logical: false,
            dest: 0,
            shorthand: Shorthand::SelfOnly,
            lowest: false,
            ff_is_broadcast: false,
        })
    }

    /// Whether the 8259's INTR reaches the CPU: LINT0 is unmasked in mode ExtInt, or the APIC is hardware-disabled and
    /// the pin goes straight through (APM volume 2 section 16.3.1).
    pub fn accepts_pic_intr(&self) -> bool {
        self.lint0() == Lint0::ExtInt
    }

    /// What a signal at LINT0 does. While the APIC is hardware-disabled the pin goes straight through to INTR.
    pub fn lint0(&self) -> Lint0 {
        let lvt = self.lvt(Lvt::Lint0);
        match DeliveryMode::from_bits(lvt >> 8) {
            _ if !self.hw_enabled => Lint0::ExtInt,
            DeliveryMode::ExtInt if lvt & LVT_MASKED == 0 => Lint0::ExtInt,
            DeliveryMode::Nmi if lvt & LVT_MASKED == 0 => Lint0::Nmi,
            _ => Lint0::Other,
        }
    }

    pub(super) fn send_illegal_vector(&mut self) {
        self.error(SENT_ILLEGAL_VECTOR);
    }

    pub(super) fn illegal_register(&mut self) {
        self.error(ILLEGAL_REGISTER);
    }

    /// Records `error` and raises the error interrupt.
    fn error(&mut self, error: u32) {
        self.errors |= error;
        let lvt = self.lvt(Lvt::Error);
        if lvt & LVT_MASKED == 0 && self.hw_enabled {
            if lvt as u8 >= 16 {
                self.set_irr(lvt as u8, false);
            } else {
                self.errors |= RECEIVED_ILLEGAL_VECTOR;
            }
        }
    }
}

/// Without the vectors below 16, which no message may carry and no processor has in service.
fn legal(set: Bits256) -> Bits256 {
    let [low, b, c, d] = set.words();
    Bits256::from_words([low & !0xffff, b, c, d])
}
