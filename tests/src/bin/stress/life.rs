//! vCPUs that are made from many threads, and VMs that end in the middle of it all.

use crate::deeds::Area;
use crate::outside::{self, Irqfds};
use crate::storm::{Kind, Storm, documented};
use anyhow::{Result, anyhow, ensure};
use kvm_ioctls::Cap;
use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tests::client::Client;
use tests::random::Random;

/// Threads that make vCPUs.
const MAKERS: usize = 4;
/// vCPUs that each of them tries to make.
const TRIES: usize = 40;
/// VMs that end.
const VMS: usize = 6;

/// The argument that has this program storm until it is killed.
pub const VICTIM: &str = "--victim";

/// With everything that the guest can do.
const ALL: Kind =
    Kind { areas: &[Area::Ipi, Area::Timer, Area::Timer, Area::Chips], full: true, x2apic: false, state: false };

/// Any ids, in any order, from several threads; messages to those that are there; and closed in any order.
pub fn creation(mut random: Random) -> Result<()> {
    let client = Arc::new(Client::new(8 << 20, false)?);
    client.split_irqchip()?;
    let ids = client.kvm.check_extension_int(Cap::MaxVcpuId) as u64;
    ensure!(ids >= client.kvm.check_extension_int(Cap::MaxVcpus) as u64, "{ids} ids");
    let threads: Vec<_> = (0..MAKERS)
        .map(|_| {
            let (client, mut random) = (client.clone(), random.fork());
            std::thread::spawn(move || -> Result<_> {
                let mut made = Vec::new();
                for n in 0..TRIES {
                    // Often the same ones as others, now and then one that cannot be.
                    let id = match random.below(4) {
                        0 => random.below(32),
                        1 => ids - 8 + random.below(16),
                        _ => random.below(ids),
                    };
                    let vcpu = client.vm.create_vcpu(id);
                    ensure!(id < ids || vcpu.is_err(), "a vCPU has id {id}");
                    if let Some(vcpu) = documented("KVM_CREATE_VCPU", vcpu, &[libc::EEXIST, libc::EINVAL])? {
                        made.push((id, vcpu));
                    }
                    outside::message(&client, &mut random)?;
                    if n % 8 == 7 {
                        let at = random.below(made.len().max(1) as u64) as usize;
                        if at < made.len() {
                            // Closed, but the VM keeps it: its id is not free again.
                            let (id, vcpu) = made.swap_remove(at);
                            drop(vcpu);
                            let again = client.vm.create_vcpu(id);
                            ensure!(again.is_err_and(|e| e.errno() == libc::EEXIST), "id {id} is free again");
                        }
                    }
                }
                Ok(made)
            })
        })
        .collect();
    let mut all = Vec::new();
    for thread in threads {
        all.extend(thread.join().map_err(|_| anyhow!("a thread panicked"))??);
    }
    let distinct: BTreeSet<u64> = all.iter().map(|(id, _)| *id).collect();
    ensure!(distinct.len() == all.len() && all.len() > MAKERS * TRIES / 4, "{} of {}", distinct.len(), all.len());
    println!("  {} vCPUs", all.len());
    drop(client);
    while !all.is_empty() {
        drop(all.swap_remove(random.below(all.len() as u64) as usize));
    }
    Ok(())
}

fn raging(random: Random, time: Duration) -> Result<(Storm, Irqfds)> {
    let mut storm = Storm::start(ALL, random)?;
    let mut irqfds = Irqfds::default();
    storm.rage(time, |client, random| {
        outside::message(client, random)?;
        irqfds.step(client, random)
    })?;
    Ok((storm, irqfds))
}

/// VMs that end while timers are set, messages fly and eventfds are signalled.
pub fn teardown(mut random: Random) -> Result<()> {
    for n in 0..VMS {
        let (storm, irqfds) = raging(random.fork(), Duration::from_millis(100 + random.below(200)))?;
        if n % 2 == 0 {
            // The VM's descriptor goes first.
            let null = std::fs::File::open("/dev/null")?;
            // SAFETY: `dup2` replaces the descriptor by one of /dev/null, so that its owner may close it as usual.
            ensure!(unsafe { libc::dup2(null.as_raw_fd(), storm.shared.client.vm.as_raw_fd()) } >= 0, "dup2");
        }
        if n % 3 == 0 {
            drop(irqfds);
            drop(storm.end()?);
        } else {
            drop(storm.end()?);
            drop(irqfds);
        }
    }
    for _ in 0..VMS {
        let seed = random.any().to_string();
        let me = std::env::current_exe()?;
        let mut child = Command::new(me).args([VICTIM, &seed]).stdout(Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_millis(200 + random.below(300)));
        ensure!(child.try_wait()?.is_none(), "the victim left by itself");
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

/// Storms for ever.
pub fn victim(seed: u64) -> Result<()> {
    raging(Random(seed | 1), Duration::from_secs(3600)).map(drop)
}
