//! Helpers of the tests: a random number generator with a seed, and short ways to reach an xAPIC register.
#![allow(dead_code)]

use irqchip::{Config, Effect, Features, Lapic};

/// xorshift64*: repeatable, good enough to wander through register space.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 8) % n
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

pub const ALL: Features = Features { x2apic: true, tsc_deadline: true, directed_eoi: true };

/// vCPU `id`, xAPIC mode, software-enabled.
pub fn xapic(id: u32) -> Lapic {
    let mut lapic = Lapic::new(Config::new(id, id == 0));
    lapic.set_features(ALL);
    let _ = write(&mut lapic, 0xf0, 0x1ff);
    lapic
}

/// vCPU `id`, x2APIC mode, software-enabled.
pub fn x2apic(id: u32) -> Lapic {
    let mut lapic = xapic(id);
    lapic.set_base(lapic.base() | 1 << 10, false, 0).expect("xAPIC to x2APIC is legal");
    lapic
}

pub fn write_at(lapic: &mut Lapic, offset: u32, value: u32, now_ns: u64) -> Effect {
    lapic.mmio_write(offset, &value.to_le_bytes(), now_ns)
}

pub fn write(lapic: &mut Lapic, offset: u32, value: u32) -> Effect {
    write_at(lapic, offset, value, 0)
}

pub fn read_at(lapic: &mut Lapic, offset: u32, now_ns: u64) -> u32 {
    let mut bytes = [0xaa; 4];
    lapic.mmio_read(offset, &mut bytes, now_ns);
    u32::from_le_bytes(bytes)
}

pub fn read(lapic: &mut Lapic, offset: u32) -> u32 {
    read_at(lapic, offset, 0)
}

/// The CPU takes what is due: it moves from IRR to ISR.
pub fn ack(lapic: &mut Lapic) -> Option<u8> {
    let vector = lapic.pending_vector()?;
    lapic.take(vector);
    Some(vector)
}
