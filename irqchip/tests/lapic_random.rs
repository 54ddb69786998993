//! Random guests and callers: whatever is written, nothing panics and the invariants of the local APIC hold.

mod common;
#[path = "common/lapic_holds.rs"]
mod lapic_holds;
use common::*;
use irqchip::{Effect, Lvt, Pir, TimerEffect};
use lapic_holds::holds;

const LVTS: [Lvt; 6] = [Lvt::Timer, Lvt::Thermal, Lvt::Perf, Lvt::Lint0, Lvt::Lint1, Lvt::Error];

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
            holds(&lapic, now);
        }
    }
}
