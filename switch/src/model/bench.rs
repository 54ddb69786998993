//! The hardware of a test of this crate.
#![cfg(any(test, feature = "model"))]

use super::hardware::{Hardware, Op, give, host_gs, hw, set_gs, take};
use std::{
    boxed::Box,
    sync::{Mutex, MutexGuard},
    vec::Vec,
};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The hardware of one test, which has CPUs 0 and 1; others wait.
pub struct Bench(#[allow(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Bench {
    #[allow(clippy::new_without_default, reason = "it waits")]
    pub fn new() -> Self {
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
        drop(give(Box::new(Hardware::new(0))));
        super::kernel::reset();
        Self(guard)
    }

    /// The other CPU.
    pub fn move_to(&self, cpu: u64) {
        hw().cpu = cpu;
        hw().system.gs = host_gs(cpu);
        set_gs(host_gs(cpu).base);
    }

    /// Takes the record so far.
    pub fn trace(&self) -> Vec<Op> {
        core::mem::take(&mut hw().trace)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(take());
    }
}
