//! A vCPU whose thread changes the host's processor between two KVM_RUN. Needs a host with two processors.

use crate::Kind;
use crate::guest::PORT;
use crate::outside::each;
use anyhow::{Result, bail, ensure};
use iced_x86::code_asm::{al, dx};
use kvm_ioctls::VcpuExit;
use std::thread::available_parallelism;
use tests::client::{Client, assemble};

const MEMORY: usize = 2 << 20;
/// Each wakes a kernel thread on one processor and this program on the other.
const MOVES: u32 = 3000;

/// None where there is nowhere to go.
pub fn all() -> Vec<Kind> {
    if available_parallelism().is_ok_and(|processors| processors.get() < 2) {
        return Vec::new();
    }
    vec![
        Kind { name: "calibration-migration", measure: Box::new(|rounds| affinity(rounds.min(MOVES))) },
        Kind { name: "vcpu-migration", measure: Box::new(|rounds| migration(rounds.min(MOVES))) },
    ]
}

/// Puts this thread on processor 0 or 1; it is there when this returns.
fn move_to(processor: u32) -> Result<()> {
    // SAFETY: a set of processors is plain bits, none set at first.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number is below the size of the set, which is 1024.
    unsafe { libc::CPU_SET(processor as usize & 1, &mut set) };
    // SAFETY: reads the set, which is as long as is said; 0 is this thread.
    let done = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    ensure!(done == 0, "sched_setaffinity: {}", std::io::Error::last_os_error());
    Ok(())
}

/// What the host takes to move a thread, whatever it does.
fn affinity(rounds: u32) -> Result<f64> {
    each(rounds, move_to)
}

/// A move, then KVM_RUN up to an OUT to user space: what that takes more than moves alone.
fn migration(rounds: u32) -> Result<f64> {
    let mut client = Client::new(MEMORY, true)?;
    client.split_irqchip()?;
    client.load(assemble(|a| {
        let mut again = a.create_label();
        a.mov(dx, u32::from(PORT))?;
        a.set_label(&mut again)?;
        a.out(dx, al)?;
        a.jmp(again)
    })?)?;
    let mut vcpu = client.vcpu(0)?;
    let both = each(rounds, |round| {
        move_to(round)?;
        match vcpu.run()? {
            VcpuExit::IoOut(PORT, _) => Ok(()),
            other => bail!("the guest left with {other:?}"),
        }
    })?;
    Ok(both - if crate::window::wanted() { 0.0 } else { affinity(rounds)? })
}
