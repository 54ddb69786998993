//! The dirty bitmap of a slot: one bit per page, set when it is written (KVM API document, 4.8).

use arch::GuestIndexed;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use host::{Errno, Host, Lend, Lent, LentFor, Numbers};

/// Pages per word.
pub const WORD: u64 = 64;

/// One bit per page of a slot, in the layout of KVM_GET_DIRTY_LOG. Lives under the mmu's lock: bits are set while it is
/// held for reading, and cleared while it is held for writing. Guests choose the page.
pub struct Bitmap<H: Host> {
    words: GuestIndexed<H::Words>,
    /// What the machine calls them.
    number: u64,
}

impl<H: Host> Bitmap<H> {
    /// All clear, or (with `full`) all set, for `pages` pages. Errors: ENOMEM.
    pub fn new(host: &H, pages: u64, full: bool) -> Result<Self, Errno> {
        let words = host.new_words(words_of(pages).ok_or(Errno::ENOMEM)?)?;
        if full {
            let all = words.as_ref();
            all.iter().for_each(|word| word.store(u64::MAX, Relaxed));
            let unused = (all.len() as u64 * WORD).wrapping_sub(pages);
            if let Some(last) = all.last() {
                last.store(u64::MAX >> unused, Relaxed);
            }
        }
        Ok(Self::of(words))
    }

    fn of(words: H::Words) -> Self {
        Self { number: words.number(), words: GuestIndexed::new(words) }
    }

    /// Lends one, or says that there is none; allocates only if there was no [room](Numbers::reserve). Errors: ENOMEM.
    pub fn lend(one: Option<&Self>, to: &mut Numbers) -> Result<(), Errno> {
        to.lend_number::<H::Words>(LentFor::DirtyBitmap, one.map_or(0, |bitmap| bitmap.number))
    }

    /// The next of those that were lent, for `pages` pages; the inner None: there is none. None: that is no such thing.
    pub fn lent(lent: &mut Lent<'_>, pages: u64) -> Option<Option<Self>> {
        match lent.optional::<H::Words>(LentFor::DirtyBitmap)? {
            None => Some(None),
            Some(words) => (Some(words.as_ref().len()) == words_of(pages)).then(|| Some(Self::of(words))),
        }
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
        self.words.get_nospec(usize::try_from(n).ok()?)
    }
}

/// Words for so many pages.
fn words_of(pages: u64) -> Option<usize> {
    usize::try_from(pages.div_ceil(WORD)).ok()
}

const fn bit(page: u64) -> u64 {
    1 << (page % WORD)
}
