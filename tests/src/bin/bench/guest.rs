//! The guest loop around one exit.

use crate::window;
use anyhow::{Result, bail};
use iced_x86::{IcedError, code_asm::*};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::time::Instant;
use tests::client::{Client, assemble};

/// Where the guest says that a pass is done.
pub const DONE: u16 = 0xf4;
/// A port without a device in the kernel.
pub const PORT: u16 = 0x3f0;
/// An address without a device in the kernel.
pub const MMIO: u64 = 0xd000_0000;
/// First page of the memory that is touched for the first time.
pub const FRESH: u64 = 0x40_0000;
/// An interrupt whose handler ends it with EOI.
pub const VECTOR: u8 = 0x40;

/// A piece of guest code. R12 to R14 are the loop's: rounds left, passes left, and an address that begins at [`FRESH`].
pub type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A loop to be measured.
#[derive(Clone, Copy)]
pub struct Loop {
    /// Which interrupt controllers are in the kernel, memory, devices: done before the vCPU exists.
    pub prepare: fn(&mut Client) -> Result<()>,
    /// What the vCPU is, beside what every one here is.
    pub dress: fn(&Client, &VcpuFd) -> Result<()>,
    /// Once, before the loop.
    pub setup: Code,
    /// One round.
    pub body: Code,
    /// What the client does for an exit of a round.
    pub answer: fn(&Client, &VcpuExit) -> Result<bool>,
    /// Passes before the one that counts: they warm caches, page tables and translations.
    pub warm: u64,
    /// Between the passes.
    pub between: fn(&Client) -> Result<()>,
}

impl Loop {
    pub const fn new(body: Code) -> Self {
        let answer = |_: &Client, exit: &VcpuExit| {
            Ok(matches!(
                exit,
                VcpuExit::IoOut(PORT, _)
                    | VcpuExit::IoIn(PORT, _)
                    | VcpuExit::MmioRead(MMIO, _)
                    | VcpuExit::MmioWrite(MMIO, _)
            ))
        };
        Self {
            prepare: |client| client.split_irqchip(),
            dress: |_, _| Ok(()),
            setup: |_| Ok(()),
            body,
            answer,
            warm: 1,
            between: |_| Ok(()),
        }
    }

    /// Nanoseconds per round.
    pub fn measure(&self, bytes: usize, rounds: u32) -> Result<f64> {
        let mut client = Client::new(bytes, true)?;
        (self.prepare)(&mut client)?;
        let (setup, body, warm) = (self.setup, self.body, self.warm);
        client.load(assemble(|a| {
            let mut round = a.create_label();
            // The OUT between the passes starts the clock, the last one stops it.
            let mut again = a.create_label();
            setup(a)?;
            a.mov(r13, warm + 1)?;
            if warm == 0 {
                a.mov(dx, u32::from(DONE))?;
                a.out(dx, al)?;
            }
            a.set_label(&mut again)?;
            a.mov(r12, u64::from(rounds))?;
            a.mov(r14, FRESH)?;
            a.set_label(&mut round)?;
            body(a)?;
            a.sub(r12, 1)?;
            a.jnz(round)?;
            a.mov(dx, u32::from(DONE))?;
            a.out(dx, al)?;
            a.sub(r13, 1)?;
            a.jnz(again)?;
            a.hlt()
        })?)?;
        client.handler(VECTOR, assemble(end_of_interrupt)?)?;
        client.handler(GENERAL_PROTECTION, assemble(skip_msr_access)?)?;
        let mut vcpu = client.vcpu(0)?;
        client.descriptors(&vcpu)?;
        (self.dress)(&client, &vcpu)?;
        let mut passes = self.warm.max(1);
        while passes > 0 {
            self.pass(&client, &mut vcpu)?;
            passes -= 1;
        }
        (self.between)(&client)?;
        window::open(rounds)?;
        let begin = Instant::now();
        self.pass(&client, &mut vcpu)?;
        let took = begin.elapsed();
        window::close()?;
        Ok(took.as_nanos() as f64 / f64::from(rounds))
    }

    /// Runs the guest up to the end of a pass.
    fn pass(&self, client: &Client, vcpu: &mut VcpuFd) -> Result<()> {
        loop {
            match vcpu.run()? {
                VcpuExit::IoOut(DONE, _) => return Ok(()),
                exit if (self.answer)(client, &exit)? => {}
                other => bail!("the guest left with {other:?}"),
            }
        }
    }
}

const GENERAL_PROTECTION: u8 = 13;

/// WRMSR of a constant.
pub fn wrmsr(a: &mut CodeAssembler, msr: u32, value: u64) -> Result<(), IcedError> {
    a.mov(ecx, msr)?;
    a.mov(eax, value as u32)?;
    a.mov(edx, (value >> 32) as u32)?;
    a.wrmsr()
}

/// The local APIC in x2APIC mode, software enabled, its timer in TSC-deadline mode with [`VECTOR`] (APM 16.5, 16.9).
pub fn x2apic(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ecx, 0x1b)?;
    a.rdmsr()?;
    a.or(eax, 0xc00)?;
    a.wrmsr()?;
    wrmsr(a, 0x80f, 0x1ff)?;
    wrmsr(a, 0x832, 0x4_0000 | u64::from(VECTOR))
}

/// An interrupt handler that does nothing else.
pub fn end_of_interrupt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(rax)?;
    a.push(rcx)?;
    a.push(rdx)?;
    wrmsr(a, 0x80b, 0)?;
    a.pop(rdx)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.iretq()
}

/// A handler of #GP that goes on behind RDMSR or WRMSR.
fn skip_msr_access(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.add(rsp, 8)?;
    a.add(qword_ptr(rsp), 2)?;
    a.iretq()
}
