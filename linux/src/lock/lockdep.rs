//! Locks that the kernel's lockdep hears of, as it does of its own: in which order they are taken, in which contexts, and whether
//! something sleeps under them (docs/decisions/0021). It costs a call of the base's at each step, so only the object for kernels
//! that have lockdep is built with it.

use crate::shim;
use lock_api::{GuardNoSend, RawMutex, RawMutexTimed, RawRwLock};

/// Before a lock is waited for that may have to be.
fn about_to(rank: u8) {
    shim::hsave_lock_wanted(rank.into());
}

/// It is held. `tried`: it was taken because it was free, which says nothing about the order.
fn taken(rank: u8, read: bool, tried: bool) {
    // SAFETY: it is, by this thread.
    unsafe { shim::hsave_lock_taken(rank.into(), read, tried) }
}

/// It is about to be given back.
fn gone(rank: u8) {
    // SAFETY: this thread has it, and has said so.
    unsafe { shim::hsave_lock_gone(rank.into()) }
}

/// The lock `L` with its place in the order (`host::rank`).
pub struct Known<L, const RANK: u8>(L);

impl<L, const RANK: u8> Known<L, RANK> {
    /// What came of trying.
    fn tried(got: bool, read: bool) -> bool {
        if got {
            taken(RANK, read, true);
        }
        got
    }
}

// SAFETY: every operation is that of `L`, which is a mutex.
unsafe impl<L: RawMutex, const RANK: u8> RawMutex for Known<L, RANK> {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self(L::INIT);
    // Lockdep notes who has it.
    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        about_to(RANK);
        self.0.lock();
        taken(RANK, false, false);
    }

    fn try_lock(&self) -> bool {
        Self::tried(self.0.try_lock(), false)
    }

    unsafe fn unlock(&self) {
        gone(RANK);
        // SAFETY: our caller holds the lock, so it holds `L`.
        unsafe { self.0.unlock() }
    }
}

// SAFETY: as above.
unsafe impl<L: RawMutexTimed, const RANK: u8> RawMutexTimed for Known<L, RANK> {
    type Duration = L::Duration;
    type Instant = L::Instant;

    fn try_lock_for(&self, timeout: L::Duration) -> bool {
        about_to(RANK);
        let got = self.0.try_lock_for(timeout);
        if got {
            taken(RANK, false, false);
        }
        got
    }

    fn try_lock_until(&self, timeout: L::Instant) -> bool {
        about_to(RANK);
        let got = self.0.try_lock_until(timeout);
        if got {
            taken(RANK, false, false);
        }
        got
    }
}

// SAFETY: every operation is that of `L`, which is a read-write lock.
unsafe impl<L: RawRwLock, const RANK: u8> RawRwLock for Known<L, RANK> {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self(L::INIT);
    type GuardMarker = GuardNoSend;

    fn lock_shared(&self) {
        about_to(RANK);
        self.0.lock_shared();
        taken(RANK, true, false);
    }

    fn try_lock_shared(&self) -> bool {
        Self::tried(self.0.try_lock_shared(), true)
    }

    unsafe fn unlock_shared(&self) {
        gone(RANK);
        // SAFETY: our caller holds the lock for reading, so it holds `L` so.
        unsafe { self.0.unlock_shared() }
    }

    fn lock_exclusive(&self) {
        about_to(RANK);
        self.0.lock_exclusive();
        taken(RANK, false, false);
    }

    fn try_lock_exclusive(&self) -> bool {
        Self::tried(self.0.try_lock_exclusive(), false)
    }

    unsafe fn unlock_exclusive(&self) {
        gone(RANK);
        // SAFETY: our caller holds the lock for writing, so it holds `L` so.
        unsafe { self.0.unlock_exclusive() }
    }
}
