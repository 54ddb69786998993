//! The global allocator: the kernel's heap, accounted to the caller's memory cgroup. Task context only.

use crate::shim;
use core::alloc::{GlobalAlloc, Layout};
use host::PAGE_SIZE;

struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

/// Every block of the kernel's heap is aligned to this.
const ALWAYS: usize = 8;

/// The size to ask for, so that the block is aligned as wanted. The kernel aligns blocks of a power of two to their
/// size, and blocks larger than a page to the page.
fn size_for(layout: Layout) -> Option<usize> {
    match layout.align() {
        a if a <= ALWAYS => Some(layout.size()),
        a if a > PAGE_SIZE => None,
        a if layout.size() <= PAGE_SIZE => Some(layout.size().max(a).next_power_of_two()),
        _ => layout.size().checked_next_multiple_of(PAGE_SIZE),
    }
}

// SAFETY: blocks come from the kernel's heap with at least the size and alignment of the layout (`size_for`), and
// stay until freed.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: allocating has no precondition but task context, which is the callers'.
        size_for(layout).map_or(core::ptr::null_mut(), |size| unsafe { shim::hsave_heap_alloc(size, false) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        size_for(layout).map_or(core::ptr::null_mut(), |size| unsafe { shim::hsave_heap_alloc(size, true) })
    }

    unsafe fn dealloc(&self, p: *mut u8, _: Layout) {
        // SAFETY: `p` came from `alloc` (contract of the trait).
        unsafe { shim::hsave_heap_free(p) }
    }
}
