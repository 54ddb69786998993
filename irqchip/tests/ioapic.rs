//! The IOAPIC: registers, edge and level pins, Remote IRR, EOI, state.

mod common;
use common::*;
use irqchip::{DeliveryMode, Eoi, EoiPin, Ioapic, IoapicWrite, Line, PinMessage};

const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;

fn put(ioapic: &mut Ioapic, register: u8, value: u32) -> IoapicWrite {
    assert_eq!(ioapic.mmio_write(0x00, &[register]), IoapicWrite::default());
    ioapic.mmio_write(0x10, &value.to_le_bytes())
}

fn get(ioapic: &mut Ioapic, register: u8) -> u32 {
    let _ = ioapic.mmio_write(0x00, &u32::from(register).to_le_bytes());
    let mut data = [0; 4];
    ioapic.mmio_read(0x10, &mut data);
    u32::from_le_bytes(data)
}

/// Programs `pin`: vector and flags in the low half, destination `cpu`.
fn program(ioapic: &mut Ioapic, pin: u8, low: u32, cpu: u32) -> IoapicWrite {
    let _ = put(ioapic, 0x11 + 2 * pin, cpu << 24);
    put(ioapic, 0x10 + 2 * pin, low)
}

fn eoi(vector: u8) -> Eoi {
    Eoi { vector, level: true, suppressed: false }
}

#[test]
fn registers() {
    let mut ioapic = Ioapic::new();
    assert_eq!(ioapic.base(), 0xfec0_0000);
    assert_eq!(get(&mut ioapic, 1), 0x17_0011);
    let _ = put(&mut ioapic, 0, 0xff12_3456);
    assert_eq!((get(&mut ioapic, 0), get(&mut ioapic, 2)), (0x0f00_0000, 0x0f00_0000));
    for register in (0x10..0x40).step_by(2) {
        assert_eq!((get(&mut ioapic, register), get(&mut ioapic, register + 1)), (MASKED, 0));
    }
    assert_eq!((get(&mut ioapic, 0x40), get(&mut ioapic, 0xff)), (u32::MAX, u32::MAX));
    assert_eq!(put(&mut ioapic, 0x40, 0), IoapicWrite::default());
    // Read-only bits stay, and a change of the mask is reported.
    let changed = put(&mut ioapic, 0x10, !MASKED);
    assert_eq!(changed, IoapicWrite { changed: true, mask_changed: Some((0, false)), waiting: None });
    assert_eq!(get(&mut ioapic, 0x10), !(MASKED | REMOTE_IRR | 1 << 12));
    // The index register itself; narrow and wide accesses.
    let mut wide = [0xaa; 8];
    ioapic.mmio_read(0x00, &mut wide);
    assert_eq!(wide, [0x10, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(ioapic.mmio_write(0x10, &[0; 3]), IoapicWrite::default());
    assert!(ioapic.mmio_write(0x10, &[0x31, 0, 0, 0, 9, 9, 9, 9]).changed);
    assert_eq!(get(&mut ioapic, 0x10), 0x31);
}

/// Nobody has to look anew at what ends are awaited because a pin is masked, or is written what it holds.
#[test]
fn entries_that_send_the_same_have_not_changed() {
    let mut ioapic = Ioapic::new();
    assert!(program(&mut ioapic, 4, LEVEL | 0x31, 1).changed);
    for low in [LEVEL | 0x31, MASKED | LEVEL | 0x31, LEVEL | 0x31] {
        assert!(!put(&mut ioapic, 0x18, low).changed, "{low:x}");
    }
    for low in [LEVEL | 0x32, 0x32, 0x432, 0xc32] {
        assert!(put(&mut ioapic, 0x18, low).changed, "{low:x}");
    }
    assert!(!put(&mut ioapic, 0x19, 1 << 24).changed);
    assert!(put(&mut ioapic, 0x19, 2 << 24).changed);
}

#[test]
fn an_edge_is_delivered_once() {
    let mut ioapic = Ioapic::new();
    let _ = program(&mut ioapic, 4, 0x0931, 0xab);
    let Line::Deliver(PinMessage { pin: 4, message }) = ioapic.set_irq(4, 0, true) else { panic!() };
    assert_eq!((message.mode, message.vector, message.dest), (DeliveryMode::LowestPriority, 0x31, 0xab));
    assert!(message.logical && !message.level && message.lowest && message.ff_is_broadcast);
    assert_eq!(ioapic.set_irq(4, 0, true), Line::Coalesced);
    assert_eq!(ioapic.set_irq(4, 0, false), Line::Lowered);
    assert!(matches!(ioapic.set_irq(4, 0, true), Line::Deliver(_)));
    assert_eq!(ioapic.set_irq(24, 0, true), Line::Ignored);
}

#[test]
fn a_level_is_delivered_until_it_is_low() {
    let mut ioapic = Ioapic::new();
    let _ = program(&mut ioapic, 10, LEVEL | 0x52, 1);
    assert!(matches!(ioapic.set_irq(10, 0, true), Line::Deliver(_)));
    assert_eq!(get(&mut ioapic, 0x24) & REMOTE_IRR, REMOTE_IRR);
    assert_eq!(ioapic.set_irq(10, 1, true), Line::Ignored, "in service");
    assert_eq!(ioapic.pins_of_vector(0x52), 1 << 10);
    assert!(matches!(ioapic.eoi_pin(10, &eoi(0x52)), EoiPin::Deliver(PinMessage { pin: 10, .. })));
    // Two sources share the line.
    assert!(matches!(ioapic.set_irq(10, 0, false), Line::Ignored));
    assert_eq!(ioapic.set_irq(10, 1, false), Line::Lowered);
    assert_eq!(ioapic.eoi_pin(10, &eoi(0x52)), EoiPin::None);
    assert_eq!(get(&mut ioapic, 0x24) & REMOTE_IRR, 0);
}

#[test]
fn eoi_that_does_not_count() {
    let mut ioapic = Ioapic::new();
    let _ = program(&mut ioapic, 10, LEVEL | 0x52, 1);
    let _ = ioapic.set_irq(10, 0, true);
    for ignored in [Eoi { level: false, ..eoi(0x52) }, Eoi { suppressed: true, ..eoi(0x52) }, eoi(0x53)] {
        assert_eq!(ioapic.eoi_pin(10, &ignored), EoiPin::None);
        assert_eq!(get(&mut ioapic, 0x24) & REMOTE_IRR, REMOTE_IRR);
    }
    assert_eq!(ioapic.eoi_pin(99, &eoi(0x52)), EoiPin::None);
}

/// As on stock: an edge that waits is sent at the end of a level interrupt with the same vector.
#[test]
fn an_edge_that_shares_its_vector_with_a_level() {
    let mut ioapic = Ioapic::new();
    let _ = program(&mut ioapic, 3, MASKED | 0x52, 1);
    let _ = ioapic.set_irq(3, 0, true);
    let _ = put(&mut ioapic, 0x16, 0x52);
    assert_eq!(ioapic.pins_of_vector(0x52), 1 << 3);
    assert_eq!(ioapic.eoi_pin(3, &Eoi { level: false, ..eoi(0x52) }), EoiPin::None);
    assert!(matches!(ioapic.eoi_pin(3, &eoi(0x52)), EoiPin::Deliver(PinMessage { pin: 3, .. })));
    assert_eq!(get(&mut ioapic, 0x16) & REMOTE_IRR, 0);
}

#[test]
fn remote_irr_goes_with_a_refusal_and_with_edge_mode() {
    let mut ioapic = Ioapic::new();
    let _ = program(&mut ioapic, 3, LEVEL | 0x52, 1);
    let _ = ioapic.set_irq(3, 0, true);
    ioapic.refused(3);
    assert!(matches!(ioapic.set_irq(3, 0, true), Line::Deliver(_)));
    assert_eq!(put(&mut ioapic, 0x16, 0x52).waiting, None);
    let again = put(&mut ioapic, 0x16, LEVEL | 0x52);
    assert_eq!(again.waiting, Some(3), "edge and back: Remote IRR is gone and the line is high");
    assert!(ioapic.redeliver(3).is_some());
    assert_eq!(put(&mut ioapic, 0x16, LEVEL | 0x52).waiting, None, "in service");
}

#[test]
fn masked_pins_keep_levels_and_lose_edges() {
    let mut ioapic = Ioapic::new();
    let _ = program(&mut ioapic, 3, MASKED | LEVEL | 0x52, 1);
    let _ = program(&mut ioapic, 4, MASKED | 0x53, 1);
    assert_eq!((ioapic.set_irq(3, 0, true), ioapic.set_irq(4, 0, true)), (Line::Ignored, Line::Ignored));
    assert_eq!(put(&mut ioapic, 0x16, LEVEL | 0x52).waiting, Some(3));
    assert_eq!(put(&mut ioapic, 0x18, 0x53).waiting, None);
    ioapic.forget(3);
    assert_eq!(ioapic.redeliver(3), None);
}

#[test]
fn an_edge_that_came_while_masked_is_saved_as_pending() {
    let mut ioapic = Ioapic::new();
    let _ = program(&mut ioapic, 4, 0x53, 1);
    let _ = (ioapic.set_irq(4, 0, true), ioapic.set_irq(4, 0, false));
    let _ = put(&mut ioapic, 0x18, MASKED | 0x53);
    assert_eq!(ioapic.set_irq(4, 0, true), Line::Ignored);
    let mut state = [0; 216];
    ioapic.get_state(&mut state);
    assert_eq!(state[16], 1 << 4);
}

#[test]
fn a_storm_is_broken() {
    let mut ioapic = Ioapic::new();
    let _ = program(&mut ioapic, 3, LEVEL | 0x52, 1);
    let _ = ioapic.set_irq(3, 0, true);
    for _ in 1..10_000 {
        assert!(matches!(ioapic.eoi_pin(3, &eoi(0x52)), EoiPin::Deliver(_)));
    }
    assert_eq!(ioapic.eoi_pin(3, &eoi(0x52)), EoiPin::Storm);
    assert!(ioapic.redeliver(3).is_some());
    assert_eq!(ioapic.redeliver(3), None, "in service again");
}

#[test]
fn eoi_bitmap_has_levels_and_notified_pins_of_this_vcpu() {
    let mut ioapic = Ioapic::new();
    let _ = program(&mut ioapic, 0, LEVEL | 0x40, 0);
    let _ = program(&mut ioapic, 1, 0x41, 0);
    let _ = program(&mut ioapic, 2, LEVEL | 0x42, 1);
    let _ = program(&mut ioapic, 3, 0x43, 0);
    let mut lapic = xapic(0);
    let vectors = |lapic: &irqchip::Lapic| {
        let bits = ioapic.eoi_bitmap(lapic, 1 << 3);
        (16..=255u8).filter(|&v| bits.contains(v)).collect::<Vec<_>>()
    };
    assert_eq!(vectors(&lapic), [0x40, 0x43]);
    lapic.set_irr(0x42, true);
    assert_eq!(vectors(&lapic), [0x40, 0x42, 0x43]);
}

#[test]
fn state_round_trips_and_injects_again() {
    let mut ioapic = Ioapic::new();
    let _ = program(&mut ioapic, 5, LEVEL | 0x55, 3);
    let _ = program(&mut ioapic, 6, 0x56, 3);
    let _ = program(&mut ioapic, 7, MASKED | LEVEL | 0x57, 3);
    let _ = put(&mut ioapic, 0, 5 << 24);
    for pin in 5..8 {
        let _ = ioapic.set_irq(pin, 0, true);
    }
    let mut state = [0xaa; 216];
    ioapic.get_state(&mut state);
    let word = |i: usize| u32::from_le_bytes(state[i..i + 4].try_into().unwrap());
    assert_eq!((word(0), word(4), word(8), word(12)), (0xfec0_0000, 0, 0, 5));
    assert_eq!(word(16), 1 << 5 | 1 << 7, "the edge was delivered");
    assert_eq!(word(24 + 8 * 5), LEVEL | REMOTE_IRR | 0x55);
    assert_eq!(word(28 + 8 * 5), 3 << 24);
    let mut other = Ioapic::new();
    assert_eq!(other.set_state(&state), 1 << 5 | 1 << 7);
    assert_eq!((other.inject(5), other.inject(7), other.inject(40)), (Line::Ignored, Line::Ignored, Line::Ignored));
    let mut again = [0; 216];
    other.get_state(&mut again);
    assert_eq!(again, state);
    assert!(matches!(other.eoi_pin(5, &eoi(0x55)), EoiPin::Deliver(_)));
    assert_eq!(other.set_state(&[0xff; 216]), 0xff_ffff);
}

#[test]
fn random_accesses_keep_the_invariants() {
    let mut random = Random::new(99);
    let mut ioapic = Ioapic::new();
    for _ in 0..200_000 {
        let pin = random.below(26) as u8;
        let sent = match random.below(8) {
            0 | 1 => match ioapic.set_irq(pin, random.next() as u8, random.chance(2)) {
                Line::Deliver(m) => Some(m),
                _ => None,
            },
            2 => match ioapic.eoi_pin(pin, &eoi(0x30 + random.below(4) as u8)) {
                EoiPin::Deliver(m) => Some(m),
                _ => None,
            },
            3 => ioapic.redeliver(pin),
            4 => {
                ioapic.refused(pin);
                None
            }
            5 => {
                let mut data = [0; 16];
                {
                    let len = random.below(17) as usize;
                    ioapic.mmio_read(random.below(0x100) as u32, &mut data[..len])
                };
                None
            }
            6 => {
                let waiting = put(&mut ioapic, random.next() as u8, random.next() as u32).waiting;
                waiting.and_then(|pin| ioapic.redeliver(pin))
            }
            _ => {
                let entry = 0x30 + random.below(4) as u32 + random.below(4) as u32 * LEVEL;
                program(&mut ioapic, pin % 24, entry, 0).waiting.and_then(|pin| ioapic.redeliver(pin))
            }
        };
        if let Some(m) = sent {
            let entry = get(&mut ioapic, 0x10 + 2 * m.pin);
            assert_eq!(entry & MASKED, 0);
            assert_eq!(entry & LEVEL != 0, m.message.level);
            assert_eq!(entry & REMOTE_IRR != 0, m.message.level, "a level in service has Remote IRR, an edge never");
            assert_eq!(entry as u8, m.message.vector);
        }
    }
}
