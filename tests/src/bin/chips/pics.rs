//! The two 8259s.

use crate::hand::{Deed, Hand};
use anyhow::Result;
use tests::random::Random;

/// What a BIOS and an operating system do.
pub fn by_hand() -> Result<()> {
    let mut hand = Hand::new(false)?;
    hand.start_pics()?;
    for irq in [4, 12, 1] {
        println!("8259: line {irq} {}", hand.line(irq, 1)?);
    }
    println!("8259: irr {:x} {:x}", hand.input(0x20)?, hand.input(0xa0)?);
    for round in 0..4 {
        println!("8259: round {round} took {:x?}", hand.take(Deed::Open)?);
        for port in [0x20, 0xa0] {
            hand.out(port, 0x0b)?;
            println!("8259: isr of {port:x} is {:x}", hand.input(port)?);
        }
        hand.out(0xa0, 0x20)?;
        hand.out(0x20, 0x20)?;
    }
    // A request that goes away before it is acknowledged: spurious.
    hand.out(0x4d0, 0x20)?;
    println!("8259: level {} {}", hand.line(5, 1)?, hand.line(5, 0)?);
    println!("8259: took {:x?}", hand.take(Deed::Open)?);
    println!("8259: wide read {:x}", hand.deed(Deed::In32, 0x20, 0, 0)?);
    Ok(())
}

/// Any command, any line, at any time.
pub fn at_random() -> Result<()> {
    for seed in 1..=8 {
        let mut hand = Hand::new(false)?;
        hand.start_pics()?;
        let mut random = Random(seed * 0x9e37_79b9_7f4a_7c15);
        for step in 0..300 {
            match random.below(8) {
                0..3 => {
                    let (irq, level) = (random.below(16) as u32, random.below(2) as u32);
                    println!("8259 {seed}.{step}: line {irq} {level} is {}", hand.line(irq, level)?);
                }
                3 => println!("8259 {seed}.{step}: took {:x?}", hand.take(Deed::Open)?),
                4 => {
                    let port = random.of(&[0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1]);
                    println!("8259 {seed}.{step}: {port:x} reads {:x}", hand.input(port)?);
                }
                5 => {
                    // Mostly EOIs, or nothing would happen for long.
                    hand.out(random.of(&[0x20, 0xa0]), 0x20)?;
                }
                6 => {
                    let port = random.of(&[0x21, 0xa1, 0x4d0, 0x4d1]);
                    hand.out(port, random.below(256) as u8 & random.below(256) as u8)?;
                }
                _ => {
                    let port = random.of(&[0x20, 0xa0]);
                    let value = random.below(256) as u8;
                    hand.out(port, value)?;
                    if value & 0x10 != 0 {
                        let base = if port == 0x20 { 0x20 } else { 0x28 };
                        // No automatic EOI: with a level that stays high the guest would do nothing else any more.
                        for follows in [base, 4, random.below(32) as u8 & 0x11] {
                            hand.out(port + 1, follows)?;
                        }
                    }
                }
            }
            if step % 20 == 0 {
                println!("8259 {seed}.{step}: {:02x?} {:02x?}", hand.state(0)?, hand.state(1)?);
            }
        }
    }
    Ok(())
}
