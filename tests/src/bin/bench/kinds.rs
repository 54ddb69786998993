//! The exits that one vCPU makes.

use crate::guest::{Code, Loop, MMIO, PORT, VECTOR, wrmsr, x2apic};
use crate::{Kind, hyperv, interrupt, window};
use anyhow::{Context, Result, anyhow};
use iced_x86::{IcedError, code_asm::*};
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VcpuExit};
use std::sync::{Mutex, OnceLock};
use tests::client::Client;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: usize = 64 << 20;
const HUGE_MEMORY: usize = 256 << 20;
/// IA32_TSC_DEADLINE.
const DEADLINE: u32 = 0x6e0;
/// The interrupt command register in x2APIC mode, and an SMI for who writes it.
const ICR: u32 = 0x830;
const SELF_SMI: u64 = 2 << 8 | 1 << 18;
/// RSM, where the first SMI of a vCPU starts, in memory of system management mode's own space.
const SMI_ENTRY: u64 = 0x3_8000;
const RSM: [u8; 2] = [0x0f, 0xaa];
const SMM_SLOT: u32 = 1 << 16;
/// Bytes of a dirty ring that takes all pages of a pass: 16 for each.
const RING: u64 = 4096 * 16;
/// Port and address of the ioeventfds.
const EVENT_PORT: u16 = 0x510;
const EVENT_MMIO: u64 = 0xd100_0000;
/// A write here makes the client signal an irqfd.
const RAISE: u16 = 0x3f8;
/// IA32_MTRRCAP: a constant that the kernel has to give.
const MTRR_CAP: u32 = 0xfe;
const PAT: u32 = 0x277;
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// No processor has it.
const NO_MSR: u32 = 0x1234_5678;
/// Rounds that touch memory: as much as there is.
const PAGES: u32 = 2000;
const HUGE_PAGES: u32 = 100;

/// All kinds of this file; `only` is what was asked for.
pub fn all(only: &str) -> Vec<Kind> {
    let plain = Loop::new;
    let apic = |body: Code| Loop { setup: x2apic, ..Loop::new(body) };
    let full = |body: Code| Loop { prepare: |client| client.full_irqchip(), setup: x2apic, ..Loop::new(body) };
    let mut all: Vec<Kind> = [
        ("calibration-100-nops", plain(|a| (0..100).try_for_each(|_| a.nop()))),
        (
            "cpuid",
            plain(|a| {
                a.xor(eax, eax)?;
                a.xor(ecx, ecx)?;
                a.cpuid()
            }),
        ),
        // KVM_HC_VAPIC_POLL_IRQ does nothing.
        (
            "vmmcall",
            plain(|a| {
                a.mov(eax, 1)?;
                a.vmmcall()
            }),
        ),
        (
            "rdmsr",
            plain(|a| {
                a.mov(ecx, MTRR_CAP)?;
                a.rdmsr()
            }),
        ),
        ("wrmsr", plain(|a| wrmsr(a, PAT, PAT_RESET))),
        ("wrmsr-faults", plain(|a| wrmsr(a, NO_MSR, 0))),
        ("pio-in-kernel", full(|a| a.in_(al, 0x40))),
        (
            "pio-ioeventfd",
            Loop {
                prepare: event_port,
                ..plain(|a| {
                    a.mov(dx, u32::from(EVENT_PORT))?;
                    a.out(dx, al)
                })
            },
        ),
        (
            "pio-out-to-user",
            plain(|a| {
                a.mov(dx, u32::from(PORT))?;
                a.out(dx, al)
            }),
        ),
        (
            "pio-in-from-user",
            plain(|a| {
                a.mov(dx, u32::from(PORT))?;
                a.in_(al, dx)
            }),
        ),
        // The index register of the IOAPIC.
        (
            "mmio-in-kernel",
            full(|a| {
                a.mov(rsi, 0xfec0_0000u64)?;
                a.mov(eax, dword_ptr(rsi))
            }),
        ),
        (
            "mmio-ioeventfd",
            Loop {
                prepare: event_mmio,
                ..plain(|a| {
                    a.mov(rsi, EVENT_MMIO)?;
                    a.mov(dword_ptr(rsi), eax)
                })
            },
        ),
        (
            "mmio-write-to-user",
            plain(|a| {
                a.mov(rsi, MMIO)?;
                a.mov(dword_ptr(rsi), eax)
            }),
        ),
        (
            "mmio-read-from-user",
            plain(|a| {
                a.mov(rsi, MMIO)?;
                a.mov(eax, dword_ptr(rsi))
            }),
        ),
        // CR0.WP and CR4.PGE.
        (
            "cr0-toggle",
            plain(|a| {
                a.mov(rax, cr0)?;
                a.xor(rax, 1 << 16)?;
                a.mov(cr0, rax)
            }),
        ),
        (
            "cr4-toggle",
            plain(|a| {
                a.mov(rax, cr4)?;
                a.xor(rax, 1 << 7)?;
                a.mov(cr4, rax)
            }),
        ),
        ("wbinvd", plain(|a| a.wbinvd())),
        ("pause", plain(|a| a.pause())),
        (
            "x2apic-read",
            apic(|a| {
                a.mov(ecx, 0x803)?;
                a.rdmsr()
            }),
        ),
        ("x2apic-eoi", apic(|a| wrmsr(a, 0x80b, 0))),
        // The interrupt, its handler and the EOI in there.
        ("x2apic-self-ipi", Loop { setup: with_interrupts, ..apic(|a| wrmsr(a, 0x83f, VECTOR.into())) }),
        (
            "x2apic-self-ipi-hlt",
            apic(|a| {
                a.cli()?;
                wrmsr(a, 0x83f, VECTOR.into())?;
                a.sti()?;
                a.hlt()
            }),
        ),
        // To the guest itself, whose handler is RSM alone.
        ("smi-rsm", Loop { prepare: smm, ..apic(|a| wrmsr(a, ICR, SELF_SMI)) }),
        // A deadline that does not come.
        ("tsc-deadline-set", apic(|a| wrmsr(a, DEADLINE, 1 << 62))),
        // One that has passed when it is set.
        ("tsc-deadline-taken", Loop { setup: with_interrupts, ..apic(|a| wrmsr(a, DEADLINE, 1)) }),
        // With the 500 ticks that the guest sleeps.
        (
            "tsc-deadline-hlt",
            apic(|a| {
                a.cli()?;
                a.rdtsc()?;
                a.add(eax, 500)?;
                a.adc(edx, 0)?;
                a.mov(ecx, DEADLINE)?;
                a.wrmsr()?;
                a.sti()?;
                a.hlt()
            }),
        ),
        ("irqfd-interrupt", interrupted(irqfd)),
        ("irqfd-interrupt-64-vcpus", interrupted(irqfd_among_64)),
    ]
    .into_iter()
    .chain(hyperv::all())
    .map(|(name, it)| Kind { name, measure: Box::new(move |rounds| less_empty(&it, rounds)) })
    .collect();
    all.insert(0, Kind { name: "calibration-empty", measure: Box::new(empty) });
    all.extend(interrupt::all(!only.is_empty()));
    all.extend(touch());
    all
}

/// What a round takes more than an empty one. Where the emulator looks on, it sees the two apart.
fn less_empty(it: &Loop, rounds: u32) -> Result<f64> {
    let empty = if window::wanted() { 0.0 } else { empty(rounds)? };
    Ok(it.measure(MEMORY, rounds)? - empty)
}

/// What the loop itself takes.
fn empty(rounds: u32) -> Result<f64> {
    static EMPTY: OnceLock<f64> = OnceLock::new();
    if let Some(empty) = EMPTY.get() {
        return Ok(*empty);
    }
    let figure = Loop::new(|_| Ok(())).measure(MEMORY, rounds)?;
    Ok(*EMPTY.get_or_init(|| figure))
}

fn with_interrupts(a: &mut CodeAssembler) -> Result<(), IcedError> {
    x2apic(a)?;
    a.sti()
}

fn smm(client: &mut Client) -> Result<()> {
    client.split_irqchip()?;
    let memory = client.memory();
    let (hva, len) = (memory.as_ptr() as u64, memory.len() as u64);
    client.poke(SMI_ENTRY, &RSM);
    client.map(SMM_SLOT, 0, hva, len)
}

/// A device of which nobody reads what it signals: the counter saturates in 500 million years.
fn ioeventfd(client: &Client, at: &IoEventAddress) -> Result<()> {
    client.split_irqchip()?;
    // The kernel keeps its own reference.
    let event = EventFd::new(0)?;
    client.vm.register_ioevent(&event, at, NoDatamatch).context("KVM_IOEVENTFD")
}

fn event_port(client: &mut Client) -> Result<()> {
    ioeventfd(client, &IoEventAddress::Pio(EVENT_PORT.into()))
}

fn event_mmio(client: &mut Client) -> Result<()> {
    ioeventfd(client, &IoEventAddress::Mmio(EVENT_MMIO))
}

/// The irqfd of the kind that has one.
static IRQFD: Mutex<Option<EventFd>> = Mutex::new(None);

/// Each round leaves to the client, which signals an irqfd.
fn interrupted(prepare: fn(&mut Client) -> Result<()>) -> Loop {
    let body: Code = |a| {
        a.mov(dx, u32::from(RAISE))?;
        a.out(dx, al)
    };
    Loop { prepare, setup: with_interrupts, answer: raise, ..Loop::new(body) }
}

fn irqfd(client: &mut Client) -> Result<()> {
    client.split_irqchip()?;
    let mut entry = kvm_irq_routing_entry { gsi: 0, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = 0xfee0_0000;
    entry.u.msi.data = VECTOR.into();
    let routing = KvmIrqRouting::from_entries(&[entry]).context("routing")?;
    client.vm.set_gsi_routing(&routing).context("KVM_SET_GSI_ROUTING")?;
    let event = EventFd::new(EFD_NONBLOCK)?;
    client.vm.register_irqfd(&event, 0).context("KVM_IRQFD")?;
    *IRQFD.lock().map_err(|_| anyhow!("poisoned"))? = Some(event);
    Ok(())
}

/// The same beside 63 vCPUs that do not run.
fn irqfd_among_64(client: &mut Client) -> Result<()> {
    irqfd(client)?;
    (1..64).try_for_each(|id| client.vcpu(id).map(drop))
}

fn raise(_: &Client, exit: &VcpuExit) -> Result<bool> {
    if let (VcpuExit::IoOut(RAISE, _), Ok(Some(event))) = (exit, IRQFD.lock().as_deref()) {
        event.write(1)?;
        return Ok(true);
    }
    Ok(false)
}

fn touch_page(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(byte_ptr(r14), 1)?;
    a.add(r14, 4096)
}

fn touch_huge_page(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(byte_ptr(r14), 1)?;
    a.add(r14, 2 << 20)
}

fn small(client: &mut Client) -> Result<()> {
    client.split_irqchip()?;
    client.small_pages()
}

fn ring(client: &mut Client) -> Result<()> {
    small(client)?;
    let mut cap = kvm_enable_cap { cap: KVM_CAP_DIRTY_LOG_RING_ACQ_REL, ..Default::default() };
    cap.args[0] = RING;
    client.vm.enable_cap(&cap).context("KVM_CAP_DIRTY_LOG_RING_ACQ_REL")
}

fn huge(client: &mut Client) -> Result<()> {
    client.split_irqchip()?;
    client.huge_pages()
}

/// Memory that the guest touches for the first time: the host has the pages, the nested page tables do not.
fn touch() -> Vec<Kind> {
    let first_4k = Loop { prepare: small, warm: 0, ..Loop::new(touch_page) };
    let first_2m = Loop { prepare: huge, warm: 0, ..Loop::new(touch_huge_page) };
    let dirty = Loop { prepare: small, between: |client| client.dirty_log(true), ..Loop::new(touch_page) };
    let rings = Loop { prepare: ring, ..dirty };
    vec![
        Kind { name: "npf-into-dirty-ring", measure: Box::new(move |rounds| rings.measure(MEMORY, rounds.min(PAGES))) },
        Kind {
            name: "npf-first-touch-4k",
            measure: Box::new(move |rounds| first_4k.measure(MEMORY, rounds.min(PAGES))),
        },
        Kind {
            name: "npf-first-touch-2m",
            measure: Box::new(move |rounds| first_2m.measure(HUGE_MEMORY, rounds.min(HUGE_PAGES))),
        },
        Kind { name: "npf-after-dirty-log", measure: Box::new(move |rounds| dirty.measure(MEMORY, rounds.min(PAGES))) },
    ]
}
