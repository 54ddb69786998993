//! A global allocator that fails when `sim::alloc` says so, and counts what is allocated.

use std::alloc::{GlobalAlloc, Layout, System};

/// `#[global_allocator] static HEAP: Failing = Failing;`
pub struct Failing;

// SAFETY: Every call goes to the system's allocator with the layout that it was given, or returns null, which the
// trait allows for `alloc`.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if sim::alloc::fails() {
            return core::ptr::null_mut();
        }
        sim::alloc::note(layout.size() as i64);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        sim::alloc::note(-(layout.size() as i64));
        // SAFETY: as above; `ptr` came from `alloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}
