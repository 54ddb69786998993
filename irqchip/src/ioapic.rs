//! The IOAPIC: 24 pins, a redirection entry each. Intel 82093AA data sheet; KVM API document 4.26 (KVM_GET_IRQCHIP).
//! As in KVM the polarity bit has no meaning, and there is no EOI register (version 0x11).
//!
//! A pin yields a [`PinMessage`]; the caller sends it and reports with [`Ioapic::refused`] when no vCPU took it.

use crate::bits::Bits256;
use crate::lapic::{Eoi, Lapic};
use crate::lines::Lines;
use crate::message::{DeliveryMode, Message, Shorthand, wants_one};
use crate::routing::IOAPIC_PINS;
use arch::GuestIndexed;

const DEFAULT_BASE: u64 = 0xfec0_0000;
/// The registers: an index at 0x00 and a window at 0x10.
const SELECT: u32 = 0x00;
const WINDOW: u32 = 0x10;
/// What the window shows.
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const FIRST_ENTRY: u8 = 0x10;

/// Redirection entry bits.
const LOGICAL: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;

/// So many EOIs of a line that stays high, one right after the other, and the next delivery is put off, as in KVM: a
/// guest that never gets to serve the device must still make progress.
const STORM: u16 = 10_000;

/// A message that a pin sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinMessage {
    /// 0 to 23.
    pub pin: u8,
    /// To be delivered.
    pub message: Message,
}

/// What became of a change of a line.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It was lowered. Status 1.
    Lowered,
    /// An edge that was pending already. Status 0.
    Coalesced,
    /// The pin is masked, or its level interrupt is in service. Status -1.
    Ignored,
    /// Send this. The status is the number of vCPUs that took it.
    Deliver(PinMessage),
}

/// What an EOI makes of a pin.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EoiPin {
    /// Done.
    None,
    /// The line is still high.
    Deliver(PinMessage),
    /// Still high, again and again: call [`Ioapic::redeliver`] in 10 ms.
    Storm,
}

/// What a register write asks for.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoapicWrite {
    /// What a redirection entry sends has changed: every vCPU's [`eoi_bitmap`](Ioapic::eoi_bitmap) is outdated.
    pub changed: bool,
    /// This pin was masked (true) or unmasked.
    pub mask_changed: Option<(u8, bool)>,
    /// A level interrupt was waiting at this pin for this write: [`Ioapic::redeliver`] it, or [`Ioapic::forget`] it and
    /// ask whoever drives the line whether it still is.
    pub waiting: Option<u8>,
}

/// The IOAPIC of one VM.
#[derive(Clone, Debug)]
pub struct Ioapic {
    base: u64,
    select: u8,
    id: u8,
    /// Lines that are high (level), or were raised and not lowered since (edge).
    irr: u32,
    /// Edges in `irr` that were delivered.
    delivered: u32,
    entries: GuestIndexed<[u64; IOAPIC_PINS]>,
    lines: Lines<IOAPIC_PINS>,
    /// EOIs in a row that found the line still high.
    successive: GuestIndexed<[u16; IOAPIC_PINS]>,
    ff_is_broadcast: bool,
}

::state::state! {
    place Ioapic { base, select, id, irr, delivered, entries, lines, successive, ff_is_broadcast }
}

impl Default for Ioapic {
    fn default() -> Self {
        Self::new()
    }
}

impl Ioapic {
    /// The state at power-on: every pin masked.
    pub fn new() -> Self {
        Ioapic {
            base: DEFAULT_BASE,
            select: 0,
            id: 0,
            irr: 0,
            delivered: 0,
            entries: GuestIndexed::new([MASKED; IOAPIC_PINS]),
            lines: Lines::new(),
            successive: GuestIndexed::new([0; IOAPIC_PINS]),
            ff_is_broadcast: true,
        }
    }

    /// KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK: destination 0xff no longer addresses everyone in x2APIC mode.
    pub fn set_broadcast_quirk_disabled(&mut self, disabled: bool) {
        self.ff_is_broadcast = !disabled;
    }

    /// Guest physical address of the registers, which take 0x100 bytes.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// `source` (0 to 31) drives `pin`.
    pub fn set_irq(&mut self, pin: u8, source: u8, high: bool) -> Line {
        match self.lines.set(pin, source, high) {
            Some(high) => self.drive(pin, high),
            None => Line::Ignored,
        }
    }

    /// `source` holds `pin` high, and that is all: an edge that is dropped.
    pub fn hold(&mut self, pin: u8, source: u8) {
        let _ = self.lines.set(pin, source, true);
    }

    /// What `pin` sends as its entry is now, masked or not.
    pub fn pin_message(&self, pin: u8) -> Message {
        self.message(self.entry(pin))
    }

    fn drive(&mut self, pin: u8, high: bool) -> Line {
        let bit = bit(pin);
        if !high {
            self.irr &= !bit;
            return Line::Lowered;
        }
        if self.entry(pin) & LEVEL == 0 {
            self.delivered &= !bit;
            if self.irr & bit != 0 {
                return Line::Coalesced;
            }
        }
        self.irr |= bit;
        self.service(pin).map_or(Line::Ignored, Line::Deliver)
    }

    /// Sends what `pin` has to send, unless masked or in service.
    fn service(&mut self, pin: u8) -> Option<PinMessage> {
        let entry = self.entry(pin);
        let level = entry & LEVEL != 0;
        if entry & MASKED != 0 || level && entry & REMOTE_IRR != 0 {
            return None;
        }
        if level {
            self.set_entry(pin, entry | REMOTE_IRR);
        } else {
            self.delivered |= bit(pin);
        }
        Some(PinMessage { pin, message: self.message(entry) })
    }

    fn message(&self, entry: u64) -> Message {
        let mode = DeliveryMode::from_bits(entry as u32 >> 8);
        let logical = entry & LOGICAL != 0;
        let dest = (entry >> 56) as u32;
        Message {
            mode,
            vector: entry as u8,
            level: entry & LEVEL != 0,
            assert: true,
            logical,
            dest,
            shorthand: Shorthand::None,
            lowest: wants_one(mode, logical, dest),
            ff_is_broadcast: self.ff_is_broadcast,
        }
    }

    /// No vCPU took the message of `pin`: a level interrupt is not in service after all.
    pub fn refused(&mut self, pin: u8) {
        self.set_entry(pin, self.entry(pin) & !REMOTE_IRR);
    }

    /// The pins that send `vector`, as a bit mask: for each of them notify whoever waits for the end of its interrupt,
    /// then call [`eoi_pin`](Self::eoi_pin).
    pub fn pins_of_vector(&self, vector: u8) -> u32 {
        (0..IOAPIC_PINS as u8).filter(|&pin| self.entry(pin) as u8 == vector).fold(0, |pins, pin| pins | bit(pin))
    }

    /// The interrupt of `pin` ended.
    pub fn eoi_pin(&mut self, pin: u8, eoi: &Eoi) -> EoiPin {
        let entry = self.entry(pin);
        // As on stock the kind of interrupt that ended counts, not what the entry is by now.
        if !eoi.level || eoi.suppressed || entry as u8 != eoi.vector {
            return EoiPin::None;
        }
        self.set_entry(pin, entry & !REMOTE_IRR);
        let again = entry & MASKED == 0 && self.irr & bit(pin) != 0;
        let Some(count) = self.successive.get_nospec_mut(usize::from(pin)) else {
            return EoiPin::None;
        };
        *count = if again { count.saturating_add(1) } else { 0 };
        if *count >= STORM {
            *count = 0;
            return EoiPin::Storm;
        }
        if again { self.service(pin).map_or(EoiPin::None, EoiPin::Deliver) } else { EoiPin::None }
    }

    /// The line of `pin` is low until somebody raises it anew.
    pub fn forget(&mut self, pin: u8) {
        self.irr &= !bit(pin);
    }

    /// Sends a level interrupt that was put off, if it is still there: by [`EoiPin::Storm`], or until the entry allowed it.
    pub fn redeliver(&mut self, pin: u8) -> Option<PinMessage> {
        if self.entry(pin) & LEVEL != 0 && self.irr & bit(pin) != 0 { self.service(pin) } else { None }
    }

    /// The vectors whose EOI the vCPU of `lapic` must report: of level-triggered pins and of those in `notified` (a bit
    /// mask of pins whose interrupt's end somebody waits for), if they address this vCPU or await its EOI.
    pub fn eoi_bitmap(&self, lapic: &Lapic, notified: u32) -> Bits256 {
        let address = lapic.address();
        let mut bitmap = Bits256::EMPTY;
        for pin in 0..IOAPIC_PINS as u8 {
            let m = self.message(self.entry(pin));
            let wanted = m.level || notified & bit(pin) != 0;
            if wanted && (address.matches(&m, false) || lapic.in_service_or_pending(m.vector)) {
                bitmap.set(m.vector);
            }
        }
        bitmap
    }

    /// Reads at `offset` from the base, 1 to 8 bytes.
    pub fn mmio_read(&self, offset: u32, data: &mut [u8]) {
        let value = match offset {
            SELECT => self.select.into(),
            WINDOW => self.read_window(),
            _ => 0,
        };
        let bytes = u64::from(value).to_le_bytes();
        for (i, byte) in data.iter_mut().enumerate() {
            // INDEX: counts the bytes of an access.
            *byte = bytes.get(i).copied().unwrap_or(0);
        }
    }

    fn read_window(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => u32::from(self.id) << 24,
            VERSION => (IOAPIC_PINS as u32 - 1) << 16 | 0x11,
            // What is no register reads as ones.
            select => {
                let entry = select.checked_sub(FIRST_ENTRY).and_then(|n| self.entries.get_nospec(usize::from(n) / 2));
                entry.map_or(u32::MAX, |entry| (entry >> (32 * (select & 1))) as u32)
            }
        }
    }

    /// Writes at `offset` from the base: 1, 2 or 4 bytes, or 8 of which the low half counts.
    pub fn mmio_write(&mut self, offset: u32, data: &[u8]) -> IoapicWrite {
        if !matches!(data.len(), 1 | 2 | 4 | 8) {
            return IoapicWrite::default();
        }
        let value = data.iter().take(4).rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
        match offset {
            SELECT => {
                self.select = value as u8;
                IoapicWrite::default()
            }
            WINDOW => self.write_window(value),
            _ => IoapicWrite::default(),
        }
    }

    fn write_window(&mut self, value: u32) -> IoapicWrite {
        match self.select {
            ID => {
                self.id = (value >> 24) as u8 & 0xf;
                IoapicWrite::default()
            }
            FIRST_ENTRY.. => self.write_entry((self.select - FIRST_ENTRY) / 2, self.select & 1 != 0, value),
            _ => IoapicWrite::default(),
        }
    }

    fn write_entry(&mut self, pin: u8, high_half: bool, value: u32) -> IoapicWrite {
        if usize::from(pin) >= IOAPIC_PINS {
            return IoapicWrite::default();
        }
        let old = self.entry(pin);
        let written =
            if high_half { old & 0xffff_ffff | u64::from(value) << 32 } else { old & !0xffff_ffff | u64::from(value) };
        const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
        let mut new = written & !READ_ONLY | old & READ_ONLY;
        if new & LEVEL == 0 {
            // Guests switch an entry to edge and back to get rid of a stuck Remote IRR.
            new &= !REMOTE_IRR;
        }
        self.set_entry(pin, new);
        let waiting = new & LEVEL != 0 && new & (MASKED | REMOTE_IRR) == 0 && self.irr & bit(pin) != 0;
        IoapicWrite {
            // Masked and waiting ones are in it as well.
            changed: self.message(old) != self.message(new),
            mask_changed: ((old ^ new) & MASKED != 0).then_some((pin, new & MASKED != 0)),
            waiting: waiting.then_some(pin),
        }
    }

    /// `struct kvm_ioapic_state` of KVM_GET_IRQCHIP.
    pub fn get_state(&self, out: &mut [u8; 216]) {
        let head = [
            self.base as u32,
            (self.base >> 32) as u32,
            self.select.into(),
            self.id.into(),
            // What remains to be delivered; the receiver delivers it again.
            self.irr & !self.delivered,
            0,
        ];
        let entries = self.entries.iter().flat_map(|e| e.to_le_bytes());
        for (to, from) in out.iter_mut().zip(head.iter().flat_map(|w| w.to_le_bytes()).chain(entries)) {
            *to = from;
        }
    }

    /// `struct kvm_ioapic_state` of KVM_SET_IRQCHIP. Returns the pins to pass to [`inject`](Self::inject), as a bit
    /// mask, once every vCPU's EOI bitmap is up to date.
    pub fn set_state(&mut self, state: &[u8; 216]) -> u32 {
        let word = |offset: usize| {
            // INDEX: a constant of ours.
            let bytes = state.get(offset..).and_then(<[u8]>::first_chunk::<8>);
            u64::from_le_bytes(bytes.copied().unwrap_or_default())
        };
        self.base = word(0);
        self.select = word(8) as u8;
        self.id = (word(12) & 0xf) as u8;
        (self.irr, self.delivered) = (0, 0);
        self.successive = GuestIndexed::new([0; IOAPIC_PINS]);
        for (i, entry) in self.entries.iter_mut().enumerate() {
            *entry = word(24 + 8 * i);
        }
        word(16) as u32 & ((1 << IOAPIC_PINS) - 1)
    }

    /// Raises `pin` as a restored state has it, whatever its sources do.
    pub fn inject(&mut self, pin: u8) -> Line {
        if usize::from(pin) < IOAPIC_PINS { self.drive(pin, true) } else { Line::Ignored }
    }

    pub fn entry(&self, pin: u8) -> u64 {
        self.entries.get_nospec(usize::from(pin)).copied().unwrap_or(MASKED)
    }

    fn set_entry(&mut self, pin: u8, value: u64) {
        if let Some(entry) = self.entries.get_nospec_mut(usize::from(pin)) {
            *entry = value;
        }
    }
}

fn bit(pin: u8) -> u32 {
    1u32.checked_shl(pin.into()).unwrap_or(0)
}
