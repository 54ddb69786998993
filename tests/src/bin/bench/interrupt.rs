//! The host's own interrupt under a guest: its timer's tick, and the same tick under a program.

use crate::guest::{DONE, FRESH};
use crate::{Kind, window};
use anyhow::{Context, Result, bail};
use iced_x86::{IcedError, code_asm::*};
use kvm_ioctls::VcpuExit;
use std::time::Instant;
use tests::client::{Client, assemble};

const MEMORY: usize = 8 << 20;
/// Ticks that are looked at. They come every four million instructions.
const TICKS: u32 = 61;
/// A longer gap between two looks at the clock is a tick.
const GAP: u32 = 500;
/// Instructions from one of the guest's looks at its time-stamp counter to the next, most of them NOP.
const ROUND: u32 = 208;

/// `profiled`: this is what the emulator is to log.
pub fn all(profiled: bool) -> Vec<Kind> {
    if window::wanted() && !profiled {
        // A single tick may have other work behind it: no figures for a table.
        return Vec::new();
    }
    // One has to be enough where each of four million instructions is logged.
    let ticks = if window::wanted() { 1 } else { TICKS };
    let mut all = vec![Kind { name: "external-interrupt", measure: Box::new(move |_| under_guest(ticks)) }];
    if !window::wanted() {
        all.insert(0, Kind { name: "calibration-timer-tick", measure: Box::new(move |_| Ok(under_program(ticks))) });
    }
    all
}

fn under_program(ticks: u32) -> f64 {
    let mut gaps = Vec::new();
    let (mut last, mut usual) = (Instant::now(), 0);
    while gaps.len() < ticks as usize {
        let now = Instant::now();
        let gap = now.duration_since(last).as_nanos() as u64;
        last = now;
        if gap > GAP.into() { gaps.push(gap) } else { usual = gap }
    }
    median(gaps) - usual as f64
}

/// RAX and R9: the time, and since when the guest looked last.
fn look(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.mov(r9, rax)?;
    a.sub(r9, r8)?;
    a.mov(r8, rax)
}

fn under_guest(ticks: u32) -> Result<f64> {
    let mut client = Client::new(MEMORY, true)?;
    client.split_irqchip()?;
    client.load(assemble(|a| {
        let (mut again, mut spin) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.mov(r13, u64::from(ticks))?;
        a.mov(r14, FRESH)?;
        look(a)?;
        a.set_label(&mut spin)?;
        look(a)?;
        (0..ROUND - 8).try_for_each(|_| a.nop())?;
        a.cmp(r9, GAP as i32)?;
        a.jb(spin)?;
        a.mov(qword_ptr(r14), r9)?;
        a.add(r14, 8)?;
        a.sub(r13, 1)?;
        a.jnz(spin)?;
        a.mov(dx, u32::from(DONE))?;
        a.out(dx, al)?;
        a.jmp(again)
    })?)?;
    let mut vcpu = client.vcpu(0)?;
    let mut pass = || match vcpu.run().context("KVM_RUN")? {
        VcpuExit::IoOut(DONE, _) => Ok(()),
        other => bail!("the guest left with {other:?}"),
    };
    // Fills the nested page tables.
    pass()?;
    window::open(ticks)?;
    pass()?;
    window::close()?;
    let gaps = (0..ticks.into()).map(|n| client.peek(FRESH + 8 * n)).collect();
    Ok(median(gaps) - f64::from(ROUND))
}

/// Of at least one.
fn median(mut gaps: Vec<u64>) -> f64 {
    gaps.sort();
    gaps.get(gaps.len() / 2).map_or(f64::NAN, |gap| *gap as f64)
}
