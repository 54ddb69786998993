//! Kernel memory that an idle VM takes.

use crate::{Kind, window};
use anyhow::{Context, Result, bail};
use iced_x86::code_asm;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use tests::client::{Client, assemble};

/// Enough for the figure to stand out of what else goes on.
const VMS: usize = 150;
const VCPUS: u64 = 200;
/// A guest's own memory: its page tables and code, shared by all VMs, so that it is not counted for each.
const MEMORY: usize = 2 << 20;

pub fn all() -> Vec<Kind> {
    if window::wanted() {
        // Bytes are in no instruction.
        return Vec::new();
    }
    vec![
        Kind { name: "memory-per-vm", measure: Box::new(|_| per_vm()) },
        Kind { name: "memory-per-vcpu", measure: Box::new(|_| per_vcpu()) },
    ]
}

/// Free memory in bytes, with nothing in caches that could be given back.
fn free() -> Result<f64> {
    // What other measurements gave back comes back late (RCU, work queues).
    std::thread::sleep(std::time::Duration::from_secs(5));
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("drop_caches")?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let info = std::fs::read_to_string("/proc/meminfo")?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemFree:")).context("no MemFree")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("MemFree")?;
    Ok(kib as f64 * 1024.0)
}

/// One vCPU that has run to an OUT, in a VM with one slot: bytes for each.
fn per_vm() -> Result<f64> {
    let mut client = Client::new(MEMORY, true)?;
    client.load(assemble(|a| a.out(0x80, code_asm::al))?)?;
    let hva = client.memory().as_ptr() as u64;
    let mut kept: Vec<(VmFd, VcpuFd)> = Vec::with_capacity(2 * VMS);
    let mut before = 0.0;
    // The first half pays for what all share, and for what other measurements still give back.
    for n in 0..2 * VMS {
        if n == VMS {
            before = free()?;
        }
        client.split_irqchip()?;
        let vcpu = started(&client)?;
        let next = client.kvm.create_vm().context("KVM_CREATE_VM")?;
        kept.push((std::mem::replace(&mut client.vm, next), vcpu));
        client.map(0, 0, hva, MEMORY as u64)?;
    }
    Ok((before - free()?) / VMS as f64)
}

fn started(client: &Client) -> Result<VcpuFd> {
    let mut vcpu = client.vcpu(0)?;
    match vcpu.run()? {
        VcpuExit::IoOut(0x80, _) => {}
        other => bail!("the guest left with {other:?}"),
    }
    Ok(vcpu)
}

/// Further vCPUs of one VM that have not run.
fn per_vcpu() -> Result<f64> {
    let client = Client::new(MEMORY, true)?;
    client.split_irqchip()?;
    let first = client.vcpu(0)?;
    let mut kept = Vec::with_capacity(VCPUS as usize);
    let before = free()?;
    for id in 1..=VCPUS {
        kept.push(client.vm.create_vcpu(id)?);
    }
    drop(first);
    Ok((before - free()?) / VCPUS as f64)
}
