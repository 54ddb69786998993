//! KVM_IRQFD: the bindings of a VM's eventfds to its interrupts.

use crate::{
    errno::{check, check_ptr},
    event::KernelEventFd,
    lock::SleepMutex,
    shim,
    shim::{KEventFd, KIrqfd, KSweeper},
};
use abi::Irqfd;
use alloc::vec::Vec;
use core::ptr::NonNull;
use host::{Errno, EventFd, try_push};
use lock_api::Mutex;

type Vm = vm::Vm<crate::Linux>;

/// The list of one VM.
#[derive(Default)]
pub struct Irqfds(Mutex<SleepMutex, List>);

#[derive(Default)]
struct List {
    bindings: Vec<Binding>,
    /// Made with the first binding.
    sweeper: Option<Sweeper>,
}

/// Has the kernel call [`hsave_irqfds_sweep`] when a bound eventfd is closed.
struct Sweeper(NonNull<KSweeper>);

/// One eventfd raises one interrupt.
struct Binding {
    gsi: u32,
    /// The first to go: nothing raises the line after that.
    kernel: Bound,
    _resample: Option<Resampling>,
}

/// The place of a binding in its eventfd's wait queue.
struct Bound(NonNull<KIrqfd>);

/// An eventfd that is signalled at EOI, in the VM's list.
struct Resampling {
    vm: *const Vm,
    gsi: u32,
    event: KernelEventFd,
}

// SAFETY: the kernel's object may be used and freed by any thread.
unsafe impl Send for Bound {}
// SAFETY: the same.
unsafe impl Send for Sweeper {}
// SAFETY: the VM may be used by any thread, and outlives the list.
unsafe impl Send for Resampling {}

impl Bound {
    /// Not bound yet. Errors: EBADF, EINVAL (no eventfd), ENOMEM.
    fn new(fd: i32) -> Result<Self, Errno> {
        check_ptr(shim::hsave_irqfd_new(fd)).map(Self)
    }

    /// The eventfd's context, to be compared.
    fn event(&self) -> *const KEventFd {
        // SAFETY: alive until `drop`.
        unsafe { shim::hsave_irqfd_event(self.0.as_ptr()) }
    }

    fn is_dead(&self) -> bool {
        // SAFETY: alive until `drop`.
        unsafe { shim::hsave_irqfd_dead(self.0.as_ptr()) }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and freed here only.
        unsafe { shim::hsave_irqfd_free(self.0.as_ptr()) }
    }
}

impl Drop for Sweeper {
    /// Waits for a sweep under way.
    fn drop(&mut self) {
        // SAFETY: made by `assign`, and freed here only; no binding is left that would start it.
        unsafe { shim::hsave_sweeper_free(self.0.as_ptr()) }
    }
}

impl Resampling {
    /// Errors: EBADF, EINVAL (no eventfd), ENOMEM, ENOSPC (too many).
    fn new(vm: *const Vm, gsi: u32, fd: i32) -> Result<Self, Errno> {
        // Once for the VM and once to find it there again; the caller's other threads can change what `fd` means.
        let (event, for_vm) = (KernelEventFd::get(fd)?, KernelEventFd::get(fd)?);
        if !event.same(&for_vm) {
            return Err(Errno::EBADF);
        }
        // SAFETY: the VM outlives the list (`Irqfds::assign`).
        unsafe { &*vm }.add_resampler(gsi, for_vm)?;
        Ok(Self { vm, gsi, event })
    }
}

impl Drop for Resampling {
    fn drop(&mut self) {
        // SAFETY: the VM outlives the list.
        unsafe { &*self.vm }.remove_resampler(self.gsi, &self.event);
    }
}

impl Irqfds {
    /// Binds. Errors: EBADF, EINVAL (no eventfd), EBUSY (bound already; since Linux 6.17 in any VM), ENOMEM, ENOSPC (too many resampled ones).
    ///
    /// # Safety
    /// `vm` is what `hsave_irqfd_raise` takes, at its final place, and outlives this list, which is at its own and is closed
    /// before it goes.
    pub unsafe fn assign(&self, i: Irqfd, vm: *const Vm) -> Result<(), Errno> {
        // Looked up once: the caller's other threads can change what the number means.
        let kernel = Bound::new(i.fd)?;
        let mut list = self.0.lock();
        let List { bindings, sweeper } = &mut *list;
        if bindings.iter().any(|b| b.kernel.event() == kernel.event()) {
            return Err(Errno::EBUSY);
        }
        bindings.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        let sweeper = match sweeper {
            Some(sweeper) => sweeper,
            none => {
                // SAFETY: the list is at its final place, and `close` waits for a sweep under way.
                let made = unsafe { shim::hsave_sweeper_new((&raw const *self).cast()) };
                none.insert(Sweeper(NonNull::new(made).ok_or(Errno::ENOMEM)?))
            }
        };
        // Before the eventfd can raise the line, so that there is always somebody who lowers it.
        let resample = i.resample.map(|fd| Resampling::new(vm, i.gsi, fd)).transpose()?;
        // SAFETY: by contract; bound once.
        check(unsafe {
            shim::hsave_irqfd_bind(kernel.0.as_ptr(), sweeper.0.as_ptr(), vm.cast(), i.gsi, resample.is_some())
        })?;
        try_push(bindings, Binding { gsi: i.gsi, kernel, _resample: resample })
    }

    /// Takes a binding back; nothing if there is none, as on stock. Errors: EBADF, EINVAL (no eventfd).
    pub fn deassign(&self, fd: i32, gsi: u32) -> Result<(), Errno> {
        let event = KernelEventFd::get(fd)?;
        self.0.lock().bindings.retain(|b| b.gsi != gsi || !event.is(b.kernel.event()));
        Ok(())
    }

    /// The VM ends: nothing raises an interrupt of it any more, nor sweeps this list, when it returns. May sleep.
    pub fn close(&self) {
        let sweeper = {
            let mut list = self.0.lock();
            list.bindings.clear();
            list.sweeper.take()
        };
        // A sweep under way takes the lock.
        drop(sweeper);
    }
}

/// The descriptors of some eventfds were closed without a word: takes their bindings back. Process context.
///
/// # Safety
/// `list` is what `hsave_sweeper_new` was given, and not closed.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_irqfds_sweep(list: *const Irqfds) {
    // SAFETY: by contract.
    let Irqfds(list) = unsafe { &*list };
    list.lock().bindings.retain(|b| !b.kernel.is_dead());
}
