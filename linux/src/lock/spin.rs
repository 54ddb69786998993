//! Locks whose holder must not sleep: preemption is off while they are held.

use crate::shim;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};
use lock_api::{GuardNoSend, RawMutex, RawRwLock};

#[inline]
fn acquire(held: &AtomicBool) {
    while held.swap(true, Acquire) {
        while held.load(Relaxed) {
            spin_loop();
        }
    }
}

/// Task context only: an interrupt that takes it would wait for the task that it interrupted.
pub struct SpinLock(AtomicBool);

// SAFETY: only the one swap that finds `false` holds the lock; the holder alone stores `false`.
unsafe impl RawMutex for SpinLock {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock(&self) {
        shim::hsave_preempt_disable();
        acquire(&self.0);
    }

    #[inline]
    fn try_lock(&self) -> bool {
        shim::hsave_preempt_disable();
        let got = !self.0.swap(true, Acquire);
        if !got {
            // SAFETY: disabled three lines above.
            unsafe { shim::hsave_preempt_enable() }
        }
        got
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.0.store(false, Release);
        // SAFETY: disabled when the lock was taken.
        unsafe { shim::hsave_preempt_enable() }
    }
}

/// Also for code that runs with interrupts off: off while it is held. Whether they come on again is not the lock's to know
/// but the CPU's, which counts how many such locks it holds: they may be given back in any order.
pub struct IrqSpinLock(AtomicBool);

// SAFETY: as SpinLock.
unsafe impl RawMutex for IrqSpinLock {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock(&self) {
        shim::hsave_irq_save();
        acquire(&self.0);
    }

    #[inline]
    fn try_lock(&self) -> bool {
        shim::hsave_irq_save();
        let got = !self.0.swap(true, Acquire);
        if !got {
            // SAFETY: saved three lines above.
            unsafe { shim::hsave_irq_restore() }
        }
        got
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.0.store(false, Release);
        // SAFETY: saved when the lock was taken (contract), on this CPU.
        unsafe { shim::hsave_irq_restore() }
    }
}

/// Readers and a writer that spin. A waiting writer keeps new readers out.
pub struct SpinRwLock(AtomicU32);

const WRITER: u32 = 1 << 31;
const WRITER_WAITS: u32 = 1 << 30;

// SAFETY: the word goes from 0 readers to WRITER and back by single read-modify-writes; readers are counted in only
// while WRITER is clear.
unsafe impl RawRwLock for SpinRwLock {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self(AtomicU32::new(0));
    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock_shared(&self) {
        shim::hsave_preempt_disable();
        while !self.read() {
            spin_loop();
        }
    }

    #[inline]
    fn try_lock_shared(&self) -> bool {
        shim::hsave_preempt_disable();
        let got = self.read();
        if !got {
            // SAFETY: disabled three lines above.
            unsafe { shim::hsave_preempt_enable() }
        }
        got
    }

    #[inline]
    unsafe fn unlock_shared(&self) {
        self.0.fetch_sub(1, Release);
        // SAFETY: disabled when the lock was taken.
        unsafe { shim::hsave_preempt_enable() }
    }

    #[inline]
    fn lock_exclusive(&self) {
        shim::hsave_preempt_disable();
        while !self.write() {
            self.0.fetch_or(WRITER_WAITS, Relaxed);
            spin_loop();
        }
    }

    #[inline]
    fn try_lock_exclusive(&self) -> bool {
        shim::hsave_preempt_disable();
        let got = self.write();
        if !got {
            // SAFETY: disabled three lines above.
            unsafe { shim::hsave_preempt_enable() }
        }
        got
    }

    #[inline]
    unsafe fn unlock_exclusive(&self) {
        // The mark of a waiting writer stays.
        self.0.fetch_and(!WRITER, Release);
        // SAFETY: disabled when the lock was taken.
        unsafe { shim::hsave_preempt_enable() }
    }
}

impl SpinRwLock {
    #[inline]
    fn read(&self) -> bool {
        let now = self.0.load(Relaxed);
        now & (WRITER | WRITER_WAITS) == 0 && self.0.compare_exchange_weak(now, now + 1, Acquire, Relaxed).is_ok()
    }

    #[inline]
    fn write(&self) -> bool {
        let now = self.0.load(Relaxed);
        now & !WRITER_WAITS == 0 && self.0.compare_exchange(now, WRITER, Acquire, Relaxed).is_ok()
    }
}
