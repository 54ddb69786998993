//! What a program in a sandbox does all day: processes, signals, threads and memory. Says what came of it.

use anyhow::{Context, Result, ensure};
use memmap2::MmapMut;
use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

const PROCESSES: u32 = 20;
const THREADS: u32 = 8;
const SIGNALS: u32 = 200;
const MAPPINGS: usize = 200;
const PAGE: usize = 4096;

static TAKEN: AtomicU32 = AtomicU32::new(0);

extern "C" fn take(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    TAKEN.fetch_add(1, Ordering::SeqCst);
}

/// Each child is this program, and leaves with a status of its own.
fn processes() -> Result<()> {
    let own = std::env::current_exe()?;
    let children = (0..PROCESSES).map(|n| Command::new(&own).arg(n.to_string()).spawn());
    for (n, child) in children.collect::<Vec<_>>().into_iter().enumerate() {
        let status = child.context("a child")?.wait()?;
        ensure!(status.code() == i32::try_from(n).ok(), "child {n} left with {status}");
    }
    println!("workload: {PROCESSES} processes");
    Ok(())
}

/// Each is sent to a thread that counts until all have come.
fn signals() -> Result<()> {
    register_signal_handler(SIGRTMIN(), take)?;
    let thread = thread::spawn(|| {
        let mut turns = 0_u64;
        while TAKEN.load(Ordering::SeqCst) < SIGNALS {
            turns += 1;
        }
        turns
    });
    for n in 0..SIGNALS {
        thread.kill(SIGRTMIN())?;
        while TAKEN.load(Ordering::SeqCst) <= n {
            thread::yield_now();
        }
    }
    ensure!(thread.join().is_ok_and(|turns| turns > 0), "the thread failed");
    println!("workload: {} signals", TAKEN.load(Ordering::SeqCst));
    Ok(())
}

/// They map memory, write it, make it read-only, look at it and unmap it, all at a time.
fn memory() -> Result<()> {
    let work = |n: u32| -> Result<u64> {
        let mut sum = 0;
        for round in 0..MAPPINGS {
            let mut map = MmapMut::map_anon(PAGE * (1 + round % 16))?;
            for (page, bytes) in map.chunks_mut(PAGE).enumerate() {
                ensure!(bytes.iter().all(|&byte| byte == 0), "new memory is not empty");
                bytes.fill((n as usize + round + page) as u8);
            }
            let map = map.make_read_only()?;
            sum += map.iter().step_by(PAGE / 4).map(|&byte| u64::from(byte)).sum::<u64>();
        }
        Ok(sum)
    };
    let threads: Vec<_> = (0..THREADS).map(|n| thread::spawn(move || work(n))).collect();
    let mut sum = 0;
    for thread in threads {
        sum += thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    println!("workload: {THREADS} threads, sum of their memory {sum}");
    Ok(())
}

fn main() -> Result<()> {
    if let Some(status) = std::env::args().nth(1) {
        std::process::exit(status.parse()?);
    }
    processes()?;
    signals()?;
    memory()
}
