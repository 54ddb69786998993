//! The interrupt controllers beside the local APICs, in the kernel (KVM_CREATE_IRQCHIP): two 8259s, the IOAPIC, and the
//! PIT that some clients add.
//!
//! Each machine has its own lock, taken with interrupts off, because eventfds and timers raise lines from anywhere. Messages
//! are delivered under the IOAPIC's lock, so that Remote IRR tells the truth; nothing else is locked below it.

mod handover;
mod pit;
mod ports;
mod resample;
mod rtc;
mod state;

use crate::inject::QueuedInterrupt;
use crate::{Ctx, Vm};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};
use host::{Errno, Host, Hrtimer, Hrtimers, OneBox, Request, rank, try_box};
use irqchip::{
    Chip, ChipMode, Eoi, EoiPin, IOAPIC_PINS, Ioapic, IoapicWrite, Line, Lint0, Message, Pic, PinMessage, RoutingTable,
    Target,
};
use lock_api::Mutex;
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
        let mut ioapic = Ioapic::new();
        ioapic.set_broadcast_quirk_disabled(self.config.broadcast_quirk_disabled.load(Relaxed));
        let chips = Chips::new(ioapic)?;
        self.chips.set(chips.into_inner()).map_err(|_| Errno::EEXIST)?;
        *self.routing.lock() = routes;
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
        let mut status = -1i32;
        for target in self.targets(gsi).into_iter().flatten() {
            let r = match target {
                Target::Pin { chip, pin } => self.drive_pin(chip, pin, source, level),
                Target::Msi { address, data } if level => self.deliver_msi(address, data),
                Target::HvSint { vp_index, sint } if level => self.raise_synic(vp_index, sint),
                Target::Msi { .. } | Target::HvSint { .. } => -1,
            };
            if r >= 0 {
                status = status.max(0).saturating_add(r);
            }
        }
        status
    }

    /// An edge on a GSI, from an eventfd. Any context.
    pub fn pulse_gsi(&self, gsi: u32) {
        for target in self.targets(gsi).into_iter().flatten() {
            match target {
                Target::Pin { chip, pin } => {
                    self.drive_pin(chip, pin, Source::User, true);
                    self.drive_pin(chip, pin, Source::User, false);
                }
                Target::Msi { address, data } => {
                    self.deliver_msi(address, data);
                }
                Target::HvSint { vp_index, sint } => {
                    self.raise_synic(vp_index, sint);
                }
            }
        }
    }

    /// A GSI goes high and stays so until the guest ends the interrupt, from an eventfd with resampling. Any context.
    pub fn raise_until_eoi(&self, gsi: u32) {
        self.drive_gsi(gsi, Source::Resample, true);
    }

    /// Where a GSI leads: at most a PIC and the IOAPIC, or an MSI.
    fn targets(&self, gsi: u32) -> [Option<Target>; 3] {
        let mut targets = [None; 3];
        for (t, r) in targets.iter_mut().zip(self.routing.lock().lookup(gsi)) {
            *t = Some(r.target);
        }
        targets
    }

    fn deliver_msi(&self, address: u64, data: u32) -> i32 {
        self.send(&Message::from_msi(address, data, self.msi_format()), None).map_or(-1, |n| n as i32)
    }

    fn drive_pin(&self, chip: Chip, pin: u8, source: Source, level: bool) -> i32 {
        let Some(chips) = self.chips() else { return -1 };
        match chip {
            Chip::PicMaster | Chip::PicSlave => {
                let first = if chip == Chip::PicSlave { 8 } else { 0 };
                let mut pic = chips.pic.lock();
                let status = pic.set_irq(first + pin, source.line(), level);
                self.publish_intr(chips, &pic);
                status
            }
            Chip::Ioapic => {
                let mut ioapic = chips.ioapic.lock();
                if pin == rtc::PIN && source == Source::Asking {
                    return self.drive_rtc(chips, &mut ioapic, level);
                }
                match ioapic.set_irq(pin, source.line(), level) {
                    Line::Lowered => 1,
                    Line::Coalesced => 0,
                    Line::Ignored => -1,
                    Line::Deliver(m) => self.deliver_pin(&mut ioapic, &m),
                }
            }
        }
    }

    /// Delivers what a pin of the IOAPIC sends: the number of vCPUs that took it, -1 if it addresses none.
    fn deliver_pin(&self, ioapic: &mut Ioapic, m: &PinMessage) -> i32 {
        Self::delivered(ioapic, m, self.send(&m.message, None))
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

    /// Tells the vCPU whose LINT0 takes the 8259s' interrupts that there is one.
    fn publish_intr(&self, chips: &Chips<H>, pic: &Pic) {
        let now = pic.output();
        if chips.intr.swap(now, AcqRel) || !now {
            return;
        }
        if let Some(v) = self.vcpus().find(|v| v.lint0.load(Relaxed) == Lint0::ExtInt as u8) {
            v.thread_ring_event();
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

    /// A timer of the devices expired. Any context.
    pub fn hrtimer_expired(&self, which: Hrtimer) {
        let Some(chips) = self.chips() else { return };
        match which {
            Hrtimer::Pit => self.pit_expired(chips),
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
        let Some(gsi) = self.routing.lock().gsi_of(chip, pin) else { return };
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
        let resamplers = self.resamplers.read();
        for pin in 0..IOAPIC_PINS as u8 {
            let Some(gsi) = self.routing.lock().gsi_of(Chip::Ioapic, pin) else { continue };
            let pit = gsi == pit::GSI && chips.pit().is_some();
            if pit || resamplers.iter().any(|r| r.gsi == gsi) {
                pins |= 1 << pin;
            }
        }
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
        let gsi = self.routing.lock().gsi_of(Chip::Ioapic, pin);
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
        if self.routing.lock().gsi_of(chip, pin) == Some(pit::GSI) {
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
        if let Some(lapic) = &self.core.fast.lapic {
            let mut bitmap = chips.ioapic.lock().eoi_bitmap(lapic, notified);
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
