//! An engine: the hypervisor's traits over the Linux kernel, and its entry points.
//!
//! One object for all kernels; what differs between them is in C: the base (linux/shim/kvm), which owns the files of VMs and vCPUs,
//! the CPUs and what the kernel calls back, and has no policy (docs/decisions/0033). [`Linux`] implements `host::Host`, `Kernel` implements
//! `switch::Platform`; `load` is where it begins, `files` is where system calls arrive.
#![no_std]
#![deny(unsafe_op_in_unsafe_fn)]

extern crate alloc;

mod cpuid;
mod debugfs;
mod errno;
mod event;
#[cfg(target_os = "none")]
mod fast;
mod files;
mod fpu;
mod heap;
mod hrtimer;
mod lend;
mod load;
mod lock;
mod log;
mod machine;
mod newfile;
mod notify;
#[cfg(feature = "panics")]
mod on_purpose;
mod page;
mod panic;
mod platform;
mod shim;
mod thread;
mod trace;
mod upgrade;

pub use machine::Linux;
