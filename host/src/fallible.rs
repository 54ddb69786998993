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

impl<T> From<Box<[T; 1]>> for OneBox<T> {
    fn from(one: Box<[T; 1]>) -> Self {
        Self(one)
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

/// Makes a value on the heap, where the compiler builds it in place: kernel stacks are small. Never inlined, so that the
/// caller's frame does not hold the value where it does not. Errors: ENOMEM.
#[inline(never)]
pub fn try_box<T>(make: impl FnOnce() -> T) -> Result<OneBox<T>, Errno> {
    let mut v = Vec::new();
    v.try_reserve_exact(1).map_err(|_| Errno::ENOMEM)?;
    // Says what the reservation has made true, so that no path that would grow or shrink is compiled.
    if v.capacity() != 1 {
        return Err(Errno::ENOMEM);
    }
    v.push(make());
    <Box<[T; 1]>>::try_from(v.into_boxed_slice()).map(OneBox).map_err(|_| Errno::ENOMEM)
}

/// A vector of `n` equal values. Errors: ENOMEM.
pub fn try_filled<T: Clone>(value: T, n: usize) -> Result<Vec<T>, Errno> {
    let mut v = Vec::new();
    v.try_reserve_exact(n).map_err(|_| Errno::ENOMEM)?;
    if v.capacity() < n {
        return Err(Errno::ENOMEM);
    }
    v.resize(n, value);
    Ok(v)
}

/// Appends one value. Errors: ENOMEM (the vector is unchanged).
pub fn try_push<T>(v: &mut Vec<T>, value: T) -> Result<(), Errno> {
    v.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
    push_within_capacity(v, value).map_err(|_| Errno::ENOMEM)
}

/// Appends one value where there is room for it, and hands it back where there is none. Looks right before it appends, so that
/// no path that would grow is compiled.
#[inline]
pub fn push_within_capacity<T>(v: &mut Vec<T>, value: T) -> Result<(), T> {
    if v.len() == v.capacity() {
        return Err(value);
    }
    v.push(value);
    Ok(())
}

/// Inserts one value at `at` (at the end if that is beyond it). Errors: ENOMEM (the vector is unchanged).
pub fn try_insert<T>(v: &mut Vec<T>, at: usize, value: T) -> Result<(), Errno> {
    try_push(v, value)?;
    if let Some(tail @ [_, ..]) = v.get_mut(at..) {
        tail.rotate_right(1);
    }
    Ok(())
}

/// Takes the value at `at` out; the others keep their order.
pub fn take_at<T>(v: &mut Vec<T>, at: usize) -> Option<T> {
    if let tail @ [_, ..] = v.get_mut(at..)? {
        tail.rotate_left(1);
        return v.pop();
    }
    None
}
