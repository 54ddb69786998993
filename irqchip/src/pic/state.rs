//! KVM_GET_IRQCHIP and KVM_SET_IRQCHIP for the 8259s: `struct kvm_pic_state`, 16 bytes.

use super::chip::Chip8259;
use super::{Pic, PicChip};

impl Chip8259 {
    fn get_state(&self) -> [u8; 16] {
        [
            self.last_irr,
            self.irr,
            self.imr,
            self.isr,
            self.priority_add,
            self.irq_base,
            self.read_isr.into(),
            self.poll.into(),
            self.special_mask.into(),
            self.init_state,
            self.auto_eoi.into(),
            self.rotate_on_auto_eoi.into(),
            self.special_fully_nested.into(),
            self.init4.into(),
            self.elcr,
            self.elcr_mask,
        ]
    }

    fn set_state(&mut self, state: &[u8; 16]) {
        let [
            last_irr,
            irr,
            imr,
            isr,
            priority_add,
            irq_base,
            read_isr,
            poll,
            special_mask,
            init_state,
            auto_eoi,
            rotate_on_auto_eoi,
            special_fully_nested,
            init4,
            elcr,
            elcr_mask,
        ] = *state;
        *self = Chip8259 {
            last_irr,
            irr,
            imr,
            isr,
            priority_add: priority_add & 7,
            irq_base,
            read_isr: read_isr != 0,
            poll: poll != 0,
            special_mask: special_mask != 0,
            init_state: if init_state > 3 { 0 } else { init_state },
            auto_eoi: auto_eoi != 0,
            rotate_on_auto_eoi: rotate_on_auto_eoi != 0,
            special_fully_nested: special_fully_nested != 0,
            init4: init4 != 0,
            elcr,
            elcr_mask,
        };
    }
}

impl Pic {
    /// The state of one controller; none for [`PicChip::Ioapic`].
    pub fn get_state(&self, chip: PicChip) -> Option<[u8; 16]> {
        match chip {
            PicChip::PicMaster => Some(self.master.get_state()),
            PicChip::PicSlave => Some(self.slave.get_state()),
            PicChip::Ioapic => None,
        }
    }

    /// Replaces the state of one controller; values that no register holds are cut, but for the base of the vectors and
    /// the two of the ELCR, which user space gets back as it set them. Nothing for [`PicChip::Ioapic`].
    pub fn set_state(&mut self, chip: PicChip, state: &[u8; 16]) {
        match chip {
            PicChip::PicMaster => self.master.set_state(state),
            PicChip::PicSlave => self.slave.set_state(state),
            PicChip::Ioapic => return,
        }
        self.update();
    }
}
