//! Interrupt controllers: what registers and states may hold, and what must hold between accesses. A state that was saved and
//! loaded is the same state.

use crate::{input::Input, lapic_holds::holds};
use irqchip::{
    Bits256, Chip, ChipMode, Config, Effect, Eoi, EoiPin, Features, Ioapic, Lapic, Line, Lvt, Message, MsiFormat, Pic,
    Pir, Pit, Route, RoutingTable, Target, TimerEffect, Vapic,
};
use state::{Section, Sections, State, Writer};

/// It may have whatever came with any version.
const SECTION: Section = Section::new(*b"fuzz", u16::MAX);

/// Writes `state`, reads it into `other`, and sees that this one writes the same.
fn round_trip<T: State>(state: &T, other: &mut T) {
    let saved = save(state);
    let mut sections = Sections::new(&saved).expect("a state");
    sections.load(SECTION, 0, other).expect("what was written is read");
    sections.end().expect("nothing else");
    assert!(save(other) == saved, "it is the same");
}

fn save(state: &impl State) -> Vec<u8> {
    let mut w = Writer::new(1 << 20);
    w.section(SECTION, 0, state);
    w.finish().expect("memory")
}

const LVTS: [Lvt; 6] = [Lvt::Timer, Lvt::Thermal, Lvt::Perf, Lvt::Lint0, Lvt::Lint1, Lvt::Error];

pub fn lapic(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let head = input.u8();
    let config = Config { bus_cycle_ns: input.number().max(1) as u32, ..Config::new(input.u8().into(), head & 1 != 0) };
    // The ABI refuses 0.
    let config = Config { bus_cycle_ns: config.bus_cycle_ns.max(1), ..config };
    let mut lapic = Lapic::new(config);
    let features = Features { x2apic: head & 2 != 0, tsc_deadline: head & 4 != 0, directed_eoi: head & 8 != 0 };
    lapic.set_features(features);
    let pir = Pir::new();
    let mut now = 0u64;
    while input.more() {
        lapic_step(&mut lapic, &pir, &mut now, &mut input);
        holds(&lapic, now);
    }
    let mut other = Lapic::new(config);
    round_trip(&lapic, &mut other);
}

fn lapic_step(lapic: &mut Lapic, pir: &Pir, now: &mut u64, input: &mut Input<'_>) {
    let effect = match input.u8() % 24 {
        0..4 => {
            let offset = u32::from(input.u8() & 0x3f) << 4;
            lapic.mmio_write(offset, &(input.number() as u32).to_le_bytes(), *now)
        }
        4 => {
            let (offset, len) = (u32::from(input.u16() & 0xfff), input.below(9));
            lapic.mmio_write(offset, &input.u64().to_le_bytes()[..len], *now)
        }
        5 => {
            let mut data = [0; 16];
            let (offset, len) = (u32::from(input.u16() & 0xfff), input.below(17));
            lapic.mmio_read(offset, &mut data[..len], *now);
            Effect::None
        }
        6..9 => lapic.msr_write(0x800 + u32::from(input.u8()), input.number(), *now).unwrap_or(Effect::None),
        9 => {
            let _ = lapic.msr_read(0x800 + u32::from(input.u8()), *now);
            Effect::None
        }
        10 => {
            lapic.set_irr(input.u8(), input.bool());
            Effect::None
        }
        11 => {
            pir.post(input.u8(), input.bool());
            pir.drain_into(lapic);
            assert!(pir.is_empty());
            Effect::None
        }
        12 | 13 => {
            if let Some(vector) = lapic.pending_vector() {
                lapic.take(vector);
                assert_eq!(vector >> 4, lapic.ppr() >> 4);
            }
            Effect::None
        }
        14 => {
            let _ = lapic.local(input.of(&LVTS));
            Effect::None
        }
        15 => {
            *now = now.saturating_add(input.number());
            Effect::Timer(lapic.expire(*now, input.number()))
        }
        16 => Effect::Timer(lapic.set_tsc_deadline(input.number())),
        17 => {
            let base = 0xfee0_0000 | input.number() & 0xfff | u64::from(input.u8() & 3) << 10;
            let _ = lapic.set_base(base, input.bool(), !0 << 48);
            Effect::None
        }
        18 => {
            let mut state = [0; 1024];
            let format = input.bool();
            lapic.get_state(&mut state, *now, format);
            for _ in 0..input.below(8) {
                state[usize::from(input.u16() & 1023)] = input.u8();
            }
            lapic.set_state(&state, *now, format).map_or(Effect::None, Effect::Timer)
        }
        19 => Effect::Timer(if input.bool() { lapic.init() } else { lapic.reset() }),
        20 => {
            let register = input.of(&[Vapic::Eoi, Vapic::Icr, Vapic::Tpr]);
            let _ = lapic.vapic_read(register);
            lapic.vapic_write(register, input.number(), *now).unwrap_or(Effect::None)
        }
        21 => {
            lapic.set_cr8(input.u8());
            let armed = if input.bool() { lapic.pending_vector() } else { None };
            if let Some(vector) = lapic.quietly_in_service(armed) {
                assert!(lapic.in_service_or_pending(vector));
            }
            let _ = lapic.quiet_eoi(&Bits256::EMPTY);
            Effect::None
        }
        22 => {
            let m = Message::from_msi(input.number(), input.u32(), MsiFormat::default());
            let _ = (lapic.address().matches(&m, input.bool()), lapic.address().accept(&m));
            let _ = lapic.accept(&m);
            Effect::None
        }
        _ => lapic.eoi().map_or(Effect::None, Effect::Eoi),
    };
    match effect {
        Effect::Eoi(eoi) => assert!(eoi.vector >= 16),
        Effect::Ipi(m) => {
            let address = lapic.address();
            let _ = (address.matches(&m, true), address.accept(&m), lapic.accept(&m));
        }
        Effect::Timer(TimerEffect::ArmNs(at)) => assert_eq!(lapic.timer_due(), TimerEffect::ArmNs(at)),
        Effect::Timer(TimerEffect::ArmTsc(at)) => assert_eq!(lapic.timer_due(), TimerEffect::ArmTsc(at)),
        _ => {}
    }
}

pub fn others(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.u8() & 3 {
        0 => ioapic(&mut input),
        1 => pic(&mut input),
        2 => pit(&mut input),
        _ => routing(&mut input),
    }
}

fn ioapic(input: &mut Input<'_>) {
    let mut ioapic = Ioapic::new();
    ioapic.set_broadcast_quirk_disabled(input.bool());
    let mut lapic = Lapic::new(Config::new(0, true));
    while input.more() {
        let sent = match input.u8() % 12 {
            0..4 => {
                let register = input.u8() & 0x3f;
                let _ = ioapic.mmio_write(0, &[register, 0, 0, 0]);
                let written = ioapic.mmio_write(0x10, &(input.number() as u32).to_le_bytes());
                written.waiting.and_then(|pin| if input.bool() { ioapic.redeliver(pin) } else { None })
            }
            4 => {
                let (offset, len) = (u32::from(input.u8()), input.below(17));
                let _ = ioapic.mmio_write(offset, &[input.u8(); 16][..len]);
                let mut data = [0; 16];
                ioapic.mmio_read(offset, &mut data[..len]);
                None
            }
            5..8 => match ioapic.set_irq(input.u8() & 31, input.u8() & 31, input.bool()) {
                Line::Deliver(m) => Some(m),
                _ => None,
            },
            8 => {
                let eoi = Eoi { vector: input.u8(), level: input.bool(), suppressed: input.bool() };
                let pins = ioapic.pins_of_vector(eoi.vector);
                let pin = input.u8() % 24;
                match ioapic.eoi_pin(pin, &eoi) {
                    EoiPin::Deliver(m) => Some(m),
                    EoiPin::None | EoiPin::Storm => {
                        assert!(pins >> 24 == 0);
                        None
                    }
                }
            }
            9 => {
                let mut state = [0; 216];
                ioapic.get_state(&mut state);
                for _ in 0..input.below(8) {
                    state[input.below(216)] = input.u8();
                }
                let pins = ioapic.set_state(&state);
                for pin in (0..24).filter(|pin| pins >> pin & 1 != 0) {
                    let _ = ioapic.inject(pin);
                }
                None
            }
            10 => {
                let pin = input.u8() & 31;
                ioapic.hold(pin, input.u8());
                ioapic.refused(pin);
                ioapic.forget(pin);
                None
            }
            _ => ioapic.redeliver(input.u8() & 31),
        };
        if let Some(m) = sent {
            assert!(m.pin < 24);
            assert_eq!(m.message.vector, ioapic.pin_message(m.pin).vector);
            let _ = lapic.accept(&m.message);
        }
        let _ = ioapic.eoi_bitmap(&lapic, u32::from(input.u8()));
    }
    round_trip(&ioapic, &mut Ioapic::new());
}

const PIC_PORTS: [u16; 8] = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x20, 0xa0];

fn pic(input: &mut Input<'_>) {
    let mut pic = Pic::new();
    while input.more() {
        match input.u8() % 8 {
            0..3 => {
                let known = pic.write(input.of(&PIC_PORTS), input.u8(), input.bool());
                assert!(known.is_some());
            }
            3 => {
                assert!(pic.read(input.of(&PIC_PORTS)).is_some());
            }
            4 | 5 => {
                let status = pic.set_irq(input.u8() & 15, input.u8() & 31, input.bool());
                assert!((-1..=1).contains(&status));
            }
            6 => {
                let _ = pic.ack();
            }
            _ => {
                let chip = input.of(&[Chip::PicMaster, Chip::PicSlave]);
                let mut state = pic.get_state(chip).expect("it is one of the two");
                state[input.below(16)] = input.u8();
                // The line between the two is low whenever somebody looks.
                state[0] &= if chip == Chip::PicMaster { !4 } else { !0 };
                pic.set_state(chip, &state);
                // What user space gets is what it may put back.
                let again = pic.get_state(chip).expect("it is one of the two");
                pic.set_state(chip, &again);
                assert_eq!(pic.get_state(chip), Some(again));
            }
        }
    }
    round_trip(&pic, &mut Pic::new());
}

fn pit(input: &mut Input<'_>) {
    let mut now = input.number();
    let mut pit = Pit::new(200_000, now);
    while input.more() {
        now = now.saturating_add(input.number());
        match input.u8() % 8 {
            0..3 => {
                let effect = pit.write(0x40 + u16::from(input.u8() & 3), input.u8(), now);
                assert!(effect == TimerEffect::Keep || effect == pit.timer_due());
            }
            3 => {
                let _ = pit.read(0x40 + u16::from(input.u8() & 3), now);
            }
            4 => {
                let tick = pit.expire(now);
                if let TimerEffect::ArmNs(at) = tick.timer {
                    assert!(at > now || at == u64::MAX || !tick.inject, "a timer that is due again at once");
                }
                let _ = pit.ack();
            }
            5 => {
                pit.speaker_write(input.u8(), now);
                let _ = pit.speaker_read(now);
            }
            6 => {
                let mut state = pit.get_state();
                for _ in 0..input.below(8) {
                    state[input.below(112)] = input.u8();
                }
                let _ = pit.set_state(&state, now);
            }
            _ => pit.set_reinject(input.bool()),
        }
    }
    round_trip(&pit, &mut Pit::new(0, 0));
}

fn routing(input: &mut Input<'_>) {
    let mode = input.of(&[ChipMode::None, ChipMode::Split, ChipMode::Kernel]);
    let format = input.bool();
    let mut routes = Vec::new();
    while input.more() && routes.len() < 300 {
        let gsi = input.number() as u32;
        let target = match input.u8() % 3 {
            0 => {
                let chip = input.of(&[Chip::PicMaster, Chip::PicSlave, Chip::Ioapic]);
                Target::Pin { chip, pin: input.u8() }
            }
            1 => Target::Msi { address: 0xfee0_0000 | input.number(), data: input.u32() },
            _ => Target::HvSint { vp_index: input.number() as u32, sint: input.number() as u32 },
        };
        routes.push(Route { gsi, target });
    }
    let Ok(table) = RoutingTable::build(&routes, mode, format) else { return };
    let mut found = 0;
    for gsi in (0..4200).chain([u32::MAX]) {
        let here = table.lookup(gsi);
        let given: Vec<_> = routes.iter().filter(|r| r.gsi == gsi).copied().collect();
        assert_eq!(here, given);
        found += here.len();
    }
    assert_eq!(found, routes.len());
    for route in &routes {
        if let Target::Pin { chip, pin } = route.target {
            let gsi = table.gsi_of(chip, pin).expect("there is a route to it");
            assert!(table.lookup(gsi).iter().any(|r| r.target == route.target));
        }
    }
    let mut lapic = Lapic::new(Config::new(0, true));
    lapic.set_irr(0x31, true);
    table.eoi_exit_bitmap(24, &lapic, MsiFormat::default());
    round_trip(&table, &mut RoutingTable::empty());
}
