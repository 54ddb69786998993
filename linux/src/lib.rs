//! The module: the hypervisor's traits over the Linux kernel, and its entry points.
//!
//! One object for all kernels; what differs between them is in the C shim (linux/shim), which holds inlines, macros
//! and static tables of the kernel and no logic. [`Linux`] implements `host::Host`, `Kernel` implements
//! `switch::Platform`; `load` is where it begins, `files` is where system calls arrive.
#![no_std]
#![deny(unsafe_op_in_unsafe_fn)]

extern crate alloc;

mod cpuid;
mod errno;
mod event;
#[cfg(target_os = "none")]
mod fast;
mod files;
mod fpu;
mod heap;
mod hrtimer;
mod irqfd;
mod load;
mod lock;
mod log;
mod machine;
mod newfile;
mod notify;
mod object;
#[cfg(feature = "panics")]
mod on_purpose;
mod page;
mod panic;
mod platform;
mod shim;
mod thread;
mod vfio;

pub use machine::Linux;
