//! x86 and SVM as data: layouts, numbers and bit arithmetic, nothing that acts.
//!
//! Everything here is a fact of the AMD64 Architecture Programmer's Manual (APM), named as it names it; the
//! section is cited where the fact is declared. Layouts are declared through [`layout!`], which asserts the offset
//! of every field.
#![no_std]
#![deny(unsafe_code)]

/// What [`layout!`] derives the state of a VM with.
#[doc(hidden)]
pub use state;

#[macro_use]
mod layout;
pub mod addr;
pub mod cpuid;
pub mod cr;
pub mod event;
pub mod exit;
#[cfg(any(test, feature = "ghcb"))]
pub mod ghcb;
pub mod iopm;
pub mod msr;
pub mod msrpm;
pub mod nospec;
pub mod npt;
pub mod segment;
pub mod smram;
mod states;
pub mod vmcb;
pub mod vmsa;

pub use addr::{Gfn, Gpa, HostPa, Hva, PAGE};
pub use event::{EventInj, EventType, Exception};
pub use exit::{Exit, ExitInfo, IoExit, NpfCode};
pub use layout::{Layout, Zero};
pub use nospec::{GuestIndexed, array_index_nospec};
pub use npt::NestedRoot;
pub use segment::{Segment, SegmentAttr};
pub use vmcb::{CleanBits, ControlArea, Intercepts, SaveArea, Vmcb};
pub use vmsa::Vmsa;

/// How far apart tests take values that they take all of: Miri is a thousand times slower.
#[cfg(test)]
const STRIDE: usize = if cfg!(miri) { 61 } else { 1 };
