//! KVM_IRQFD: the bindings of a VM's eventfds to its interrupts.

use crate::{errno::check_ptr, event::KernelEventFd, lock::SleepMutex, shim, shim::KIrqfd};
use alloc::vec::Vec;
use core::ptr::NonNull;
use host::{Errno, try_push};
use kvm::Irqfd;
use lock_api::Mutex;

type Vm = vm::Vm<crate::Linux>;

/// The list of one VM.
#[derive(Default)]
pub struct Irqfds(Mutex<SleepMutex, Vec<Binding>>);

/// One eventfd raises one interrupt.
struct Binding {
    kernel: NonNull<KIrqfd>,
    gsi: u32,
    /// The VM in which an eventfd is signalled at EOI, and that eventfd.
    resample: Option<(*const Vm, KernelEventFd)>,
}

// SAFETY: the kernel's object may be used and freed by any thread; so may the VM, which outlives the list.
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
        if let Some((vm, event)) = &self.resample {
            // SAFETY: the VM outlives the list.
            unsafe { &**vm }.remove_resampler(self.gsi, event);
        }
    }
}

impl Irqfds {
    /// Binds. Errors: EBADF, EINVAL (no eventfd), EBUSY (bound already), ENOMEM, ENOSPC (too many resampled ones).
    ///
    /// # Safety
    /// `vm` is what `hsave_irqfd_raise` takes, at its final place, and outlives this list.
    pub unsafe fn assign(&self, i: Irqfd, vm: *const Vm) -> Result<(), Errno> {
        let event = KernelEventFd::get(i.fd)?;
        let mut list = self.0.lock();
        // Those whose descriptors were closed without a word.
        list.retain(|b| !b.is_dead());
        if list.iter().any(|b| b.is_of(&event)) {
            return Err(Errno::EBUSY);
        }
        let resample = match i.resample {
            // Twice: for the VM, and to find it there again.
            Some(fd) => Some((KernelEventFd::get(fd)?, KernelEventFd::get(fd)?)),
            None => None,
        };
        // SAFETY: by contract.
        let kernel = check_ptr(unsafe { shim::hsave_irqfd_new(i.fd, vm.cast(), i.gsi, resample.is_some()) })?;
        let mut binding = Binding { kernel, gsi: i.gsi, resample: None };
        if let Some((for_vm, ours)) = resample {
            // SAFETY: by contract.
            unsafe { &*vm }.add_resampler(i.gsi, for_vm)?;
            binding.resample = Some((vm, ours));
        }
        try_push(&mut list, binding)
    }

    /// Takes a binding back; nothing if there is none, as on stock. Errors: EBADF, EINVAL (no eventfd).
    pub fn deassign(&self, fd: i32, gsi: u32) -> Result<(), Errno> {
        let event = KernelEventFd::get(fd)?;
        self.0.lock().retain(|b| b.gsi != gsi || !b.is_of(&event));
        Ok(())
    }
}
