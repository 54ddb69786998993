//! How a guest with encrypted state asks its hypervisor for something: the guest-hypervisor communication block.
//!
//! A guest of SEV-ES decides by itself what the hypervisor gets to see. Before there is a shared page it speaks
//! through the value of one MSR ([`protocol`]); then through a page ([`page`]), with an exit code, the registers that
//! this exit needs, and a bitmap of which of them are valid. Source: "SEV-ES Guest-Hypervisor Communication Block
//! Standardization", versions 1 and 2.
//!
//! The page is the guest's and can change at any time, so it is copied once ([`Snapshot::take`]) and everything is
//! decided on the copy. Nothing here acts, and nothing in the hypervisor uses it before there is firmware to run such
//! guests with: the capability is 0.

pub mod page;
pub mod protocol;
mod scratch;
mod snapshot;

pub use page::{Event, Version};
pub use scratch::Scratch;
pub use snapshot::{Field, PROTOCOL_VERSION, Refusal, Snapshot, USAGE, VALID_BITMAP};
