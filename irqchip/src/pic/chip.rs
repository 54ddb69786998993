//! One 8259A, with stock KVM's corners: special mask mode is kept but changes nothing, a poll ends the interrupt that it
//! reports instead of putting it in service, and only some accesses have the output looked at anew.

/// Registers of one controller, named as in `struct kvm_pic_state`.
#[derive(Clone, Debug, Default)]
pub(super) struct Chip8259 {
    /// Levels of the inputs, to find edges.
    pub last_irr: u8,
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    /// The input of highest priority.
    pub priority_add: u8,
    /// The vector of input 0. The guest chooses bits 7:3, user space all.
    pub irq_base: u8,
    /// Port 0 reads as ISR (OCW3), otherwise as IRR.
    pub read_isr: bool,
    /// The next read is a poll.
    pub poll: bool,
    pub special_mask: bool,
    /// The ICW that port 1 expects: 0 none, 1 ICW2, 2 ICW3, 3 ICW4.
    pub init_state: u8,
    pub auto_eoi: bool,
    pub rotate_on_auto_eoi: bool,
    pub special_fully_nested: bool,
    /// ICW4 will follow.
    pub init4: bool,
    /// Level-triggered inputs.
    pub elcr: u8,
    /// Inputs that can be level-triggered.
    pub elcr_mask: u8,
}

::state::state! {
    place Chip8259 {
        last_irr, irr, imr, isr, priority_add, irq_base, read_isr, poll, special_mask, init_state, auto_eoi, rotate_on_auto_eoi,
        special_fully_nested, init4, elcr, elcr_mask,
    }
}

/// What an access brought about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Access {
    /// What a read yields.
    pub value: u8,
    /// Inputs whose interrupt ended.
    pub ended: u8,
    /// Inputs that were masked or unmasked.
    pub mask_changed: u8,
    /// The slave's request that the master holds is answered by it.
    pub polled: bool,
    /// Both outputs are looked at anew.
    pub look: bool,
}

impl Chip8259 {
    pub(super) fn new(elcr_mask: u8) -> Self {
        Chip8259 { elcr_mask, ..Default::default() }
    }

    pub(super) fn base(&self) -> u8 {
        self.irq_base
    }

    pub(super) fn elcr(&self) -> u8 {
        self.elcr
    }

    pub(super) fn set_elcr(&mut self, value: u8) {
        self.elcr = value & self.elcr_mask;
    }

    /// Input `irq` (0 to 7) goes high or low. 1 taken, 0 pending already, -1 masked.
    pub(super) fn set_irq(&mut self, irq: u8, high: bool) -> i32 {
        let bit = 1 << (irq & 7);
        let mut status = 1;
        let rises = high && (self.elcr & bit != 0 || self.last_irr & bit == 0);
        if rises {
            status = i32::from(self.irr & bit == 0);
            self.irr |= bit;
        } else if !high && self.elcr & bit != 0 {
            self.irr &= !bit;
        }
        self.last_irr = if high { self.last_irr | bit } else { self.last_irr & !bit };
        if self.imr & bit != 0 { -1 } else { status }
    }

    /// Distance of the most urgent input in `set` from the input of highest priority: 0 to 7, 8 for none.
    fn priority(&self, set: u8) -> u8 {
        set.rotate_right(u32::from(self.priority_add & 7)).trailing_zeros() as u8
    }

    fn input_at(&self, priority: u8) -> u8 {
        self.priority_add.wrapping_add(priority) & 7
    }

    /// The input that asks for service: unmasked, and more urgent than everything in service.
    pub(super) fn pending(&self, master: bool) -> Option<u8> {
        let priority = self.priority(self.irr & !self.imr);
        let mut in_service = self.isr;
        if self.special_fully_nested && master {
            // More urgent requests of the same slave come through.
            in_service &= !(1 << 2);
        }
        (priority < self.priority(in_service)).then(|| self.input_at(priority))
    }

    /// Acknowledges input `irq`. Returns the inputs that ended at once (automatic EOI).
    pub(super) fn ack(&mut self, irq: u8) -> u8 {
        let bit = 1 << (irq & 7);
        self.isr |= bit;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            return 0;
        }
        if self.rotate_on_auto_eoi {
            self.priority_add = irq.wrapping_add(1) & 7;
        }
        self.end(irq)
    }

    /// The slave's request at input 2 is answered, in service or not.
    pub(super) fn forget_cascade(&mut self) {
        self.irr &= !(1 << 2);
        self.isr &= !(1 << 2);
    }

    fn end(&mut self, irq: u8) -> u8 {
        let bit = 1 << (irq & 7);
        self.isr &= !bit;
        bit
    }

    /// Port 0 or 1 (`odd`).
    pub(super) fn read(&mut self, odd: bool, master: bool) -> Access {
        if core::mem::take(&mut self.poll) {
            return self.polled(master);
        }
        let value = match (odd, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        };
        Access { value, ..Default::default() }
    }

    /// The most urgent request, which ends with this. A level is forgotten too, until the line is driven again.
    fn polled(&mut self, master: bool) -> Access {
        let Some(irq) = self.pending(master) else {
            return Access { value: 7, look: true, ..Default::default() };
        };
        self.irr &= !(1 << (irq & 7));
        let ended = self.end(irq);
        // A poll of the master that finds the slave's request leaves the slave its turn.
        let look = !master || irq != 2;
        Access { value: 0x80 | irq, ended, polled: !master, look, ..Default::default() }
    }

    /// Port 0 or 1 (`odd`).
    pub(super) fn write(&mut self, odd: bool, value: u8, taken: bool) -> Access {
        match (odd, self.init_state) {
            (false, _) if value & 0x10 != 0 => return Access { ended: self.icw1(value, taken), ..Default::default() },
            (false, _) if value & 0x08 != 0 => self.ocw3(value),
            (false, _) => return self.ocw2(value),
            (true, 1) => {
                self.irq_base = value & 0xf8;
                self.init_state = 2;
            }
            // ICW3: the cascade is wired, there is nothing to choose.
            (true, 2) => self.init_state = if self.init4 { 3 } else { 0 },
            (true, 3) => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.init_state = 0;
            }
            (true, _) => {
                let mask_changed = self.imr ^ value;
                self.imr = value;
                return Access { mask_changed, look: true, ..Default::default() };
            }
        }
        Access::default()
    }

    /// Starts initialisation: edges, mask and priorities are forgotten; levels stay, and so does what is in service
    /// unless it came by a forgotten edge. Nobody is told that those are over, and they stay in service, if no CPU takes the
    /// output: then the edges were latched for nobody.
    fn icw1(&mut self, value: u8, taken: bool) -> u8 {
        let ended = if taken { self.irr & !self.elcr } else { 0 };
        *self = Chip8259 {
            irr: self.irr & self.elcr,
            isr: self.isr & !ended,
            irq_base: self.irq_base,
            init_state: 1,
            init4: value & 1 != 0,
            // ICW4 that does not come counts as zero.
            auto_eoi: self.auto_eoi && value & 1 != 0,
            special_fully_nested: self.special_fully_nested && value & 1 != 0,
            rotate_on_auto_eoi: self.rotate_on_auto_eoi,
            poll: self.poll,
            elcr: self.elcr,
            elcr_mask: self.elcr_mask,
            ..Default::default()
        };
        ended
    }

    fn ocw3(&mut self, value: u8) {
        if value & 0x04 != 0 {
            self.poll = true;
        }
        if value & 0x02 != 0 {
            self.read_isr = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    /// EOI and rotation.
    fn ocw2(&mut self, value: u8) -> Access {
        let irq = value & 7;
        let ended = match value >> 5 {
            command @ (0 | 4) => {
                self.rotate_on_auto_eoi = command == 4;
                return Access::default();
            }
            command @ (1 | 5) => {
                // Non-specific: the most urgent in service.
                let priority = self.priority(self.isr);
                if priority >= 8 {
                    return Access::default();
                }
                let irq = self.input_at(priority);
                if command == 5 {
                    self.priority_add = irq.wrapping_add(1) & 7;
                }
                self.end(irq)
            }
            3 => self.end(irq),
            6 => {
                self.priority_add = irq.wrapping_add(1) & 7;
                0
            }
            7 => {
                self.priority_add = irq.wrapping_add(1) & 7;
                self.end(irq)
            }
            _ => return Access::default(),
        };
        Access { ended, look: true, ..Default::default() }
    }
}
