//! Files that are about to be made.

use crate::{
    errno::{check, check_ptr},
    shim,
    shim::KFile,
};
use alloc::boxed::Box;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use host::{Errno, OneBox};

/// A descriptor that nobody uses yet.
struct Fd(i32);

impl Fd {
    /// Errors: EMFILE.
    fn reserve() -> Result<Self, Errno> {
        check(shim::hsave_fd_reserve()).map(Self)
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: reserved by us, and not installed.
        unsafe { shim::hsave_fd_release(self.0) }
    }
}

/// A file that owns nothing and that nobody sees yet. It is made first, so that nothing can fail once the object exists
/// that it is for: what user space cannot close it could not undo.
pub struct NewFile {
    fd: Fd,
    file: NonNull<KFile>,
}

impl NewFile {
    /// Errors: those of opening a file: EMFILE, ENFILE, ENOMEM.
    pub fn new(open: impl FnOnce() -> *mut KFile) -> Result<Self, Errno> {
        Ok(Self { fd: Fd::reserve()?, file: check_ptr(open())? })
    }

    /// The descriptor that the file is going to have.
    pub fn fd(&self) -> i32 {
        self.fd.0
    }

    /// Hands `object` to the file and returns the descriptor. The file may be closed by another thread before this
    /// returns.
    ///
    /// # Safety
    /// The file's release takes a `T`.
    pub unsafe fn give<T>(self, object: OneBox<T>) -> i64 {
        let this = ManuallyDrop::new(self);
        let raw = Box::into_raw(object.into_inner());
        // SAFETY: descriptor and file are ours, and both become the process's.
        unsafe { shim::hsave_file_install(this.fd.0, this.file.as_ptr(), raw.cast()) };
        this.fd.0.into()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // SAFETY: ours; its release finds that it owns nothing.
        unsafe { shim::hsave_file_drop(self.file.as_ptr()) }
    }
}
