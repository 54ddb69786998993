//! The IOAPIC and its way to the local APIC.

use crate::hand::{Deed, Hand};
use anyhow::Result;
use tests::random::Random;

const SELECT: u64 = 0xfec0_0000;
const WINDOW: u64 = 0xfec0_0010;
const EOI: u64 = 0xfee0_00b0;
/// Local vector table entry of LINT0.
const LINT0: u64 = 0xfee0_0350;
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;

fn write(hand: &mut Hand, register: u32, value: u32) -> Result<()> {
    hand.store(SELECT, register)?;
    hand.store(WINDOW, value)
}

fn read(hand: &mut Hand, register: u32) -> Result<u32> {
    hand.store(SELECT, register)?;
    hand.load(WINDOW)
}

fn redirect(hand: &mut Hand, pin: u32, entry: u32, to: u32) -> Result<()> {
    write(hand, 0x11 + 2 * pin, to << 24)?;
    write(hand, 0x10 + 2 * pin, entry)
}

/// What an operating system does.
pub fn by_hand() -> Result<()> {
    let mut hand = Hand::new(false)?;
    hand.store(LINT0, MASKED)?;
    for register in (0..0x12).chain([0x3e, 0x3f, 0x40, 0xff]) {
        println!("ioapic: register {register:x} is {:x}", read(&mut hand, register)?);
    }
    write(&mut hand, 0, !0)?;
    println!("ioapic: id {:x} {:x}", read(&mut hand, 0)?, read(&mut hand, 2)?);
    println!("ioapic: elsewhere {:x} {:x}", hand.load(SELECT)?, hand.load(SELECT + 0x20)?);
    redirect(&mut hand, 5, 0x35, 0)?;
    println!("ioapic: edge {} {} {}", hand.line(5, 1)?, hand.line(5, 1)?, hand.line(5, 0)?);
    println!("ioapic: took {:x?}", hand.take(Deed::Open)?);
    // A vector that the handler does not end.
    redirect(&mut hand, 9, LEVEL | 0x89, 0)?;
    println!("ioapic: level {} {}", hand.line(9, 1)?, hand.line(9, 1)?);
    println!("ioapic: took {:x?}, {:x}", hand.take(Deed::Open)?, read(&mut hand, 0x10 + 18)?);
    hand.store(EOI, 0)?;
    println!("ioapic: took {:x?}, {:x}", hand.take(Deed::Open)?, read(&mut hand, 0x10 + 18)?);
    println!("ioapic: lowered {}", hand.line(9, 0)?);
    hand.store(EOI, 0)?;
    println!("ioapic: took {:x?}, {:x}", hand.take(Deed::Open)?, read(&mut hand, 0x10 + 18)?);
    // Raised while masked.
    redirect(&mut hand, 10, MASKED | LEVEL | 0x3a, 0)?;
    println!("ioapic: masked {}", hand.line(10, 1)?);
    redirect(&mut hand, 11, LEVEL | 0x3b, 0x77)?;
    println!("ioapic: nobody {} {:x}", hand.line(11, 1)?, read(&mut hand, 0x10 + 22)?);
    hand.line(10, 0)?;
    redirect(&mut hand, 10, 0x3a, 0xff)?;
    println!("ioapic: all {} took {:x?}", hand.line(10, 1)?, hand.take(Deed::Open)?);
    Ok(())
}

/// Any entry, any line, at any time.
pub fn at_random() -> Result<()> {
    for seed in 1..=8 {
        let mut hand = Hand::new(false)?;
        hand.store(LINT0, MASKED)?;
        let mut random = Random(seed * 0x2545_f491_4f6c_dd1d);
        for step in 0..300 {
            match random.below(8) {
                0..3 => {
                    // Line 8, the clock's, is counted in a way of its own.
                    let (irq, level) = (random.of(&[1, 3, 5, 9, 16, 23]), random.below(2) as u32);
                    println!("ioapic {seed}.{step}: line {irq} {level} is {}", hand.line(irq, level)?);
                }
                3 | 4 => println!("ioapic {seed}.{step}: took {:x?}", hand.take(Deed::Open)?),
                5 => hand.store(EOI, 0)?,
                _ => {
                    let pin = random.of(&[1, 3, 5, 9, 16, 23]);
                    // Fixed or lowest priority, physical; a few vectors, so that pins share some.
                    let flags = random.of(&[0, 0x100, LEVEL, LEVEL, LEVEL | 0x100, MASKED, MASKED | LEVEL]);
                    // A level that stays high must not be ended by the handler: it would come again at once.
                    let some = random.of(&[0x41, 0x51, 0x85, 0x86]);
                    let vector = if flags & LEVEL != 0 { 0x85 | some & 2 } else { some };
                    redirect(&mut hand, pin, flags | vector, random.of(&[0, 0, 0, 0xff, 3]))?;
                    println!("ioapic {seed}.{step}: entry {:x}", read(&mut hand, 0x10 + 2 * pin)?);
                }
            }
            if step % 20 == 0 {
                println!("ioapic {seed}.{step}: {:02x?}", hand.state(2)?);
            }
        }
    }
    Ok(())
}
