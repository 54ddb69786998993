//! Eventfds.

use crate::{errno::check_ptr, shim, shim::KEventFd};
use core::ptr::NonNull;
use host::{Errno, EventFd};

/// A reference to a `struct eventfd_ctx`.
pub struct KernelEventFd(NonNull<KEventFd>);

// SAFETY: the kernel's object is reference counted and locks itself.
unsafe impl Send for KernelEventFd {}
// SAFETY: as above.
unsafe impl Sync for KernelEventFd {}

impl KernelEventFd {
    /// Errors: EBADF, EINVAL.
    pub fn get(fd: i32) -> Result<Self, Errno> {
        check_ptr(shim::hsave_eventfd_get(fd)).map(Self)
    }

    /// Is this the context at that address?
    pub fn is(&self, other: *const KEventFd) -> bool {
        self.0.as_ptr().cast_const() == other
    }
}

impl EventFd for KernelEventFd {
    #[inline]
    fn signal(&self) {
        // SAFETY: we hold a reference.
        unsafe { shim::hsave_eventfd_signal(self.0.as_ptr()) }
    }

    fn same(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Drop for KernelEventFd {
    fn drop(&mut self) {
        // SAFETY: the reference is ours.
        unsafe { shim::hsave_eventfd_put(self.0.as_ptr()) }
    }
}
