//! The machine under the hypervisor, in user space: scripted exits, virtual time, memory that can be unmapped and
//! allocations that fail on demand. The same `vm`, `mmu` and `kvm` code runs on it as in the module.
//!
//! A [`Sim`] is one machine. A vCPU's processor does what its script says: each step may change the guest's state
//! the way the hardware would, and names the exit. When a script is over, the vCPU's thread has a signal pending, so
//! that KVM_RUN returns with EINTR.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod alloc;
mod cpu;
mod fpu;
mod machine;
mod memory;
mod thread;

pub use cpu::{SimCpu, Step};
pub use fpu::SimFpu;
pub use machine::{Event, Sim};
pub use memory::{HVA_BASE, Page, SimPage};
pub use thread::SimThread;
