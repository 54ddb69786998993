//! Error numbers that reach the caller of an ioctl (Linux numbering).

/// An errno as the KVM API documents it. The value is positive; the module negates it at the boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// Operation not permitted.
    EPERM = 1,
    /// No such entry.
    ENOENT = 2,
    /// Interrupted by a signal.
    EINTR = 4,
    /// Input/output error (the VM belongs to another process, or is broken).
    EIO = 5,
    /// No such device or address.
    ENXIO = 6,
    /// The argument list (a counted array) is too long.
    E2BIG = 7,
    /// Bad file descriptor.
    EBADF = 9,
    /// Try again.
    EAGAIN = 11,
    /// Out of memory.
    ENOMEM = 12,
    /// Bad user address.
    EFAULT = 14,
    /// In use.
    EBUSY = 16,
    /// Exists already.
    EEXIST = 17,
    /// Device or feature absent.
    ENODEV = 19,
    /// Invalid argument.
    EINVAL = 22,
    /// The system has too many open files.
    ENFILE = 23,
    /// The process has too many open files.
    EMFILE = 24,
    /// Unknown ioctl.
    ENOTTY = 25,
    /// No space (a table is full).
    ENOSPC = 28,
    /// Operation not supported.
    EOPNOTSUPP = 95,
    /// Memory is poisoned by hardware.
    EHWPOISON = 133,
}
