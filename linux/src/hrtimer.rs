//! The timers of a VM's devices.

use crate::{Linux, shim, shim::KHrtimers};
use core::ffi::c_void;
use core::ptr::NonNull;
use host::{Errno, Hrtimer, Hrtimers};

/// A VM's.
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
    /// `vm` is at its final place; it drops the hrtimers before anything that [`hsave_hrtimer_expired`] uses.
    pub unsafe fn bind(&self, vm: *const vm::Vm<Linux>) {
        // SAFETY: alive until `drop`; by contract.
        unsafe { shim::hsave_hrtimers_bind(self.0.as_ptr(), vm.cast::<c_void>()) }
    }
}

impl Hrtimers for KernelHrtimers {
    fn arm(&self, which: Hrtimer, deadline: u64) {
        // SAFETY: alive until `drop`; `which` is one of HSAVE_HRTIMERS.
        unsafe { shim::hsave_hrtimer_arm(self.0.as_ptr(), which as u32, deadline) }
    }

    fn cancel(&self, which: Hrtimer) {
        // SAFETY: as above.
        unsafe { shim::hsave_hrtimer_cancel(self.0.as_ptr(), which as u32) }
    }

    fn migrate(&self, which: Hrtimer) {
        // SAFETY: as above.
        unsafe { shim::hsave_hrtimer_migrate(self.0.as_ptr(), which as u32) }
    }
}

impl Drop for KernelHrtimers {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed here only; waits for expiries that are under way.
        unsafe { shim::hsave_hrtimers_free(self.0.as_ptr()) }
    }
}

/// A timer expired; hard interrupt context.
///
/// # Safety
/// `vm` is the one that the hrtimers were bound to; it is alive, because dropping its hrtimers waits for this call.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_hrtimer_expired(vm: *const vm::Vm<Linux>, which: u32) {
    let Some(which) = Hrtimer::ALL.get(which as usize) else { return };
    // SAFETY: by contract.
    unsafe { &*vm }.hrtimer_expired(*which);
}

const _: () = assert!(Hrtimer::ALL.len() == shim::HRTIMERS, "the shim has a timer for each");
