//! Allocation that can fail, for code that must turn exhaustion into ENOMEM.

use crate::Errno;
use alloc::{boxed::Box, vec::Vec};

/// A heap value from [`try_box`]; an array of one because stable Rust has no fallible `Box::new`.
pub type OneBox<T> = Box<[T; 1]>;

/// Moves a value to the heap. Errors: ENOMEM (the value is dropped).
pub fn try_box<T>(value: T) -> Result<OneBox<T>, Errno> {
    let mut v = Vec::new();
    v.try_reserve_exact(1).map_err(|_| Errno::ENOMEM)?;
    v.push(value);
    <OneBox<T>>::try_from(v.into_boxed_slice()).map_err(|_| Errno::ENOMEM)
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
