//! The PIT. Counts depend on the time: they are looked at, not printed.

use crate::hand::{Deed, Hand};
use anyhow::{Result, ensure};
use tests::random::Random;

/// Modes, latches and access states.
pub fn registers() -> Result<()> {
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut hand = Hand::new(true)?;
    for step in 0..400 {
        let port = random.of(&[0x40, 0x41, 0x42, 0x43]);
        match random.below(3) {
            0 => {
                hand.input(port)?;
            }
            // No counts so short that the timer's interrupts would be the only thing that happens.
            _ if port == 0x43 => hand.out(port, random.below(256) as u8)?,
            _ => hand.out(port, random.of(&[0, 0x80, 0xff]))?,
        }
        let state = hand.client.vm.get_pit2()?;
        for (n, c) in state.channels.iter().enumerate() {
            println!(
                "pit {step}: {n} count {:x} latched {} {} status {:x} access {} {} {:x} {} mode {:x} {} gate {}",
                c.count,
                c.count_latched,
                c.status_latched,
                c.status & 0x7f,
                c.read_state,
                c.write_state,
                c.write_latch,
                c.rw_mode,
                c.mode,
                c.bcd,
                c.gate
            );
        }
    }
    println!("pit: wide {:x}", hand.deed(Deed::In32, 0x40, 0, 0)? >> 8);
    println!("pit: beyond its ports {:x}", hand.deed(Deed::In32, 0x41, 0, 0)?);
    Ok(())
}

/// The interrupt of channel 0, through the 8259 and through the IOAPIC.
pub fn ticks() -> Result<()> {
    let mut hand = Hand::new(true)?;
    hand.start_pics()?;
    hand.out(0xa1, 0xff)?;
    hand.out(0x21, 0xfe)?;
    // 2 ms.
    for (port, value) in [(0x43, 0x34), (0x40, 0x52), (0x40, 0x09)] {
        hand.out(port, value)?;
    }
    for _ in 0..5 {
        let took = hand.take(Deed::Halt)?;
        ensure!(took == [0x20], "took {took:x?}");
        hand.out(0x20, 0x20)?;
    }
    println!("pit: ticks at the 8259");
    hand.out(0x21, 0xff)?;
    hand.store(0xfee0_0350, 1 << 16)?;
    hand.take(Deed::Open)?;
    hand.store(0xfec0_0000, 0x10)?;
    hand.store(0xfec0_0010, 0x31)?;
    for _ in 0..5 {
        let took = hand.take(Deed::Halt)?;
        ensure!(!took.is_empty() && took.iter().all(|v| *v == 0x31), "took {took:x?}");
    }
    println!("pit: ticks at the IOAPIC");
    Ok(())
}
