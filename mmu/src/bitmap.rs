//! The dirty bitmap of a slot: one bit per page, set when it is written (KVM API document, 4.8).

use alloc::vec::Vec;
use arch::GuestIndexed;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use host::Errno;

/// Pages per word.
pub const WORD: u64 = 64;

/// One bit per page of a slot, in the layout of KVM_GET_DIRTY_LOG. Lives under the mmu's lock: bits are set while it is
/// held for reading, and cleared while it is held for writing. Guests choose the page.
pub struct Bitmap(GuestIndexed<Vec<AtomicU64>>);

impl Bitmap {
    /// All clear, or (with `full`) all set, for `pages` pages. Errors: ENOMEM.
    pub fn new(pages: u64, full: bool) -> Result<Self, Errno> {
        let words = usize::try_from(pages.div_ceil(WORD)).map_err(|_| Errno::ENOMEM)?;
        let mut bits = Vec::new();
        bits.try_reserve_exact(words).map_err(|_| Errno::ENOMEM)?;
        // Says what the reservation has made true, so that no path that grows further is compiled.
        if bits.capacity() < words {
            return Err(Errno::ENOMEM);
        }
        bits.resize_with(words, || AtomicU64::new(if full { u64::MAX } else { 0 }));
        let unused = (words as u64 * WORD).wrapping_sub(pages);
        if let (true, Some(last)) = (full, bits.last_mut()) {
            *last.get_mut() >>= unused;
        }
        Ok(Self(GuestIndexed::new(bits)))
    }

    /// Sets the bit of a page, counted from the start of the slot.
    #[inline]
    pub fn mark(&self, page: u64) {
        if let Some(word) = self.cell(page / WORD) {
            // Looks first: most marks are repeated, and a plain read leaves the cache line shared.
            if word.load(Relaxed) & bit(page) == 0 {
                word.fetch_or(bit(page), Relaxed);
            }
        }
    }

    /// The word with the bits of pages `n * 64` and following.
    pub fn word(&self, n: u64) -> u64 {
        self.cell(n).map_or(0, |w| w.load(Relaxed))
    }

    /// Clears the bits of `mask` in a word; returns those of them that were set.
    pub fn clear(&self, n: u64, mask: u64) -> u64 {
        self.cell(n).map_or(0, |w| w.fetch_and(!mask, Relaxed) & mask)
    }

    fn cell(&self, n: u64) -> Option<&AtomicU64> {
        self.0.get_nospec(usize::try_from(n).ok()?)
    }
}

const fn bit(page: u64) -> u64 {
    1 << (page % WORD)
}
