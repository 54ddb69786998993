//! The 8254 interval timer and its speaker port, with KVM's reinjection of ticks that the guest was too slow for.
//! Intel 8254 data sheet; KVM API document 4.71 (KVM_CREATE_PIT2) and 4.73 (KVM_REINJECT_CONTROL).
//!
//! Channel 0 interrupts (GSI 0); channel 2 shows its output in port 0x61. Not modelled, as in KVM: BCD counting, and a
//! low gate that stops the count.

mod channel;
mod state;

use crate::lapic::TimerEffect;
use channel::Channel;

/// Input clock of the 8254 in Hz.
pub(crate) const FREQUENCY: u64 = 1_193_181;
const NS_PER_S: u64 = 1_000_000_000;

/// What the end of channel 0's count asks for.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PitTick {
    /// Pulse GSI 0 and fire LINT0 of vCPUs that have it in NMI mode.
    pub inject: bool,
    /// For the host's timer.
    pub timer: TimerEffect,
}

/// The timer of one VM.
#[derive(Clone, Debug)]
pub struct Pit {
    channels: [Channel; 3],
    /// Shortest period of channel 0 in ns (`min_timer_period_us`).
    min_period_ns: u64,
    /// When channel 0 interrupts next.
    target_ns: Option<u64>,
    /// KVM_PIT_FLAGS_HPET_LEGACY: the HPET drives GSI 0, channel 0 does not.
    hpet_legacy: bool,
    speaker_data_on: bool,
    /// Ticks are made up for.
    reinject: bool,
    /// Ticks that the guest has not acknowledged, the one on its way included.
    pending: u32,
    /// The last tick was acknowledged.
    acked: bool,
    /// When channel 0's count was loaded, as user space said last: it reads it back, and nothing else follows from it.
    said_load_ns: u64,
}

::state::state! {
    place Pit { channels, min_period_ns, target_ns, hpet_legacy, speaker_data_on, reinject, pending, acked, said_load_ns since 2 = 0 }
}

impl Pit {
    /// The state at power-on: nothing counts.
    pub fn new(min_period_ns: u64, now_ns: u64) -> Self {
        Pit {
            channels: [Channel::new(true, now_ns), Channel::new(true, now_ns), Channel::new(false, now_ns)],
            min_period_ns,
            target_ns: None,
            hpet_legacy: false,
            speaker_data_on: false,
            reinject: true,
            pending: 0,
            acked: true,
            said_load_ns: 0,
        }
    }

    /// A one-byte OUT to port 0x40 to 0x43.
    pub fn write(&mut self, port: u16, value: u8, now_ns: u64) -> TimerEffect {
        let index = usize::from(port & 3);
        if index == 3 {
            self.control(value, now_ns);
            return TimerEffect::Keep;
        }
        // INDEX: two bits of the port; the fourth channel was excluded, and would be the next field.
        let loaded = self.channels.get_mut(index).is_some_and(|c| c.write(value, now_ns));
        if loaded && index == 0 { self.start(now_ns) } else { TimerEffect::Keep }
    }

    /// A one-byte IN from port 0x40 to 0x43. The control register reads as 0.
    pub fn read(&mut self, port: u16, now_ns: u64) -> u8 {
        self.channels.get_mut(usize::from(port & 3)).map_or(0, |c| c.read(now_ns))
    }

    fn control(&mut self, value: u8, now_ns: u64) {
        let select = value >> 6;
        if select < 3 {
            // INDEX: two bits of the value; the fourth channel was excluded, and would be the next field.
            if let Some(channel) = self.channels.get_mut(usize::from(select)) {
                channel.control(value, now_ns);
            }
            return;
        }
        // Read-back: bits 3:1 select channels, bits 5 and 4 are active low.
        for (i, channel) in self.channels.iter_mut().enumerate() {
            if value & 2 << i != 0 {
                if value & 0x20 == 0 {
                    channel.latch_count(now_ns);
                }
                if value & 0x10 == 0 {
                    channel.latch_status(now_ns);
                }
            }
        }
    }

    /// OUT to port 0x61: bit 0 is channel 2's gate, bit 1 connects the speaker.
    pub fn speaker_write(&mut self, value: u8, now_ns: u64) {
        self.speaker_data_on = value & 2 != 0;
        let [_, _, channel] = &mut self.channels;
        channel.set_gate(value & 1 != 0, now_ns);
    }

    /// IN from port 0x61: gate, speaker, the toggling refresh bit (4) and channel 2's output (5).
    pub fn speaker_read(&self, now_ns: u64) -> u8 {
        let [_, _, channel] = &self.channels;
        let refresh = (now_ns >> 14) as u8 & 1;
        u8::from(channel.gate)
            | u8::from(self.speaker_data_on) << 1
            | refresh << 4
            | u8::from(channel.output(now_ns)) << 5
    }

    /// Channel 0 got a count.
    fn start(&mut self, now_ns: u64) -> TimerEffect {
        let [channel, ..] = &self.channels;
        let runs = !self.hpet_legacy && channel.interrupts();
        self.target_ns = runs.then(|| now_ns.saturating_add(self.period_ns()));
        self.reset_reinject();
        self.timer_due()
    }

    /// Nanoseconds until channel 0's count ends, no less than the minimum when periodic. Never 0.
    fn period_ns(&self) -> u64 {
        let [channel, ..] = &self.channels;
        let ns = (u64::from(channel.count) * NS_PER_S / FREQUENCY).max(1);
        if channel.is_periodic() { ns.max(self.min_period_ns) } else { ns }
    }

    /// What the host's timer should do.
    pub fn timer_due(&self) -> TimerEffect {
        self.target_ns.map_or(TimerEffect::Cancel, TimerEffect::ArmNs)
    }

    /// The host's timer fired. Periods that were missed count as pending ticks (if reinjection is on) in one step.
    pub fn expire(&mut self, now_ns: u64) -> PitTick {
        let Some(target) = self.target_ns.filter(|&target| now_ns >= target) else {
            return PitTick { inject: false, timer: self.timer_due() };
        };
        let [channel, ..] = &self.channels;
        let mut ticks = 1;
        self.target_ns = channel.is_periodic().then(|| {
            let period = self.period_ns();
            let late = now_ns - target;
            ticks = u32::try_from(late / period).unwrap_or(u32::MAX).saturating_add(1);
            now_ns.saturating_add(period - late % period)
        });
        if self.reinject {
            self.pending = self.pending.saturating_add(ticks);
        }
        PitTick { inject: self.take_turn(), timer: self.target_ns.map_or(TimerEffect::Keep, TimerEffect::ArmNs) }
    }

    /// With reinjection a tick goes out only after the one before was acknowledged.
    fn take_turn(&mut self) -> bool {
        !self.reinject || core::mem::replace(&mut self.acked, false)
    }

    /// The guest ended the interrupt of GSI 0. True: another tick is due, pulse GSI 0 again.
    pub fn ack(&mut self) -> bool {
        self.acked = true;
        let had = self.pending;
        self.pending = had.saturating_sub(1);
        self.reinject && had > 1 && self.take_turn()
    }

    /// GSI 0 was unmasked, or a new count begins: what is pending is forgotten.
    pub fn reset_reinject(&mut self) {
        self.pending = 0;
        self.acked = true;
    }

    /// KVM_REINJECT_CONTROL.
    pub fn set_reinject(&mut self, reinject: bool) {
        if reinject != self.reinject {
            self.reinject = reinject;
            self.reset_reinject();
        }
    }
}
