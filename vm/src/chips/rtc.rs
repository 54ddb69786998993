//! The interrupt of the real-time clock, pin 8 of the IOAPIC. Who raises it with KVM_IRQ_LINE_STATUS is told that it is
//! pending (0) until every vCPU that took the last one has ended it: with that clients of stock make up for the ticks
//! that a guest was too slow for. Such a tick is dropped.
//!
//! Everything here happens under the IOAPIC's lock; among many vCPUs it is let go of in between.

use super::{Chips, LockedIoapic, Source, let_others_in};
use crate::{Ctx, Vcpu, Vm};
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};
use host::Host;
use irqchip::{Candidates, DeliveryMode, Line, PinMessage};

/// The pin.
pub(super) const PIN: u8 = 8;

/// How many vCPUs have not ended the clock's last interrupt.
#[derive(Default)]
pub(super) struct RtcCount(AtomicU32);

/// A vCPU's part: the vector, plus 1, of the clock's interrupt that it has not ended. 0: none.
#[derive(Default)]
pub struct RtcMark(AtomicU16);

::state::state! {
    inner RtcMark
    inner RtcCount
}

impl RtcMark {
    /// The IOAPIC's state was replaced: the vCPU's own APIC knows.
    const LOOK: u16 = u16::MAX;

    fn of(vector: u8) -> u16 {
        u16::from(vector) + 1
    }

    /// The vector whose end is awaited, whatever the pin's entry says by now.
    pub fn vector(&self) -> Option<u8> {
        u8::try_from(self.0.load(Relaxed).checked_sub(1)?).ok()
    }
}

impl RtcCount {
    /// Sets or clears a vCPU's mark.
    fn set(&self, mark: &RtcMark, to: u16) {
        let counts = |mark: u16| mark != 0 && mark != RtcMark::LOOK;
        let before = counts(mark.0.swap(to, Relaxed));
        let count = self.0.load(Relaxed);
        self.0.store(
            match (before, counts(to)) {
                (false, true) => count.saturating_add(1),
                (true, false) => count.saturating_sub(1),
                _ => count,
            },
            Relaxed,
        );
    }
}

impl<H: Host> Vm<H> {
    /// The pin is driven by somebody who asks for the status.
    pub(super) fn drive_rtc(&self, chips: &Chips<H>, ioapic: &mut LockedIoapic<'_, H>, level: bool) -> i32 {
        if level && chips.rtc.0.load(Relaxed) > 0 {
            ioapic.hold(PIN, Source::Asking.line());
            return 0;
        }
        match ioapic.set_irq(PIN, Source::Asking.line(), level) {
            Line::Lowered => 1,
            Line::Coalesced => 0,
            Line::Ignored => -1,
            Line::Deliver(m) => self.deliver_rtc(chips, ioapic, &m),
        }
    }

    /// Delivers what the pin sends, and notes who took it.
    pub(super) fn deliver_rtc(&self, chips: &Chips<H>, ioapic: &mut LockedIoapic<'_, H>, m: &PinMessage) -> i32 {
        // Nothing else has an end.
        let ends = matches!(m.message.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        self.deliver_noting(ioapic, m, |v| {
            if ends {
                chips.rtc.set(&v.rtc, RtcMark::of(m.message.vector));
            }
        })
    }

    /// A vCPU ended the interrupt `vector`.
    pub(super) fn rtc_ended(&self, chips: &Chips<H>, v: &Vcpu<H>, vector: u8) {
        if v.rtc.0.load(Relaxed) == RtcMark::of(vector) {
            let _ioapic = chips.ioapic.lock();
            if v.rtc.0.load(Relaxed) == RtcMark::of(vector) {
                chips.rtc.set(&v.rtc, 0);
            }
        }
    }

    /// The IOAPIC's state was replaced.
    pub(super) fn rtc_restored(&self, chips: &Chips<H>, ioapic: &mut LockedIoapic<'_, H>) {
        for (n, v) in (1usize..).zip(self.vcpus()) {
            chips.rtc.set(&v.rtc, RtcMark::LOOK);
            if n % Candidates::MOST == 0 {
                let_others_in(ioapic);
            }
        }
    }
}

impl<H: Host> Ctx<'_, H> {
    /// The local APIC's state was replaced: the clock's interrupt is pending if it says so.
    pub(crate) fn restore_rtc(&mut self) {
        let (Some(chips), Some(lapic)) = (self.vm.chips(), &self.core.fast.lapic) else { return };
        let ioapic = chips.ioapic.lock();
        let m = ioapic.pin_message(PIN);
        if lapic.address().matches(&m, false) {
            let waits = lapic.in_service_or_pending(m.vector);
            chips.rtc.set(&self.me.rtc, if waits { RtcMark::of(m.vector) } else { 0 });
        }
    }

    /// The same after the IOAPIC's was.
    pub(super) fn look_for_rtc(&mut self) {
        if self.me.rtc.0.load(Relaxed) == RtcMark::LOOK {
            self.restore_rtc();
        }
    }
}
