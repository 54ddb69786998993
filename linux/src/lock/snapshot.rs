//! What is read without a lock: SRCU of the base's, whose readers have preemption off.

use crate::shim;
use alloc::boxed::Box;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering::*};
use host::{OneBox, Snapshot};

/// The value's address; null: there is none. Owned.
pub struct SrcuSnapshot<T>(AtomicPtr<[T; 1]>);

impl<T> SrcuSnapshot<T> {
    fn take(&self, new: *mut [T; 1]) -> Option<NonNull<[T; 1]>> {
        NonNull::new(self.0.swap(new, AcqRel))
    }
}

impl<T: Send + Sync> Snapshot<T> for SrcuSnapshot<T> {
    fn none() -> Self {
        Self(AtomicPtr::new(null_mut()))
    }

    #[inline]
    fn read<R>(&self, look: impl FnOnce(Option<&T>) -> R) -> R {
        let idx = shim::hsave_srcu_read_lock();
        // SAFETY: the address of a value that was published whole. `replace` frees it only after a grace period, which does not
        // end before the lock is given back, and `drop` when nobody has a reference to this one.
        let value = unsafe { self.0.load(Acquire).as_ref() };
        let result = look(value.map(|[value]| value));
        // SAFETY: taken above, by this thread.
        unsafe { shim::hsave_srcu_read_unlock(idx) };
        result
    }

    fn replace(&self, new: Option<OneBox<T>>) -> Option<OneBox<T>> {
        let old = self.take(new.map_or(null_mut(), |new| Box::into_raw(new.into_inner())))?;
        shim::hsave_synchronize_srcu();
        // SAFETY: made by `Box::into_raw`, taken out by one swap, and who still read it then reads no more.
        Some(OneBox::from(unsafe { Box::from_raw(old.as_ptr()) }))
    }
}

impl<T> Drop for SrcuSnapshot<T> {
    fn drop(&mut self) {
        if let Some(last) = self.take(null_mut()) {
            // SAFETY: made by `Box::into_raw`; nobody else has a reference to this one.
            drop(unsafe { Box::from_raw(last.as_ptr()) });
        }
    }
}
