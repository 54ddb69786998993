//! The mailbox through which other threads post interrupts to a vCPU: lock-free, so that an interrupt costs the sender
//! two locked instructions, while IRR proper belongs to the vCPU's own thread.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::bits::Bits256;
use crate::lapic::Lapic;

/// Posted interrupt requests of one vCPU.
///
/// Edge and level posts are kept apart; when both kinds of one vector are pending at once, level wins: an EOI too many
/// at the IOAPIC is harmless, a missing one hangs the line.
#[derive(Debug, Default)]
pub struct Pir {
    /// Something may be in the bitmaps. Set after a bit, cleared before the bits are collected.
    outstanding: AtomicBool,
    edge: [AtomicU64; 4],
    level: [AtomicU64; 4],
}

::state::state! {
    place Pir { outstanding, edge, level }
}

impl Pir {
    /// An empty mailbox.
    pub const fn new() -> Self {
        Pir {
            outstanding: AtomicBool::new(false),
            edge: [const { AtomicU64::new(0) }; 4],
            level: [const { AtomicU64::new(0) }; 4],
        }
    }

    /// Posts `vector`. True when the mailbox was empty, so that the vCPU must be woken or kicked; false when an earlier
    /// post that nobody has collected yet already took care of that.
    ///
    /// The last step is a sequentially consistent read-modify-write: a vCPU that announces itself in guest mode
    /// (SeqCst) and then finds [`is_empty`](Self::is_empty) is seen in guest mode by whoever posts afterwards.
    #[inline]
    pub fn post(&self, vector: u8, level: bool) -> bool {
        let words = if level { &self.level } else { &self.edge };
        // INDEX: a vector has 8 bits, so this is below 4.
        if let Some(word) = words.get(usize::from(vector >> 6)) {
            word.fetch_or(1 << (vector & 63), Ordering::Release);
        }
        !self.outstanding.swap(true, Ordering::SeqCst)
    }

    /// Whether nothing waits: the last look before guest entry.
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.outstanding.load(Ordering::SeqCst)
    }

    /// Moves what was posted to IRR and TMR of `lapic`. One load when nothing was. True if something moved.
    #[inline]
    pub fn drain_into(&self, lapic: &mut Lapic) -> bool {
        if !self.outstanding.load(Ordering::Relaxed) {
            return false;
        }
        let (edge, level) = self.take();
        lapic.merge(edge, level);
        !(edge.is_empty() && level.is_empty())
    }

    /// Forgets what was posted: for a vCPU that is reset or gets a new state.
    pub fn clear(&self) {
        self.take();
    }

    fn take(&self) -> (Bits256, Bits256) {
        // Cleared first: a post whose bit is missed below raises the flag again, one whose bit is seen may raise it
        // in vain. AcqRel pairs with the SeqCst swap of the poster.
        self.outstanding.swap(false, Ordering::AcqRel);
        let collect = |words: &[AtomicU64; 4]| {
            // INDEX: a constant of ours.
            Bits256::from_words(core::array::from_fn(|i| match words.get(i) {
                // Most words are zero; a load does not take the cache line away from the posters.
                Some(word) if word.load(Ordering::Acquire) != 0 => word.swap(0, Ordering::Acquire),
                _ => 0,
            }))
        };
        (collect(&self.edge), collect(&self.level))
    }
}
