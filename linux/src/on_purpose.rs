//! Panics that a test asks for (`xtask/src/panicking.rs`); only with the feature `panics`, which no module that is handed
//! out is built with.

use crate::lock::SpinLock;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Argument of KVM_RUN: the thread panics in the vCPU's loop, when the guest halts.
const IN_THE_LOOP: u64 = 0xdead_0001;
/// The same: it panics at once, with a spin lock held.
const UNDER_A_LOCK: u64 = 0xdead_0002;

static WANTED: AtomicBool = AtomicBool::new(false);

/// KVM_RUN was called with `arg`; the argument that it is to go on with.
#[expect(clippy::panic, reason = "what it is for")]
pub fn asked(arg: u64) -> u64 {
    match arg {
        IN_THE_LOOP => WANTED.store(true, Relaxed),
        UNDER_A_LOCK => {
            let lock = lock_api::Mutex::<SpinLock, ()>::new(());
            let _held = lock.lock();
            panic!("under a lock");
        }
        other => return other,
    }
    0
}

/// A vCPU's thread is in its loop, and is about to sleep.
#[expect(clippy::panic, reason = "what it is for")]
pub fn in_the_loop() {
    if WANTED.swap(false, Relaxed) {
        panic!("in the loop");
    }
}
