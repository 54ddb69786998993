//! Kernel return values to `Errno` and back.

use core::ptr::NonNull;
use host::Errno;

/// The error of a negative return value; one that the hypervisor has no name for is EIO.
pub fn from_kernel(value: i32) -> Errno {
    const KNOWN: [Errno; 20] = [
        Errno::EPERM,
        Errno::ENOENT,
        Errno::EINTR,
        Errno::EIO,
        Errno::ENXIO,
        Errno::E2BIG,
        Errno::EBADF,
        Errno::EAGAIN,
        Errno::ENOMEM,
        Errno::EFAULT,
        Errno::EBUSY,
        Errno::EEXIST,
        Errno::ENODEV,
        Errno::EINVAL,
        Errno::ENFILE,
        Errno::EMFILE,
        Errno::ENOTTY,
        Errno::ENOSPC,
        Errno::EOPNOTSUPP,
        Errno::EHWPOISON,
    ];
    KNOWN.into_iter().find(|&e| e as i32 == value.wrapping_neg()).unwrap_or(Errno::EIO)
}

/// Ok for zero and more.
pub fn check(value: i32) -> Result<i32, Errno> {
    if value < 0 { Err(from_kernel(value)) } else { Ok(value) }
}

/// The kernel returns errors of functions that return a pointer as the last 4095 addresses.
pub fn check_ptr<T>(p: *mut T) -> Result<NonNull<T>, Errno> {
    const FIRST: usize = usize::MAX - 4094;
    if p.addr() >= FIRST { Err(from_kernel(p.addr() as i32)) } else { NonNull::new(p).ok_or(Errno::ENOMEM) }
}

/// What the kernel expects of a function that returns 0 or a negative errno.
pub fn status(r: Result<(), Errno>) -> i32 {
    r.map_or_else(|e| -(e as i32), |()| 0)
}
