//! Who has which CPU in a program of many threads: a thread takes one when it first runs a guest and keeps it to its end.
//! Then it is the next one's, with whatever it holds: vCPUs come to CPUs where others ran before.
#![cfg(any(test, feature = "model"))]

use super::{
    hardware::{Hardware, give, host_gs, hw, set_gs, take},
    kernel::{CPUS, Kernel, cpu_data, reset_cpu},
};
use crate::Machine;
use core::ptr::NonNull;
use std::{boxed::Box, sync::Mutex, vec::Vec};

/// CPUs that no thread has, and the number of those that were made.
#[allow(clippy::vec_box, reason = "the thread that takes one has a pointer to it")]
static POOL: Mutex<(Vec<Box<Hardware>>, u64)> = Mutex::new((Vec::new(), FIRST));

/// 0 and 1 are the CPUs of a test's `Bench`.
const FIRST: u64 = 2;

/// Gives the thread's CPU back when the thread ends.
struct Owner;

impl Drop for Owner {
    fn drop(&mut self) {
        let cpu = take().into_iter();
        POOL.lock().unwrap_or_else(|e| e.into_inner()).0.extend(cpu);
    }
}

std::thread_local! {
    static OWNER: Owner = {
        let hardware = free();
        set_gs(host_gs(hardware.cpu).base);
        give(hardware);
        Owner
    };
}

/// A CPU that nobody has.
fn free() -> Box<Hardware> {
    let mut pool = POOL.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(hardware) = pool.0.pop() {
        return hardware;
    }
    let cpu = pool.1;
    assert!(cpu < CPUS, "too many threads run guests at a time");
    pool.1 += 1;
    // SAFETY: it is made just now.
    unsafe { reset_cpu(cpu) };
    Box::new(Hardware::new(cpu))
}

/// Sees to it that the calling thread has a CPU.
pub(super) fn own() {
    OWNER.with(|_| ());
}

/// The calling thread's CPU, with SVM on. Without memory: a panic.
pub(super) fn mine(machine: &Machine<Kernel>) -> &'static mut Hardware {
    own();
    let data = NonNull::new(cpu_data(hw().cpu)).expect("an address");
    // SAFETY: this thread has the CPU, and runs no guest at the moment.
    unsafe { Machine::<Kernel>::prepare_cpu(data) }.expect("pages");
    machine.enable().expect("SVM is free");
    hw()
}
