//! What the hypervisor needs from the machine under it, as traits.
//!
//! [`Host`] is the kernel (pages, user memory, time, sleeping); [`Cpu`] is one virtual processor as the world
//! switch offers it; [`VcpuThread`] is the thread that runs a vCPU as other threads see it. The module implements
//! them over the Linux kernel, `sim` in user space. Everything above is generic over them and monomorphised: no
//! `dyn` on the exit path.
//!
//! Memory shared with hardware or user space is reached through the cell types in [`cells`], never through
//! plain references.
#![no_std]
#![forbid(unsafe_code)]

pub mod cells;
mod cpu;
mod errno;
mod fallible;
mod fast;
mod frames;
mod lend;
mod machine;
mod page_in;
mod parameters;
pub mod rank;
pub mod requests;
mod snapshot;
mod states;
mod thread;
mod trace;
mod turns;

pub use cells::{PAGE_SIZE, PageCells, TableCells};
pub use cpu::{Cpu, CpuConfig, CpuFeatures, ExtraRegs};
pub use errno::Errno;
pub use fallible::{OneBox, push_within_capacity, take_at, try_box, try_filled, try_insert, try_push};
pub use fast::{FastExit, FastExits};
pub use frames::{Pfn, TablePage};
pub use lend::{Lend, Lent, LentFor, LentKind, Numbers};
pub use machine::{
    Command, EventFd, Fpu, Host, Hrtimer, Hrtimers, MapLevel, SharedPage, Stop, TimePoint, UserPage, Work,
    linux_version,
};
pub use page_in::PageIns;
pub use parameters::{PauseParameters, PollParameters};
pub use requests::{Request, Requests, VcpuRequests};
pub use snapshot::Snapshot;
pub use states::GuestState;
pub use thread::VcpuThread;
pub use trace::{LastExit, MmioKind, Trace, TraceEvent, TraceSet};
pub use turns::in_turns;

extern crate alloc;
