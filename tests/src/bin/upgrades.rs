//! Upgrades of a VM that is odd: it has more vCPUs than a kernel that checks locks lets a task hold locks, most of which nobody is in.
//! Takes the engine `hsave_0_2` beside the first.

use anyhow::{Context, Result, anyhow, ensure};
use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tests::check;
use tests::client::{Client, assemble};
use tests::engines::{self, Directory};
use tests::pace::limit;

const VCPUS: u64 = 64;
/// Of these, so many run all the time.
const RUN: u64 = 3;
const UPGRADES: u32 = 30;
/// Each running guest counts in a word of its own, until the word before them is no longer 0.
const STOP: u64 = 0x20_0000;
const COUNTS: u64 = STOP + 8;
/// Where the guest says that it has seen it.
const DONE: u16 = 0xf4;

/// A guest that counts where RBX points to.
fn counting() -> Result<Client> {
    let mut client = Client::new(4 << 20, true)?;
    client.split_irqchip()?;
    client.load(assemble(|a| {
        use iced_x86::code_asm::*;
        let mut again = a.create_label();
        a.mov(rsi, STOP)?;
        a.set_label(&mut again)?;
        a.inc(rdi)?;
        a.mov(qword_ptr(rbx), rdi)?;
        a.cmp(qword_ptr(rsi), 0)?;
        a.je(again)?;
        a.mov(dx, u32::from(DONE))?;
        a.out(dx, al)?;
        a.jmp(again)
    })?)?;
    Ok(client)
}

fn counter(id: u64) -> u64 {
    COUNTS + 8 * id
}

/// Up to the guest's next word.
fn run(vcpu: &mut VcpuFd) -> Result<()> {
    match vcpu.run().context("KVM_RUN")? {
        VcpuExit::IoOut(DONE, _) => Ok(()),
        other => Err(anyhow!("the guest left with {other:?}")),
    }
}

/// Others look at the vCPUs that nobody runs, and run them for a moment, while the VM goes to and fro. Each keeps what it has.
fn many_vcpus() -> Result<()> {
    let client = counting()?;
    let directory = Directory::of(&client.vm);
    let vcpu = |id| -> Result<VcpuFd> {
        let vcpu = client.vcpu(id)?;
        vcpu.set_mp_state(kvm_bindings::kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE })?;
        let regs = vcpu.get_regs()?;
        vcpu.set_regs(&kvm_regs { rbx: counter(id), ..regs })?;
        Ok(vcpu)
    };
    let mut running = (0..RUN).map(vcpu).collect::<Result<Vec<_>>>()?;
    let idle = (RUN..VCPUS).map(|id| Ok(Mutex::new(vcpu(id)?))).collect::<Result<Vec<_>>>()?;
    let (over, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<()> {
        let runners: Vec<_> = running.iter_mut().map(|vcpu| scope.spawn(|| run(vcpu))).collect();
        let looks = || -> Result<()> {
            while !over.load(Relaxed) {
                for (vcpu, id) in idle.iter().zip(RUN..) {
                    let vcpu = vcpu.lock().map_err(|_| anyhow!("poisoned"))?;
                    let regs = vcpu.get_regs().context("KVM_GET_REGS")?;
                    ensure!(regs.rbx == counter(id), "vCPU {id} has {:#x}", regs.rbx);
                    vcpu.set_regs(&kvm_regs { rcx: regs.rcx + 1, ..regs }).context("KVM_SET_REGS")?;
                    calls.fetch_add(1, Relaxed);
                }
            }
            Ok(())
        };
        let lookers = [scope.spawn(looks), scope.spawn(looks)];
        let done = upgrades(&client, &directory);
        over.store(true, Relaxed);
        client.poke(STOP, &1u64.to_le_bytes());
        for thread in runners.into_iter().chain(lookers) {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        done
    })?;
    let mut seen = 0;
    for vcpu in &idle {
        seen += vcpu.lock().map_err(|_| anyhow!("poisoned"))?.get_regs()?.rcx;
    }
    ensure!(seen == calls.load(Relaxed), "{seen} of {} calls are in the registers", calls.load(Relaxed));
    // And they run.
    for vcpu in &idle {
        run(&mut *vcpu.lock().map_err(|_| anyhow!("poisoned"))?)?;
    }
    println!("{UPGRADES} upgrades of {VCPUS} vCPUs, {seen} calls");
    Ok(())
}

/// All of them succeed, and the guests go on after each.
fn upgrades(client: &Client, directory: &Directory) -> Result<()> {
    for n in 0..UPGRADES {
        let before: Vec<u64> = (0..RUN).map(|id| client.peek(counter(id))).collect();
        directory.change()?.with_context(|| format!("upgrade {n}: {}", directory.error().unwrap_or_default()))?;
        let end = Instant::now() + limit(Duration::from_secs(20));
        while (0..RUN).zip(&before).any(|(id, before)| client.peek(counter(id)) == *before) {
            ensure!(Instant::now() < end, "a guest does not go on after upgrade {n}");
            sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    ensure!(engines::are_two(), "there is no second engine");
    check::run(&[("many-vcpus", many_vcpus)])
}
