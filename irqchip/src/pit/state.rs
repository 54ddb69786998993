//! KVM_GET_PIT2 and KVM_SET_PIT2: `struct kvm_pit_state2`, three channels of 24 bytes, flags, reserved words.

use super::Pit;
use super::channel::Channel;
use crate::lapic::TimerEffect;

const CHANNEL: usize = 24;
const FLAGS: usize = 3 * CHANNEL;
const HPET_LEGACY: u32 = 1;
const SPEAKER_DATA_ON: u32 = 2;

impl Channel {
    fn get_state(&self, load_ns: u64) -> [u8; CHANNEL] {
        let [c0, c1, c2, c3] = self.count.to_le_bytes();
        let [l0, l1] = self.latched_count.to_le_bytes();
        let [t0, t1, t2, t3, t4, t5, t6, t7] = load_ns.to_le_bytes();
        [
            c0,
            c1,
            c2,
            c3,
            l0,
            l1,
            self.count_latched,
            self.status_latched.into(),
            self.status,
            self.read_state,
            self.write_state,
            self.write_latch,
            self.rw_mode,
            self.mode,
            self.bcd.into(),
            self.gate.into(),
            t0,
            t1,
            t2,
            t3,
            t4,
            t5,
            t6,
            t7,
        ]
    }

    /// A full count starts at `now_ns`. What `state` says of when it was loaded.
    fn set_state(&mut self, state: &[u8], now_ns: u64) -> u64 {
        // INDEX: a constant of ours.
        let byte = |i: usize| state.get(i).copied().unwrap_or(0);
        self.load(u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)]), now_ns);
        self.latched_count = u16::from_le_bytes([byte(4), byte(5)]);
        self.count_latched = byte(6) & 3;
        self.status_latched = byte(7) != 0;
        self.status = byte(8);
        self.read_state = byte(9).min(4);
        self.write_state = byte(10).min(4);
        self.write_latch = byte(11);
        self.rw_mode = byte(12) & 3;
        self.mode = if byte(13) > 5 { 0xff } else { byte(13) };
        self.bcd = byte(14) != 0;
        self.gate = byte(15) != 0;
        let load_ns = state.get(16..).and_then(<[u8]>::first_chunk::<8>).copied().unwrap_or_default();
        u64::from_le_bytes(load_ns)
    }
}

impl Pit {
    /// `struct kvm_pit_state2`; its first 72 bytes are `struct kvm_pit_state`.
    pub fn get_state(&self) -> [u8; 112] {
        let mut out = [0; 112];
        let flags =
            if self.hpet_legacy { HPET_LEGACY } else { 0 } | if self.speaker_data_on { SPEAKER_DATA_ON } else { 0 };
        let [first, second, third] = &self.channels;
        let channels = [
            first.get_state(self.said_load_ns),
            second.get_state(second.count_load_ns),
            third.get_state(third.count_load_ns),
        ];
        for (to, from) in out.iter_mut().zip(channels.into_iter().flatten().chain(flags.to_le_bytes())) {
            *to = from;
        }
        out
    }

    /// Replaces the state; values that no register holds are cut. As on stock every channel starts a full count at `now_ns`, but the
    /// first if the HPET has taken its place.
    pub fn set_state(&mut self, state: &[u8; 112], now_ns: u64) -> TimerEffect {
        let mut said = [0; 3];
        for ((channel, state), said) in self.channels.iter_mut().zip(state.chunks_exact(CHANNEL)).zip(&mut said) {
            *said = channel.set_state(state, now_ns);
        }
        [self.said_load_ns, ..] = said;
        let flags = state.get(FLAGS..).and_then(<[u8]>::first_chunk::<4>).copied().unwrap_or_default();
        let flags = u32::from_le_bytes(flags);
        self.hpet_legacy = flags & HPET_LEGACY != 0;
        self.speaker_data_on = flags & SPEAKER_DATA_ON != 0;
        self.start(now_ns)
    }
}
