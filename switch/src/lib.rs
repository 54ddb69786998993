//! The world switch: how a processor leaves the host for a guest and comes back.
//!
//! [`Svm`] is one virtual processor, the hardware's `host::Cpu`; [`Machine`] is what all of them share. What the
//! kernel has a say in comes through [`Platform`]; what the assembly has to reach through GS is in [`CpuData`].
//! The order of a run is written twice: `run.rs` has it from interrupts off to interrupts on, `entry.rs` has the
//! assembly between them.
//!
//! All of it runs in user space as well, on a model of the processor: in the tests of this crate and, with the feature
//! `model`, for others.
//!
//! The switch owns the VMCB: nested CR3, ASID, permission maps and the mandatory intercepts are written here only.
#![no_std]
#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(any(test, feature = "model"))]
extern crate std;

mod asid;
mod ctx;
mod entry;
mod extable;
mod fast;
mod insn;
mod machine;
mod msrpm;
mod pages;
mod percpu;
mod platform;
mod run;
mod state;
mod svm;

#[cfg(any(test, feature = "model"))]
pub mod model;
#[cfg(test)]
mod tests;

pub use asid::{AsidGeneration, Asids};
pub use ctx::{SPEC_CTRL_NOT_INTERCEPTED, VcpuCtx};
pub use entry::hsave_vcpu_run;
pub use fast::handle_fast;
pub use machine::{Machine, Unsupported};
pub use percpu::{CPU_DATA_SIZE, CpuData};
pub use platform::{Pages, Platform};
pub use svm::{INITIAL, MANDATORY, MANDATORY_EXCEPTIONS, Svm};
