//! Watches whether the emulated host's processors keep their time: once a second each of them is asked to wake up.
//!
//! The emulator loses the interrupt of a processor's timer now and then, with stock's modules as well. A processor that
//! is idle then sleeps until something else wakes it, and with it whatever waits for a timer there, a guest's included.
//! That is told from a processor that is kept busy, by the modules for example, by what it did meanwhile: a line on the
//! report's port says only that it was idle. What else would keep a thread of real-time priority from running is for
//! the kernel's own watchdogs to find.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

const BEAT: Duration = Duration::from_secs(1);
/// A processor that was asleep for so long has lost its timer.
const LOST: Duration = Duration::from_secs(8);
/// Of /proc/stat.
const TICKS_PER_SECOND: u64 = 100;

/// The rest of this thread's life on one processor, before all others there.
fn settle(cpu: usize) -> Result<()> {
    // SAFETY: a set of processors is plain bits, and CPU_SET checks its index.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    };
    // SAFETY: the set is valid for its size.
    let pinned = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    ensure!(pinned == 0, "CPU {cpu}: {}", std::io::Error::last_os_error());
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the struct is valid.
    let first = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority) };
    ensure!(first == 0, "SCHED_FIFO: {}", std::io::Error::last_os_error());
    Ok(())
}

/// How long a processor was idle since it was started.
fn idle(cpu: usize) -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let name = format!("cpu{cpu}");
    let ticks = stat.lines().find_map(|line| {
        let mut words = line.split(' ');
        (words.next()? == name).then(|| words.nth(3)?.parse::<u64>().ok())?
    });
    let ticks = ticks.with_context(|| format!("/proc/stat says nothing of CPU {cpu}"))?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

fn watch(cpu: usize) -> Result<()> {
    settle(cpu)?;
    let mut before = (Instant::now(), idle(cpu)?);
    loop {
        std::thread::sleep(BEAT);
        let now = (Instant::now(), idle(cpu)?);
        let slept = now.0 - before.0;
        if slept > LOST && now.1.saturating_sub(before.1) > slept * 3 / 4 {
            let line = format!("hsave: CPU {cpu} slept for {} s through its timer\n", slept.as_secs());
            fs::OpenOptions::new().append(true).open("/dev/ttyS2")?.write_all(line.as_bytes())?;
        }
        before = now;
    }
}

fn main() {
    // Otherwise pages of ours that were swapped out would look like lost time.
    // SAFETY: no memory is passed.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for cpu in 0..cpus {
            // A processor that is taken away takes its watch with it.
            scope.spawn(move || watch(cpu).err().map(|e| eprintln!("heartbeat: {e:#}")));
        }
    });
}
