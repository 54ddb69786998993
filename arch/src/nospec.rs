//! Tables in which a guest or a caller of ours chooses the place (docs/decisions/0020).
//!
//! A processor that guesses the outcome of a bounds check goes on with whatever index it has (Spectre v1, CVE-2017-5753):
//! it loads from beyond the table, and what it does with the value leaves a trace in the caches. So the index of such a
//! table passes through [`array_index_nospec`], which the processor cannot guess around, and [`GuestIndexed`] offers no
//! other way in.

/// `index` if it is below `size`, else 0; computed without a branch, so that this holds where a processor guesses, too.
/// The kernel's `array_index_nospec`. `size` is not 0 and at most `isize::MAX`, as that of every slice; a `size` of 0 gives 0.
#[inline(always)]
pub fn array_index_nospec(index: usize, size: usize) -> usize {
    index & mask(index, size)
}

/// All ones if `index` is below `size`, else 0.
#[cfg(not(miri))]
#[inline(always)]
#[allow(unsafe_code)] // The only place outside of `switch` and `linux`: the compiler may turn arithmetic into a branch.
fn mask(index: usize, size: usize) -> usize {
    let mask: usize;
    // SAFETY: two instructions on registers. The compiler knows nothing of the result, and so cannot conclude from an
    // earlier comparison that the mask is all ones.
    unsafe {
        core::arch::asm!(
            "cmp {index}, {size}",
            "sbb {mask}, {mask}",
            index = in(reg) index,
            size = in(reg) size,
            mask = lateout(reg) mask,
            options(pure, nomem, nostack),
        );
    }
    mask
}

/// The same for Miri, which executes no assembly.
#[cfg(miri)]
fn mask(index: usize, size: usize) -> usize {
    if index < size { usize::MAX } else { 0 }
}

/// A table (an array, a vector, a boxed slice) whose elements are reached by an index that a guest or a caller chose, or by
/// going through all of them, and in no other way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct GuestIndexed<A>(A);

impl<A> GuestIndexed<A> {
    /// The table with these elements.
    pub const fn new(table: A) -> Self {
        Self(table)
    }

    /// The table, for what goes through all of it.
    pub(crate) fn table(&self) -> &A {
        &self.0
    }

    /// The same for writing.
    pub(crate) fn table_mut(&mut self) -> &mut A {
        &mut self.0
    }

    /// Element `index`. None: there is none.
    #[inline(always)]
    pub fn get_nospec<T>(&self, index: usize) -> Option<&T>
    where
        A: AsRef<[T]>,
    {
        let table = self.0.as_ref();
        if index < table.len() { table.get(array_index_nospec(index, table.len())) } else { None }
    }

    /// The same for writing: a store that should not be made leaves a trace as well.
    #[inline(always)]
    pub fn get_nospec_mut<T>(&mut self, index: usize) -> Option<&mut T>
    where
        A: AsMut<[T]>,
    {
        let table = self.0.as_mut();
        let size = table.len();
        if index < size { table.get_mut(array_index_nospec(index, size)) } else { None }
    }

    /// All elements, in order.
    #[inline]
    pub fn iter<'a, T: 'a>(&'a self) -> core::slice::Iter<'a, T>
    where
        A: AsRef<[T]>,
    {
        self.0.as_ref().iter()
    }

    /// The same for writing.
    #[inline]
    pub fn iter_mut<'a, T: 'a>(&'a mut self) -> core::slice::IterMut<'a, T>
    where
        A: AsMut<[T]>,
    {
        self.0.as_mut().iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_kept_or_0() {
        const LARGE: usize = isize::MAX as usize;
        for size in [1, 2, 3, 24, 512, 513, LARGE] {
            for index in [0, 1, 2, 23, 24, 511, 512, 513, LARGE - 1, LARGE, LARGE + 1, usize::MAX - 1, usize::MAX] {
                assert_eq!(array_index_nospec(index, size), if index < size { index } else { 0 }, "{index} of {size}");
            }
        }
        assert_eq!((array_index_nospec(0, 0), array_index_nospec(7, 0)), (0, 0));
    }

    #[test]
    fn what_is_not_there_is_none() {
        let mut t = GuestIndexed::new([1u8, 2, 3]);
        assert_eq!([0, 1, 2].map(|i| t.get_nospec(i).copied()), [Some(1), Some(2), Some(3)]);
        assert_eq!([3, 4, usize::MAX].map(|i| t.get_nospec(i).copied()), [None; 3]);
        *t.get_nospec_mut(1).expect("there") = 9;
        assert_eq!(t.get_nospec_mut(3), None);
        assert!(t.iter().eq(&[1, 9, 3]));
        assert_eq!(GuestIndexed::new([0u8; 0]).get_nospec(0), None);
    }
}
