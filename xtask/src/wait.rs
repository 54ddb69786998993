//! Waiting for an emulated host. Its limits are in its own time, so that what comes of it does not depend on how fast this machine
//! is; one whose processors do not take turns has this machine's time, and its limits are stretched.

use crate::{guest_time::GuestTime, host::Boot};
use anyhow::{Context, Result};
use std::{
    fs,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// A host logs that it has started within this much of its own time; one whose processors do not take turns, within this much of
/// a processor's time here, or so many times as much of its own.
const STARTS_WITHIN: Duration = Duration::from_secs(120);
const TIMES_AS_MUCH: u32 = 5;
/// How long that takes one whose processors do not take turns, on an idle machine.
const STARTS_ON_AN_IDLE_MACHINE: Duration = Duration::from_secs(4);
/// A host whose processors do not take turns has longer on a slow machine, but no more than so many times its limit.
const SLOWEST: u32 = 32;
/// A host whose clock has stood still while its emulator used so much of a processor's time, or while so much time passed here,
/// hangs.
const STANDS_STILL: [Duration; 2] = [Duration::from_secs(300), Duration::from_secs(600)];

/// Waits for our child. When its limit is over, or if the host does not start or its time stands still, it is ended, and only it.
pub fn wait(
    child: &mut Child,
    boot: &Boot,
    time: &mut GuestTime,
    started: impl Fn() -> bool,
) -> Result<Option<ExitStatus>> {
    let starts_within = STARTS_WITHIN * boot.kernel.slowness();
    let mut start = None;
    let mut last = (Duration::ZERO, Duration::ZERO, Instant::now());
    for round in 0_u64.. {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(50));
        if round % 8 != 0 {
            continue;
        }
        let (now, used) = (time.poll(), processor_time(child));
        if now > last.0 {
            last = (now, used, Instant::now());
        }
        if start.is_none() && started() {
            start = Some(now);
        }
        let over = match start {
            Some(start) => now > start + limit(boot, start),
            None if boot.icount => now > starts_within,
            None => used > starts_within || now > starts_within * TIMES_AS_MUCH,
        };
        let hangs = used.saturating_sub(last.1) > STANDS_STILL[0] || last.2.elapsed() > STANDS_STILL[1];
        if over || hangs {
            child.kill()?;
            child.wait()?;
            break;
        }
    }
    Ok(None)
}

/// How long a host may take that has taken this long to start. One whose processors do not take turns is given as many times its
/// limit as this machine is slower than an idle one.
fn limit(boot: &Boot, start: Duration) -> Duration {
    if boot.icount {
        return boot.timeout;
    }
    boot.timeout.mul_f64((start.as_secs_f64() / STARTS_ON_AN_IDLE_MACHINE.as_secs_f64()).clamp(1.0, f64::from(SLOWEST)))
}

/// How much time a child has had of this machine's processors.
fn processor_time(child: &Child) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    // The name, in parentheses, may hold anything; fields 14 and 15 of proc(5) are in hundredths of a second.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().skip(11).take(2);
    Duration::from_millis(fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10)
}

/// Stops a child most of the time, so that it has at most a quarter of a processor.
pub struct Holder(Child);

impl Holder {
    pub fn new(child: &Child, one_thread: bool) -> Result<Self> {
        // Several threads may use more than one processor while they run.
        let rest = if one_thread { "0.3" } else { "0.7" };
        let script = format!("while kill -CONT {0}; do sleep 0.1; kill -STOP {0}; sleep {rest}; done", child.id());
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(shell.spawn().context("cannot start a shell")?))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::Flavour, kernels::Kernel};

    #[test]
    fn limits_stretch_only_where_the_time_is_this_machines() {
        let mut boot = Boot::new(Kernel::V6_12, Flavour::Stock, "");
        boot.timeout = Duration::from_secs(100);
        let start = [2, 8, 4000].map(Duration::from_secs);
        assert_eq!(start.map(|start| limit(&boot, start).as_secs()), [100, 200, 3200]);
        boot.icount = true;
        assert_eq!(start.map(|start| limit(&boot, start).as_secs()), [100, 100, 100]);
    }

    #[test]
    fn a_childs_processor_time_is_counted() {
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let start = Instant::now();
        while processor_time(&child) < Duration::from_millis(50) && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let used = processor_time(&child);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(used >= Duration::from_millis(50), "{used:?}");
    }
}
