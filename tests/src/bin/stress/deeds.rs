//! What the guest does, at random.

use crate::guest::{DEEDS, Deed, START_PAGES, What};
use tests::random::Random;

/// Addresses of the guest's devices that user space has eventfds at.
pub const DOORBELLS: u64 = 0xd000_0000;
pub const DOORBELL_PORT: u16 = 0x510;

/// Kinds of deeds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Messages to other vCPUs and to itself.
    Ipi,
    /// The local APIC's timer.
    Timer,
    /// Any register of the local APIC.
    Apic,
    /// IOAPIC, 8259s, PIT.
    Chips,
    /// Eventfds.
    Doorbell,
}

/// Registers of the local APIC, by their x2APIC number.
const TPR: u32 = 0x08;
const SVR: u32 = 0x0f;
const ICR: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const INITIAL_COUNT: u32 = 0x38;
const DIVIDE: u32 = 0x3e;
const TSC_DEADLINE: u32 = 0x6e0;

/// Makes a list.
pub struct Maker {
    pub random: Random,
    pub x2apic: bool,
    list: Vec<Deed>,
}

impl Maker {
    pub fn new(random: Random, x2apic: bool) -> Self {
        Self { random, x2apic, list: Vec::new() }
    }

    /// A list of deeds from these areas, and of what every guest does: let interrupts in, wait, and shut them out.
    pub fn list(mut self, areas: &[Area]) -> Vec<Deed> {
        while self.list.len() < DEEDS {
            match self.random.of(areas) {
                Area::Ipi => self.ipi(),
                Area::Timer => self.timer(),
                Area::Apic => self.any_register(),
                Area::Chips => self.chips(),
                Area::Doorbell => self.doorbell(),
            }
            match self.random.below(8) {
                0..3 => self.push(What::Open, 0, 0),
                3 => self.push(What::Halt, 0, 0),
                4 => self.push(What::Close, 0, 0),
                5 => {
                    // Not by CR8: QEMU's emulation aborts when that lets a virtual interrupt in.
                    let priority = self.random.of(&[0, 0, 0, 0x40, 0xf0]);
                    self.apic(TPR, priority);
                }
                _ => {}
            }
        }
        self.list
    }

    fn push(&mut self, what: What, place: u32, value: u64) {
        self.list.push([what as u32, place, value as u32, (value >> 32) as u32]);
    }

    fn any(&mut self) -> u64 {
        self.random.any()
    }

    fn apic(&mut self, register: u32, value: u64) {
        if self.x2apic {
            self.push(What::WriteMsr, 0x800 + register, value);
        } else {
            self.push(What::Store, 0xfee0_0000 + register * 16, value);
        }
    }

    fn ipi(&mut self) {
        let vector = 0x30 + self.random.below(0xd0);
        let low = match self.random.below(20) {
            0..11 => vector,
            11..13 => 0x100 | vector,
            13..16 => 0x400,
            16 => 0x4500,
            17 | 18 => 0x600 | (u64::from(START_PAGES.start) + self.random.below(START_PAGES.len() as u64)),
            _ => self.any() & 0xcfff,
        };
        // What starts somewhere else would only destroy this guest.
        let low = if low & 0x700 == 0x600 { low & !0xff | u64::from(START_PAGES.start) } else { low };
        // The destination field, itself, all, all others; physical or logical.
        let low = low | self.random.of(&[0, 0, 0, 1, 2, 3]) << 18 | self.random.below(2) << 11;
        let dest = self.random.of(&[0, 1, 2, 3, 4, 0xf, 0xff, 0xffff_ffff]);
        if self.x2apic {
            self.apic(ICR, dest << 32 | low);
        } else {
            self.apic(ICR_HIGH, dest << 24);
            self.apic(ICR, low);
        }
        if self.random.below(16) == 0 {
            // KVM_HC_KICK_CPU, KVM_HC_SEND_IPI, KVM_HC_SCHED_YIELD; and one that there is not.
            let call = self.random.of(&[5, 10, 11, 99]);
            let first = self.random.below(16);
            self.push(What::Hypercall, self.list.len() as u32, first << 32 | call);
        }
    }

    fn timer(&mut self) {
        let vector = 0x30 + self.random.below(0xd0);
        let mode = self.random.of(&[0, 1, 2, 2, 3]) << 17;
        self.apic(LVT_TIMER, mode | vector);
        let divide = self.random.below(16);
        self.apic(DIVIDE, divide);
        let count = self.random.of(&[0, 1, 1, 2, 100, 10_000, 1_000_000, 0x7fff_ffff, 0xffff_ffff]);
        self.apic(INITIAL_COUNT, count);
        match self.random.below(3) {
            0 => {
                let deadline = self.random.of(&[0, 1, u64::MAX, 1 << 63, 1 << 62]);
                self.push(What::WriteMsr, TSC_DEADLINE, deadline);
            }
            1 => {
                let cycles = self.random.of(&[0, 1, 1000, 1_000_000, 0xffff_ffff]);
                self.push(What::Deadline, TSC_DEADLINE, cycles);
            }
            _ => {}
        }
    }

    fn any_register(&mut self) {
        let register = self.random.below(0x40) as u32;
        let value = self.any();
        match self.random.below(12) {
            0 => self.push(What::Load, 0xfee0_0000 + register * 16 + (value as u32 & 3), 0),
            1 => self.push(What::ReadMsr, 0x800 + register, 0),
            2 => {
                // IA32_APIC_BASE: modes, places, and what is reserved.
                let base = 0xfee0_0000 | self.random.of(&[0x800, 0x900, 0x800, 0, 0xc00, 0x1000, 1 << 52]);
                self.push(What::WriteMsr, 0x1b, base);
            }
            // Disabled APICs do little: on again.
            3..6 => self.apic(SVR, 0x1ff),
            6 => self.apic(TPR, 0),
            7 => self.ipi(),
            _ => self.apic(register, value),
        }
    }

    fn chips(&mut self) {
        match self.random.below(6) {
            0 | 1 => {
                let register = self.random.below(0x42);
                let value = match self.random.below(3) {
                    0 => self.any(),
                    // Entries that deliver something.
                    1 => (0x30 + self.random.below(0xd0)) | self.random.below(2) << 15,
                    _ => self.random.of(&[0, 1, 2, 3, 0xff]) << 24,
                };
                self.push(What::Store, 0xfec0_0000, register);
                self.push(What::Store, 0xfec0_0010, value);
            }
            2 => {
                let port = self.random.of(&[0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1]);
                let value = self.any();
                self.push(What::Out8, port, value);
            }
            3 => {
                let port = self.random.of(&[0x40, 0x41, 0x42, 0x43, 0x61]);
                let value = self.any();
                self.push(What::Out8, port, value);
            }
            4 => {
                let port = self.random.of(&[0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x61, 0x4d0]);
                self.push(What::In8, port, 0);
            }
            _ => {
                let port = self.random.of(&[0x20, 0x40, 0x43, 0x4d0]);
                let value = self.any();
                self.push(What::Out32, port, value);
            }
        }
    }

    fn doorbell(&mut self) {
        let n = self.random.below(4);
        if self.random.below(2) == 0 {
            self.push(What::Store, DOORBELLS as u32 + 8 * n as u32, n);
        } else {
            self.push(What::Out8, u32::from(DOORBELL_PORT) + n as u32, n);
        }
    }
}
