//! How long a VM stands still that goes from one engine to another: of a host that has a second engine.

use crate::{Kind, guest, window};
use anyhow::{Context, Result, anyhow, bail};
use iced_x86::code_asm::{al, dx, qword_ptr, rsi};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use kvm_ioctls::{VcpuExit, VcpuFd};
use tests::client::{Client, assemble};
use tests::engines::{self, Directory};

const MEMORY: usize = 8 << 20;
/// The figure is that of the one in the middle.
const UPGRADES: u32 = 41;
/// Each guest spins until there is something here.
const STOP: u64 = guest::FRESH;

pub fn all() -> Vec<Kind> {
    if window::wanted() || !engines::are_two() {
        return Vec::new();
    }
    vec![
        Kind { name: "upgrade-1-vcpu", measure: Box::new(|_| upgrade(1)) },
        Kind { name: "upgrade-4-vcpus", measure: Box::new(|_| upgrade(4)) },
        Kind { name: "upgrade-16-vcpus", measure: Box::new(|_| upgrade(16)) },
    ]
}

/// Nanoseconds that a VM stands still whose vCPUs all run.
fn upgrade(vcpus: u64) -> Result<f64> {
    let mut client = Client::new(MEMORY, true)?;
    client.full_irqchip()?;
    client.load(assemble(|a| {
        let mut again = a.create_label();
        a.mov(rsi, STOP)?;
        a.mov(dx, u32::from(guest::DONE))?;
        a.set_label(&mut again)?;
        a.cmp(qword_ptr(rsi), 0)?;
        a.je(again)?;
        a.out(dx, al)
    })?)?;
    let mut running = (0..vcpus).map(|id| runnable(&client, id)).collect::<Result<Vec<_>>>()?;
    let directory = Directory::of(&client.vm);
    std::thread::scope(|scope| {
        let threads: Vec<_> = running.iter_mut().map(|vcpu| scope.spawn(|| run(vcpu))).collect();
        let pauses = (0..UPGRADES)
            .map(|_| {
                // Each vCPU has been in the guest since the last one.
                std::thread::sleep(std::time::Duration::from_millis(20 * vcpus));
                directory.change()?.with_context(|| directory.error().unwrap_or_default())?;
                directory.pause()
            })
            .collect::<Result<Vec<u64>>>();
        client.poke(STOP, &[1]);
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)?;
        let mut pauses = pauses?;
        pauses.sort();
        Ok(pauses.get(pauses.len() / 2).map_or(f64::NAN, |pause| *pause as f64))
    })
}

fn runnable(client: &Client, id: u64) -> Result<VcpuFd> {
    let vcpu = client.vcpu(id)?;
    vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).context("KVM_SET_MP_STATE")?;
    Ok(vcpu)
}

fn run(vcpu: &mut VcpuFd) -> Result<()> {
    match vcpu.run().context("KVM_RUN")? {
        VcpuExit::IoOut(guest::DONE, _) => Ok(()),
        other => bail!("the guest left with {other:?}"),
    }
}
