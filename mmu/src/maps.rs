//! What the mmu's lock guards: the nested tables, and the slots as faults and the mmu notifier see them.
//!
//! The notifier may be called while the same thread (or one that it waits for) holds the sleeping lock of the slots:
//! an access to guest memory holds that lock and can fault, and the fault can evict or copy a page, which notifies us.
//! So the notifier, and the fault path with it, works on this second copy of the slots.

use crate::bitmap::Bitmap;
use crate::hva_tree::{HvaTree, Place};
use crate::npt::{Stale, Tree};
use crate::ring::RingOf;
use crate::slot::Memslot;
use alloc::vec::Vec;
use core::mem;
use host::{Errno, Host, push_within_capacity};

/// A slot under the mmu's lock.
pub struct Region<H: Host> {
    /// The slot.
    pub slot: Memslot,
    /// It is being deleted or moved (KVM_MEMSLOT_INVALID): the notifier still has to see it, for its pages may be mapped
    /// until the flush, but nothing new may be mapped.
    pub invalid: bool,
    /// Pages written, if the slot logs them here.
    pub dirty_bitmap: Option<Bitmap<H>>,
    /// It has logged since it is here, so a page that is not mapped was never touched.
    pub always_logged: bool,
}

impl<H: Host> Region<H> {
    /// As it is made: nothing of it is mapped.
    pub fn new(slot: Memslot, dirty_bitmap: Option<Bitmap<H>>) -> Self {
        Self { slot, invalid: false, always_logged: slot.logs(), dirty_bitmap }
    }
}

/// The slots, by guest address and by the VMM's.
pub struct Regions<H: Host> {
    /// Ordered by guest address.
    by_gfn: Vec<Region<H>>,
    hva_tree: HvaTree,
}

impl<H: Host> Default for Regions<H> {
    fn default() -> Self {
        Self { by_gfn: Vec::new(), hva_tree: HvaTree::default() }
    }
}

/// Nested tables, regions, and what faults are checked against.
pub struct Maps<H: Host> {
    /// The nested page tables.
    pub tree: Tree,
    pub(crate) regions: Regions<H>,
    /// Advances with every invalidation that touches a slot, and every change of a slot. A fault that saw another number
    /// before it asked for the page has to ask again.
    pub invalidate_seq: u64,
    /// The address space is gone.
    pub released: bool,
}

impl<H: Host> Maps<H> {
    /// No slots, nothing mapped.
    pub fn new(tree: Tree) -> Self {
        Self { tree, regions: Regions::default(), invalidate_seq: 0, released: false }
    }

    /// The region that holds a frame.
    #[inline]
    pub fn region(&self, gfn: u64) -> Option<&Region<H>> {
        let regions = &self.regions.by_gfn;
        let n = regions.partition_point(|r| r.slot.base <= gfn).checked_sub(1)?;
        // INDEX: a search bounds it, whatever was searched for.
        regions.get(n).filter(|r| r.slot.holds(gfn))
    }

    /// The first region with a frame at or after `gfn`: such a frame, and the region's end.
    pub fn next(&self, gfn: u64) -> Option<(u64, u64)> {
        let regions = &self.regions.by_gfn;
        let n = regions.partition_point(|r| r.slot.end() <= gfn);
        // INDEX: a search bounds it, whatever was searched for.
        regions.get(n).map(|r| (r.slot.base.max(gfn), r.slot.end()))
    }

    /// Records that a page was written, if its slot logs: in the ring of the vCPU that runs, if it has one.
    pub fn mark_page_dirty(&self, host: &H, ring: Option<RingOf<'_, H>>, gfn: u64) {
        let Some(region) = self.region(gfn).filter(|r| r.slot.logs()) else { return };
        let page = gfn.wrapping_sub(region.slot.base);
        match (ring, &region.dirty_bitmap) {
            (Some(ring), _) => ring.push(host, &region.slot, page),
            (None, Some(bitmap)) => bitmap.mark(page),
            (None, None) => {}
        }
    }

    /// The bitmap of a slot, if it logs.
    pub fn dirty_bitmap(&self, slot: &Memslot) -> Option<&Bitmap<H>> {
        self.region(slot.base).filter(|r| r.slot.id == slot.id)?.dirty_bitmap.as_ref()
    }

    /// The region of a slot, for changing it; its place stays.
    pub fn region_mut(&mut self, slot: &Memslot) -> Option<&mut Region<H>> {
        let regions = &mut self.regions.by_gfn;
        let n = regions.binary_search_by_key(&slot.base, |r| r.slot.base).ok()?;
        // INDEX: a search bounds it, whatever was searched for.
        regions.get_mut(n).filter(|r| r.slot.id == slot.id)
    }

    /// The frames behind `[start, end)` of the VMM's memory, slot by slot, touched pages included; a page may be in
    /// several slots. Costs the logarithm of the number of slots for each that it touches, and once more.
    pub fn gfns(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.regions.hva_tree.gfns(start, end)
    }

    /// Unmaps what is behind `[start, end)` of the VMM's memory in at most `most` slots, the first of them at `from`. With the place
    /// of the next; None: that was all.
    pub fn unmap_hva_range(
        &mut self,
        host: &H,
        (start, end): (u64, u64),
        from: Place,
        most: usize,
        before: Stale,
    ) -> (Stale, Option<Place>) {
        let tree = &mut self.tree;
        let mut found = self.regions.hva_tree.gfns_from(start, end, from);
        let now = found.by_ref().take(most);
        let stale = now.fold(before, |stale, (_, (first, last))| tree.zap(host, first, last, stale));
        (stale, found.next().map(|(place, _)| place))
    }

    /// How many regions would fit, and how many there are.
    pub fn room(&self) -> (usize, usize) {
        let Regions { by_gfn, hva_tree } = &self.regions;
        (by_gfn.capacity().min(hva_tree.room()), by_gfn.len())
    }

    /// Moves the regions into `roomier`, which is empty; gives the old place, now empty, back to be dropped without
    /// the lock.
    pub fn rehouse(&mut self, mut roomier: Regions<H>) -> Regions<H> {
        if roomier.by_gfn.capacity() < self.regions.by_gfn.len() {
            return roomier;
        }
        roomier.by_gfn.append(&mut self.regions.by_gfn);
        roomier.hva_tree.take_over(&mut self.regions.hva_tree);
        mem::replace(&mut self.regions, roomier)
    }

    /// Adds a region; there is [`room`](Self::room). Hands it back if there is none.
    pub fn insert(&mut self, region: Region<H>) -> Result<(), Region<H>> {
        let Regions { by_gfn, hva_tree } = &mut self.regions;
        if by_gfn.len() == by_gfn.capacity() || !hva_tree.insert(&region.slot) {
            return Err(region);
        }
        let at = by_gfn.partition_point(|r| r.slot.base < region.slot.base);
        by_gfn.insert(at, region);
        Ok(())
    }

    /// Adds a region behind all that there are; there is [`room`](Self::room). Nothing is found by the VMM's addresses before
    /// [`put_in_order`](Self::put_in_order). Hands it back if it does not lie there, or there is no room.
    pub fn append(&mut self, region: Region<H>) -> Result<(), Region<H>> {
        let Regions { by_gfn, hva_tree } = &mut self.regions;
        let behind = by_gfn.last().is_none_or(|last| last.slot.end() <= region.slot.base);
        if !behind || by_gfn.len() == by_gfn.capacity() || !hva_tree.append(&region.slot) {
            return Err(region);
        }
        push_within_capacity(by_gfn, region)
    }

    /// All are there that [`append`](Self::append) adds. `pause` is called now and then: another task may have the CPU.
    pub fn put_in_order(&mut self, pause: impl FnMut()) {
        self.regions.hva_tree.put_in_order(pause);
    }

    /// Takes the region of a slot out.
    pub fn remove(&mut self, slot: &Memslot) -> Option<Region<H>> {
        let Regions { by_gfn, hva_tree } = &mut self.regions;
        let n = by_gfn.binary_search_by_key(&slot.base, |r| r.slot.base).ok()?;
        // To the end and off it; `Vec::remove` could panic, as far as the compiler can see.
        // INDEX: a search bounds it, whatever was searched for.
        let tail = by_gfn.get_mut(n..)?;
        if tail.first()?.slot.id != slot.id {
            return None;
        }
        hva_tree.remove(slot);
        tail.rotate_left(1);
        by_gfn.pop()
    }

    /// Nodes of the interval tree that were looked at.
    #[cfg(test)]
    pub fn looked(&self) -> &core::sync::atomic::AtomicUsize {
        &self.regions.hva_tree.looked
    }

    /// Nodes of it that were computed anew.
    #[cfg(test)]
    pub fn computed(&self) -> usize {
        self.regions.hva_tree.computed
    }
}

impl<H: Host> Regions<H> {
    /// All, in order of their guest addresses.
    pub fn all(&self) -> &[Region<H>] {
        &self.by_gfn
    }

    /// Room for twice `len` regions, for [`Maps::rehouse`]. Errors: ENOMEM.
    pub fn roomier(len: usize) -> Result<Self, Errno> {
        let n = len.saturating_mul(2).max(4);
        let mut by_gfn = Vec::new();
        by_gfn.try_reserve_exact(n).map_err(|_| Errno::ENOMEM)?;
        Ok(Self { by_gfn, hva_tree: HvaTree::with_room(n)? })
    }
}
