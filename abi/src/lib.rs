//! KVM's userspace ABI: what an ioctl on /dev/kvm, a VM or a vCPU means.
//!
//! Three functions, one per kind of file, take the ioctl's number and argument: [`system_ioctl`], [`vm_ioctl`],
//! [`vcpu_ioctl`]. They copy what user space hands in, check all of it, and only then call `vm`. Errors are those of
//! the KVM API document; where it is silent, those of stock KVM on AMD (Linux 6.12).
//!
//! [`run`] is KVM_RUN: the only part of this crate on the way of an exit. [`caps`] is the one place that says what is
//! offered: [`uapi`] holds structs and numbers, `codec` moves them to and from user memory.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod caps;
mod codec;
mod device;
mod run;
mod stats;
mod sync;
mod system;
#[cfg(test)]
mod tests;
pub mod uapi;
mod vcpu_ioctl;
mod vm_ioctl;

pub use device::{DeviceReply, device_ioctl, tell_device_fd};
pub use run::Ran;
pub use stats::read_stats;
pub use system::{SystemReply, system_ioctl};
pub use vcpu_ioctl::{VcpuReply, vcpu_ioctl, vcpu_run};
pub use vm_ioctl::{Irqfd, VmReply, vm_compat_ioctl, vm_ioctl};
