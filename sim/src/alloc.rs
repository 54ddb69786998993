//! Allocations that fail on demand: the counter that the machine's own allocations and a global allocator share.
//!
//! Only code of the hypervisor counts ([`counted`]): neither the test around it nor the simulation below it. The counter
//! is per thread, so that tests that run side by side do not disturb each other.

use crate::lock;
use std::backtrace::Backtrace;
use std::cell::Cell;

/// Which allocations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// After this many, one.
    Once(u64),
    /// After this many, all.
    From(u64),
}

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static PLAN: Cell<Option<Plan>> = const { Cell::new(None) };
    static SEEN: Cell<u64> = const { Cell::new(0) };
    static FAILED: Cell<u64> = const { Cell::new(0) };
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static NOTING: Cell<bool> = const { Cell::new(true) };
    static ATOMIC: Cell<bool> = const { Cell::new(false) };
}

/// Counts from zero again; from now on allocations fail as planned.
pub fn plan(plan: Option<Plan>) {
    PLAN.set(plan);
    SEEN.set(0);
    FAILED.set(0);
}

/// Allocations counted since [`plan`].
pub fn seen() -> u64 {
    SEEN.get()
}

/// Allocations that failed since [`plan`].
pub fn failed() -> u64 {
    FAILED.get()
}

/// Counts one allocation; true if it fails.
pub fn fails() -> bool {
    if !COUNTING.get() || std::thread::panicking() {
        return false;
    }
    under_a_lock();
    let n = SEEN.replace(SEEN.get() + 1);
    let fails = match PLAN.get() {
        None => false,
        Some(Plan::Once(at)) => n == at,
        Some(Plan::From(at)) => n >= at,
    };
    FAILED.set(FAILED.get() + u64::from(fails));
    fails
}

/// The kernel's allocator sleeps, which nobody may who holds a spin lock. An allocator must not panic, so this is told, and
/// [`counted`] panics.
fn under_a_lock() {
    if lock::holds_spin_lock() {
        ATOMIC.set(true);
        uncounted(|| eprintln!("an allocation under a spin lock:\n{}", Backtrace::force_capture()));
    }
}

/// Runs code of the hypervisor, whose allocations count.
pub fn counted<R>(f: impl FnOnce() -> R) -> R {
    let result = switched(true, f);
    assert!(!ATOMIC.get() || std::thread::panicking(), "something was allocated under a spin lock (see above)");
    result
}

/// Runs code that is not the hypervisor's.
pub fn uncounted<R>(f: impl FnOnce() -> R) -> R {
    switched(false, f)
}

fn switched<R>(on: bool, f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            COUNTING.set(self.0);
        }
    }
    let _restore = Restore(COUNTING.replace(on));
    f()
}

/// A global allocator tells what it gave (positive) and took back (negative), in bytes.
pub fn note(bytes: i64) {
    if NOTING.get() {
        LIVE.set(LIVE.get() + bytes);
    }
}

/// Runs code of the simulation whose memory all threads share: it is on nobody's account.
pub(crate) fn unnoted<R>(f: impl FnOnce() -> R) -> R {
    let before = NOTING.replace(false);
    let result = uncounted(f);
    NOTING.set(before);
    result
}

/// Bytes that this thread has allocated and not freed, if the global allocator tells.
pub fn live() -> i64 {
    crate::lent::forget();
    LIVE.get()
}
