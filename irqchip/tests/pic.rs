//! The 8259A pair: initialisation, edge and level inputs, priorities, every EOI command, special modes, poll, state.

mod common;
use common::*;
use irqchip::{Pic, PicChip, PicWrite};

fn out(pic: &mut Pic, port: u16, value: u8) -> PicWrite {
    pic.write(port, value, true).expect("a port of the 8259s")
}

fn input(pic: &mut Pic, port: u16) -> u8 {
    pic.read(port).expect("a port of the 8259s").0
}

/// Initialised as by a PC: vectors 0x08 and 0x70, `icw4` for both, everything unmasked.
fn pic(icw4: u8) -> Pic {
    let mut pic = Pic::new();
    for (port, base, cascade) in [(0x20, 0x08, 0x04), (0xa0, 0x70, 0x02)] {
        for (port, value) in [(port, 0x11), (port + 1, base | 7), (port + 1, cascade), (port + 1, icw4)] {
            let _ = out(&mut pic, port, value);
        }
    }
    pic
}

fn raise(pic: &mut Pic, pin: u8) -> i32 {
    pic.set_irq(pin, 0, true)
}

fn lower(pic: &mut Pic, pin: u8) {
    let _ = pic.set_irq(pin, 0, false);
}

fn pulse(pic: &mut Pic, pin: u8) {
    raise(pic, pin);
    lower(pic, pin);
}

fn isr(pic: &mut Pic, port: u16) -> u8 {
    let _ = out(pic, port, 0x0b);
    let isr = input(pic, port);
    let _ = out(pic, port, 0x0a);
    isr
}

#[test]
fn an_edge_travels_to_the_cpu_and_back() {
    let mut pic = pic(1);
    assert!(!pic.output());
    assert_eq!(raise(&mut pic, 4), 1);
    assert!(pic.output());
    assert_eq!(raise(&mut pic, 4), 1, "no edge");
    assert_eq!(input(&mut pic, 0x20), 1 << 4, "IRR");
    assert_eq!(pic.ack().vector, 0x0c);
    assert!(!pic.output());
    assert_eq!((input(&mut pic, 0x20), isr(&mut pic, 0x20)), (0, 1 << 4));
    // Another edge while in service waits for the EOI.
    lower(&mut pic, 4);
    assert_eq!(raise(&mut pic, 4), 1);
    lower(&mut pic, 4);
    assert_eq!(raise(&mut pic, 4), 0, "pending already");
    assert!(!pic.output());
    assert_eq!(out(&mut pic, 0x20, 0x20).ended, 1 << 4);
    assert!(pic.output());
}

#[test]
fn the_slave_comes_through_input_2() {
    let mut pic = pic(1);
    pulse(&mut pic, 12);
    let ack = pic.ack();
    assert_eq!((ack.vector, ack.ended), (0x74, 0));
    assert_eq!((isr(&mut pic, 0x20), isr(&mut pic, 0xa0)), (1 << 2, 1 << 4));
    // A less urgent input of the master waits, a more urgent one does not.
    pulse(&mut pic, 3);
    assert!(!pic.output());
    pulse(&mut pic, 1);
    assert_eq!(pic.ack().vector, 0x09);
    assert_eq!(out(&mut pic, 0x20, 0x20).ended, 1 << 1);
    assert_eq!(out(&mut pic, 0xa0, 0x20).ended, 1 << 12);
    assert_eq!(out(&mut pic, 0x20, 0x20).ended, 1 << 2);
    assert_eq!(pic.ack().vector, 0x0b);
}

#[test]
fn fully_nested_priorities() {
    let mut pic = pic(1);
    pulse(&mut pic, 6);
    pulse(&mut pic, 3);
    assert_eq!(pic.ack().vector, 0x0b);
    assert!(!pic.output(), "6 is less urgent than 3");
    pulse(&mut pic, 0);
    assert_eq!(pic.ack().vector, 0x08);
    assert_eq!(isr(&mut pic, 0x20), 1 << 0 | 1 << 3);
    assert_eq!(out(&mut pic, 0x20, 0x20).ended, 1 << 0);
    assert_eq!(out(&mut pic, 0x20, 0x63).ended, 1 << 3, "specific EOI of input 3");
    assert_eq!(pic.ack().vector, 0x0e);
}

#[test]
fn masks() {
    let mut pic = pic(1);
    assert_eq!(out(&mut pic, 0x21, 0x10).mask_changed, 1 << 4);
    assert_eq!(input(&mut pic, 0x21), 0x10);
    assert_eq!(raise(&mut pic, 4), -1);
    assert!(!pic.output());
    assert_eq!(out(&mut pic, 0x21, 0x01).mask_changed, 1 << 4 | 1);
    assert!(pic.output(), "the edge was kept");
    assert_eq!(out(&mut pic, 0xa1, 0x80).mask_changed, 1 << 15);
}

#[test]
fn level_inputs_follow_the_line() {
    let mut pic = pic(1);
    let _ = out(&mut pic, 0x4d0, 0xff);
    let _ = out(&mut pic, 0x4d1, 0xff);
    assert_eq!((input(&mut pic, 0x4d0), input(&mut pic, 0x4d1)), (0xf8, 0xde));
    let _ = pic.set_irq(11, 0, true);
    let _ = pic.set_irq(11, 5, true);
    assert_eq!(pic.ack().vector, 0x73);
    let _ = out(&mut pic, 0xa0, 0x20);
    let _ = out(&mut pic, 0x20, 0x20);
    assert!(pic.output(), "still high");
    lower(&mut pic, 11);
    assert!(input(&mut pic, 0xa0) & 1 << 3 != 0, "another source holds it");
    let _ = pic.set_irq(11, 5, false);
    assert_eq!(input(&mut pic, 0xa0), 0);
}

#[test]
fn spurious_interrupts_are_number_7() {
    let mut pic = pic(1);
    assert_eq!(pic.ack().vector, 0x0f);
    assert_eq!(isr(&mut pic, 0x20), 0, "not in service");
    // The request of the slave went away before the acknowledge.
    let _ = out(&mut pic, 0x4d1, 0x02);
    raise(&mut pic, 9);
    lower(&mut pic, 9);
    assert_eq!(pic.ack().vector, 0x77);
}

#[test]
fn rotation() {
    let mut pic = pic(1);
    // Rotate on non-specific EOI: 3 becomes the least urgent.
    pulse(&mut pic, 3);
    let _ = pic.ack();
    assert_eq!(out(&mut pic, 0x20, 0xa0).ended, 1 << 3);
    pulse(&mut pic, 3);
    pulse(&mut pic, 4);
    pulse(&mut pic, 1);
    assert_eq!(pic.ack().vector, 0x0c);
    // Rotate on specific EOI, set priority.
    assert_eq!(out(&mut pic, 0x20, 0xe4).ended, 1 << 4);
    assert_eq!(pic.ack().vector, 0x09, "5, 6, 7, 0, 1, ...");
    let _ = out(&mut pic, 0x20, 0x20);
    let _ = out(&mut pic, 0x20, 0xc2);
    pulse(&mut pic, 1);
    assert_eq!(pic.ack().vector, 0x0b, "3 is the most urgent now");
}

#[test]
fn automatic_eoi() {
    let mut pic = pic(3);
    pulse(&mut pic, 4);
    let ack = pic.ack();
    assert_eq!((ack.vector, ack.ended), (0x0c, 1 << 4));
    assert_eq!(isr(&mut pic, 0x20), 0);
    pulse(&mut pic, 13);
    assert_eq!(pic.ack().ended, 1 << 2 | 1 << 13);
    let _ = out(&mut pic, 0x20, 0x80);
    pulse(&mut pic, 3);
    let _ = pic.ack();
    pulse(&mut pic, 3);
    pulse(&mut pic, 7);
    assert_eq!(pic.ack().vector, 0x0f, "3 became the least urgent");
    let _ = out(&mut pic, 0x20, 0x00);
}

/// As on stock: the mode is kept for user space, and that is all.
#[test]
fn special_mask_mode_changes_nothing() {
    let mut pic = pic(1);
    pulse(&mut pic, 1);
    let _ = pic.ack();
    pulse(&mut pic, 5);
    let _ = out(&mut pic, 0x21, 0x02);
    let _ = out(&mut pic, 0x20, 0x68);
    assert_eq!(pic.get_state(PicChip::PicMaster).unwrap()[8], 1);
    let _ = out(&mut pic, 0x21, 0x02);
    assert!(!pic.output(), "the masked 1 in service holds back 5");
    assert_eq!(out(&mut pic, 0x20, 0x20).ended, 1 << 1);
    assert!(pic.output());
    let _ = out(&mut pic, 0x20, 0x48);
    assert_eq!(pic.get_state(PicChip::PicMaster).unwrap()[8], 0);
}

#[test]
fn special_fully_nested_mode() {
    let mut pic = pic(0x11);
    pulse(&mut pic, 12);
    let _ = pic.ack();
    pulse(&mut pic, 14);
    assert!(!pic.output());
    pulse(&mut pic, 8);
    assert!(pic.output(), "the slave's more urgent input passes the busy input 2");
    assert_eq!(pic.ack().vector, 0x70);
}

#[test]
fn a_poll_ends_the_interrupt_that_it_reports() {
    let mut pic = pic(1);
    let _ = out(&mut pic, 0x20, 0x0c);
    assert_eq!(input(&mut pic, 0x20), 7, "nothing: bit 7 is clear");
    pulse(&mut pic, 6);
    let _ = out(&mut pic, 0x20, 0x0c);
    let (value, done) = pic.read(0x21).unwrap();
    assert_eq!((value, done.ended), (0x86, 1 << 6), "either port");
    assert_eq!((input(&mut pic, 0x20), isr(&mut pic, 0x20)), (0, 0), "never in service");
    assert!(!pic.output());
    pulse(&mut pic, 10);
    let _ = out(&mut pic, 0xa0, 0x0c);
    let (value, done) = pic.read(0xa0).unwrap();
    assert_eq!((value, done.ended), (0x82, 1 << 10));
    assert!(!pic.output(), "the master has nothing left");
}

#[test]
fn a_poll_of_the_slave_ends_the_master_s_input_2() {
    let mut pic = pic(1);
    pulse(&mut pic, 12);
    let _ = pic.ack();
    pulse(&mut pic, 9);
    let _ = out(&mut pic, 0xa0, 0x0c);
    assert_eq!((input(&mut pic, 0xa0), isr(&mut pic, 0x20), isr(&mut pic, 0xa0)), (0x81, 0, 1 << 4));
}

#[test]
fn a_poll_of_the_master_leaves_the_slave_its_turn() {
    let mut pic = pic(1);
    pulse(&mut pic, 12);
    let _ = out(&mut pic, 0x20, 0x0c);
    assert_eq!(input(&mut pic, 0x20), 0x82);
    assert_eq!((input(&mut pic, 0x20), input(&mut pic, 0xa0)), (0, 1 << 4), "not passed on anew");
    assert!(pic.output(), "not looked at anew");
    let _ = out(&mut pic, 0x20, 0x0c);
    assert_eq!((input(&mut pic, 0x20), pic.output()), (7, true), "looking at both passes it on");
}

/// The output is looked at when a line is driven, at an acknowledge, at an EOI that finds something, and when masks or
/// priorities are set; at nothing else.
#[test]
fn when_the_output_is_looked_at() {
    let mut pic = pic(1);
    raise(&mut pic, 5);
    assert!(pic.output());
    for (port, value) in [(0x20, 0x11), (0x21, 0x08), (0x21, 4), (0x21, 1), (0x20, 0x20), (0x20, 0x80), (0x20, 0x0b)] {
        let _ = out(&mut pic, port, value);
        assert!(pic.output(), "{port:x} {value:x}");
    }
    let _ = out(&mut pic, 0x21, 0);
    assert!(!pic.output());
    // What a forged state or a new initialisation brought in is in the acknowledge all the same.
    assert_eq!(pic.ack().vector, 0x0f);
    lower(&mut pic, 5);
    let _ = out(&mut pic, 0x4d0, 1 << 5);
    raise(&mut pic, 5);
    let _ = out(&mut pic, 0x20, 0x11);
    assert_eq!((pic.output(), pic.ack().vector), (true, 0x0d), "a level outlasts ICW1");
}

#[test]
fn icw1_forgets_edges_but_not_levels() {
    let mut pic = pic(1);
    let _ = out(&mut pic, 0x4d0, 1 << 5);
    raise(&mut pic, 5);
    pulse(&mut pic, 6);
    pulse(&mut pic, 1);
    let _ = pic.ack();
    let _ = out(&mut pic, 0x21, 0xaa);
    let done = out(&mut pic, 0x20, 0x11);
    assert_eq!(done.ended, 1 << 6);
    assert_eq!(input(&mut pic, 0x20), 1 << 5);
    assert_eq!(input(&mut pic, 0x21), 0);
    assert_eq!(isr(&mut pic, 0x20), 1 << 1, "in service until its EOI");
    assert_eq!(out(&mut pic, 0x20, 0x20).ended, 1 << 1);
    // Without ICW4 the third word is a mask.
    for (port, value) in [(0x20, 0x10), (0x21, 0x40), (0x21, 0x04), (0x21, 0x0f)] {
        let _ = out(&mut pic, port, value);
    }
    assert_eq!(input(&mut pic, 0x21), 0x0f);
    assert_eq!(pic.ack().vector, 0x45);
}

/// As on stock: an edge that was latched for nobody is forgotten, and that is all.
#[test]
fn icw1_ends_nothing_if_no_cpu_takes_the_output() {
    let mut pic = pic(1);
    pulse(&mut pic, 6);
    let _ = pic.ack();
    pulse(&mut pic, 6);
    assert_eq!((pic.write(0x20, 0x11, false), input(&mut pic, 0x20)), (Some(PicWrite::default()), 0));
    assert_eq!(isr(&mut pic, 0x20), 1 << 6);
    assert_eq!(out(&mut pic, 0x20, 0x20).ended, 1 << 6);
}

#[test]
fn other_ports_and_pins() {
    let mut pic = pic(1);
    for port in [0x1f, 0x22, 0x9f, 0xa2, 0x4cf, 0x4d2] {
        assert_eq!((pic.read(port), pic.write(port, 0, true)), (None, None));
    }
    assert_eq!(pic.set_irq(16, 0, true), -1);
}

#[test]
fn state_round_trips() {
    let mut pic = pic(3);
    let _ = out(&mut pic, 0x4d1, 0x0e);
    raise(&mut pic, 4);
    raise(&mut pic, 9);
    let _ = pic.ack();
    let _ = out(&mut pic, 0x21, 0x41);
    let _ = out(&mut pic, 0x20, 0x6b);
    let (master, slave) = (pic.get_state(PicChip::PicMaster).unwrap(), pic.get_state(PicChip::PicSlave).unwrap());
    assert_eq!(pic.get_state(PicChip::Ioapic), None);
    assert_eq!((master[2], master[5], master[6], master[8], master[15]), (0x41, 0x08, 1, 1, 0xf8));
    assert_eq!((slave[5], slave[14], slave[15]), (0x70, 0x0e, 0xde));
    let mut other = Pic::new();
    other.set_state(PicChip::PicMaster, &master);
    other.set_state(PicChip::PicSlave, &slave);
    assert_eq!(other.get_state(PicChip::PicMaster), pic.get_state(PicChip::PicMaster));
    assert_eq!(other.get_state(PicChip::PicSlave), pic.get_state(PicChip::PicSlave));
    assert_eq!(other.output(), pic.output());
}

/// What user space set comes back, even where the guest could not have set it; the guest's own writes have their limits.
#[test]
fn forged_state() {
    let mut pic = Pic::new();
    let mut state = [0; 16];
    (state[5], state[14], state[15]) = (10, 0xff, 0x0f);
    pic.set_state(PicChip::PicMaster, &state);
    assert_eq!(pic.get_state(PicChip::PicMaster), Some(state));
    raise(&mut pic, 7);
    assert_eq!(pic.ack().vector, 17);
    let _ = out(&mut pic, 0x4d0, 0xff);
    assert_eq!(pic.get_state(PicChip::PicMaster).unwrap()[14], 0x0f);
    let _ = out(&mut pic, 0x20, 0x11);
    let _ = out(&mut pic, 0x21, 0x2f);
    assert_eq!(pic.get_state(PicChip::PicMaster).unwrap()[5], 0x28);
}

#[test]
fn random_accesses_keep_the_invariants() {
    let mut random = Random::new(7);
    let mut pic = Pic::new();
    let ports = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];
    for _ in 0..300_000 {
        let port = ports[random.below(6) as usize];
        match random.below(10) {
            0..=2 => {
                let _ = pic.write(port, random.next() as u8, true);
            }
            3 => {
                let _ = pic.read(port);
            }
            4..=6 => {
                let _ = pic.set_irq(random.below(17) as u8, random.next() as u8, random.chance(2));
            }
            7 if random.chance(50) => {
                let state = std::array::from_fn(|_| random.next() as u8);
                pic.set_state(if random.chance(2) { PicChip::PicMaster } else { PicChip::PicSlave }, &state);
            }
            _ => {
                let bases = [PicChip::PicMaster, PicChip::PicSlave].map(|c| pic.get_state(c).unwrap()[5]);
                let ack = pic.ack();
                assert!(bases.iter().any(|base| ack.vector.wrapping_sub(*base) < 8));
            }
        }
        for chip in [PicChip::PicMaster, PicChip::PicSlave] {
            let state = pic.get_state(chip).unwrap();
            assert!(state[4] < 8 && state[9] < 4);
        }
    }
}
