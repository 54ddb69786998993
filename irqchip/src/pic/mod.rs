//! The two 8259A interrupt controllers, the slave at the master's input 2, with the edge/level control registers of the
//! EISA chip set. Intel 8259A data sheet; KVM API document 4.26 for the layout of the state.
//!
//! Not modelled, as in KVM: single mode, 8080 mode and the level-sensitive bit of ICW1 (ELCR decides).

mod chip;
mod state;

use crate::lines::Lines;
pub use crate::routing::Chip as PicChip;
use chip::{Access, Chip8259};

/// The vector that an interrupt acknowledge cycle yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PicAck {
    /// For the CPU. Of a spurious interrupt, if the request went away, that of input 7.
    pub vector: u8,
    /// Inputs (0 to 15, a bit mask) whose interrupt ended at once because of automatic EOI.
    pub ended: u16,
}

/// What a register access brought about.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PicWrite {
    /// Inputs (0 to 15, a bit mask) whose interrupt ended.
    pub ended: u16,
    /// Inputs that were masked or unmasked.
    pub mask_changed: u16,
}

/// Both controllers. The INTR output is [`output`](Self::output).
#[derive(Clone, Debug)]
pub struct Pic {
    master: Chip8259,
    slave: Chip8259,
    output: bool,
    lines: Lines<16>,
}

::state::state! {
    place Pic { master, slave, output, lines }
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// Uninitialised controllers.
    pub fn new() -> Self {
        Pic {
            // Inputs 0, 1, 2, 8 and 13 are edge-triggered for good.
            master: Chip8259::new(0xf8),
            slave: Chip8259::new(0xde),
            output: false,
            lines: Lines::new(),
        }
    }

    /// INTR: the CPU should [`ack`](Self::ack).
    pub fn output(&self) -> bool {
        self.output
    }

    /// The masked inputs (0 to 15, a bit mask).
    pub fn masks(&self) -> u16 {
        u16::from_le_bytes([self.master.imr, self.slave.imr])
    }

    /// Of the chip with input `pin`: which inputs are level-triggered, and which are masked.
    pub fn modes(&self, pin: u8) -> [u8; 2] {
        let chip = if pin < 8 { &self.master } else { &self.slave };
        [chip.elcr, chip.imr]
    }

    /// `source` (0 to 31) drives input `pin` (0 to 15). The KVM_IRQ_LINE_STATUS: 1 taken, 0 pending already, -1 masked.
    pub fn set_irq(&mut self, pin: u8, source: u8, high: bool) -> i32 {
        let Some(high) = self.lines.set(pin, source, high) else {
            return -1;
        };
        let chip = if pin < 8 { &mut self.master } else { &mut self.slave };
        let status = chip.set_irq(pin & 7, high);
        self.update();
        status
    }

    /// The CPU's interrupt acknowledge cycle.
    pub fn ack(&mut self) -> PicAck {
        let mut ended = 0;
        let (irq, from_slave) = match self.master.pending(true) {
            Some(2) => {
                ended |= u16::from(self.master.ack(2));
                match self.slave.pending(false) {
                    Some(irq) => {
                        ended |= u16::from(self.slave.ack(irq)) << 8;
                        (irq, true)
                    }
                    None => (7, true),
                }
            }
            Some(irq) => {
                ended |= u16::from(self.master.ack(irq));
                (irq, false)
            }
            None => (7, false),
        };
        self.update();
        let base = if from_slave { self.slave.base() } else { self.master.base() };
        PicAck { vector: base.wrapping_add(irq), ended }
    }

    /// A one-byte IN. None if the port is not one of 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1. A poll ends an interrupt.
    pub fn read(&mut self, port: u16) -> Option<(u8, PicWrite)> {
        let odd = port & 1 != 0;
        let access = match port {
            0x20 | 0x21 => self.master.read(odd, true),
            0xa0 | 0xa1 => self.slave.read(odd, false),
            0x4d0 => Access { value: self.master.elcr(), ..Default::default() },
            0x4d1 => Access { value: self.slave.elcr(), ..Default::default() },
            _ => return None,
        };
        Some((access.value, self.done(access, port)))
    }

    /// A one-byte OUT. None if the port is not one of those of [`read`](Self::read). `taken`: some CPU takes INTR.
    pub fn write(&mut self, port: u16, value: u8, taken: bool) -> Option<PicWrite> {
        let odd = port & 1 != 0;
        let mut access = Access::default();
        match port {
            0x20 | 0x21 => access = self.master.write(odd, value, taken),
            0xa0 | 0xa1 => access = self.slave.write(odd, value, taken),
            0x4d0 => self.master.set_elcr(value),
            0x4d1 => self.slave.set_elcr(value),
            _ => return None,
        }
        Some(self.done(access, port))
    }

    /// What follows from an access to one controller for both.
    fn done(&mut self, access: Access, port: u16) -> PicWrite {
        if access.polled {
            self.master.forget_cascade();
        }
        if access.look {
            self.update();
        }
        let shift = if matches!(port, 0xa0 | 0xa1) { 8 } else { 0 };
        PicWrite { ended: u16::from(access.ended) << shift, mask_changed: u16::from(access.mask_changed) << shift }
    }

    /// Passes the slave's request on to the master, and the master's to the CPU.
    fn update(&mut self) {
        if self.slave.pending(false).is_some() {
            // A pulse: input 2 is edge-triggered, and every new request of the slave is an edge.
            self.master.set_irq(2, true);
            self.master.set_irq(2, false);
        }
        self.output = self.master.pending(true).is_some();
    }
}
