//! Guest time: the TSC of each vCPU and KVM's paravirtual clock (KVM API document 4.29, "KVM-specific MSRs").
//!
//! [`VcpuClock`] is one vCPU's TSC (an offset to the host's) and its clock page. [`VmClock`] keeps the vCPUs' TSCs in
//! step and owns the VM's clock: nanoseconds since the VM was made, set by KVM_SET_CLOCK. While the host's TSC is
//! stable and all vCPUs run in step, that clock is one straight line over the host's TSC ("master clock"), so that
//! every vCPU reads the same time and the guest may read it without a system call; otherwise each clock page is a
//! fresh line through the host's boot clock.
//!
//! Everything is arithmetic on a [`TimePoint`](host::TimePoint) that is passed in; guest memory is behind
//! [`GuestMemory`].

mod frequency;
mod page;
mod scale;
mod vcpu;
mod vm;

#[cfg(test)]
mod tests;

pub use frequency::Frequency;
pub use page::{GuestMemory, PvClock, write_wall_clock};
pub use scale::{Rate, time_scale};
pub use vcpu::VcpuClock;
pub use vm::{ClockData, VmClock};
