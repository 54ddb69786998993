//! Locks that know their place in the order: taking one out of order is a panic, in whatever scenario it happens, not only
//! in the one where two threads meet.
#![allow(unsafe_code)]

use host::{OneBox, Snapshot, rank};
use lock_api::{RawMutex, RawMutexTimed, RawRwLock, RwLock};
use std::cell::Cell;

thread_local! {
    /// A bit for each rank that this thread holds.
    static HELD: Cell<u64> = const { Cell::new(0) };
    /// vCPUs that it has told something since it has interrupts off.
    static TOLD: Cell<usize> = const { Cell::new(0) };
}

/// So many may be: interrupts are to come soon.
const MOST_TOLD: usize = 16;

/// Before a lock of this rank is waited for.
fn check(rank: u8) {
    let held = HELD.get() >> rank;
    // A panic on its way out lets go of locks in any order.
    if held != 0 && !std::thread::panicking() {
        let lowest = rank + held.trailing_zeros() as u8;
        panic!("a lock of rank {rank} is taken while one of rank {lowest} is held (host::rank)");
    }
}

fn taken(rank: u8) {
    if HELD.get() >> host::rank::PIT == 0 {
        TOLD.set(0);
    }
    HELD.set(HELD.get() | 1 << rank);
}

/// This thread wakes a vCPU, or kicks it.
pub(crate) fn one_is_told() {
    TOLD.set(TOLD.get() + 1);
    if HELD.get() >> host::rank::PIT != 0 && TOLD.get() > MOST_TOLD && !std::thread::panicking() {
        panic!("more than {MOST_TOLD} vCPUs are told something while interrupts are off");
    }
}

fn gone(rank: u8) {
    HELD.set(HELD.get() & !(1 << rank));
    // Whoever waits for a sleeping lock is woken, which takes a lock of the kernel's that sleeps on PREEMPT_RT.
    if rank < host::rank::MMU {
        may_sleep();
    }
}

/// Whether this thread must not sleep.
pub fn holds_spin_lock() -> bool {
    HELD.get() >> host::rank::MMU != 0
}

/// What follows sleeps, at least on some kernels: no spin lock may be held.
pub fn may_sleep() {
    if holds_spin_lock() && !std::thread::panicking() {
        panic!("something that may sleep is done while a spin lock is held (host::rank)");
    }
}

/// Does what another thread does meanwhile: whatever this one holds is no concern of that.
pub fn as_another_thread(f: impl FnOnce()) {
    let held = HELD.replace(0);
    f();
    HELD.set(held);
}

/// The lock `L` with its rank.
pub struct Ranked<L, const RANK: u8>(L);

// SAFETY: every operation is that of `L`, which is a mutex; beside it only this thread's own note changes.
unsafe impl<L: RawMutex, const RANK: u8> RawMutex for Ranked<L, RANK> {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self(L::INIT);
    // The note is the thread's that took the lock.
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        check(RANK);
        self.0.lock();
        taken(RANK);
    }

    fn try_lock(&self) -> bool {
        let got = self.0.try_lock();
        if got {
            taken(RANK);
        }
        got
    }

    unsafe fn unlock(&self) {
        gone(RANK);
        // SAFETY: our caller holds the lock, so it holds `L`.
        unsafe { self.0.unlock() }
    }
}

// SAFETY: as above.
unsafe impl<L: RawMutexTimed, const RANK: u8> RawMutexTimed for Ranked<L, RANK> {
    type Duration = L::Duration;
    type Instant = L::Instant;

    fn try_lock_for(&self, timeout: L::Duration) -> bool {
        check(RANK);
        let got = self.0.try_lock_for(timeout);
        if got {
            taken(RANK);
        }
        got
    }

    fn try_lock_until(&self, timeout: L::Instant) -> bool {
        check(RANK);
        let got = self.0.try_lock_until(timeout);
        if got {
            taken(RANK);
        }
        got
    }
}

// SAFETY: every operation is that of `L`, which is a read-write lock; beside it only this thread's own note changes.
unsafe impl<L: RawRwLock, const RANK: u8> RawRwLock for Ranked<L, RANK> {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self(L::INIT);
    type GuardMarker = lock_api::GuardNoSend;

    fn lock_shared(&self) {
        // A reader that reads again would wait for a writer that waits for it.
        check(RANK);
        self.0.lock_shared();
        taken(RANK);
    }

    fn try_lock_shared(&self) -> bool {
        let got = self.0.try_lock_shared();
        if got {
            taken(RANK);
        }
        got
    }

    unsafe fn unlock_shared(&self) {
        gone(RANK);
        // SAFETY: our caller holds the lock for reading, so it holds `L` so.
        unsafe { self.0.unlock_shared() }
    }

    fn lock_exclusive(&self) {
        check(RANK);
        self.0.lock_exclusive();
        taken(RANK);
    }

    fn try_lock_exclusive(&self) -> bool {
        let got = self.0.try_lock_exclusive();
        if got {
            taken(RANK);
        }
        got
    }

    unsafe fn unlock_exclusive(&self) {
        gone(RANK);
        // SAFETY: our caller holds the lock for writing, so it holds `L` so.
        unsafe { self.0.unlock_exclusive() }
    }
}

/// A snapshot behind a lock, which shows who sleeps or locks while he looks at it.
pub struct LockedSnapshot<T>(RwLock<Ranked<parking_lot::RawRwLock, { rank::SNAPSHOT }>, Option<OneBox<T>>>);

impl<T: Send + Sync> Snapshot<T> for LockedSnapshot<T> {
    fn none() -> Self {
        Self(RwLock::new(None))
    }

    fn read<R>(&self, look: impl FnOnce(Option<&T>) -> R) -> R {
        look(self.0.read().as_deref())
    }

    fn replace(&self, new: Option<OneBox<T>>) -> Option<OneBox<T>> {
        may_sleep();
        std::mem::replace(&mut *self.0.write(), new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    type Mutex<const RANK: u8> = lock_api::Mutex<Ranked<parking_lot::RawMutex, RANK>, ()>;
    type RwLock<const RANK: u8> = lock_api::RwLock<Ranked<parking_lot::RawRwLock, RANK>, ()>;

    #[test]
    fn in_order_and_again() {
        let (first, second, third) = (Mutex::<1>::new(()), RwLock::<2>::new(()), Mutex::<3>::new(()));
        for _ in 0..2 {
            let a = first.lock();
            let b = second.read();
            drop(third.lock());
            // Let go of in any order.
            drop(a);
            drop(b);
            drop(second.write());
            drop(first.lock());
        }
    }

    #[test]
    #[should_panic(expected = "rank 1 is taken while one of rank 2 is held")]
    fn out_of_order() {
        let (first, second) = (Mutex::<1>::new(()), RwLock::<2>::new(()));
        let _second = second.write();
        let _first = first.lock();
    }

    #[test]
    #[should_panic(expected = "rank 2 is taken while one of rank 2 is held")]
    fn two_of_a_kind() {
        let (one, other) = (RwLock::<2>::new(()), RwLock::<2>::new(()));
        let _one = one.read();
        let _other = other.read();
    }

    #[test]
    fn nobody_locks_while_he_looks_at_a_snapshot() {
        let (lock, value) = (Mutex::<{ rank::SNAPSHOT }>::new(()), LockedSnapshot::<u32>::none());
        assert!(value.replace(host::try_box(|| 7).ok()).is_none());
        assert_eq!(value.read(|n| n.copied()), Some(7));
        assert!(catch_unwind(AssertUnwindSafe(|| value.read(|_| drop(lock.lock())))).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| value.read(|_| value.replace(None)))).is_err());
        assert_eq!(value.replace(None).map(|n| *n), Some(7));
    }

    #[test]
    fn few_are_told_while_interrupts_are_off() {
        let (first, second) = (Mutex::<{ rank::PIT }>::new(()), Mutex::<{ rank::CONTROLLERS }>::new(()));
        let tell = |n: usize| (0..n).for_each(|_| one_is_told());
        tell(MOST_TOLD + 1);
        for _ in 0..2 {
            let _pit = first.lock();
            tell(MOST_TOLD / 2);
            let _ioapic = second.lock();
            tell(MOST_TOLD / 2);
        }
        assert!(catch_unwind(|| tell(MOST_TOLD + 1)).is_ok());
        let _ioapic = second.lock();
        assert!(catch_unwind(|| tell(MOST_TOLD + 1)).is_err());
    }

    #[test]
    fn each_thread_has_its_own() {
        let (first, second) = (Mutex::<1>::new(()), Mutex::<2>::new(()));
        let _second = second.lock();
        std::thread::scope(|s| assert!(s.spawn(|| drop(first.lock())).join().is_ok()));
        as_another_thread(|| drop(first.lock()));
        // Trying never waits.
        assert!(first.try_lock().is_some());
    }
}
