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

/// The clock's line: one that was delivered counts as pending until its interrupt has ended.
pub fn clock() -> Result<()> {
    const PIN: u32 = 8;
    let mut hand = Hand::new(false)?;
    hand.store(LINT0, MASKED)?;
    // Vectors that the handler does not end.
    for entry in [0x88, 0x189, MASKED | 0x8a, LEVEL | 0x8b] {
        redirect(&mut hand, PIN, entry, 0)?;
        println!("clock {entry:x}: {} {} {}", hand.line(PIN, 1)?, hand.line(PIN, 1)?, hand.line(PIN, 0)?);
        println!("clock {entry:x}: {} {}", hand.line(PIN, 1)?, hand.line(PIN, 0)?);
        println!("clock {entry:x}: took {:x?}", hand.take(Deed::Open)?);
        println!("clock {entry:x}: {} {}", hand.line(PIN, 1)?, hand.line(PIN, 0)?);
        // Without asking.
        hand.client.vm.set_irq_line(PIN, true)?;
        hand.client.vm.set_irq_line(PIN, false)?;
        println!("clock {entry:x}: took {:x?}", hand.take(Deed::Open)?);
        hand.store(EOI, 0)?;
        println!("clock {entry:x}: {} {}", hand.line(PIN, 1)?, hand.line(PIN, 0)?);
        println!("clock {entry:x}: took {:x?}", hand.take(Deed::Open)?);
        // State that is restored: pending as the local APIC has it.
        let apic = hand.vcpu.get_lapic()?;
        let mut empty = apic;
        empty.regs[0x100..0x280].fill(0);
        hand.vcpu.set_lapic(&empty)?;
        println!("clock {entry:x}: restored {} {}", hand.line(PIN, 1)?, hand.line(PIN, 0)?);
        hand.vcpu.set_lapic(&apic)?;
        println!("clock {entry:x}: restored {} {}", hand.line(PIN, 1)?, hand.line(PIN, 0)?);
        hand.vcpu.set_lapic(&empty)?;
        println!("clock {entry:x}: took {:x?}", hand.take(Deed::Open)?);
    }
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
                    let (irq, level) = (random.of(&[1, 3, 5, 8, 8, 9, 16, 23]), random.below(2) as u32);
                    println!("ioapic {seed}.{step}: line {irq} {level} is {}", hand.line(irq, level)?);
                }
                3 | 4 => println!("ioapic {seed}.{step}: took {:x?}", hand.take(Deed::Open)?),
                5 => hand.store(EOI, 0)?,
                _ => {
                    let pin = random.of(&[1, 3, 5, 8, 9, 16, 23]);
                    // Fixed or lowest priority, physical; a few vectors, so that pins share some.
                    let flags = random.of(&[0, 0x100, LEVEL, LEVEL, LEVEL | 0x100, MASKED, MASKED | LEVEL]);
                    // A level that stays high must not be ended by the handler: it would come again at once.
                    // Of an edge and a level with one vector, sent at once, the level counts here, and on stock the last.
                    let some = random.of(&[0x41, 0x51, 0x95, 0x86]);
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
