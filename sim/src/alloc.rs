//! Allocations that fail on demand: a global allocator for tests, and the countdown that all of `sim` shares.
//!
//! The countdown is per thread, so that tests that run side by side do not disturb each other.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNTDOWN: Cell<Option<u64>> = const { Cell::new(None) };
    static LIVE: Cell<i64> = const { Cell::new(0) };
}

/// Lets `n` more allocations of this thread succeed and the one after them fail, once; None: all succeed.
pub fn fail_after(n: Option<u64>) {
    COUNTDOWN.set(n);
}

/// True if a failure asked for by [`fail_after`] has not happened yet.
pub fn armed() -> bool {
    COUNTDOWN.get().is_some()
}

/// Counts one allocation; true if it is the one that fails.
pub fn fails() -> bool {
    match COUNTDOWN.get() {
        None => false,
        Some(0) => {
            COUNTDOWN.set(None);
            true
        }
        Some(n) => {
            COUNTDOWN.set(Some(n - 1));
            false
        }
    }
}

/// Runs `f` with the countdown stopped: for the simulation's own needs.
pub fn uncounted<R>(f: impl FnOnce() -> R) -> R {
    let kept = COUNTDOWN.replace(None);
    let r = f();
    COUNTDOWN.set(kept);
    r
}

/// Bytes that this thread has allocated and not freed through [`Failing`].
pub fn live() -> i64 {
    LIVE.get()
}

/// The allocator: `#[global_allocator] static A: sim::alloc::Failing = sim::alloc::Failing;`
pub struct Failing;

// SAFETY: Every call goes to the system's allocator with the layout that it was given, or returns null, which the
// trait allows for `alloc`.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTDOWN.try_with(|_| ()).is_ok() && fails() {
            return core::ptr::null_mut();
        }
        let _ = LIVE.try_with(|l| l.set(l.get() + layout.size() as i64));
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let _ = LIVE.try_with(|l| l.set(l.get() - layout.size() as i64));
        // SAFETY: as above; `ptr` came from `alloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}
