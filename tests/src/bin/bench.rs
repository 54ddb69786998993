//! Costs per exit, in nanoseconds of the clock. Under an instruction-counting emulator (`-icount shift=0`) a nanosecond is
//! one host instruction. Each kind prints `BENCH <kind> <count>`; an empty loop is taken off.

use anyhow::{Result, bail};
use iced_x86::{IcedError, code_asm::*};
use kvm_ioctls::VcpuExit;
use std::time::{Duration, Instant};
use tests::client::{Client, assemble};

/// Where the guest says that it is done.
const DONE: u16 = 0xf4;
/// Where it writes when a write to user space is measured.
const PORT: u16 = 0x3f0;
/// First page of the memory that is touched for the first time.
const FRESH: u64 = 0x40_0000;

/// Rounds per measurement: the second argument, or enough for a figure that repeats to the instruction.
fn loops() -> u32 {
    std::env::args().nth(2).and_then(|n| n.parse().ok()).unwrap_or(4000)
}

type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Runs [`loops`] rounds of `body` and returns nanoseconds per round.
fn measure(body: Body) -> Result<f64> {
    let mut client = Client::new(64 << 20, true)?;
    client.split_irqchip()?;
    client.load(assemble(|a| {
        let mut round = a.create_label();
        // Twice: the first pass warms caches, page tables and translations; the OUT in between starts the clock.
        let mut again = a.create_label();
        a.mov(r13, 2u64)?;
        a.set_label(&mut again)?;
        a.mov(r12, u64::from(loops()))?;
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
    let mut vcpu = client.vcpu(0)?;
    let mut begin = None;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(DONE, _) => match begin {
                None => begin = Some(Instant::now()),
                Some(t) => return Ok(t.elapsed().as_nanos() as f64 / f64::from(loops())),
            },
            VcpuExit::IoOut(PORT, _) | VcpuExit::IoIn(PORT, _) => {}
            other => bail!("the guest left with {other:?}"),
        }
    }
}

/// First touch of pages that the host has already: each round touches the next page of a slot that was just made.
fn first_touch() -> Result<f64> {
    const PAGES: u64 = 2000;
    let mut client = Client::new(64 << 20, true)?;
    // Keep the host from using huge pages behind the measured memory: the nested fault must map 4 KiB.
    client.split_irqchip()?;
    client.small_pages()?;
    client.load(assemble(|a| {
        let mut round = a.create_label();
        a.mov(dx, u32::from(DONE))?;
        a.out(dx, al)?;
        a.mov(r12, PAGES)?;
        a.mov(r14, FRESH)?;
        a.set_label(&mut round)?;
        a.mov(byte_ptr(r14), 1)?;
        a.add(r14, 4096)?;
        a.sub(r12, 1)?;
        a.jnz(round)?;
        a.out(dx, al)?;
        a.hlt()
    })?)?;
    let mut vcpu = client.vcpu(0)?;
    let mut begin = None;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(DONE, _) => match begin {
                None => begin = Some(Instant::now()),
                Some(t) => return Ok(t.elapsed().as_nanos() as f64 / PAGES as f64),
            },
            other => bail!("the guest left with {other:?}"),
        }
    }
}

fn main() -> Result<()> {
    // Loading a module starts work in the background (the kernel tests its ciphers, for one): let it end.
    std::thread::sleep(Duration::from_secs(20));
    let empty = measure(|_| Ok(()))?;
    println!("BENCH empty-loop {empty:.0}");
    let kinds: [(&str, Body); 4] = [
        ("cpuid", |a| {
            a.xor(eax, eax)?;
            a.xor(ecx, ecx)?;
            a.cpuid()
        }),
        ("rdmsr", |a| {
            a.mov(ecx, 0xfe)?;
            a.rdmsr()
        }),
        ("pio-out-to-user", |a| {
            a.mov(dx, u32::from(PORT))?;
            a.out(dx, al)
        }),
        ("pio-in-from-user", |a| {
            a.mov(dx, u32::from(PORT))?;
            a.in_(al, dx)
        }),
    ];
    // An argument limits the run to the kinds whose name contains it.
    let only = std::env::args().nth(1).unwrap_or_default();
    for (name, body) in kinds.into_iter().filter(|(name, _)| name.contains(&only)) {
        println!("BENCH {name} {:.0}", measure(body)? - empty);
    }
    let name = "npf-first-touch-4k";
    if name.contains(&only) {
        println!("BENCH {name} {:.0}", first_touch()?);
    }
    Ok(())
}
