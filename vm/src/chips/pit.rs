//! The PIT as a device: its host timer, the interrupt of channel 0, and what its interrupt's end brings about.

use super::{Chips, Source};
use crate::Vm;
use crate::apics::{Context, Later};
use core::sync::atomic::{
    AtomicBool,
    Ordering::{AcqRel, Relaxed, Release},
};
use host::{Errno, Host, Hrtimer, Hrtimers, OneBox, Request, rank, try_box};
use irqchip::{Pit, TimerEffect};
use lock_api::Mutex;

/// KVM_PIT_SPEAKER_DUMMY: port 0x61 is in the kernel too.
pub const SPEAKER_DUMMY: u32 = 1;
/// What channel 0 raises.
pub(super) const GSI: u32 = 0;

pub(super) struct PitDevice<H: Host> {
    pub pit: Mutex<H::RawSpinIrq<{ rank::PIT }>, Pit>,
    pub speaker: bool,
    /// A tick for so many vCPUs that it waits for a task to raise it.
    pub owed: AtomicBool,
}

impl<H: Host> PitDevice<H> {
    /// Errors: ENOMEM.
    pub fn new(pit: Pit, speaker: bool) -> Result<OneBox<Self>, Errno> {
        try_box(|| Self { pit: Mutex::new(pit), speaker, owed: AtomicBool::new(false) })
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

    /// It expires on this CPU from now on.
    pub(crate) fn migrate_pit_timer(&self) {
        let Some(device) = self.chips().and_then(Chips::pit) else { return };
        let pit = device.pit.lock();
        if let due @ TimerEffect::ArmNs(_) = pit.timer_due() {
            self.pit_timer(due);
        }
    }

    pub(super) fn pit_expired(&self, chips: &Chips<H>) -> Result<(), Later> {
        let Some(device) = chips.pit() else { return Ok(()) };
        let mut pit = device.pit.lock();
        let tick = pit.expire(self.host.now_ns());
        self.pit_timer(tick.timer);
        drop(pit);
        if tick.inject && self.pit_tick(Context::Any).is_err() {
            device.owed.store(true, Release);
        }
        // Also if it was before, and the VM has gone to another engine since.
        if device.owed.load(Relaxed) { Err(Later) } else { Ok(()) }
    }

    pub(super) fn pit_late(&self, chips: &Chips<H>) {
        if chips.pit().is_some_and(|device| device.owed.swap(false, AcqRel)) {
            self.pit_tick_in_task();
        }
    }

    /// The guest ended the interrupt of GSI 0.
    pub(super) fn pit_acknowledged(&self, chips: &Chips<H>) {
        let Some(device) = chips.pit() else { return };
        let again = device.pit.lock().ack();
        if again {
            self.pit_tick_in_task();
        }
    }

    fn pit_tick_in_task(&self) {
        // Never for later.
        let _ = self.pit_tick(Context::Task);
    }

    fn pit_tick(&self, context: Context) -> Result<(), Later> {
        let as_nmi = self.vapics_in_nmi_mode.load(Relaxed) > 0;
        if as_nmi && context == Context::Any && !self.has_few_vcpus() {
            return Err(Later);
        }
        self.drive_gsi_in(context, GSI, Source::Pit, true)?;
        self.drive_gsi_in(context, GSI, Source::Pit, false)?;
        if as_nmi {
            for v in self.vcpus() {
                v.nmi_watchdog_tick();
            }
        }
        Ok(())
    }
}
