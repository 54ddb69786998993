//! What an operator sees of guests, beside stock's: trace events of a guest that does each thing once: what tracefs says of it, without times and without what depends on
//! the host, to be compared with stock's. With the argument `formats`, what events there are,
//! with fields and texts; with `debugfs`, statistics and uevents; with `plain`, the guest alone.

mod debugfs;
mod irqfds;

use anyhow::{Context, Result, bail};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kvm_bindings::kvm_msi;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tests::client::{Client, assemble};

const TRACING: &str = "/sys/kernel/tracing";
/// The guest says that it is done.
const DONE: u16 = 0x3f0;
const DEVICE: u64 = 0x9000_0000;
const IDT: u64 = 0x8_0000;
const HANDLER: u64 = 0x8_8000;
const GDT: u64 = 0x7000;
/// Nothing, 64-bit code, data.
const DESCRIPTORS: [u64; 3] = [0, 0x0020_9b00_0000_0000, 0x00cf_9300_0000_ffff];
const VECTOR: u8 = 0x40;

fn events() -> PathBuf {
    PathBuf::from(TRACING).join("events/kvm")
}

/// One line for each event: name, fields with their place, text.
fn formats() -> Result<()> {
    let mut all = Vec::new();
    for entry in fs::read_dir(events())? {
        let entry = entry?;
        let Ok(format) = fs::read_to_string(entry.path().join("format")) else { continue };
        let mut line = format!("event {}:", entry.file_name().to_string_lossy());
        for field in format.lines().filter(|l| l.starts_with("\tfield:") && !l.contains(" common_")) {
            line += &format!(" {}", field.trim().replace('\t', " "));
        }
        let text = format.lines().find(|l| l.starts_with("print fmt: ")).context("an event without text")?;
        all.push(format!("{line} {text}"));
    }
    all.sort();
    all.iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn switch(name: &str, on: bool) -> Result<()> {
    fs::write(events().join(name).join("enable"), if on { "1" } else { "0" }).with_context(|| name.to_owned())
}

/// Events of the run loop and of interrupts; what a host does on its own account (ticks, its memory) is not among them.
const WANTED: &[&str] = &[
    "kvm_entry",
    "kvm_exit",
    "kvm_mmio",
    "kvm_pio",
    "kvm_msr",
    "kvm_cr",
    "kvm_cpuid",
    "kvm_inj_virq",
    "kvm_inj_exception",
    "kvm_page_fault",
    "kvm_apic",
    "kvm_apic_ipi",
    "kvm_apic_accept_irq",
    "kvm_eoi",
    "kvm_hypercall",
    "kvm_vcpu_wakeup",
    "kvm_userspace_exit",
    "kvm_set_irq",
    "kvm_msi_set_irq",
    "kvm_ioapic_set_irq",
    "kvm_pic_set_irq",
    "kvm_ack_irq",
];

/// What was traced since the last call, one event a line.
fn take() -> Result<Vec<String>> {
    let text = fs::read_to_string(format!("{TRACING}/trace"))?;
    fs::write(format!("{TRACING}/trace"), "")?;
    let mut lines = Vec::new();
    let mut of_host = false;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((_, event)) = line.split_once(": kvm_") else { continue };
        let (name, rest) = event.split_once(':').context("an event without text")?;
        // The host's own interrupts come when they come, and the entry after each.
        let interrupt = name == "exit" && ["reason interrupt ", "reason nmi "].iter().any(|r| rest.contains(r));
        if interrupt || of_host && name == "entry" {
            of_host = interrupt;
            continue;
        }
        of_host = false;
        let rest = match name {
            "vcpu_wakeup" => {
                rest.split_whitespace().filter(|w| w.parse::<u64>().is_err()).collect::<Vec<_>>().join(" ")
            }
            // What the host knows of the page has no place here.
            "page_fault" if !rest.contains("0x00000000900") => continue,
            // Bits that later kernels add; 7.3 has them at the end.
            _ => rest.split(" requests ").next().unwrap_or(rest).trim().to_owned(),
        };
        let rest = without_undefined(&rest);
        lines.push(format!("{name}: {rest}"));
    }
    Ok(lines)
}

/// A line without what EXITINTINFO holds while its valid bit is clear (APM 15.7.2): of an event that was delivered, or nothing.
fn without_undefined(line: &str) -> String {
    const INFO: &str = "intr_info 0x";
    let digits = line.split_once(INFO).and_then(|(_, rest)| rest.get(..8));
    match digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()) {
        Some(info) if info >> 31 == 0 => line.replace(&format!("{INFO}{info:08x}"), &format!("{INFO}00000000")),
        _ => line.to_owned(),
    }
}

/// Somebody else traces: nothing is looked at.
static PLAIN: AtomicBool = AtomicBool::new(false);

fn step(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    if PLAIN.load(Relaxed) {
        return run().with_context(|| name.to_owned());
    }
    take()?;
    run().with_context(|| name.to_owned())?;
    // By whom an interrupt's acceptance is told, and so when, differs (docs/decisions/0038).
    let (last, first): (Vec<_>, Vec<_>) = take()?.into_iter().partition(|line| line.starts_with("apic_accept_irq"));
    for line in first.into_iter().chain(last) {
        println!("{name}: {line}");
    }
    Ok(())
}

/// Runs until the guest is done; accesses of devices are answered with 0x55.
fn run(vcpu: &mut VcpuFd) -> Result<()> {
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(DONE, _) | VcpuExit::Shutdown => return Ok(()),
            VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data) => data.fill(0x55),
            VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) => {}
            other => bail!("{other:?}"),
        }
    }
}

fn done(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, u32::from(DONE))?;
    a.out(dx, al)
}

/// A guest with a handler for [`VECTOR`] that ends the interrupt, in the x2APIC's mode or not.
fn guest(full: bool, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Result<(Client, VcpuFd)> {
    let mut client = Client::new(8 << 20, true)?;
    if full {
        client.full_irqchip()?
    } else {
        client.split_irqchip()?
    }
    let gate = HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32 | (HANDLER >> 16 & 0xffff) << 48;
    let at = (IDT + 16 * u64::from(VECTOR)) as usize;
    client.memory()[at..at + 8].copy_from_slice(&gate.to_le_bytes());
    for (at, descriptor) in (GDT as usize..).step_by(8).zip(DESCRIPTORS) {
        client.memory()[at..at + 8].copy_from_slice(&descriptor.to_le_bytes());
    }
    client.load_at(
        HANDLER,
        assemble(|a| {
            a.push(rax)?;
            a.push(rcx)?;
            a.push(rdx)?;
            a.mov(ecx, 0x80b)?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.wrmsr()?;
            a.pop(rdx)?;
            a.pop(rcx)?;
            a.pop(rax)?;
            a.iretq()
        })?,
    )?;
    client.load(assemble(|a| {
        // The local APIC in x2APIC mode, and on.
        a.mov(ecx, 0x1b)?;
        a.mov(eax, 0xfee0_0d00u32)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(ecx, 0x80f)?;
        a.mov(eax, 0x1ff)?;
        a.wrmsr()?;
        done(a)?;
        f(a)?;
        done(a)
    })?)?;
    let mut vcpu = client.vcpu(0)?;
    let mut s = vcpu.get_sregs()?;
    (s.idt.base, s.idt.limit) = (IDT, 0xfff);
    (s.gdt.base, s.gdt.limit) = (GDT, 0x17);
    vcpu.set_sregs(&s)?;
    run(&mut vcpu)?;
    Ok((client, vcpu))
}

fn simple(name: &str, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Result<()> {
    let (_client, mut vcpu) = guest(false, f)?;
    step(name, || run(&mut vcpu))
}

fn steps() -> Result<()> {
    simple("cpuid", |a| {
        a.xor(eax, eax)?;
        a.xor(ecx, ecx)?;
        a.cpuid()?;
        a.mov(eax, 0x0123_4567)?;
        a.cpuid()
    })?;
    simple("rdmsr", |a| {
        a.mov(ecx, 0x277)?;
        a.rdmsr()
    })?;
    simple("wrmsr", |a| {
        a.mov(ecx, 0x277)?;
        a.mov(eax, 0x0007_0406)?;
        a.mov(edx, eax)?;
        a.wrmsr()
    })?;
    simple("no such msr", |a| {
        a.mov(ecx, 0xdead)?;
        a.rdmsr()
    })?;
    simple("ports", |a| {
        a.mov(edx, 0x80)?;
        a.mov(eax, 0x1234_5678)?;
        a.out(dx, eax)?;
        a.out(dx, ax)?;
        a.in_(al, dx)
    })?;
    simple("device", |a| {
        a.mov(rsi, DEVICE)?;
        a.mov(eax, 0x1234_5678)?;
        a.mov(dword_ptr(rsi), eax)?;
        a.mov(rax, qword_ptr(rsi + 8))
    })?;
    simple("control registers", |a| {
        a.mov(rax, cr4)?;
        a.or(eax, 4)?;
        a.mov(cr4, rax)
    })?;
    simple("hypercall", |a| {
        a.mov(eax, 1)?;
        a.mov(ebx, 2)?;
        a.mov(ecx, 3)?;
        a.mov(edx, 4)?;
        a.mov(esi, 5)?;
        a.vmmcall()
    })?;
    simple("x2apic", |a| {
        a.mov(ecx, 0x802)?;
        a.rdmsr()?;
        a.mov(ecx, 0x80b)?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.wrmsr()
    })?;
    simple("self ipi", |a| {
        a.sti()?;
        a.nop()?;
        a.mov(ecx, 0x83f)?;
        a.mov(eax, u32::from(VECTOR))?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.nop()
    })?;
    simple("ipi to itself", |a| {
        a.sti()?;
        a.nop()?;
        a.mov(ecx, 0x830)?;
        a.mov(eax, u32::from(VECTOR))?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.nop()
    })?;
    let (client, mut vcpu) = guest(false, |a| {
        a.sti()?;
        a.nop()
    })?;
    step("msi", || {
        let msi = kvm_msi { address_lo: 0xfee0_0000, data: VECTOR.into(), ..Default::default() };
        client.vm.signal_msi(msi)?;
        run(&mut vcpu)
    })?;
    let (client, mut vcpu) = guest(true, |a| a.nop())?;
    step("lines", || {
        for gsi in [4, 20] {
            client.vm.set_irq_line(gsi, true)?;
            client.vm.set_irq_line(gsi, false)?;
        }
        run(&mut vcpu)
    })
}

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("formats") => return formats(),
        Some("debugfs") => return debugfs::main(),
        Some("plain") => {
            PLAIN.store(true, Relaxed);
            return steps();
        }
        _ => {}
    }
    WANTED.iter().try_for_each(|name| switch(name, true))?;
    let result = steps();
    WANTED.iter().try_for_each(|name| switch(name, false))?;
    result?;
    take()?;
    irqfds::main()
}
