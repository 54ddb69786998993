//! Allocation that can fail, for code that must turn exhaustion into ENOMEM.

use crate::Errno;
use alloc::{boxed::Box, vec::Vec};
use core::ops::{Deref, DerefMut};

/// A heap value from [`try_box`]. An array of one inside, because stable Rust has no fallible `Box::new`.
pub struct OneBox<T>(Box<[T; 1]>);

impl<T> OneBox<T> {
    /// The array of one.
    pub fn into_inner(self) -> Box<[T; 1]> {
        self.0
    }
}

impl<T> Deref for OneBox<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        let [value] = &*self.0;
        value
    }
}

impl<T> DerefMut for OneBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        let [value] = &mut *self.0;
        value
    }
}

/// Makes a value and puts it on the heap. Never inlined: kernel stacks are small, and so the caller's frame does not
/// hold the value. Errors: ENOMEM.
#[inline(never)]
pub fn try_box<T>(make: impl FnOnce() -> T) -> Result<OneBox<T>, Errno> {
    let mut v = Vec::new();
    v.try_reserve_exact(1).map_err(|_| Errno::ENOMEM)?;
    v.push(make());
    <Box<[T; 1]>>::try_from(v.into_boxed_slice()).map(OneBox).map_err(|_| Errno::ENOMEM)
}

/// A vector of `n` equal values. Errors: ENOMEM.
pub fn try_filled<T: Clone>(value: T, n: usize) -> Result<Vec<T>, Errno> {
    let mut v = Vec::new();
    v.try_reserve_exact(n).map_err(|_| Errno::ENOMEM)?;
    v.resize(n, value);
    Ok(v)
}

/// Appends one value. Errors: ENOMEM (the vector is unchanged).
pub fn try_push<T>(v: &mut Vec<T>, value: T) -> Result<(), Errno> {
    v.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
    v.push(value);
    Ok(())
}
