//! What the kernel tells about the VMM's address space (mmu notifier): pages that go away, pages to be aged.
//!
//! Between [`invalidate_range_start`](Mmu::invalidate_range_start) and
//! [`invalidate_range_end`](Mmu::invalidate_range_end) nothing of the range can be mapped, and when the first returns
//! nothing of it is mapped or in a TLB. Slots may come and go in between: the range is kept in the VMM's addresses, so
//! the two stay paired whatever the slots do.
//!
//! The kernel calls for all of the VMM's memory, most of which is in no slot. Such a call takes the mmu's lock for
//! reading, so that it holds no fault up, and costs the logarithm of the number of slots.

use crate::Mmu;
use crate::handover::Moved;
use crate::hva_tree::Place;
use crate::npt::Stale;
use arch::Hva;
use core::sync::atomic::Ordering::*;
use host::Host;

/// Slots that lose their part of a range without letting go of the lock.
const BATCH: usize = 64;

/// Ranges that are kept one by one.
const SINGLE: usize = 8;

/// The invalidations that have begun and not ended. A list, because one range around them all would hold up faults on
/// guest memory that lies between two of them; what does not fit has one around it.
#[derive(Default)]
#[cfg_attr(test, derive(Debug, PartialEq))]
pub struct Invalidations {
    ranges: [(u64, u64); SINGLE],
    len: usize,
    more: u32,
    around: (u64, u64),
}

impl Invalidations {
    pub(crate) fn add(&mut self, start: u64, end: u64) {
        if let Some(place) = self.ranges.get_mut(self.len) {
            *place = (start, end);
            self.len += 1;
            return;
        }
        self.around = match self.more {
            0 => (start, end),
            _ => (self.around.0.min(start), self.around.1.max(end)),
        };
        self.more = self.more.saturating_add(1);
    }

    /// Of two with the same range either may end first.
    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        let ranges = self.ranges.get_mut(..self.len).unwrap_or(&mut []);
        match (ranges.iter().position(|r| *r == (start, end)), ranges.len().checked_sub(1)) {
            (Some(n), Some(last)) => {
                if let (Some(moved), Some(place)) = (ranges.get(last).copied(), ranges.get_mut(n)) {
                    *place = moved;
                }
                self.len = last;
            }
            _ => self.more = self.more.saturating_sub(1),
        }
    }

    /// All of it for a handover; with whether the address space is gone.
    pub(crate) fn moved(&self, released: bool) -> Moved {
        let Self { ranges: all, len, more, around } = self;
        let mut ranges = [0; 2 * SINGLE];
        for (words, (start, end)) in ranges.chunks_exact_mut(2).zip(all) {
            words.copy_from_slice(&[*start, *end]);
        }
        Moved {
            released: released.into(),
            single: *len as u64,
            more: (*more).into(),
            around_start: around.0,
            around_end: around.1,
            ranges,
            // Not the memory's.
            remote_tlb_flush: 0,
            remote_tlb_flush_requests: 0,
        }
    }

    /// The reverse.
    pub(crate) fn of_moved(moved: &Moved) -> Self {
        let Moved {
            released: _,
            single,
            more,
            around_start,
            around_end,
            ranges: words,
            remote_tlb_flush: _,
            remote_tlb_flush_requests: _,
        } = moved;
        let mut ranges = [(0, 0); SINGLE];
        for (range, words) in ranges.iter_mut().zip(words.chunks_exact(2)) {
            if let [start, end] = words {
                *range = (*start, *end);
            }
        }
        Self { ranges, len: (*single as usize).min(SINGLE), more: *more as u32, around: (*around_start, *around_end) }
    }

    pub(crate) fn count(&self) -> u32 {
        (self.len as u32).saturating_add(self.more)
    }

    fn overlap(&self, start: u64, end: u64) -> bool {
        let overlaps = |r: &(u64, u64)| end > r.0 && start < r.1;
        self.ranges.iter().take(self.len).any(overlaps) || self.more != 0 && overlaps(&self.around)
    }
}

impl<H: Host> Mmu<H> {
    /// `[start, end)` of the VMM's memory is about to change. Paired with
    /// [`invalidate_range_end`](Self::invalidate_range_end) for the same range.
    ///
    /// `flush` returns when every vCPU has left the guest at least once since it was called, and will flush before it
    /// enters again; it is called without a lock of ours held, and only if something was mapped. Without `may_block`
    /// nothing here sleeps.
    pub fn invalidate_range_start(&self, start: Hva, end: Hva, may_block: bool, flush: &dyn Fn()) {
        {
            let mut invalidations = self.invalidations.lock();
            invalidations.add(start.0, end.0);
            self.invalidations_in_progress.store(invalidations.count(), Relaxed);
        }
        // A slot can come after this look. A fault on it takes the lock after its creator, who took it after us: so the
        // fault sees that the invalidation is in progress. (KVM lets the creator wait instead.)
        if self.mmu_lock.read().gfns(start.0, end.0).next().is_none() {
            return;
        }
        let (range, most) = ((start.0, end.0), if may_block { BATCH } else { usize::MAX });
        let (mut stale, mut next) = {
            let mut maps = self.mmu_lock.write();
            // A fault that has its page already asks again, and then finds the invalidation in progress, or ended.
            maps.invalidate_seq = maps.invalidate_seq.wrapping_add(1);
            maps.unmap_hva_range(&self.host, range, Place::default(), most, Stale::nothing())
        };
        // Faults on other memory need not wait for the rest. Nothing of the range is mapped meanwhile, so whichever slots come or go in
        // between, those that are left are all that can have some of it.
        while let Some(from) = next {
            self.host.cond_resched();
            (stale, next) = self.mmu_lock.write().unmap_hva_range(&self.host, range, from, most, stale);
        }
        self.flush_remote_tlbs(stale, flush, may_block);
    }

    /// The change that [`invalidate_range_start`](Self::invalidate_range_start) announced is done.
    pub fn invalidate_range_end(&self, start: Hva, end: Hva) {
        let mut invalidations = self.invalidations.lock();
        invalidations.remove(start.0, end.0);
        // Release: a fault that sees it sees what the kernel has changed.
        self.invalidations_in_progress.store(invalidations.count(), Release);
    }

    /// Is any of the `pages` pages from `hva` on being invalidated? The mmu's lock is held at least for reading.
    #[inline]
    pub(crate) fn invalidation_in_progress(&self, hva: Hva, pages: u64) -> bool {
        let end = hva.0.wrapping_add(pages << 12);
        self.invalidations_in_progress.load(Acquire) != 0 && self.invalidations.lock().overlap(hva.0, end)
    }

    /// Did the guest use `[start, end)` since the last call? Forgets that it did. TLBs are not flushed: a page that is
    /// used from there alone looks old a little early, which costs less than the flush (the kernel does the same with
    /// its own tables).
    pub fn age(&self, start: Hva, end: Hva) -> bool {
        self.age_hva_range(start, end, true)
    }

    /// As [`age`](Self::age), and changes nothing.
    pub fn test_young(&self, start: Hva, end: Hva) -> bool {
        self.age_hva_range(start, end, false)
    }

    fn age_hva_range(&self, start: Hva, end: Hva, clear: bool) -> bool {
        let maps = self.mmu_lock.read();
        let mut young = false;
        for (first, last) in maps.gfns(start.0, end.0) {
            young |= maps.tree.age(&self.host, first, last, clear);
        }
        young
    }

    /// The address space is going away: unmaps all. Later faults fail with EIO.
    pub fn release(&self, flush: &dyn Fn()) {
        let stale = {
            let mut maps = self.mmu_lock.write();
            maps.released = true;
            maps.invalidate_seq = maps.invalidate_seq.wrapping_add(1);
            maps.tree.zap_all(&self.host, Stale::nothing())
        };
        self.flush_remote_tlbs(stale, flush, true);
    }
}
