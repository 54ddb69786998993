//! The controllers' registers as the guest reaches them: ports and memory.

use super::Chips;
use crate::Vm;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use host::Host;
use irqchip::Chip;

/// Size of the IOAPIC's registers in bytes.
const IOAPIC_SIZE: u64 = 0x100;

/// Whose ports they are.
enum Device {
    Pic,
    Pit,
}

impl Device {
    /// An access that reaches beyond a device's ports is not the device's, as on stock.
    #[inline]
    fn at(port: u16, len: usize) -> Option<Self> {
        let (device, end) = match port {
            0x20..=0x21 => (Self::Pic, 0x22),
            0xa0..=0xa1 => (Self::Pic, 0xa2),
            0x4d0..=0x4d1 => (Self::Pic, 0x4d2),
            0x40..=0x43 => (Self::Pit, 0x44),
            0x61 => (Self::Pit, 0x65),
            _ => return None,
        };
        (usize::from(port) + len <= end).then_some(device)
    }
}

impl<H: Host> Vm<H> {
    /// OUT to one of the controllers' ports. False: it is none.
    #[inline]
    pub(crate) fn chip_port_write(&self, port: u16, data: &[u8]) -> bool {
        let Some(chips) = self.chips() else { return false };
        match Device::at(port, data.len()) {
            Some(Device::Pit) => self.pit_write(chips, port, data),
            Some(Device::Pic) => self.pic_write(chips, port, data),
            None => false,
        }
    }

    /// IN from one of the controllers' ports. False: it is none.
    #[inline]
    pub(crate) fn chip_port_read(&self, port: u16, data: &mut [u8]) -> bool {
        let Some(chips) = self.chips() else { return false };
        match Device::at(port, data.len()) {
            Some(Device::Pit) => self.pit_read(chips, port, data),
            Some(Device::Pic) => self.pic_read(chips, port, data),
            None => false,
        }
    }

    fn pit_write(&self, chips: &Chips<H>, port: u16, data: &[u8]) -> bool {
        let (Some(device), Some(&value)) = (chips.pit(), data.first()) else { return false };
        let now = self.host.now_ns();
        if port == 0x61 {
            if device.speaker {
                device.pit.lock().speaker_write(value, now);
            }
            return device.speaker;
        }
        let mut pit = device.pit.lock();
        let effect = pit.write(port, value, now);
        self.pit_timer(effect);
        true
    }

    fn pit_read(&self, chips: &Chips<H>, port: u16, data: &mut [u8]) -> bool {
        let Some(device) = chips.pit() else { return false };
        if port == 0x61 && !device.speaker {
            return false;
        }
        let now = self.host.now_ns();
        let mut pit = device.pit.lock();
        let value = if port == 0x61 { pit.speaker_read(now) } else { pit.read(port, now) };
        drop(pit);
        if let [low] = data {
            *low = value;
        } else {
            // The wires of the upper bytes are not connected.
            data.fill(0);
            data.iter_mut().take(1).for_each(|low| *low = value);
        }
        true
    }

    fn pic_write(&self, chips: &Chips<H>, port: u16, data: &[u8]) -> bool {
        // Wider accesses are the controllers' too, but do nothing.
        let &[value] = data else { return true };
        let taken = self.extint.load(SeqCst) != 0;
        let mut pic = chips.pic.lock();
        let done = pic.write(port, value, taken).unwrap_or_default();
        let unmasked = done.mask_changed & !pic.masks();
        self.publish_intr(chips, &pic);
        drop(pic);
        self.interrupts_ended(chips, done.ended);
        for pin in (0..16u8).filter(|pin| unmasked & 1 << pin != 0) {
            let chip = if pin < 8 { Chip::PicMaster } else { Chip::PicSlave };
            self.unmasked(chips, chip, pin & 7);
        }
        true
    }

    fn pic_read(&self, chips: &Chips<H>, port: u16, data: &mut [u8]) -> bool {
        let [low] = data else {
            data.fill(0);
            return true;
        };
        let mut pic = chips.pic.lock();
        let (value, done) = pic.read(port).unwrap_or_default();
        self.publish_intr(chips, &pic);
        drop(pic);
        *low = value;
        self.interrupts_ended(chips, done.ended);
        true
    }

    /// A write to guest physical memory that is the IOAPIC's. False: it is not.
    pub(crate) fn chip_mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        let Some((chips, offset)) = self.ioapic_at(gpa) else { return false };
        self.write_ioapic(chips, offset, data);
        true
    }

    /// A read from guest physical memory that is the IOAPIC's. False: it is not.
    pub(crate) fn chip_mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        let Some((chips, offset)) = self.ioapic_at(gpa) else { return false };
        chips.ioapic.lock().mmio_read(offset, data);
        true
    }

    fn ioapic_at(&self, gpa: u64) -> Option<(&Chips<H>, u32)> {
        let chips = self.chips()?;
        let offset = gpa.checked_sub(chips.ioapic_base.load(Relaxed)).filter(|offset| *offset < IOAPIC_SIZE)?;
        Some((chips, offset as u32))
    }
}
