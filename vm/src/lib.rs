//! A VM and its vCPUs: the run loop, the exit handlers, event injection, CPUID and MSR policy.
//!
//! Read [`run`] first: the loop that every exit goes through. [`exits`] is the exhaustive match behind it.
//! Nothing here knows Linux, assembly or the layout of an ioctl: the machine is behind the traits of `host`, and what
//! user space sees is translated by the crate above.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod apics;
pub mod chips;
pub mod clock;
pub mod coalesced;
mod code;
mod collect;
mod complete;
mod control;
pub mod cpuid;
pub mod debug;
mod exits;
pub mod fast;
mod fast_calls;
mod fpu;
mod guest;
mod guest_time;
mod halt;
pub mod handover;
pub mod hyperv;
pub mod inject;
mod interrupts;
pub mod ioeventfd;
mod lacking;
mod memory;
mod mmio;
mod moves;
pub mod msr;
mod notifier;
mod policy;
mod posted;
mod prefault;
mod pv;
pub mod quirks;
mod regs;
mod reset;
mod run;
mod setup;
mod smm;
mod software;
mod spin;
pub mod state;
pub mod stats;
mod trace;
pub mod user;
mod vcpu;
mod vcpu_events;
mod vm;

pub use apics::{Context, Later};
pub use irqchip;
pub use mmu;
pub use run::Next;
pub use smm::SmiEvents;
pub use state::{CpuidEntry, DebugRegs, Events, MpState, Regs, Sregs};
pub use user::{Answer, Pending, RunRequest, UserExit};
pub use vcpu::{Core, Ctx, InitSipi, PendingEvents, Vcpu};
pub use vm::{Config, DIRTY_LOG_PAGE_OFFSET, MAX_VCPU_ID, MAX_VCPUS, Vm};
