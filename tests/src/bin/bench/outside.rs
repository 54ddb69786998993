//! What VMMs do outside of exits.

use crate::{Kind, window};
use anyhow::{Context, Result, ensure};
use kvm_ioctls::Kvm;
use memmap2::{MmapOptions, UncheckedAdvice};
use std::time::Instant;
use tests::client::{Client, assemble};

const MEMORY: usize = 2 << 20;
/// VMs are dear, on stock above all.
const VMS: u32 = 30;
const VCPUS: u32 = 30;
/// As many as a VM can have.
const SLOTS: u32 = 32764;

pub fn all() -> Vec<Kind> {
    vec![
        Kind { name: "create-vm-vcpu-destroy", measure: Box::new(|rounds| create_vm(rounds.min(VMS))) },
        Kind { name: "create-vcpu", measure: Box::new(|rounds| create_vcpu(rounds.min(VCPUS))) },
        Kind { name: "set-user-memory-region", measure: Box::new(set_memory) },
        Kind { name: "run-immediate-exit", measure: Box::new(immediate_exit) },
        Kind { name: "madvise-outside-1-slot", measure: Box::new(|rounds| drop_outside(rounds, 1)) },
        Kind { name: "madvise-outside-32764-slots", measure: Box::new(|rounds| drop_outside(rounds, SLOTS)) },
    ]
}

/// Nanoseconds per call, after two calls that warm the allocators.
pub fn each(rounds: u32, mut f: impl FnMut(u32) -> Result<()>) -> Result<f64> {
    (0..2).try_for_each(&mut f)?;
    window::open(rounds)?;
    let begin = Instant::now();
    (2..rounds + 2).try_for_each(f)?;
    let took = begin.elapsed();
    window::close()?;
    Ok(took.as_nanos() as f64 / f64::from(rounds))
}

/// KVM_CREATE_VM, KVM_CREATE_VCPU, and both closed.
fn create_vm(rounds: u32) -> Result<f64> {
    let kvm = Kvm::new()?;
    each(rounds, |_| {
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        Ok(())
    })
}

fn create_vcpu(rounds: u32) -> Result<f64> {
    let client = Client::new(MEMORY, true)?;
    client.split_irqchip()?;
    let mut kept = Vec::with_capacity(rounds as usize + 2);
    each(rounds, |id| {
        kept.push(client.vm.create_vcpu(id.into()).context("KVM_CREATE_VCPU")?);
        Ok(())
    })
}

/// A slot beside the others is made and deleted.
fn set_memory(rounds: u32) -> Result<f64> {
    let mut client = Client::new(MEMORY, true)?;
    let hva = client.memory().as_ptr() as u64;
    each(rounds.min(500), |_| {
        client.map(1, 1 << 30, hva, MEMORY as u64)?;
        client.map(1, 0, 0, 0)
    })
}

/// Memory of the VMM's that is in none of the slots is dropped and touched again.
fn drop_outside(rounds: u32, slots: u32) -> Result<f64> {
    let mut client = Client::new(MEMORY, true)?;
    let hva = client.memory().as_ptr() as u64;
    for slot in 1..slots {
        let page = u64::from(slot) << 12;
        client.map(slot, (1 << 30) + 2 * page, hva + page % MEMORY as u64, 4096)?;
    }
    let mut page = MmapOptions::new().len(4096).map_anon().context("a page")?;
    each(rounds.min(500), |n| {
        page[0] = n as u8;
        // SAFETY: nobody refers to the page, and what it holds is not needed.
        unsafe { page.unchecked_advise(UncheckedAdvice::DontNeed) }.context("MADV_DONTNEED")
    })
}

/// KVM_RUN that comes back at once.
fn immediate_exit(rounds: u32) -> Result<f64> {
    let mut client = Client::new(MEMORY, true)?;
    client.split_irqchip()?;
    client.load(assemble(|a| a.hlt())?)?;
    let mut vcpu = client.vcpu(0)?;
    vcpu.set_kvm_immediate_exit(1);
    each(rounds, |_| {
        let left = vcpu.run();
        ensure!(matches!(&left, Err(e) if e.errno() == libc::EINTR), "left with {left:?}");
        Ok(())
    })
}
