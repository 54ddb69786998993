//! What the spin lock guards: the nested tables, and the slots as faults and the mmu notifier see them.
//!
//! The notifier may be called while the same thread (or one that it waits for) holds the sleeping lock of the slots:
//! an access to guest memory holds that lock and can fault, and the fault can evict or copy a page, which notifies us.
//! So the notifier, and the fault path with it, works on this second copy of the slots.

use crate::bitmap::Bitmap;
use crate::npt::Tree;
use crate::slot::Slot;
use alloc::vec::Vec;
use core::mem;
use host::Errno;

/// A slot under the spin lock.
pub struct Region {
    /// The slot.
    pub slot: Slot,
    /// It is being deleted or moved: the notifier still has to see it, for its pages may be mapped until the flush, but
    /// nothing new may be mapped.
    pub retiring: bool,
    /// Pages written, if the slot logs them.
    pub dirty: Option<Bitmap>,
    /// It has logged since it is here, so a page that is not mapped was never touched.
    pub always_logged: bool,
}

impl Region {
    /// As it is made: nothing of it is mapped.
    pub fn new(slot: Slot, dirty: Option<Bitmap>) -> Self {
        Self { slot, retiring: false, always_logged: dirty.is_some(), dirty }
    }
}

/// Nested tables, regions, and what faults are checked against.
pub struct Maps {
    /// The nested page tables.
    pub tree: Tree,
    /// Ordered by guest address.
    regions: Vec<Region>,
    /// Advances with every invalidation that ends and every change of a slot. A fault that saw another number before
    /// it asked for the page has to ask again.
    pub seq: u64,
    /// Invalidations that have begun and not ended.
    invalidating: u32,
    /// Covers the ranges of all of them, in the VMM's memory.
    range: (u64, u64),
    /// The address space is gone.
    pub released: bool,
}

impl Maps {
    /// No slots, nothing mapped.
    pub fn new(tree: Tree) -> Self {
        Self { tree, regions: Vec::new(), seq: 0, invalidating: 0, range: (0, 0), released: false }
    }

    /// The region that holds a frame.
    #[inline]
    pub fn region(&self, gfn: u64) -> Option<&Region> {
        let n = self.regions.partition_point(|r| r.slot.base <= gfn).checked_sub(1)?;
        self.regions.get(n).filter(|r| r.slot.holds(gfn))
    }

    /// The first region with a frame at or after `gfn`: such a frame, and the region's end.
    pub fn next(&self, gfn: u64) -> Option<(u64, u64)> {
        let n = self.regions.partition_point(|r| r.slot.end() <= gfn);
        self.regions.get(n).map(|r| (r.slot.base.max(gfn), r.slot.end()))
    }

    /// Records that a page was written, if its slot logs.
    pub fn mark_dirty(&self, gfn: u64) {
        if let Some(region) = self.region(gfn) {
            if let Some(dirty) = &region.dirty {
                dirty.mark(gfn.wrapping_sub(region.slot.base));
            }
        }
    }

    /// The bitmap of a slot, if it logs.
    pub fn dirty(&self, slot: &Slot) -> Option<&Bitmap> {
        self.of(slot)?.dirty.as_ref()
    }

    /// The region of a slot.
    fn of(&self, slot: &Slot) -> Option<&Region> {
        self.region(slot.base).filter(|r| r.slot.id == slot.id)
    }

    /// The same for changing it; its place stays.
    pub fn of_mut(&mut self, slot: &Slot) -> Option<&mut Region> {
        let n = self.regions.binary_search_by_key(&slot.base, |r| r.slot.base).ok()?;
        self.regions.get_mut(n).filter(|r| r.slot.id == slot.id)
    }

    /// Is the page at `hva` being invalidated?
    #[inline]
    pub fn blocked(&self, hva: u64) -> bool {
        self.invalidating != 0 && hva >= self.range.0 && hva < self.range.1
    }

    /// An invalidation of `[start, end)` begins.
    pub fn begin(&mut self, start: u64, end: u64) {
        self.range = match self.invalidating {
            0 => (start, end),
            _ => (self.range.0.min(start), self.range.1.max(end)),
        };
        self.invalidating = self.invalidating.saturating_add(1);
    }

    /// An invalidation ends. The range only shrinks when the last one has.
    pub fn end(&mut self) {
        self.seq = self.seq.wrapping_add(1);
        self.invalidating = self.invalidating.saturating_sub(1);
    }

    /// The frames behind `[start, end)` of the VMM's memory, slot by slot; a page may be in several slots.
    pub fn gfns(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.regions.iter().filter_map(move |r| r.slot.gfns(start, end))
    }

    /// The tables for changing, and [`gfns`](Self::gfns).
    pub fn split(&mut self, start: u64, end: u64) -> (&mut Tree, impl Iterator<Item = (u64, u64)> + '_) {
        let gfns = self.regions.iter().filter_map(move |r| r.slot.gfns(start, end));
        (&mut self.tree, gfns)
    }

    /// How many regions would fit, and how many there are.
    pub fn room(&self) -> (usize, usize) {
        (self.regions.capacity(), self.regions.len())
    }

    /// Moves the regions into `roomier`, which is empty; gives the old vector, now empty, back to be dropped without
    /// the lock.
    pub fn rehouse(&mut self, mut roomier: Vec<Region>) -> Vec<Region> {
        if roomier.capacity() < self.regions.len() {
            return roomier;
        }
        roomier.append(&mut self.regions);
        mem::replace(&mut self.regions, roomier)
    }

    /// Adds a region; there is [`room`](Self::room). Hands it back if there is none.
    pub fn insert(&mut self, region: Region) -> Result<(), Region> {
        if self.regions.len() == self.regions.capacity() {
            return Err(region);
        }
        let at = self.regions.partition_point(|r| r.slot.base < region.slot.base);
        self.regions.insert(at, region);
        Ok(())
    }

    /// Takes the region of a slot out.
    pub fn remove(&mut self, slot: &Slot) -> Option<Region> {
        let n = self.regions.binary_search_by_key(&slot.base, |r| r.slot.base).ok()?;
        // To the end and off it; `Vec::remove` could panic, as far as the compiler can see.
        let tail = self.regions.get_mut(n..)?;
        if tail.first()?.slot.id != slot.id {
            return None;
        }
        tail.rotate_left(1);
        self.regions.pop()
    }
}

/// A vector with room for twice `len` regions, for [`Maps::rehouse`]. Errors: ENOMEM.
pub fn roomier(len: usize) -> Result<Vec<Region>, Errno> {
    let mut v = Vec::new();
    v.try_reserve_exact(len.saturating_mul(2).max(8)).map_err(|_| Errno::ENOMEM)?;
    Ok(v)
}
