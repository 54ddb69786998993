//! KVM_IRQFD: the bindings of a VM's eventfds to its interrupts.

use crate::{errno::check_ptr, event::KernelEventFd, lock::SleepMutex, shim, shim::KIrqfd};
use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr::NonNull;
use host::{Errno, try_push};
use lock_api::Mutex;

/// The list of one VM.
#[derive(Default)]
pub struct Irqfds(Mutex<SleepMutex, Vec<Binding>>);

/// One eventfd raises one interrupt.
struct Binding {
    kernel: NonNull<KIrqfd>,
    gsi: u32,
}

// SAFETY: the kernel's object may be used and freed by any thread.
unsafe impl Send for Binding {}

impl Binding {
    fn is_dead(&self) -> bool {
        // SAFETY: alive until `drop`.
        unsafe { shim::hsave_irqfd_dead(self.kernel.as_ptr()) }
    }

    fn is_of(&self, event: &KernelEventFd) -> bool {
        // SAFETY: alive until `drop`.
        event.is(unsafe { shim::hsave_irqfd_event(self.kernel.as_ptr()) })
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        // SAFETY: made by `assign`, and freed here only.
        unsafe { shim::hsave_irqfd_free(self.kernel.as_ptr()) }
    }
}

impl Irqfds {
    /// Binds. Errors: EBADF, EINVAL (no eventfd), EBUSY (bound already), ENOMEM.
    ///
    /// # Safety
    /// `vm` is what `hsave_irqfd_raise` takes, at its final place, and outlives this list.
    pub unsafe fn assign(&self, fd: i32, gsi: u32, vm: *const c_void) -> Result<(), Errno> {
        let event = KernelEventFd::get(fd)?;
        let mut list = self.0.lock();
        // Those whose descriptors were closed without a word.
        list.retain(|b| !b.is_dead());
        if list.iter().any(|b| b.is_of(&event)) {
            return Err(Errno::EBUSY);
        }
        // SAFETY: by contract.
        let kernel = check_ptr(unsafe { shim::hsave_irqfd_new(fd, vm, gsi) })?;
        try_push(&mut list, Binding { kernel, gsi })
    }

    /// Takes a binding back; nothing if there is none, as on stock. Errors: EBADF, EINVAL (no eventfd).
    pub fn deassign(&self, fd: i32, gsi: u32) -> Result<(), Errno> {
        let event = KernelEventFd::get(fd)?;
        self.0.lock().retain(|b| b.gsi != gsi || !b.is_of(&event));
        Ok(())
    }
}
