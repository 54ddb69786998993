//! The timers of a VM's devices.

use crate::{Linux, shim, shim::KAlarms};
use core::ffi::c_void;
use core::ptr::NonNull;
use host::{Alarm, Alarms, Errno};

/// A VM's.
pub struct KernelAlarms(NonNull<KAlarms>);

// SAFETY: the kernel's timers may be used from any thread.
unsafe impl Send for KernelAlarms {}
// SAFETY: as above.
unsafe impl Sync for KernelAlarms {}

impl KernelAlarms {
    /// Errors: ENOMEM.
    pub fn new() -> Result<Self, Errno> {
        NonNull::new(shim::hsave_alarms_new()).map(Self).ok_or(Errno::ENOMEM)
    }

    /// Names the VM that they belong to, before anybody else knows it.
    ///
    /// # Safety
    /// `vm` is at its final place; it drops the alarms before anything that [`hsave_alarm`] uses.
    pub unsafe fn bind(&self, vm: *const vm::Vm<Linux>) {
        // SAFETY: alive until `drop`; by contract.
        unsafe { shim::hsave_alarms_bind(self.0.as_ptr(), vm.cast::<c_void>()) }
    }
}

impl Alarms for KernelAlarms {
    fn arm(&self, which: Alarm, deadline: u64) {
        // SAFETY: alive until `drop`; `which` is one of HSAVE_ALARMS.
        unsafe { shim::hsave_alarm_arm(self.0.as_ptr(), which as u32, deadline) }
    }

    fn cancel(&self, which: Alarm) {
        // SAFETY: as above.
        unsafe { shim::hsave_alarm_cancel(self.0.as_ptr(), which as u32) }
    }
}

impl Drop for KernelAlarms {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed here only; waits for expiries that are under way.
        unsafe { shim::hsave_alarms_free(self.0.as_ptr()) }
    }
}

/// A timer expired; hard interrupt context.
///
/// # Safety
/// `vm` is the one that the alarms were bound to; it is alive, because dropping its alarms waits for this call.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_alarm(vm: *const vm::Vm<Linux>, which: u32) {
    let Some(which) = Alarm::ALL.get(which as usize) else { return };
    // SAFETY: by contract.
    unsafe { &*vm }.alarm(*which);
}

const _: () = assert!(Alarm::ALL.len() == 2, "HSAVE_ALARMS of the shim");
