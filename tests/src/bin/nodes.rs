//! Memory follows who uses it: on a host with two nodes, pages of the first that a guest only reads, on a CPU of the second, move
//! there. The kernel learns of such reads by faults that it provokes (automatic NUMA balancing), and a guest's have to
//! count among them.

use anyhow::{Context, Result, ensure};
use iced_x86::code_asm::*;
use kvm_ioctls::VcpuExit;
use memmap2::{Advice, MmapOptions};
use std::time::{Duration, Instant};
use tests::client::{Client, assemble};

/// Where the memory that is read lies in the guest, and how much there is of it: little beside what the kernel scans at once.
const WINDOW: u64 = 0x4000_0000;
const PAGES: usize = 512;
const PAGE: usize = 4096;
/// The guest says here that it has read all of it once more.
const SAYS: u16 = 0xf4;
/// The kernel scans a task's memory about once a second.
const PATIENCE: Duration = Duration::from_secs(120);

/// The current thread runs on the first CPU of this node from now on.
fn move_to(node: usize) -> Result<()> {
    let path = format!("/sys/devices/system/node/node{node}/cpulist");
    let list = std::fs::read_to_string(&path).with_context(|| format!("{path}: is this a host with two nodes?"))?;
    let first = list.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let cpu: usize = first.parse().with_context(|| format!("{path}: {list:?}"))?;
    // SAFETY: a set is bits, and the kernel only reads it.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    ensure!(done == 0, "sched_setaffinity: {}", std::io::Error::last_os_error());
    Ok(())
}

/// How many of the pages lie on the node.
fn pages_on(node: i32, pages: &[u64]) -> Result<usize> {
    let mut status = vec![-1i32; pages.len()];
    let none = std::ptr::null::<i32>();
    // SAFETY: without nodes to move them to, the pages' nodes are written to `status`, which has room for each.
    let done =
        unsafe { libc::syscall(libc::SYS_move_pages, 0, pages.len(), pages.as_ptr(), none, status.as_mut_ptr(), 0) };
    ensure!(done == 0, "move_pages: {}", std::io::Error::last_os_error());
    Ok(status.iter().filter(|&&at| at == node).count())
}

fn main() -> Result<()> {
    std::fs::write("/proc/sys/kernel/numa_balancing", "1").context("a kernel without automatic NUMA balancing")?;
    move_to(0)?;
    let window = MmapOptions::new().len(PAGES * PAGE).map_anon()?;
    window.advise(Advice::NoHugePage)?;
    window.advise(Advice::PopulateWrite)?;
    let pages: Vec<u64> = (0..PAGES).map(|n| window.as_ptr() as u64 + (n * PAGE) as u64).collect();
    ensure!(pages_on(0, &pages)? == PAGES, "not all of the memory is on the first node to begin with");
    let mut client = Client::new(8 << 20, true)?;
    client.split_irqchip()?;
    client.map(1, WINDOW, window.as_ptr() as u64, (PAGES * PAGE) as u64)?;
    client.load(assemble(|a| {
        let (mut again, mut next) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.mov(rsi, WINDOW)?;
        a.mov(ecx, PAGES as u32)?;
        a.set_label(&mut next)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.add(rsi, PAGE as i32)?;
        a.sub(ecx, 1)?;
        a.jnz(next)?;
        a.mov(dx, u32::from(SAYS))?;
        a.out(dx, al)?;
        a.jmp(again)
    })?)?;
    let mut vcpu = client.vcpu(0)?;
    move_to(1)?;
    let since = Instant::now();
    loop {
        let left = vcpu.run()?;
        ensure!(matches!(left, VcpuExit::IoOut(SAYS, _)), "the guest left with {left:?}");
        let there = pages_on(1, &pages)?;
        if there > PAGES / 2 {
            println!("most of the memory has moved");
            return Ok(());
        }
        ensure!(since.elapsed() < PATIENCE, "only {there} of {PAGES} pages have moved");
    }
}
