//! The 8254: access modes, latches, read-back, the six modes, the speaker port, reinjection, state.

mod common;
use common::*;
use irqchip::{Pit, PitTick, TimerEffect};

const FREQUENCY: u64 = 1_193_181;

/// The first nanosecond at which `clocks` input clocks have passed.
fn ns(clocks: u64) -> u64 {
    (clocks * 1_000_000_000).div_ceil(FREQUENCY)
}

fn pit() -> Pit {
    Pit::new(200_000, 0)
}

/// Programs `channel` with a 16-bit count.
fn program(pit: &mut Pit, channel: u16, mode: u8, count: u16, now: u64) -> TimerEffect {
    assert_eq!(pit.write(0x43, (channel as u8) << 6 | 0x30 | mode << 1, now), TimerEffect::Keep);
    let [low, high] = count.to_le_bytes();
    assert_eq!(pit.write(0x40 + channel, low, now), TimerEffect::Keep);
    pit.write(0x40 + channel, high, now)
}

fn count(pit: &mut Pit, channel: u16, now: u64) -> u16 {
    u16::from_le_bytes([pit.read(0x40 + channel, now), pit.read(0x40 + channel, now)])
}

#[test]
fn access_modes() {
    let mut pit = pit();
    let _ = program(&mut pit, 2, 0, 0x1234, 0);
    assert_eq!(count(&mut pit, 2, 0), 0x1234);
    let _ = pit.write(0x43, 0x80 | 0x10, 0);
    let _ = pit.write(0x42, 0x56, 0);
    assert_eq!((pit.read(0x42, 0), pit.read(0x42, 0)), (0x56, 0x56));
    let _ = pit.write(0x43, 0x80 | 0x20, 0);
    let _ = pit.write(0x42, 0x78, 0);
    assert_eq!((pit.read(0x42, 0), pit.read(0x42, 0)), (0x78, 0x78));
    assert_eq!(pit.read(0x43, 0), 0);
}

#[test]
fn a_latched_count_stands_still() {
    let mut pit = pit();
    let _ = program(&mut pit, 2, 0, 1000, 0);
    let _ = pit.write(0x43, 0x80, ns(100));
    let _ = pit.write(0x43, 0x80, ns(200));
    assert_eq!(count(&mut pit, 2, ns(300)), 900, "the first latch holds");
    assert_eq!(count(&mut pit, 2, ns(300)), 700);
}

#[test]
fn read_back_latches_status_before_count() {
    let mut pit = pit();
    let _ = program(&mut pit, 2, 3, 1000, 0);
    let _ = pit.write(0x43, 0xc0 | 1 << 3, ns(100));
    assert_eq!(pit.read(0x42, ns(400)), 0x80 | 0x30 | 3 << 1);
    assert_eq!(count(&mut pit, 2, ns(400)), 800);
    // Status only, of all three.
    let _ = pit.write(0x43, 0xc0 | 0x20 | 0xe, ns(600));
    assert_eq!(pit.read(0x42, ns(600)), 0x30 | 3 << 1, "second half: low");
    let _ = pit.read(0x40, 0);
    // Count only.
    let _ = pit.write(0x43, 0xc0 | 0x10 | 1 << 3, ns(1100));
    assert_eq!(count(&mut pit, 2, ns(1700)), 800);
}

/// As on stock: access and mode read as ones.
#[test]
fn status_before_any_control_word() {
    let mut pit = Pit::new(0, 0);
    let _ = pit.write(0x43, 0xc0 | 0x20 | 2, ns(1));
    assert_eq!(pit.read(0x40, ns(1)), 0xfe);
}

#[test]
fn counting_in_each_mode() {
    for (mode, at_100, at_1500) in [
        (0, 900, 0xffff - 499),
        (1, 900, 0xffff - 499),
        (2, 900, 500),
        (3, 800, 1000),
        (4, 900, 0xffff - 499),
        (5, 900, 0xffff - 499),
        (6, 900, 500),
        (7, 800, 1000),
    ] {
        let mut pit = pit();
        let _ = program(&mut pit, 2, mode, 1000, 0);
        assert_eq!(count(&mut pit, 2, ns(100)), at_100, "mode {mode}");
        assert_eq!(count(&mut pit, 2, ns(1500)), at_1500, "mode {mode}");
    }
}

#[test]
fn output_in_each_mode() {
    // OUT of channel 2 at clocks 0, 499, 500, 999, 1000, 1001.
    for (mode, expected) in [
        (0, [0, 0, 0, 0, 1, 1]),
        (1, [0, 0, 0, 0, 1, 1]),
        (2, [1, 1, 1, 0, 1, 1]),
        (3, [1, 1, 0, 0, 1, 1]),
        (4, [1, 1, 1, 1, 0, 1]),
        (5, [1, 1, 1, 1, 0, 1]),
    ] {
        let mut pit = pit();
        let _ = program(&mut pit, 2, mode, 1000, 0);
        let out = [0, 499, 500, 999, 1000, 1001].map(|clocks| pit.speaker_read(ns(clocks)) >> 5 & 1);
        assert_eq!(out, expected, "mode {mode}");
    }
}

#[test]
fn speaker_port() {
    let mut pit = pit();
    assert_eq!(pit.speaker_read(0) & 3, 0);
    pit.speaker_write(0xff, 0);
    assert_eq!(pit.speaker_read(0) & 3, 3);
    assert_eq!((pit.speaker_read(0) & 0x10, pit.speaker_read(1 << 14) & 0x10), (0, 0x10));
    // A rising gate restarts modes 1, 2, 3 and 5, not 0 and 4.
    for (mode, restarts) in [(0, false), (1, true), (2, true), (3, true), (4, false), (5, true)] {
        let _ = program(&mut pit, 2, mode, 1000, 0);
        pit.speaker_write(0, ns(100));
        pit.speaker_write(1, ns(300));
        let now = count(&mut pit, 2, ns(300));
        assert_eq!(now == 1000, restarts, "mode {mode}: {now}");
    }
}

#[test]
fn channel_0_drives_the_timer() {
    for (mode, once) in [(0, true), (1, true), (2, false), (3, false), (4, true)] {
        let mut pit = pit();
        let period = 10_000 * 1_000_000_000 / FREQUENCY;
        assert_eq!(program(&mut pit, 0, mode, 10_000, 7), TimerEffect::ArmNs(7 + period));
        assert_eq!(pit.expire(6 + period), PitTick { inject: false, timer: TimerEffect::ArmNs(7 + period) });
        let tick = pit.expire(9 + period);
        assert!(tick.inject);
        let next = if once { TimerEffect::Keep } else { TimerEffect::ArmNs(7 + 2 * period) };
        assert_eq!(tick.timer, next, "mode {mode}");
    }
    let mut pit = pit();
    assert_eq!(program(&mut pit, 0, 5, 10_000, 0), TimerEffect::Cancel, "the gate of channel 0 never rises");
    assert_eq!(program(&mut pit, 1, 2, 10_000, 0), TimerEffect::Keep);
    // Zero is 65536; a short period is stretched.
    assert_eq!(program(&mut pit, 0, 2, 0, 0), TimerEffect::ArmNs(65_536 * 1_000_000_000 / FREQUENCY));
    assert_eq!(program(&mut pit, 0, 2, 1, 0), TimerEffect::ArmNs(200_000));
}

#[test]
fn ticks_are_made_up_for_one_by_one() {
    let mut pit = pit();
    let TimerEffect::ArmNs(period) = program(&mut pit, 0, 2, 10_000, 0) else { panic!() };
    // Four periods pass before the host looks.
    let tick = pit.expire(4 * period + 1);
    assert_eq!(tick, PitTick { inject: true, timer: TimerEffect::ArmNs(5 * period) });
    assert!(!pit.expire(5 * period).inject, "the first is not acknowledged");
    assert_eq!(
        [pit.ack(), pit.ack(), pit.ack(), pit.ack(), pit.ack(), pit.ack()],
        [true, true, true, true, false, false]
    );
    assert!(pit.expire(6 * period).inject);
    // Unmasking forgets.
    let _ = pit.expire(9 * period);
    pit.reset_reinject();
    assert!(!pit.ack());
    pit.set_reinject(false);
    assert!(pit.expire(10 * period).inject && pit.expire(11 * period).inject && !pit.ack());
}

#[test]
fn years_pass_in_one_step() {
    let mut pit = pit();
    let _ = program(&mut pit, 0, 2, 2, 0);
    let _ = program(&mut pit, 2, 3, 3, 0);
    let tick = pit.expire(u64::MAX - 1);
    assert!(tick.inject);
    let _ = (count(&mut pit, 2, u64::MAX), pit.speaker_read(u64::MAX), pit.expire(u64::MAX));
}

#[test]
fn counts_stay_exact_over_hours() {
    let mut pit = pit();
    let _ = program(&mut pit, 2, 2, 1000, 0);
    let day = 86_400 * 1_000_000_000;
    let clocks = 86_400 * FREQUENCY;
    assert_eq!(u64::from(count(&mut pit, 2, day)), 1000 - clocks % 1000);
}

#[test]
fn state_round_trips() {
    let mut pit = pit();
    let _ = program(&mut pit, 0, 2, 11_932, 100);
    let _ = program(&mut pit, 2, 3, 0x1234, 200);
    pit.speaker_write(3, 300);
    let _ = pit.write(0x43, 0xc0 | 1 << 3, 400);
    let _ = pit.write(0x42, 0x99, 400);
    let state = pit.get_state();
    assert_eq!(state[0..4], 11_932u32.to_le_bytes());
    assert_eq!(state[13], 2);
    assert_eq!(state[48..52], 0x1234u32.to_le_bytes());
    assert_eq!((state[48 + 6], state[48 + 7], state[48 + 10], state[48 + 11]), (3, 1, 4, 0x99));
    assert_eq!(state[64..72], 300u64.to_le_bytes(), "restarted by the gate");
    assert_eq!((state[72], &state[76..]), (2, &[0; 36][..]));
    let mut other = Pit::new(200_000, 0);
    let period = 11_932 * 1_000_000_000 / FREQUENCY;
    // Every channel counts anew, where it was saved: of channel 0 user space reads back what it said.
    let mut said = state;
    (said[16..24]).copy_from_slice(&77u64.to_le_bytes());
    assert_eq!(other.set_state(&said, 300), TimerEffect::ArmNs(300 + period));
    for at in [40, 64] {
        said[at..at + 8].copy_from_slice(&300u64.to_le_bytes());
    }
    assert_eq!(other.get_state(), said);
    assert_eq!(other.read(0x42, 500), pit.read(0x42, 500));
    let mut first = [0; 8];
    first.copy_from_slice(&state[16..24]);
    assert_eq!(u64::from_le_bytes(first), 0, "nobody said anything");
    // The HPET takes channel 0's place.
    let mut hpet = state;
    hpet[72] = 1;
    assert_eq!(other.set_state(&hpet, 100), TimerEffect::Cancel);
    assert_eq!(program(&mut other, 0, 2, 1000, 0), TimerEffect::Cancel);
}

#[test]
fn random_accesses_keep_the_invariants() {
    let mut random = Random::new(3);
    let mut pit = pit();
    let mut now = 0u64;
    for _ in 0..200_000 {
        now = now.wrapping_add(random.below(1 << 24));
        let port = 0x40 + random.below(4) as u16;
        match random.below(10) {
            0..=3 => {
                let _ = pit.write(port, random.next() as u8, now);
            }
            4 | 5 => {
                let _ = pit.read(port, now);
            }
            6 => pit.speaker_write(random.next() as u8, now),
            7 if random.chance(20) => {
                let state = std::array::from_fn(|_| random.next() as u8);
                let _ = pit.set_state(&state, now);
            }
            8 => {
                let _ = (pit.ack(), pit.speaker_read(now));
            }
            9 if random.chance(50) => now = random.next(),
            _ => match pit.expire(now).timer {
                TimerEffect::ArmNs(at) => assert!(at > now || at == u64::MAX, "never due at once: {at} {now}"),
                other => assert_ne!(other, TimerEffect::ArmTsc(0)),
            },
        }
        let state = pit.get_state();
        for channel in state[..72].chunks(24) {
            let count = u32::from_le_bytes(channel[..4].try_into().unwrap());
            assert!((1..=0x10000).contains(&count));
            assert!(channel[13] < 6 || channel[13] == 0xff);
        }
    }
}
