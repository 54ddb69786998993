//! The controllers' state as ioctls see it: KVM_GET/SET_IRQCHIP, KVM_GET/SET_PIT2, KVM_REINJECT_CONTROL.

use super::Chips;
use crate::Vm;
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, Host, Request};
use irqchip::{Chip, IOAPIC_PINS, Line};

/// Size of the larger of the structs in `struct kvm_irqchip`, in bytes: `struct kvm_ioapic_state`.
const IOAPIC_STATE: usize = 216;
const PIC_STATE: usize = 16;
/// Size of `struct kvm_pit_state2` in bytes.
pub const PIT_STATE: usize = 112;

impl<H: Host> Vm<H> {
    fn full_chips(&self) -> Result<&Chips<H>, Errno> {
        self.chips().ok_or(Errno::ENXIO)
    }

    /// KVM_GET_IRQCHIP: fills the beginning of `out`. Errors: ENXIO (no irqchip), EINVAL (no such controller).
    pub fn get_irqchip(&self, id: u32, out: &mut [u8; 512]) -> Result<(), Errno> {
        let chips = self.full_chips()?;
        let chip = Chip::from_id(id).ok_or(Errno::EINVAL)?;
        if chip == Chip::Ioapic {
            let state = out.first_chunk_mut::<IOAPIC_STATE>().ok_or(Errno::EINVAL)?;
            chips.ioapic.lock().get_state(state);
        } else {
            let state = chips.pic.lock().get_state(chip).ok_or(Errno::EINVAL)?;
            *out.first_chunk_mut::<PIC_STATE>().ok_or(Errno::EINVAL)? = state;
        }
        Ok(())
    }

    /// KVM_SET_IRQCHIP. Errors: ENXIO (no irqchip), EINVAL (no such controller).
    pub fn set_irqchip(&self, id: u32, state: &[u8; 512]) -> Result<(), Errno> {
        let chips = self.full_chips()?;
        let chip = Chip::from_id(id).ok_or(Errno::EINVAL)?;
        if chip != Chip::Ioapic {
            let mut pic = chips.pic.lock();
            pic.set_state(chip, state.first_chunk::<PIC_STATE>().ok_or(Errno::EINVAL)?);
            self.publish_intr(chips, &pic);
            return Ok(());
        }
        let state = state.first_chunk::<IOAPIC_STATE>().ok_or(Errno::EINVAL)?;
        let mut ioapic = chips.ioapic.lock();
        let waiting = ioapic.set_state(state);
        chips.ioapic_base.store(ioapic.base(), Relaxed);
        self.rtc_restored(chips, &mut ioapic);
        drop(ioapic);
        // Before the interrupts, as for a write of the guest.
        self.ring_all(Request::ScanIoapic);
        for pin in (0..IOAPIC_PINS as u8).filter(|pin| waiting & 1 << pin != 0) {
            let mut ioapic = chips.ioapic.lock();
            match ioapic.inject(pin) {
                Line::Deliver(m) if pin == super::rtc::PIN => self.deliver_rtc(chips, &mut ioapic, &m),
                Line::Deliver(m) => self.deliver_pin(&mut ioapic, &m),
                _ => 0,
            };
        }
        Ok(())
    }

    /// KVM_GET_PIT2: `struct kvm_pit_state2`, whose first 72 bytes are KVM_GET_PIT's. Errors: ENXIO (no PIT).
    pub fn get_pit(&self) -> Result<[u8; PIT_STATE], Errno> {
        let pit = self.full_chips()?.pit().ok_or(Errno::ENXIO)?;
        Ok(pit.pit.lock().get_state())
    }

    /// KVM_SET_PIT2, and KVM_SET_PIT with the flags that are there. Errors: ENXIO (no PIT).
    pub fn set_pit(&self, state: &[u8; PIT_STATE]) -> Result<(), Errno> {
        let device = self.full_chips()?.pit().ok_or(Errno::ENXIO)?;
        let now = self.host.now_ns();
        let mut pit = device.pit.lock();
        let effect = pit.set_state(state, now);
        self.pit_timer(effect);
        Ok(())
    }

    /// KVM_REINJECT_CONTROL: are ticks that the guest was too slow for made up for? Errors: ENXIO (no PIT).
    pub fn set_pit_reinject(&self, on: bool) -> Result<(), Errno> {
        let pit = self.full_chips()?.pit().ok_or(Errno::ENXIO)?;
        pit.pit.lock().set_reinject(on);
        Ok(())
    }
}
