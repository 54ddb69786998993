//! The PIT as a device: its host timer, the interrupt of channel 0, and what its interrupt's end brings about.

use super::{Chips, Source};
use crate::{Vcpu, Vm};
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, Host, Hrtimer, Hrtimers, OneBox, Request, rank, try_box};
use irqchip::{Accept, Lint0, Pit, TimerEffect};
use lock_api::Mutex;

/// KVM_PIT_SPEAKER_DUMMY: port 0x61 is in the kernel too.
pub const SPEAKER_DUMMY: u32 = 1;
/// What channel 0 raises.
pub(super) const GSI: u32 = 0;

pub(super) struct PitDevice<H: Host> {
    pub pit: Mutex<H::RawSpinIrq<{ rank::PIT }>, Pit>,
    pub speaker: bool,
}

impl<H: Host> PitDevice<H> {
    /// Errors: ENOMEM.
    pub fn new(pit: Pit, speaker: bool) -> Result<OneBox<Self>, Errno> {
        try_box(|| Self { pit: Mutex::new(pit), speaker })
    }
}

impl<H: Host> Vm<H> {
    /// KVM_CREATE_PIT2. Errors: EEXIST, ENOENT (no 8259s in the kernel), ENOMEM.
    pub fn create_pit(&self, flags: u32) -> Result<(), Errno> {
        let _shape = self.shape.lock();
        let chips = self.chips().ok_or(Errno::ENOENT)?;
        if chips.pit().is_some() {
            return Err(Errno::EEXIST);
        }
        let now = self.host.now_ns();
        // A guest must not keep the host busy with its timer.
        let shortest = self.host.min_timer_period_ns();
        let device = PitDevice::new(Pit::new(shortest, now), flags & SPEAKER_DUMMY != 0)?;
        chips.pit.set(device.into_inner()).map_err(|_| Errno::EEXIST)?;
        // The ends of its interrupts are wanted.
        self.ring_all(Request::ScanIoapic);
        Ok(())
    }

    /// Sets the host's timer; under the PIT's lock, so that the last setting wins.
    pub(super) fn pit_timer(&self, effect: TimerEffect) {
        match effect {
            TimerEffect::ArmNs(deadline) => self.hrtimers.arm(Hrtimer::Pit, deadline),
            TimerEffect::Cancel => self.hrtimers.cancel(Hrtimer::Pit),
            // The PIT knows no TSC.
            TimerEffect::Keep | TimerEffect::ArmTsc(_) => {}
        }
    }

    pub(super) fn pit_expired(&self, chips: &Chips<H>) {
        let Some(device) = chips.pit() else { return };
        let mut pit = device.pit.lock();
        let tick = pit.expire(self.host.now_ns());
        self.pit_timer(tick.timer);
        drop(pit);
        if tick.inject {
            self.pit_tick();
        }
    }

    /// The guest ended the interrupt of GSI 0.
    pub(super) fn pit_acknowledged(&self, chips: &Chips<H>) {
        let Some(device) = chips.pit() else { return };
        let again = device.pit.lock().ack();
        if again {
            self.pit_tick();
        }
    }

    fn pit_tick(&self) {
        self.drive_gsi(GSI, Source::Pit, true);
        self.drive_gsi(GSI, Source::Pit, false);
        if self.vapics_in_nmi_mode.load(Relaxed) > 0 {
            for v in self.vcpus() {
                v.nmi_watchdog_tick();
            }
        }
    }

    /// Lets other threads know what LINT0 of a vCPU's local APIC takes.
    pub(crate) fn publish_lint0(&self, v: &Vcpu<H>, now: Lint0) {
        let before = v.lint0.swap(now as u8, Relaxed);
        match (before == Lint0::Nmi as u8, now == Lint0::Nmi) {
            (false, true) => self.vapics_in_nmi_mode.fetch_add(1, Relaxed),
            (true, false) => self.vapics_in_nmi_mode.fetch_sub(1, Relaxed),
            _ => 0,
        };
    }
}

impl<H: Host> Vcpu<H> {
    /// LINT0 has the 8259s' interrupts come as NMI: the PIT's tick is one.
    fn nmi_watchdog_tick(&self) {
        if self.lint0.load(Relaxed) == Lint0::Nmi as u8 {
            self.deliver(Accept::Nmi);
        }
    }
}
