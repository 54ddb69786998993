//! Random guests and callers: whatever is written, nothing panics and the invariants of the local APIC hold.

mod common;
use common::*;
use irqchip::{Effect, Lapic, Lvt, Mode, Pir, TimerEffect};

const LVTS: [Lvt; 6] = [Lvt::Timer, Lvt::Thermal, Lvt::Perf, Lvt::Lint0, Lvt::Lint1, Lvt::Error];

/// Vectors in an eight-register set, read through KVM_GET_LAPIC.
fn vectors(state: &[u8; 1024], offset: usize) -> Vec<u8> {
    let bit = |v: usize| state[offset + v / 32 * 16 + v % 32 / 8] >> (v % 8) & 1 != 0;
    (0..256).filter(|&v| bit(v)).map(|v| v as u8).collect()
}

fn check(lapic: &Lapic, now: u64) {
    let mut state = [0; 1024];
    lapic.get_state(&mut state, now, true);
    let (isr, irr) = (vectors(&state, 0x100), vectors(&state, 0x200));
    let (isr_max, irr_max) = (isr.last().copied().unwrap_or(0), irr.last().copied().unwrap_or(0));
    assert_eq!((lapic.isr_max(), lapic.irr_max()), (isr_max, irr_max));
    assert!(lapic.pending_vector().is_none_or(|v| v >= 16));
    let tpr = lapic.tpr();
    let ppr = if tpr >> 4 >= isr_max >> 4 { tpr } else { isr_max & 0xf0 };
    assert_eq!(lapic.ppr(), ppr);
    let expected = (irr_max >> 4 > ppr >> 4 && lapic.mode() != Mode::Disabled).then_some(irr_max);
    assert_eq!(lapic.pending_vector(), expected);
    let sw_enabled = state[0xf1] & 1 != 0;
    assert_eq!(lapic.address().sw_enabled(), sw_enabled);
    let count = u32::from_le_bytes(state[0x390..0x394].try_into().unwrap());
    let initial = u32::from_le_bytes(state[0x380..0x384].try_into().unwrap());
    assert!(count <= initial);
}

fn value(random: &mut Random) -> u64 {
    match random.below(5) {
        0 => random.next(),
        1 => random.below(256),
        2 => u64::MAX,
        3 => 1 << random.below(64),
        _ => random.below(1 << 20),
    }
}

#[test]
fn arbitrary_accesses_keep_the_invariants() {
    for seed in 1..=16 {
        let mut random = Random::new(seed);
        let mut lapic = if random.chance(2) { xapic(seed as u32) } else { x2apic(seed as u32) };
        let pir = Pir::new();
        let mut now = 0u64;
        for _ in 0..4000 {
            now = now.wrapping_add(random.below(400_000));
            let effect = match random.below(16) {
                0..=3 => {
                    let offset = (random.below(0x41) * 16) as u32 + if random.chance(8) { 3 } else { 0 };
                    write_at(&mut lapic, offset, value(&mut random) as u32, now)
                }
                4..=6 => {
                    let msr = 0x7ff + random.below(0x102) as u32;
                    lapic.msr_write(msr, value(&mut random), now).unwrap_or(Effect::None)
                }
                7 => {
                    let mut data = [0; 9];
                    let (offset, len) = (random.next() as u32 & 0xfff, random.below(10) as usize);
                    lapic.mmio_read(offset, &mut data[..len], now);
                    let _ = lapic.msr_read(0x800 + random.below(256) as u32, now);
                    Effect::None
                }
                8 => {
                    lapic.set_irr(random.next() as u8, random.chance(2));
                    Effect::None
                }
                9 => {
                    pir.post(random.next() as u8, random.chance(2));
                    pir.post(random.next() as u8, random.chance(2));
                    pir.drain_into(&mut lapic);
                    Effect::None
                }
                10 => {
                    let before = lapic.pending_vector();
                    assert_eq!(ack(&mut lapic), before);
                    assert_eq!(before.map(|v| v >> 4), before.map(|_| lapic.ppr() >> 4));
                    Effect::None
                }
                11 => {
                    let _ = lapic.local(LVTS[random.below(6) as usize]);
                    Effect::None
                }
                12 => Effect::Timer(lapic.expire(now, random.next())),
                13 => Effect::Timer(lapic.set_tsc_deadline(value(&mut random))),
                14 if random.chance(8) => {
                    let base = 0xfee0_0000 | value(&mut random) & 0xfff | random.below(4) << 10;
                    let _ = lapic.set_base(base, random.chance(2), !0 << 48);
                    Effect::None
                }
                15 if random.chance(40) => {
                    let state = std::array::from_fn(|_| random.next() as u8);
                    lapic.set_state(&state, now, false).map_or(Effect::None, Effect::Timer)
                }
                15 if random.chance(40) => Effect::Timer(lapic.init()),
                _ => lapic.eoi().map_or(Effect::None, Effect::Eoi),
            };
            match effect {
                Effect::Eoi(eoi) => assert!(eoi.vector >= 16),
                Effect::Ipi(m) => {
                    let a = lapic.address();
                    let _ = (a.matches(&m, true), a.accept(&m), lapic.accept(&m));
                }
                Effect::Timer(TimerEffect::ArmNs(at)) => assert_eq!(lapic.timer_due(), TimerEffect::ArmNs(at)),
                Effect::Timer(TimerEffect::ArmTsc(at)) => assert_eq!(lapic.timer_due(), TimerEffect::ArmTsc(at)),
                _ => {}
            }
            check(&lapic, now);
        }
    }
}
