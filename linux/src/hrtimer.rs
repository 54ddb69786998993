//! The timers of a VM's devices.

use crate::{Linux, lend::lend, shim, shim::KHrtimers, shim::KVm};
use core::ptr::NonNull;
use host::{Errno, Hrtimer, Hrtimers};

/// A counted reference to a VM's.
pub struct KernelHrtimers(NonNull<KHrtimers>);

// SAFETY: the kernel's timers may be used from any thread.
unsafe impl Send for KernelHrtimers {}
// SAFETY: as above.
unsafe impl Sync for KernelHrtimers {}

impl KernelHrtimers {
    /// Errors: ENOMEM.
    pub fn new() -> Result<Self, Errno> {
        NonNull::new(shim::hsave_hrtimers_new()).map(Self).ok_or(Errno::ENOMEM)
    }

    /// Names the VM that they belong to, before anybody else knows it.
    ///
    /// # Safety
    /// `vm` outlives them; what it has in its engine drops them before anything that [`hsave_hrtimer_expired`] and [`hsave_hrtimer_late`] use.
    pub unsafe fn bind(&self, vm: *mut KVm) {
        // SAFETY: alive until `drop`; by contract.
        unsafe { shim::hsave_hrtimers_bind(self.0.as_ptr(), vm) }
    }
}

lend!(KernelHrtimers, Hrtimers, hsave_hrtimers_get);

impl Hrtimers for KernelHrtimers {
    fn arm(&self, which: Hrtimer, deadline: u64) {
        // SAFETY: alive until `drop`; `which` is one of HSAVE_HRTIMERS.
        unsafe { shim::hsave_hrtimer_arm(self.0.as_ptr(), which as u32, deadline) }
    }

    fn cancel(&self, which: Hrtimer) {
        // SAFETY: as above.
        unsafe { shim::hsave_hrtimer_cancel(self.0.as_ptr(), which as u32) }
    }
}

impl Drop for KernelHrtimers {
    fn drop(&mut self) {
        // SAFETY: our reference; the last one waits for expiries that are under way.
        unsafe { shim::hsave_hrtimers_put(self.0.as_ptr()) }
    }
}

/// A timer expired; hard interrupt context. False: the rest is for [`hsave_hrtimer_late`].
///
/// # Safety
/// `vm` is the engine's part of the VM that the hrtimers were bound to; it is alive, because dropping its hrtimers waits for
/// this call, or, where another engine has them too, the base has.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_hrtimer_expired(vm: *const vm::Vm<Linux>, which: u32) -> bool {
    let Some(which) = Hrtimer::ALL.get(which as usize) else { return true };
    // SAFETY: by contract.
    unsafe { &*vm }.hrtimer_expired(*which).is_ok()
}

/// What the expiry of a timer has left. In a task, interrupts are on; no timer is armed.
///
/// # Safety
/// See [`hsave_hrtimer_expired`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_hrtimer_late(vm: *const vm::Vm<Linux>, which: u32) {
    if let Some(which) = Hrtimer::ALL.get(which as usize) {
        // SAFETY: by contract.
        unsafe { &*vm }.hrtimer_late(*which);
    }
}

const _: () = assert!(Hrtimer::ALL.len() == shim::HRTIMERS, "the shim has a timer for each");
