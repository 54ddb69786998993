//! Model-specific registers: what RDMSR and WRMSR do in a guest, and what KVM_GET_MSRS and KVM_SET_MSRS see.
//!
//! [`MsrAccess`] is one vCPU's view for the length of one access: it borrows the places where MSRs live (the save area,
//! the local APIC, the clock, [`MsrState`]) and answers. What an access means for anything else comes back as an
//! [`MsrEffect`]. Values and faults are those of stock kvm-amd without performance monitoring and nested virtualization.
//! Hyper-V's are elsewhere ([`hyperv`](crate::hyperv)).

mod access;
mod filter;
mod list;
mod mce;
mod mtrr;
mod number;
mod passthrough;
mod read;
mod state;
#[cfg(test)]
mod tests;
mod write;

pub use access::{Clocks, MsrAccess, MsrEffect, MsrError, VmMsrs};
pub use filter::{FilterRange, MsrFilter};
pub use list::{feature_index_list, feature_msr, is_fixed_once_run, msr_index_list};
pub use mce::{MCE_CAP_SUPPORTED, MachineCheck, Mce, MceOutcome};
pub use mtrr::Mtrr;
pub use passthrough::passthrough;
pub use state::{MsrState, PAT_RESET};
