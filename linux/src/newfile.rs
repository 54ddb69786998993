//! Files that are about to be made.

use crate::{
    errno::{check, check_ptr},
    shim,
    shim::KFile,
};
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use host::Errno;

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

/// A file that nobody sees yet.
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

    /// Gives the file to the process and returns the descriptor. It may be closed by another thread before this returns.
    pub fn install(self) -> i64 {
        let this = ManuallyDrop::new(self);
        // SAFETY: descriptor and file are ours, and both become the process's.
        unsafe { shim::hsave_file_install(this.fd.0, this.file.as_ptr()) };
        this.fd.0.into()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // SAFETY: ours; its release gives back what it has.
        unsafe { shim::hsave_file_drop(self.file.as_ptr()) }
    }
}
