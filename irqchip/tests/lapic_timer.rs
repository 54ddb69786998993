//! The APIC timer: counting, the three modes, lateness, and what KVM_GET_LAPIC and KVM_SET_LAPIC carry over.

mod common;
use common::*;
use irqchip::{Config, Effect, Features, InvalidState, Lapic, TimerEffect};

const LVT: u32 = 0x320;
const INITIAL: u32 = 0x380;
const CURRENT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;
const BY_1: u32 = 0b1011;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;

fn timer(effect: Effect) -> TimerEffect {
    match effect {
        Effect::Timer(t) => t,
        other => panic!("{other:?}"),
    }
}

#[test]
fn divisors() {
    let expected = [2, 4, 8, 16, 2, 4, 8, 16, 32, 64, 128, 1, 32, 64, 128, 1];
    for (code, divisor) in expected.into_iter().enumerate() {
        let mut lapic = xapic(0);
        let _ = write(&mut lapic, DIVIDE, code as u32);
        assert_eq!(read(&mut lapic, DIVIDE), code as u32 & 0xb);
        assert_eq!(timer(write_at(&mut lapic, INITIAL, 1000, 5)), TimerEffect::ArmNs(5 + 1000 * divisor), "{code:#b}");
    }
}

#[test]
fn one_shot_counts_down_once() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, LVT, 0x40);
    let _ = write(&mut lapic, DIVIDE, BY_1);
    assert_eq!(timer(write_at(&mut lapic, INITIAL, 1000, 100)), TimerEffect::ArmNs(1100));
    assert_eq!(read_at(&mut lapic, CURRENT, 100), 1000);
    assert_eq!(read_at(&mut lapic, CURRENT, 700), 400);
    assert_eq!(lapic.expire(1099, 0), TimerEffect::ArmNs(1100), "too early");
    assert_eq!(lapic.pending_vector(), None);
    assert_eq!(read_at(&mut lapic, CURRENT, 1100), 0);
    assert_eq!(lapic.expire(1100, 0), TimerEffect::Keep);
    assert_eq!(lapic.pending_vector(), Some(0x40));
    assert_eq!(read_at(&mut lapic, CURRENT, 1200), 0);
    assert_eq!((lapic.expire(1300, 0), lapic.timer_due()), (TimerEffect::Cancel, TimerEffect::Cancel));
    assert_eq!(read_at(&mut lapic, INITIAL, 1200), 1000);
}

#[test]
fn zero_stops_and_a_masked_timer_is_silent() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, LVT, 0x1_0040);
    assert_eq!(timer(write(&mut lapic, INITIAL, 500)), TimerEffect::ArmNs(1000));
    assert_eq!(lapic.expire(1000, 0), TimerEffect::Keep);
    assert!(!lapic.has_irr());
    let _ = write(&mut lapic, INITIAL, 500);
    assert_eq!(timer(write(&mut lapic, INITIAL, 0)), TimerEffect::Cancel);
    assert_eq!(lapic.timer_due(), TimerEffect::Cancel);
}

#[test]
fn periodic_keeps_step_and_skips_what_it_missed() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, LVT, PERIODIC | 0x40);
    let _ = write(&mut lapic, DIVIDE, BY_1);
    assert_eq!(timer(write(&mut lapic, INITIAL, 1_000_000)), TimerEffect::ArmNs(1_000_000));
    assert_eq!(lapic.expire(1_000_010, 0), TimerEffect::ArmNs(2_000_000));
    assert_eq!(read_at(&mut lapic, CURRENT, 1_400_000), 600_000);
    assert_eq!(read_at(&mut lapic, CURRENT, 2_400_000), 600_000, "due but not handled");
    assert_eq!(lapic.expire(1 << 62, 0), TimerEffect::ArmNs(((1u64 << 62) / 1_000_000 + 1) * 1_000_000));
}

#[test]
fn periodic_has_a_minimum_period() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, LVT, PERIODIC | 0x40);
    let _ = write(&mut lapic, DIVIDE, BY_1);
    assert_eq!(timer(write(&mut lapic, INITIAL, 1)), TimerEffect::ArmNs(200_000));
    assert_eq!(read_at(&mut lapic, CURRENT, 0), 1, "the count is never above the initial count");
    assert_eq!(lapic.expire(200_000, 0), TimerEffect::ArmNs(400_000));
}

#[test]
fn extreme_configurations_do_not_overflow() {
    let mut lapic = Lapic::new(Config { bus_cycle_ns: u32::MAX, min_period_ns: u64::MAX, ..Config::new(0, true) });
    let _ = write(&mut lapic, 0xf0, 0x1ff);
    let _ = write(&mut lapic, LVT, PERIODIC | 0x40);
    let _ = write(&mut lapic, DIVIDE, 0b1010);
    let _ = write_at(&mut lapic, INITIAL, u32::MAX, u64::MAX);
    let _ = lapic.expire(u64::MAX, u64::MAX);
    let _ = read_at(&mut lapic, CURRENT, 0);
    let mut zero = Lapic::new(Config { bus_cycle_ns: 0, min_period_ns: 0, ..Config::new(0, true) });
    let _ = write(&mut zero, 0xf0, 0x1ff);
    let _ = write(&mut zero, LVT, PERIODIC | 0x40);
    assert_eq!(timer(write(&mut zero, INITIAL, 1)), TimerEffect::ArmNs(2));
    assert_eq!(zero.expire(1000, 0), TimerEffect::ArmNs(1002));
}

#[test]
fn a_new_divisor_stretches_the_rest() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, LVT, 0x40);
    let _ = write(&mut lapic, DIVIDE, BY_1);
    let _ = write(&mut lapic, INITIAL, 1000);
    assert_eq!(timer(write_at(&mut lapic, DIVIDE, BY_1, 400)), TimerEffect::Keep);
    assert_eq!(timer(write_at(&mut lapic, DIVIDE, 0b0001, 400)), TimerEffect::ArmNs(400 + 600 * 4));
    assert_eq!(read_at(&mut lapic, CURRENT, 400), 600);
    let _ = lapic.expire(2800, 0);
    assert_eq!(timer(write_at(&mut lapic, DIVIDE, BY_1, 3000)), TimerEffect::Keep, "stopped");
}

#[test]
fn tsc_deadline() {
    let mut lapic = x2apic(0);
    assert_eq!(lapic.set_tsc_deadline(5), TimerEffect::Keep, "ignored in one-shot mode");
    assert_eq!(lapic.tsc_deadline(), 0);
    assert_eq!(lapic.msr_write(0x838, 1000, 0), Ok(Effect::Timer(TimerEffect::ArmNs(2000))));
    assert_eq!(lapic.msr_write(0x832, u64::from(DEADLINE | 0x40), 0), Ok(Effect::Timer(TimerEffect::Cancel)));
    assert_eq!(lapic.msr_read(0x838, 0), Ok(0), "the mode change stops the count");
    assert_eq!(lapic.msr_write(0x838, 1000, 0), Ok(Effect::Timer(TimerEffect::Keep)));
    assert_eq!(lapic.msr_read(0x838, 0), Ok(0));
    assert_eq!(lapic.set_tsc_deadline(5000), TimerEffect::ArmTsc(5000));
    assert_eq!((lapic.tsc_deadline(), lapic.timer_due()), (5000, TimerEffect::ArmTsc(5000)));
    assert_eq!(lapic.expire(u64::MAX, 4999), TimerEffect::ArmTsc(5000));
    assert!(!lapic.has_irr());
    assert_eq!(lapic.expire(0, 5000), TimerEffect::Keep);
    assert_eq!((lapic.pending_vector(), lapic.tsc_deadline()), (Some(0x40), 0));
    let _ = lapic.set_tsc_deadline(6000);
    assert_eq!(lapic.set_tsc_deadline(0), TimerEffect::Cancel);
    let _ = lapic.set_tsc_deadline(6000);
    assert_eq!(lapic.msr_write(0x832, 0x40, 0), Ok(Effect::Timer(TimerEffect::Cancel)));
    assert_eq!(lapic.expire(0, u64::MAX), TimerEffect::Cancel);
}

/// Both bits of the mode: it is neither of the two that count nor the TSC's deadline.
#[test]
fn in_the_reserved_mode_what_counts_ends_and_nothing_begins() {
    const RESERVED: u32 = DEADLINE | PERIODIC | 0x40;
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, LVT, RESERVED);
    assert_eq!(timer(write(&mut lapic, INITIAL, 1000)), TimerEffect::Cancel);
    assert_eq!(lapic.expire(u64::MAX, u64::MAX), TimerEffect::Cancel);
    for mode in [0, PERIODIC] {
        let mut lapic = xapic(0);
        let _ = write(&mut lapic, LVT, mode | 0x40);
        let _ = write(&mut lapic, INITIAL, 1_000_000);
        assert_eq!(timer(write_at(&mut lapic, LVT, RESERVED, 500)), TimerEffect::Keep, "{mode:#x}");
        assert_eq!(
            (lapic.timer_due(), read_at(&mut lapic, CURRENT, 1_000_000)),
            (TimerEffect::ArmNs(2_000_000), 500_000)
        );
        assert_eq!(lapic.expire(2_000_000, 0), TimerEffect::Keep, "{mode:#x}");
        assert_eq!((lapic.pending_vector(), lapic.timer_due()), (Some(0x40), TimerEffect::Cancel));
    }
    // Neither a new divisor nor a new count goes on with it, and the deadline is another timer.
    for (register, value) in [(DIVIDE, BY_1), (INITIAL, 7), (LVT, DEADLINE)] {
        let mut lapic = xapic(0);
        let _ = write(&mut lapic, LVT, 0x40);
        let _ = write(&mut lapic, INITIAL, 1000);
        let _ = write(&mut lapic, LVT, RESERVED);
        assert_eq!(timer(write_at(&mut lapic, register, value, 5)), TimerEffect::Cancel, "{register:#x}");
        assert_eq!(lapic.timer_due(), TimerEffect::Cancel);
    }
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, LVT, DEADLINE | 0x40);
    assert_eq!(lapic.set_tsc_deadline(5000), TimerEffect::ArmTsc(5000));
    assert_eq!(timer(write(&mut lapic, LVT, RESERVED)), TimerEffect::Cancel);
}

fn get(lapic: &Lapic, now_ns: u64, format: bool) -> [u8; 1024] {
    let mut out = [0xaa; 1024];
    lapic.get_state(&mut out, now_ns, format);
    out
}

fn word(state: &[u8; 1024], offset: usize) -> u32 {
    u32::from_le_bytes(state[offset..offset + 4].try_into().unwrap())
}

#[test]
fn state_round_trips() {
    let mut lapic = xapic(3);
    for (offset, value) in [
        (0x3f0, 0),
        (0x280, 0),
        (0x20, 9 << 24),
        (0xd0, 0x0800_0000),
        (0xe0, 0),
        (0xf0, 0x11f3),
        (0x310, 0x0500_0000),
        (0x300, 0x4_4441),
        (LVT, PERIODIC | 0x40),
        (0x330, 0x1_0200),
        (0x350, 0x8732),
        (0x360, 0x400),
        (0x370, 0xfe),
        (DIVIDE, BY_1),
        (INITIAL, 1_000_000),
    ] {
        let _ = write(&mut lapic, offset, value);
    }
    lapic.set_irr(0x51, false);
    lapic.set_irr(0xa3, true);
    let _ = ack(&mut lapic);
    lapic.set_tpr(0x21);
    let saved = get(&lapic, 300_000, false);
    assert_eq!(word(&saved, 0x20), 9 << 24);
    assert_eq!(word(&saved, CURRENT as usize), 700_000);
    assert_eq!(word(&saved, 0xa0), 0xa0);
    assert!(saved.chunks(16).all(|c| c[4..] == [0; 12]), "only the first word of 16 bytes is a register");

    let mut other = xapic(3);
    assert_eq!(other.set_state(&saved, 5_000_000, false), Ok(TimerEffect::ArmNs(5_700_000)));
    assert_eq!(get(&other, 5_000_000, false), saved);
    assert_eq!((other.irr_max(), other.isr_max(), other.ppr()), (lapic.irr_max(), 0xa3, 0xa0));
    assert_eq!(other.eoi().map(|e| (e.vector, e.level)), Some((0xa3, true)));
    assert_eq!(other.address(), lapic.address());
}

#[test]
fn a_timer_that_ran_out_unseen_is_due_again() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, LVT, 0x40);
    let _ = write(&mut lapic, INITIAL, 500);
    let saved = get(&lapic, 10_000, false);
    let mut other = xapic(0);
    assert_eq!(other.set_state(&saved, 70, false), Ok(TimerEffect::ArmNs(70)));
    // Periodic: a full period from now. A current count beyond the initial count is cut.
    let mut forged = saved;
    forged[0x322] = 2;
    assert_eq!(other.set_state(&forged, 70, false), Ok(TimerEffect::ArmNs(200_070)));
    forged[0x320..0x324].copy_from_slice(&0x40u32.to_le_bytes());
    forged[0x390..0x394].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(other.set_state(&forged, 70, false), Ok(TimerEffect::ArmNs(1070)));
}

#[test]
fn state_in_x2apic_mode() {
    let lapic = x2apic(0x102);
    let (whole, shifted) = (get(&lapic, 0, true), get(&lapic, 0, false));
    assert_eq!((word(&whole, 0x20), word(&shifted, 0x20)), (0x102, 0x0200_0000));
    assert_eq!(word(&whole, 0xd0), 0x10_0004);
    let mut other = x2apic(0x102);
    assert!(other.set_state(&whole, 0, true).is_ok());
    assert_eq!(other.set_state(&shifted, 0, true), Err(InvalidState));
    assert!(other.set_state(&shifted, 0, false).is_ok(), "the ID is ignored");
    assert_eq!(other.msr_read(0x802, 0), Ok(0x102));
}

#[test]
fn forged_state_is_cut_to_what_registers_hold() {
    let mut lapic = xapic(0);
    assert!(lapic.set_state(&[0xff; 1024], 0, false).is_ok());
    let state = get(&lapic, 0, false);
    assert_eq!(word(&state, 0x200), u32::MAX, "shown, though vectors below 16 are never delivered");
    assert_eq!(word(&state, 0x100), 0xffff_0000);
    assert_eq!(word(&state, 0x30) & 0xffff, 0x14);
    for _ in 16..256 {
        assert!(lapic.eoi().is_some_and(|e| e.vector >= 16));
    }
    assert_eq!(lapic.eoi(), None);
}

#[test]
fn deadline_mode_survives_a_state_set_before_cpuid() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, LVT, DEADLINE | 0x40);
    let saved = get(&lapic, 0, false);
    let mut other = xapic(0);
    other.set_features(Features::default());
    assert_eq!(other.set_state(&saved, 0, false), Ok(TimerEffect::Cancel));
    assert_eq!(other.set_tsc_deadline(77), TimerEffect::ArmTsc(77));
    // A second restore keeps the deadline that KVM_SET_MSRS has already brought.
    assert_eq!(other.set_state(&saved, 0, false), Ok(TimerEffect::ArmTsc(77)));
}
