//! Locks whose holder may sleep.

use crate::shim;
use core::sync::atomic::{AtomicU32, Ordering::*};
use lock_api::{GuardNoSend, RawMutex, RawMutexTimed, RawRwLock};

/// Sleeps until the word is no longer `value`.
#[cold]
fn wait(word: &AtomicU32, value: u32) {
    // SAFETY: the word outlives the call; task context, as for everything that may sleep.
    unsafe { shim::hsave_wait_word(word.as_ptr(), value) }
}

/// The same; false if the thread is about to die instead.
#[cold]
fn wait_killable(word: &AtomicU32, value: u32) -> bool {
    // SAFETY: as above.
    unsafe { shim::hsave_wait_word_killable(word.as_ptr(), value) == 0 }
}

/// Wakes whoever waits for a change of the word.
#[cold]
fn wake(word: &AtomicU32) {
    // SAFETY: the address is only compared, so it does not matter if the lock goes away meanwhile.
    unsafe { shim::hsave_wake_word(word.as_ptr()) }
}

/// A mutex: free, held, or held with (perhaps) somebody waiting.
pub struct SleepMutex(AtomicU32);

const FREE: u32 = 0;
const HELD: u32 = 1;
const AWAITED: u32 = 2;

// SAFETY: the word leaves FREE by one read-modify-write at a time, and only the holder writes FREE.
unsafe impl RawMutex for SleepMutex {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self(AtomicU32::new(FREE));
    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock(&self) {
        if !self.try_lock() {
            // Whoever had to wait cannot know that he is the last, and leaves the mark.
            while self.0.swap(AWAITED, SeqCst) != FREE {
                wait(&self.0, AWAITED);
            }
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.0.compare_exchange(FREE, HELD, SeqCst, Relaxed).is_ok()
    }

    #[inline]
    unsafe fn unlock(&self) {
        if self.0.swap(FREE, SeqCst) == AWAITED {
            wake(&self.0);
        }
    }
}

/// As long as the current thread is not about to die.
#[derive(Clone, Copy)]
pub struct UntilKilled;

// SAFETY: as above.
unsafe impl RawMutexTimed for SleepMutex {
    type Duration = UntilKilled;
    type Instant = UntilKilled;

    #[inline]
    fn try_lock_for(&self, _: UntilKilled) -> bool {
        if self.try_lock() {
            return true;
        }
        // Who gives up leaves the mark, too: the holder then wakes nobody, or whoever waits still.
        while self.0.swap(AWAITED, SeqCst) != FREE {
            if !wait_killable(&self.0, AWAITED) {
                return false;
            }
        }
        true
    }

    #[inline]
    fn try_lock_until(&self, until: UntilKilled) -> bool {
        self.try_lock_for(until)
    }
}

/// A reader-writer lock: the number of readers, and two marks. A waiting writer keeps new readers out, so a reader
/// must not read again while it holds the lock.
pub struct SleepRwLock(AtomicU32);

const WRITER: u32 = 1 << 31;
const WRITER_WAITS: u32 = 1 << 30;

// SAFETY: the word goes from 0 readers to WRITER and back by single read-modify-writes; readers are counted in only
// while WRITER is clear.
unsafe impl RawRwLock for SleepRwLock {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self(AtomicU32::new(0));
    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock_shared(&self) {
        while !self.try_lock_shared() {
            let now = self.0.load(SeqCst);
            if now & (WRITER | WRITER_WAITS) != 0 {
                wait(&self.0, now);
            }
        }
    }

    #[inline]
    fn try_lock_shared(&self) -> bool {
        let now = self.0.load(Relaxed);
        now & (WRITER | WRITER_WAITS) == 0 && self.0.compare_exchange(now, now + 1, SeqCst, Relaxed).is_ok()
    }

    #[inline]
    unsafe fn unlock_shared(&self) {
        if self.0.fetch_sub(1, SeqCst) == WRITER_WAITS | 1 {
            wake(&self.0);
        }
    }

    #[inline]
    fn lock_exclusive(&self) {
        while !self.try_lock_exclusive() {
            let now = self.0.load(SeqCst);
            let marked = now | WRITER_WAITS;
            if now & !WRITER_WAITS != 0 && self.0.compare_exchange(now, marked, SeqCst, Relaxed).is_ok() {
                wait(&self.0, marked);
            }
        }
    }

    /// Takes the mark of waiting writers away: those that still wait are woken at the end and set it again.
    #[inline]
    fn try_lock_exclusive(&self) -> bool {
        let now = self.0.load(Relaxed);
        now & !WRITER_WAITS == 0 && self.0.compare_exchange(now, WRITER, SeqCst, Relaxed).is_ok()
    }

    #[inline]
    unsafe fn unlock_exclusive(&self) {
        // Readers leave no mark; waking nobody costs little.
        self.0.fetch_and(!WRITER, SeqCst);
        wake(&self.0);
    }
}
