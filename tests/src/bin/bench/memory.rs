//! Kernel memory that an idle VM takes.

use crate::{Kind, window};
use anyhow::{Context, Result, bail, ensure};
use iced_x86::code_asm;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use std::{fs, thread::sleep, time::Duration};
use tests::client::{Client, assemble};

/// How many are made between two looks at the kernel's memory.
const STEP: usize = 64;
/// How many steps are measured; the figure is that of the step in the middle.
const STEPS: usize = 5;
/// A guest's own memory: its page tables and code, shared by all VMs, so that it is not counted for each.
const MEMORY: usize = 2 << 20;

pub fn all() -> Vec<Kind> {
    if window::wanted() {
        // Bytes are in no instruction.
        return Vec::new();
    }
    vec![
        Kind { name: "memory-per-vm", measure: Box::new(|_| per_vm(all_memory)) },
        Kind { name: "memory-per-vm-slab", measure: Box::new(|_| per_vm(slab)) },
        Kind { name: "memory-per-vcpu", measure: Box::new(|_| per_vcpu(all_memory)) },
        Kind { name: "memory-per-vcpu-slab", measure: Box::new(|_| per_vcpu(slab)) },
    ]
}

/// A measure of the kernel's memory, in bytes.
type Gauge = fn() -> Result<f64>;

/// What is not free: neither in the zones nor in the lists that each processor keeps of free pages.
fn all_memory() -> Result<f64> {
    let info = fs::read_to_string("/proc/zoneinfo").context("zoneinfo")?;
    let named = |line: &str, name: &str| -> Option<f64> { line.trim().strip_prefix(name)?.trim().parse().ok() };
    let free: f64 = info.lines().filter_map(|l| named(l, "nr_free_pages").or_else(|| named(l, "count:"))).sum();
    ensure!(free > 0.0, "no free pages in zoneinfo");
    Ok(-free * 4096.0)
}

/// What small objects take that the kernel cannot drop, free places between them included.
fn slab() -> Result<f64> {
    let info = fs::read_to_string("/proc/vmstat").context("vmstat")?;
    let pages = info.lines().find_map(|line| line.strip_prefix("nr_slab_unreclaimable ")).context("vmstat")?;
    Ok(pages.parse::<f64>().context("vmstat")? * 4096.0)
}

/// Looks at the gauge when nothing is in caches or in the background that could be given back.
fn settled(gauge: Gauge) -> Result<f64> {
    let mut last = f64::NAN;
    for _ in 0..20 {
        // What others gave back comes late (RCU, work queues).
        sleep(Duration::from_secs(2));
        fs::write("/proc/sys/vm/drop_caches", "3").context("drop_caches")?;
        for cache in fs::read_dir("/sys/kernel/slab").into_iter().flatten().flatten() {
            // Not every cache can.
            let _ = fs::write(cache.path().join("shrink"), "1");
        }
        let now = gauge()?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

/// Bytes for each thing that `make` makes: the step in the middle of several, so that neither what the first ones pay
/// for all nor what others take or give back meanwhile counts.
fn slope(gauge: Gauge, mut make: impl FnMut() -> Result<()>) -> Result<f64> {
    (0..STEP).try_for_each(|_| make())?;
    let mut before = settled(gauge)?;
    let mut steps = Vec::with_capacity(STEPS);
    for _ in 0..STEPS {
        (0..STEP).try_for_each(|_| make())?;
        let now = settled(gauge)?;
        steps.push((now - before) / STEP as f64);
        before = now;
    }
    println!("per step: {steps:.0?}");
    steps.sort_by(f64::total_cmp);
    Ok(steps[STEPS / 2])
}

/// One vCPU that has run to an OUT, in a VM with one slot.
fn per_vm(gauge: Gauge) -> Result<f64> {
    let mut client = Client::new(MEMORY, true)?;
    client.load(assemble(|a| a.out(0x80, code_asm::al))?)?;
    let hva = client.memory().as_ptr() as u64;
    let mut kept: Vec<(VmFd, VcpuFd)> = Vec::with_capacity(STEP * (STEPS + 1));
    slope(gauge, || {
        client.split_irqchip()?;
        let vcpu = started(&client, 0)?;
        let next = client.kvm.create_vm().context("KVM_CREATE_VM")?;
        kept.push((std::mem::replace(&mut client.vm, next), vcpu));
        client.map(0, 0, hva, MEMORY as u64)
    })
}

fn started(client: &Client, id: u64) -> Result<VcpuFd> {
    let mut vcpu = client.vcpu(id)?;
    vcpu.set_mp_state(kvm_bindings::kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE })?;
    match vcpu.run()? {
        VcpuExit::IoOut(0x80, _) => {}
        other => bail!("the guest left with {other:?}"),
    }
    Ok(vcpu)
}

/// Further vCPUs of one VM, each of which has run to an OUT.
fn per_vcpu(gauge: Gauge) -> Result<f64> {
    let mut client = Client::new(MEMORY, true)?;
    client.load(assemble(|a| a.out(0x80, code_asm::al))?)?;
    client.split_irqchip()?;
    let mut kept = Vec::with_capacity(STEP * (STEPS + 1));
    slope(gauge, || {
        kept.push(started(&client, kept.len() as u64)?);
        Ok(())
    })
}
