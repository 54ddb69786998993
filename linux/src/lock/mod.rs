//! Locks that are a word each (docs/decisions/0007): no kernel structure inside, so they have a constant initial
//! value, need no destruction and are the same on every kernel. Sleeping goes through the kernel's hashed wait queues.
//!
//! Sequentially consistent read-modify-writes on release are also the full barrier that waking needs.

#[cfg(feature = "lockdep")]
mod lockdep;
mod sleep;
mod snapshot;
mod spin;

#[cfg(feature = "lockdep")]
pub use lockdep::Known;
pub use sleep::{SleepMutex, SleepRwLock, UntilKilled};
pub use snapshot::SrcuSnapshot;
pub use spin::{IrqSpinLock, SpinLock, SpinRwLock};

/// A lock with its place in the order (`host::rank`), which nobody here looks at.
#[cfg(not(feature = "lockdep"))]
pub type Known<L, const RANK: u8> = L;
