//! The interrupt controllers beside the local APICs, in the kernel (KVM_CREATE_IRQCHIP): two 8259s, the IOAPIC, and the
//! PIT that some clients add.
//!
//! Each machine has its own lock, taken with interrupts off, because eventfds and timers raise lines from anywhere. Messages
//! are delivered under the IOAPIC's lock, so that Remote IRR tells the truth; nothing else is locked below it. One for so many
//! vCPUs that interrupts would be off for long lets go of the lock now and then, and is not sent from just anywhere
//! ([`Context`]).
//!
//! Long because: one way of a line through all of them, and back.

mod handover;
mod lint0;
mod pit;
mod ports;
mod resample;
mod rtc;
mod state;

use crate::apics::{Context, Later};
use crate::inject::QueuedInterrupt;
use crate::interrupts::ioapic_gsis;
use crate::{Ctx, Vcpu, Vm};
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};
use host::{Errno, Host, Hrtimer, Hrtimers, OneBox, Request, Snapshot, Trace, rank, try_box};
use irqchip::{
    Chip, ChipMode, Eoi, EoiPin, IOAPIC_PINS, Ioapic, IoapicWrite, Line, Message, Pic, PinMessage, RoutingTable, Target,
};
use lock_api::{Mutex, MutexGuard, RawMutex};
use once_cell::race::OnceBox;

pub use pit::SPEAKER_DUMMY;
pub(crate) use resample::Resampler;
pub use rtc::RtcMark;
pub use state::PIT_STATE;

/// How long a level interrupt is put off that is raised again and again, as on stock.
const STORM_NS: u64 = 10_000_000;

/// Who drives a line: a line is high while anybody holds it so (`KVM_*_IRQ_SOURCE_ID`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Source {
    /// KVM_IRQ_LINE and irqfds without resampling.
    User = 0,
    /// irqfds with resampling.
    Resample = 1,
    /// The PIT.
    Pit = 2,
    /// KVM_IRQ_LINE_STATUS; a line knows it as [`User`](Self::User).
    Asking,
}

impl Source {
    /// The number under which a line knows it.
    fn line(self) -> u8 {
        match self {
            Self::Asking => Self::User as u8,
            other => other as u8,
        }
    }
}

/// The IOAPIC, locked.
type LockedIoapic<'a, H> = MutexGuard<'a, <H as Host>::RawSpinIrq<{ rank::CONTROLLERS }>, Ioapic>;

/// The controllers of one VM.
pub(crate) struct Chips<H: Host> {
    pic: Mutex<H::RawSpinIrq<{ rank::CONTROLLERS }>, Pic>,
    /// The 8259s' INTR, to be looked at without their lock.
    intr: AtomicBool,
    ioapic: Mutex<H::RawSpinIrq<{ rank::CONTROLLERS }>, Ioapic>,
    /// Where the IOAPIC's registers are, to be looked at without its lock.
    ioapic_base: AtomicU64,
    /// Pins put off by [`EoiPin::Storm`], a bit each.
    storm: AtomicU32,
    pit: OnceBox<[pit::PitDevice<H>; 1]>,
    rtc: rtc::RtcCount,
}

impl<H: Host> Chips<H> {
    /// Errors: ENOMEM.
    fn new(ioapic: Ioapic) -> Result<OneBox<Self>, Errno> {
        try_box(|| Self {
            pic: Mutex::new(Pic::new()),
            intr: AtomicBool::new(false),
            ioapic_base: AtomicU64::new(ioapic.base()),
            ioapic: Mutex::new(ioapic),
            storm: AtomicU32::new(0),
            pit: OnceBox::new(),
            rtc: Default::default(),
        })
    }

    fn pit(&self) -> Option<&pit::PitDevice<H>> {
        let [pit] = self.pit.get()?;
        Some(pit)
    }
}

impl<H: Host> Vm<H> {
    #[inline]
    pub(crate) fn chips(&self) -> Option<&Chips<H>> {
        let [chips] = self.chips.get()?;
        Some(chips)
    }

    /// KVM_CREATE_IRQCHIP. Errors: EEXIST (there is an irqchip), EINVAL (there are vCPUs), ENOMEM.
    pub fn create_irqchip(&self) -> Result<(), Errno> {
        let _shape = self.shape.lock();
        if self.chip_mode() != ChipMode::None {
            return Err(Errno::EEXIST);
        }
        if self.has_vcpus() {
            return Err(Errno::EINVAL);
        }
        let routes = RoutingTable::default_kernel().map_err(|_| Errno::ENOMEM)?;
        let routes = try_box(|| routes)?;
        let mut ioapic = Ioapic::new();
        ioapic.set_broadcast_quirk_disabled(self.config.broadcast_quirk_disabled.load(Relaxed));
        let chips = Chips::new(ioapic)?;
        self.chips.set(chips.into_inner()).map_err(|_| Errno::EEXIST)?;
        self.routing.replace(Some(routes));
        self.has_devices.store(true, Release);
        self.chip.store(2, Release);
        Ok(())
    }

    /// KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK: destination 0xff is an x2APIC's like any other.
    pub fn disable_broadcast_quirk(&self) {
        let _shape = self.shape.lock();
        self.config.broadcast_quirk_disabled.store(true, Relaxed);
        if let Some(chips) = self.chips() {
            chips.ioapic.lock().set_broadcast_quirk_disabled(true);
            self.ring_all(Request::ScanIoapic);
        }
    }

    /// Raises or lowers a GSI, from KVM_IRQ_LINE or, if user space asks for the status, KVM_IRQ_LINE_STATUS: the number of
    /// vCPUs that took it, 0 if it was pending already, -1 if it is masked or leads nowhere.
    pub fn set_gsi(&self, gsi: u32, level: bool, asks: bool) -> i32 {
        self.drive_gsi(gsi, if asks { Source::Asking } else { Source::User }, level)
    }

    pub(crate) fn drive_gsi(&self, gsi: u32, source: Source, level: bool) -> i32 {
        self.drive_gsi_in(Context::Task, gsi, source, level).unwrap_or(-1)
    }

    fn drive_gsi_in(&self, context: Context, gsi: u32, source: Source, level: bool) -> Result<i32, Later> {
        let targets = self.targets(gsi);
        if level {
            self.may_raise(context, &targets)?;
        }
        self.host.tell(|| Trace::SetIrq { gsi, level });
        let mut status = -1i32;
        for target in targets.into_iter().flatten() {
            let r = match target {
                Target::Pin { chip, pin } => self.drive_pin(context, chip, pin, source, level)?,
                Target::Msi { address, data } if level => self.deliver_msi(context, address, data)?,
                Target::HvSint { vp_index, sint } if level => self.raise_synic(context, vp_index, sint)?,
                Target::Msi { .. } | Target::HvSint { .. } => -1,
            };
            if r >= 0 {
                status = status.max(0).saturating_add(r);
            }
        }
        Ok(status)
    }

    /// An edge on a GSI, from an eventfd.
    pub fn pulse_gsi(&self, context: Context, gsi: u32) -> Result<(), Later> {
        let targets = self.targets(gsi);
        self.may_raise(context, &targets)?;
        for target in targets.into_iter().flatten() {
            match target {
                Target::Pin { chip, pin } => {
                    self.host.tell(|| Trace::SetIrq { gsi, level: true });
                    self.drive_pin(context, chip, pin, Source::User, true)?;
                    self.host.tell(|| Trace::SetIrq { gsi, level: false });
                    self.drive_pin(context, chip, pin, Source::User, false)?;
                }
                Target::Msi { address, data } => {
                    self.deliver_msi(context, address, data)?;
                }
                Target::HvSint { vp_index, sint } => {
                    self.raise_synic(context, vp_index, sint)?;
                }
            }
        }
        Ok(())
    }

    /// A GSI goes high and stays so until the guest ends the interrupt, from an eventfd with resampling.
    pub fn raise_until_eoi(&self, context: Context, gsi: u32) -> Result<(), Later> {
        self.drive_gsi_in(context, gsi, Source::Resample, true).map(drop)
    }

    /// May these pins be raised here? What else a GSI leads to says so by itself. A guest that changes the entry after this look
    /// is found out as well ([`drive_pin`](Self::drive_pin)), but may see an edge twice at an 8259.
    fn may_raise(&self, context: Context, targets: &[Option<Target>]) -> Result<(), Later> {
        if context == Context::Any {
            for target in targets.iter().flatten() {
                if let (Target::Pin { chip: Chip::Ioapic, pin }, Some(chips)) = (target, self.chips()) {
                    let ioapic = chips.ioapic.lock();
                    self.candidates(context, &ioapic.pin_message(*pin), None)?;
                }
            }
        }
        Ok(())
    }

    /// Where a GSI leads: at most a PIC and the IOAPIC, or an MSI.
    fn targets(&self, gsi: u32) -> [Option<Target>; 3] {
        let mut targets = [None; 3];
        self.routing.read(|routes| {
            for (t, r) in targets.iter_mut().zip(routes.into_iter().flat_map(|routes| routes.lookup(gsi))) {
                *t = Some(r.target);
            }
        });
        targets
    }

    /// The GSI that leads to a pin.
    fn gsi_of(&self, chip: Chip, pin: u8) -> Option<u32> {
        self.routing.read(|routes| routes?.gsi_of(chip, pin))
    }

    fn deliver_msi(&self, context: Context, address: u64, data: u32) -> Result<i32, Later> {
        let m = Message::from_msi(address, data, self.msi_format());
        let candidates = self.candidates(context, &m, None)?;
        self.host.tell(|| Trace::MsiSetIrq { address, data });
        Ok(self.send_among(candidates, &m, None, |_| {}, || {}).map_or(-1, |n| n as i32))
    }

    fn drive_pin(&self, context: Context, chip: Chip, pin: u8, source: Source, level: bool) -> Result<i32, Later> {
        let Some(chips) = self.chips() else { return Ok(-1) };
        match chip {
            Chip::PicMaster | Chip::PicSlave => {
                let first = if chip == Chip::PicSlave { 8 } else { 0 };
                let mut pic = chips.pic.lock();
                let status = pic.set_irq(first + pin, source.line(), level);
                self.host.tell(|| {
                    let [elcr, imr] = pic.modes(first + pin);
                    Trace::PicSetIrq { pin: first + pin, elcr, imr, coalesced: status == 0 }
                });
                self.publish_intr(chips, &pic);
                Ok(status)
            }
            Chip::Ioapic => {
                let mut ioapic = chips.ioapic.lock();
                if level && context == Context::Any {
                    self.candidates(context, &ioapic.pin_message(pin), None)?;
                }
                if pin == rtc::PIN && source == Source::Asking {
                    return Ok(self.drive_rtc(chips, &mut ioapic, level));
                }
                let entry = ioapic.entry(pin);
                let status = match ioapic.set_irq(pin, source.line(), level) {
                    Line::Lowered => 1,
                    Line::Coalesced => 0,
                    Line::Ignored => -1,
                    Line::Deliver(m) => self.deliver_pin(&mut ioapic, &m),
                };
                self.host.tell(|| Trace::IoapicSetIrq { entry, pin, coalesced: status == 0 });
                Ok(status)
            }
        }
    }

    /// Delivers what a pin of the IOAPIC sends: the number of vCPUs that took it, -1 if it addresses none. If it may be for many,
    /// the lock is let go of in between: who comes then finds the pin as it is when all have it.
    fn deliver_pin(&self, ioapic: &mut LockedIoapic<'_, H>, m: &PinMessage) -> i32 {
        self.deliver_noting(ioapic, m, |_| {})
    }

    /// The same; `took` is called for each vCPU that takes it, right before it does.
    fn deliver_noting(&self, ioapic: &mut LockedIoapic<'_, H>, m: &PinMessage, took: impl Fn(&Vcpu<H>)) -> i32 {
        let candidates = self.candidates(Context::Task, &m.message, None).unwrap_or_default();
        let taken = self.send_among(candidates, &m.message, None, took, || let_others_in(ioapic));
        Self::delivered(ioapic, m, taken)
    }

    /// The status of what so many vCPUs took.
    fn delivered(ioapic: &mut Ioapic, m: &PinMessage, taken: Option<u32>) -> i32 {
        match taken {
            Some(0) => {
                ioapic.refused(m.pin);
                0
            }
            Some(n) => n as i32,
            None => -1,
        }
    }

    /// The end of a level interrupt, or of one that somebody waits for, on some local APIC.
    fn ioapic_eoi(&self, chips: &Chips<H>, eoi: &Eoi) {
        let pins = chips.ioapic.lock().pins_of_vector(eoi.vector);
        for pin in (0..IOAPIC_PINS as u8).filter(|pin| pins & 1 << pin != 0) {
            // Who waits lowers the line before the IOAPIC looks at it again.
            self.interrupt_ended(chips, Chip::Ioapic, pin);
            let mut ioapic = chips.ioapic.lock();
            match ioapic.eoi_pin(pin, eoi) {
                EoiPin::None => {}
                EoiPin::Deliver(m) => {
                    self.deliver_pin(&mut ioapic, &m);
                }
                EoiPin::Storm => {
                    chips.storm.fetch_or(1 << pin, AcqRel);
                    self.hrtimers.arm(Hrtimer::Ioapic, self.host.now_ns().saturating_add(STORM_NS));
                }
            }
        }
    }

    /// A timer of the devices expired. Any context. Err: the rest is for [`hrtimer_late`](Self::hrtimer_late).
    pub fn hrtimer_expired(&self, which: Hrtimer) -> Result<(), Later> {
        let Some(chips) = self.chips() else { return Ok(()) };
        match which {
            Hrtimer::Pit => self.pit_expired(chips),
            // It is rare, and there may be as many messages as pins.
            Hrtimer::Ioapic => Err(Later),
        }
    }

    /// What an expiry has left, in a task. It arms no timer, and does nothing if nothing is left.
    pub fn hrtimer_late(&self, which: Hrtimer) {
        let Some(chips) = self.chips() else { return };
        match which {
            Hrtimer::Pit => self.pit_late(chips),
            Hrtimer::Ioapic => {
                let pins = chips.storm.swap(0, AcqRel);
                for pin in (0..IOAPIC_PINS as u8).filter(|pin| pins & 1 << pin != 0) {
                    let mut ioapic = chips.ioapic.lock();
                    if let Some(m) = ioapic.redeliver(pin) {
                        self.deliver_pin(&mut ioapic, &m);
                    }
                }
            }
        }
    }

    /// The guest ended the interrupt of a pin: tells the PIT and the eventfds that wait for it.
    fn interrupt_ended(&self, chips: &Chips<H>, chip: Chip, pin: u8) {
        let number = match chip {
            Chip::PicMaster => 0,
            Chip::PicSlave => 1,
            Chip::Ioapic => 2,
        };
        self.host.tell(|| Trace::AckIrq { chip: number, pin: pin.into() });
        let Some(gsi) = self.gsi_of(chip, pin) else { return };
        if gsi == pit::GSI {
            self.pit_acknowledged(chips);
        }
        self.resample(gsi);
    }

    fn interrupts_ended(&self, chips: &Chips<H>, pic_pins: u16) {
        for pin in (0..16u8).filter(|pin| pic_pins & 1 << pin != 0) {
            let chip = if pin < 8 { Chip::PicMaster } else { Chip::PicSlave };
            self.interrupt_ended(chips, chip, pin & 7);
        }
    }

    /// Pins of the IOAPIC whose interrupt's end somebody waits for.
    fn notified_pins(&self, chips: &Chips<H>) -> u32 {
        let mut pins = 1 << rtc::PIN;
        let gsis = self.routing.read(|routes| routes.map(ioapic_gsis)).unwrap_or_default();
        // Of each GSI the pins that it is routed to.
        let pins_of = |gsi| -> u32 {
            let pins = gsis.iter().enumerate().filter(|(_, of)| **of == Some(gsi));
            pins.map(|(pin, _)| 1u32 << pin).sum()
        };
        if chips.pit().is_some() {
            pins |= pins_of(pit::GSI);
        }
        self.each_resampler(|r| {
            pins |= pins_of(r.gsi);
            ControlFlow::Continue(())
        });
        pins
    }

    /// A write to the IOAPIC's registers.
    fn write_ioapic(&self, chips: &Chips<H>, offset: u32, data: &[u8]) {
        let IoapicWrite { changed, mask_changed, waiting } = chips.ioapic.lock().mmio_write(offset, data);
        // Before the interrupt, or its EOI may come from a vCPU that does not know yet that the IOAPIC waits for it.
        if changed {
            self.ring_all(Request::ScanIoapic);
        }
        if let Some(pin) = waiting {
            self.pin_allowed(chips, pin);
        }
        if let Some((pin, false)) = mask_changed {
            self.unmasked(chips, Chip::Ioapic, pin);
        }
    }

    /// A pin with a high line may deliver again. Whoever can be asked is asked whether the line still is high, as on stock
    /// since 6.4: a device that was served while the pin was masked raises no needless interrupt.
    fn pin_allowed(&self, chips: &Chips<H>, pin: u8) {
        let gsi = self.gsi_of(Chip::Ioapic, pin);
        if gsi.is_some_and(|gsi| self.is_resampled(gsi)) {
            chips.ioapic.lock().forget(pin);
            self.signal_resamplers(gsi);
            return;
        }
        let mut ioapic = chips.ioapic.lock();
        if let Some(m) = ioapic.redeliver(pin) {
            self.deliver_pin(&mut ioapic, &m);
        }
    }

    /// A pin was unmasked: the PIT forgets the ticks that nobody could have taken.
    fn unmasked(&self, chips: &Chips<H>, chip: Chip, pin: u8) {
        if self.gsi_of(chip, pin) == Some(pit::GSI) {
            if let Some(device) = chips.pit() {
                device.pit.lock().reset_reinject();
            }
        }
    }
}

impl<H: Host> Ctx<'_, H> {
    /// EOI of a vector in `ioapic_eoi`.
    pub(crate) fn eoi_to_chips(&mut self, chips: &Chips<H>, eoi: Eoi) {
        self.vm.rtc_ended(chips, self.me, eoi.vector);
        self.vm.ioapic_eoi(chips, &eoi);
    }

    /// Vectors whose EOI the IOAPIC has to know about.
    pub(crate) fn scan_chips(&mut self, chips: &Chips<H>) {
        self.look_for_rtc();
        let notified = self.vm.notified_pins(chips);
        if let Some(lapic) = &mut self.core.fast.lapic {
            let ioapic = chips.ioapic.lock();
            // What was posted is awaited even if it is no longer meant for this vCPU; under the lock, because who sends it to
            // an address that has just changed has that.
            self.me.pir.drain_into(lapic);
            let mut bitmap = ioapic.eoi_bitmap(lapic, notified);
            drop(ioapic);
            if let Some(vector) = self.me.rtc.vector() {
                bitmap.set(vector);
            }
            self.core.fast.ioapic_eoi = bitmap;
        }
    }

    /// The 8259s have an interrupt and this vCPU takes such.
    #[inline]
    pub(crate) fn pic_waits(&self) -> bool {
        self.vm.chips().is_some_and(|c| c.intr.load(Relaxed)) && self.accepts_external()
    }

    /// Acknowledges the 8259s' interrupt if the guest can take it now. True: it cannot, and wants to be asked again when
    /// it can.
    #[cold]
    pub(crate) fn take_pic(&mut self) -> bool {
        let Some(chips) = self.vm.chips() else { return false };
        if self.core.debug.control & crate::debug::BLOCKIRQ != 0 {
            return false;
        }
        // An NMI goes first, if it can: one that waits for the end of another's handler must not hold interrupts back.
        let inject = &self.core.inject;
        let nmi = inject.nmi_pending > 0 && !inject.nmi_masked;
        if inject.busy() || nmi || !self.core.interruptible() {
            return true;
        }
        let mut pic = chips.pic.lock();
        // Another vCPU that takes such interrupts may have been faster.
        if !pic.output() {
            return false;
        }
        let ack = pic.ack();
        self.vm.publish_intr(chips, &pic);
        drop(pic);
        self.core.inject.interrupt = Some(QueuedInterrupt { vector: ack.vector, soft: false });
        self.vm.interrupts_ended(chips, ack.ended);
        chips.intr.load(Relaxed)
    }
}

/// Interrupts come, if they may, and others have the lock.
fn let_others_in<R: RawMutex>(ioapic: &mut MutexGuard<'_, R, Ioapic>) {
    MutexGuard::unlocked(ioapic, || {});
}
