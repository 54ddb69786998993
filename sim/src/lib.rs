//! The machine under the hypervisor, in user space: scripted exits, virtual time, memory that can be unmapped and
//! allocations that fail on demand. The same `vm`, `mmu` and `kvm` code runs on it as in the module.
//!
//! A [`Sim`] is one machine. A vCPU's processor does what its script says: each step may change the guest's state
//! the way the hardware would, access memory through the nested page tables, and name the exit. When a script is
//! over, the vCPU's thread has a signal pending, so that KVM_RUN returns with EINTR.
//!
//! A machine may have its guests entered and left [`through_the_assembly`](Sim::through_the_assembly): by the world switch
//! of the module, on `switch`'s model of the instructions that it executes. The script stays the same.
//!
//! The processor is strict where the hardware is: it refuses a VMCB that VMRUN refuses, keeps translations until they
//! are flushed, takes a virtual interrupt as soon as it may. So is the machine: a freed page table that is
//! used, memory that the host took away and the guest still reaches, or a lock that is taken out of order
//! (`host::rank`), is a panic.
#![deny(unsafe_code)]

pub mod alloc;
mod cpu;
mod fpu;
mod lent;
mod lock;
mod machine;
mod memory;
mod thread;
mod tlb;
mod vcpu;
mod vmrun;

pub use arch;
pub use cpu::{Outcome, SimCpu, Step};
pub use fpu::SimFpu;
pub use host;
pub use machine::{Event, Sim, SimHrtimers, as_dying_thread};
pub use memory::{HVA_BASE, Page, SimPage};
pub use thread::SimThread;
pub use vcpu::SimVcpu;
