//! One counter of the 8254. The count is never stored: it follows from the time of the load.

use super::{FREQUENCY, NS_PER_S};

/// Access modes and the states of two-byte accesses, as in `struct kvm_pit_channel_state`.
const LSB: u8 = 1;
const MSB: u8 = 2;
const WORD_LOW: u8 = 3;
const WORD_HIGH: u8 = 4;
/// No mode was programmed since power-on.
const NO_MODE: u8 = 0xff;

#[derive(Clone, Debug)]
pub(super) struct Channel {
    /// Initial count, 1 to 0x10000.
    pub count: u32,
    pub latched_count: u16,
    /// What remains to be read of the latched count: 0, LSB, MSB or WORD_LOW.
    pub count_latched: u8,
    pub status_latched: bool,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: bool,
    pub gate: bool,
    pub count_load_ns: u64,
}

::state::state! {
    place Channel {
        count, latched_count, count_latched, status_latched, status, read_state, write_state, write_latch, rw_mode, mode, bcd,
        gate, count_load_ns,
    }
}

impl Channel {
    pub(super) fn new(gate: bool, now_ns: u64) -> Self {
        Channel {
            count: 0x10000,
            latched_count: 0,
            count_latched: 0,
            status_latched: false,
            status: 0,
            read_state: 0,
            write_state: 0,
            write_latch: 0,
            rw_mode: 0,
            mode: NO_MODE,
            bcd: false,
            gate,
            count_load_ns: now_ns,
        }
    }

    /// Modes in which the end of the count is signalled: all but the hardware-triggered strobe.
    pub(super) fn interrupts(&self) -> bool {
        matches!(self.mode, 0..=4)
    }

    pub(super) fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Input clocks since the count was loaded.
    fn clocks(&self, now_ns: u64) -> u64 {
        let ns = now_ns.saturating_sub(self.count_load_ns);
        // In two steps, since ns * FREQUENCY overflows after four hours.
        (ns / NS_PER_S).wrapping_mul(FREQUENCY).wrapping_add(ns % NS_PER_S * FREQUENCY / NS_PER_S)
    }

    /// The counting element.
    fn current(&self, now_ns: u64) -> u16 {
        let (clocks, count) = (self.clocks(now_ns), u64::from(self.count));
        let passed = match self.mode {
            // These count on below zero.
            0 | 1 | 4 | 5 => clocks,
            // Steps of two, twice per period.
            3 => clocks.wrapping_mul(2).checked_rem(count).unwrap_or(0),
            _ => clocks.checked_rem(count).unwrap_or(0),
        };
        count.wrapping_sub(passed) as u16
    }

    /// The OUT pin.
    pub(super) fn output(&self, now_ns: u64) -> bool {
        let (clocks, count) = (self.clocks(now_ns), u64::from(self.count));
        let phase = clocks.checked_rem(count).unwrap_or(0);
        match self.mode {
            // Rate generator: low during the last clock of a period.
            2 => phase != count - 1,
            // Square wave: high for the first half, the longer one.
            3 => phase < count.div_ceil(2),
            // Strobes: low for one clock at the end.
            4 | 5 => clocks != count,
            // Interrupt on terminal count, one-shot: low until the end.
            _ => clocks >= count,
        }
    }

    /// A control word for this channel: a latch command, or access mode, mode and BCD.
    pub(super) fn control(&mut self, value: u8, now_ns: u64) {
        let access = value >> 4 & 3;
        if access == 0 {
            self.latch_count(now_ns);
            return;
        }
        self.rw_mode = access;
        self.read_state = access;
        self.write_state = access;
        let mode = value >> 1 & 7;
        self.mode = if mode > 5 { mode - 4 } else { mode };
        self.bcd = value & 1 != 0;
    }

    pub(super) fn latch_count(&mut self, now_ns: u64) {
        if self.count_latched == 0 {
            self.latched_count = self.current(now_ns);
            self.count_latched = self.rw_mode;
        }
    }

    pub(super) fn latch_status(&mut self, now_ns: u64) {
        if !self.status_latched {
            let out = u8::from(self.output(now_ns)) << 7;
            // As on stock the bits of "no mode" run into those beside them.
            self.status = out | (self.rw_mode & 3) << 4 | self.mode << 1 | u8::from(self.bcd);
            self.status_latched = true;
        }
    }

    pub(super) fn read(&mut self, now_ns: u64) -> u8 {
        if self.status_latched {
            self.status_latched = false;
            return self.status;
        }
        let [low, high] = self.latched_count.to_le_bytes();
        match core::mem::take(&mut self.count_latched) {
            0 => {}
            LSB => return low,
            WORD_LOW => {
                self.count_latched = MSB;
                return low;
            }
            _ => return high,
        }
        let [low, high] = self.current(now_ns).to_le_bytes();
        match self.read_state {
            MSB => high,
            WORD_LOW => {
                self.read_state = WORD_HIGH;
                low
            }
            WORD_HIGH => {
                self.read_state = WORD_LOW;
                high
            }
            _ => low,
        }
    }

    /// Writes a byte of the count. True when the count is complete and counting starts.
    pub(super) fn write(&mut self, value: u8, now_ns: u64) -> bool {
        let count = match self.write_state {
            MSB => u16::from(value) << 8,
            WORD_LOW => {
                self.write_latch = value;
                self.write_state = WORD_HIGH;
                return false;
            }
            WORD_HIGH => {
                self.write_state = WORD_LOW;
                u16::from_le_bytes([self.write_latch, value])
            }
            _ => value.into(),
        };
        self.load(count.into(), now_ns);
        true
    }

    /// Starts counting from `count`; 0 stands for 0x10000.
    pub(super) fn load(&mut self, count: u32, now_ns: u64) {
        self.count = if count == 0 || count > 0x10000 { 0x10000 } else { count };
        self.count_load_ns = now_ns;
    }

    /// A rising gate restarts the count in the modes that the gate triggers.
    pub(super) fn set_gate(&mut self, gate: bool, now_ns: u64) {
        if gate && !self.gate && matches!(self.mode, 1 | 2 | 3 | 5) {
            self.count_load_ns = now_ns;
        }
        self.gate = gate;
    }
}
