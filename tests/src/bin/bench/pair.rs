//! Two vCPUs on one host CPU that wake each other.

use crate::Kind;
use crate::guest::{DONE, end_of_interrupt, wrmsr, x2apic};
use crate::window;
use anyhow::{Result, bail};
use iced_x86::{IcedError, code_asm::*};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::time::Instant;
use tests::client::{CODE, Client, STACK, assemble};

/// Sent to the other vCPU, and its answer.
const PING: u8 = 0x41;
const PONG: u8 = 0x42;
/// Ends the other vCPU.
const LEAVE: u8 = 0x43;
/// Where the other vCPU begins.
const OTHER_CODE: u64 = CODE + 0x1000;
const OTHER_STACK: u64 = STACK - 0x4000;
/// x2APIC interrupt command register.
const ICR: u32 = 0x830;

pub fn all() -> Vec<Kind> {
    let kind = |name, vcpus| Kind { name, measure: Box::new(move |rounds| ipi_and_wake(rounds, vcpus)) };
    vec![kind("ipi-and-wake", 2), kind("ipi-and-wake-64-vcpus", 64)]
}

fn send(a: &mut CodeAssembler, vector: u8, apic_id: u64) -> Result<(), IcedError> {
    wrmsr(a, ICR, apic_id << 32 | u64::from(vector))
}

fn leave(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dx, u32::from(DONE))?;
    a.out(dx, al)
}

/// A vCPU sends an IPI to another that halts, and halts until that has answered: half of the round trip. Beside them are so
/// many that it is `vcpus`, which do not run.
fn ipi_and_wake(rounds: u32, vcpus: u64) -> Result<f64> {
    let mut client = Client::new(8 << 20, true)?;
    client.split_irqchip()?;
    client.load(assemble(|a| {
        let mut round = a.create_label();
        let mut again = a.create_label();
        x2apic(a)?;
        a.mov(r13, 2u64)?;
        a.set_label(&mut again)?;
        a.mov(r12, u64::from(rounds))?;
        a.set_label(&mut round)?;
        a.cli()?;
        send(a, PING, 1)?;
        a.sti()?;
        a.hlt()?;
        a.sub(r12, 1)?;
        a.jnz(round)?;
        leave(a)?;
        a.sub(r13, 1)?;
        a.jnz(again)?;
        send(a, LEAVE, 1)?;
        leave(a)
    })?)?;
    let other = assemble(|a| {
        let mut sleep = a.create_label();
        x2apic(a)?;
        // Now it may be called.
        leave(a)?;
        a.sti()?;
        a.set_label(&mut sleep)?;
        a.hlt()?;
        a.jmp(sleep)
    })?;
    client.load_at(OTHER_CODE, other)?;
    client.handler(
        PING,
        assemble(|a| {
            send(a, PONG, 0)?;
            end_of_interrupt(a)
        })?,
    )?;
    client.handler(PONG, assemble(end_of_interrupt)?)?;
    client.handler(LEAVE, assemble(leave)?)?;
    let (mut vcpu, mut other) = (client.vcpu(0)?, client.vcpu(1)?);
    (2..vcpus).try_for_each(|id| client.vcpu(id).map(drop))?;
    client.descriptors(&vcpu)?;
    client.descriptors(&other)?;
    other.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })?;
    let mut regs = other.get_regs()?;
    (regs.rip, regs.rsp) = (OTHER_CODE, OTHER_STACK);
    other.set_regs(&regs)?;
    until_done(&mut other)?;
    std::thread::scope(|scope| {
        let other = scope.spawn(move || until_done(&mut other));
        until_done(&mut vcpu)?;
        window::open(2 * rounds)?;
        let begin = Instant::now();
        until_done(&mut vcpu)?;
        let took = begin.elapsed();
        window::close()?;
        until_done(&mut vcpu)?;
        match other.join() {
            Ok(left) => left?,
            Err(_) => bail!("the other vCPU's thread panicked"),
        }
        Ok(took.as_nanos() as f64 / f64::from(rounds) / 2.0)
    })
}

fn until_done(vcpu: &mut VcpuFd) -> Result<()> {
    match vcpu.run()? {
        VcpuExit::IoOut(DONE, _) => Ok(()),
        other => bail!("the guest left with {other:?}"),
    }
}
