//! The VFIO device of a VM: the groups and devices of the host that it uses.

use crate::{errno::check_ptr, lock::SleepMutex, object::VmObject, shim, shim::KFile};
use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr::{NonNull, null};
use core::sync::atomic::{AtomicBool, Ordering::*};
use host::{Errno, try_push};
use lock_api::Mutex;

/// What a VM has of it. Empty but while there is a device's file.
#[derive(Default)]
pub struct Vfio {
    /// There is a device: one per VM.
    exists: AtomicBool,
    files: Mutex<SleepMutex, Vec<Assigned>>,
}

/// A file of VFIO's, with a reference until drop.
struct Assigned(NonNull<KFile>);

// SAFETY: the kernel's object may be used and released by any thread.
unsafe impl Send for Assigned {}

impl Assigned {
    /// Errors: EBADF, EINVAL (no group and no device of VFIO's).
    fn get(fd: i32) -> Result<Self, Errno> {
        check_ptr(shim::hsave_vfio_get(fd)).map(Self)
    }

    fn is_coherent(&self) -> bool {
        // SAFETY: we hold a reference.
        unsafe { shim::hsave_vfio_coherent(self.0.as_ptr()) }
    }

    /// Says whose the devices behind the file are; null: nobody's.
    ///
    /// # Safety
    /// The VM lives until this was called with null.
    unsafe fn set_vm(&self, vm: *const VmObject) {
        // SAFETY: we hold a reference; the rest by contract.
        unsafe { shim::hsave_vfio_set_vm(self.0.as_ptr(), vm.cast::<c_void>()) }
    }
}

impl Drop for Assigned {
    fn drop(&mut self) {
        // SAFETY: the reference is ours.
        unsafe { shim::hsave_vfio_put(self.0.as_ptr()) }
    }
}

impl Vfio {
    /// The VM gets its device. Errors: EBUSY (it has one).
    pub fn create(&self) -> Result<(), Errno> {
        if self.exists.swap(true, AcqRel) { Err(Errno::EBUSY) } else { Ok(()) }
    }

    /// The device goes with its file, on each kernel (stock of 6.1 keeps it until the VM ends), and everything that was added
    /// with it. `vm` is the VM that it is of.
    pub fn remove(&self, vm: &VmObject) {
        let mut files = self.files.lock();
        for file in files.drain(..) {
            // SAFETY: null.
            unsafe { file.set_vm(null()) };
        }
        vm.set_noncoherent_dma(false);
        self.exists.store(false, Release);
    }

    /// KVM_DEV_VFIO_FILE_ADD. Errors: EBADF, EINVAL (no file of VFIO's), EEXIST, ENOMEM.
    ///
    /// # Safety
    /// `vm` is the VM that this is of, and outlives the device ([`remove`](Self::remove)).
    pub unsafe fn add(&self, vm: &VmObject, fd: i32) -> Result<(), Errno> {
        let new = Assigned::get(fd)?;
        let mut files = self.files.lock();
        if files.iter().any(|f| f.0 == new.0) {
            return Err(Errno::EEXIST);
        }
        files.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        // SAFETY: by contract.
        unsafe { new.set_vm(vm) };
        try_push(&mut files, new)?;
        update(vm, &files);
        Ok(())
    }

    /// KVM_DEV_VFIO_FILE_DEL. Errors: EBADF, ENOENT (it was not added).
    pub fn del(&self, vm: &VmObject, fd: i32) -> Result<(), Errno> {
        // A file that is none of VFIO's is not in the list.
        let gone = Assigned::get(fd).map_err(|e| if e == Errno::EINVAL { Errno::ENOENT } else { e })?;
        let mut files = self.files.lock();
        let at = files.iter().position(|f| f.0 == gone.0).ok_or(Errno::ENOENT)?;
        let file = files.swap_remove(at);
        // SAFETY: null.
        unsafe { file.set_vm(null()) };
        update(vm, &files);
        Ok(())
    }
}

/// One device that the IOMMU lets go past the caches is enough for the guest's WBINVD to be carried out.
fn update(vm: &VmObject, files: &[Assigned]) {
    vm.set_noncoherent_dma(files.iter().any(|f| !f.is_coherent()));
}
