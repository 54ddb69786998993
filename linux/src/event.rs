//! Eventfds.

use crate::{errno::check_ptr, lend::lend, shim, shim::KEventFd};
use core::ptr::NonNull;
use host::{Errno, EventFd};

/// A reference to the base's handle of an eventfd.
pub struct KernelEventFd(NonNull<KEventFd>);

// SAFETY: the kernel's object is reference counted and locks itself.
unsafe impl Send for KernelEventFd {}
// SAFETY: as above.
unsafe impl Sync for KernelEventFd {}

impl KernelEventFd {
    /// Errors: EBADF, EINVAL.
    pub fn get(fd: i32) -> Result<Self, Errno> {
        check_ptr(shim::hsave_eventfd_open(fd)).map(Self)
    }

    /// Another reference to what the base has one to.
    ///
    /// # Safety
    /// It lives.
    pub unsafe fn of_base(event: *mut KEventFd) -> Self {
        // SAFETY: by contract it is no null pointer, and lives.
        unsafe {
            shim::hsave_eventfd_get(event);
            Self(NonNull::new_unchecked(event))
        }
    }
}

lend!(KernelEventFd, EventFd, hsave_eventfd_get);

impl EventFd for KernelEventFd {
    #[inline]
    fn signal(&self) {
        // SAFETY: we hold a reference.
        unsafe { shim::hsave_eventfd_signal(self.0.as_ptr()) }
    }

    fn same(&self, other: &Self) -> bool {
        // SAFETY: we hold references.
        unsafe { shim::hsave_eventfd_same(self.0.as_ptr(), other.0.as_ptr()) }
    }
}

impl Drop for KernelEventFd {
    fn drop(&mut self) {
        // SAFETY: the reference is ours.
        unsafe { shim::hsave_eventfd_put(self.0.as_ptr()) }
    }
}
