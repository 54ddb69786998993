//! The hypervisor on a simulated machine: what a VMM sees of what a guest does.

mod ahead;
mod chips;
mod chips_corners;
mod clock;
mod control;
mod cpuid;
mod crossing;
mod events;
mod failures;
mod fast;
mod fpu;
mod interrupts;
mod ioctls;
mod memory;
mod mmio;
mod moves;
mod msr;
mod port;
mod pv;
mod quirks;
mod random;
mod smp;
mod stats;
mod structs;
mod tasks;
mod timer;
