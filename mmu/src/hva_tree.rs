//! Slots by the VMM's address, for the mmu notifier: which of them a range touches. Slots may share memory, so ranges
//! overlap; their number is large (32,764 a VM), and the notifier is called for all that the VMM does with its memory.

use crate::order;
use crate::slot::Memslot;
use alloc::vec::Vec;
use host::{Errno, push_within_capacity};

/// So many ranges are searched one after the other: most VMs have no more, and a tree would only cost.
const FEW: usize = 16;

/// A slot's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    /// In bytes, page aligned; the end is the byte after it.
    start: u64,
    end: u64,
    /// The guest frame at `start`. No two slots have the same.
    base: u64,
}

impl Range {
    fn of(slot: &Memslot) -> Self {
        Self { start: slot.hva, end: slot.hva.wrapping_add(slot.pages << 12), base: slot.base }
    }

    fn key(&self) -> (u64, u64) {
        (self.start, self.base)
    }

    /// The frames behind the part of `[start, end)` that lies in it, touched pages included.
    fn gfns(&self, start: u64, end: u64) -> (u64, u64) {
        let first = start.max(self.start).wrapping_sub(self.start) >> 12;
        let last = end.min(self.end).wrapping_sub(self.start).div_ceil(host::PAGE_SIZE as u64);
        (self.base.wrapping_add(first), self.base.wrapping_add(last))
    }
}

/// A place in the order of the ranges, which means the same when others have come or gone. The default is before all.
#[derive(Clone, Copy, Default)]
pub struct Place((u64, u64));

/// An interval tree: the ranges in order of their start, and above them a binary tree of the greatest ends. Finds each
/// range that overlaps another in logarithmic time. Never allocates but in [`with_room`](Self::with_room).
#[derive(Default)]
pub struct HvaTree {
    ranges: Vec<Range>,
    /// Node 1 is the root, node `n` has the children `2n` and `2n + 1`; the leaves, from the middle on, are the ends of
    /// the ranges, or 0. Its length is twice a power of two, or 0 while there is room for [`FEW`] only.
    ends: Vec<u64>,
    /// Nodes that were looked at.
    #[cfg(test)]
    pub looked: core::sync::atomic::AtomicUsize,
    /// Nodes that were computed anew.
    #[cfg(test)]
    pub computed: usize,
}

impl HvaTree {
    /// An empty one with room for `n` slots. Errors: ENOMEM.
    pub fn with_room(n: usize) -> Result<Self, Errno> {
        let mut tree = Self::default();
        let nodes = if n <= FEW { 0 } else { n.next_power_of_two().saturating_mul(2) };
        tree.ranges.try_reserve_exact(n).map_err(|_| Errno::ENOMEM)?;
        tree.ends.try_reserve_exact(nodes).map_err(|_| Errno::ENOMEM)?;
        // Says what the reservation has made true, so that no path that grows further is compiled.
        if tree.ends.capacity() < nodes {
            return Err(Errno::ENOMEM);
        }
        tree.ends.resize(nodes, 0);
        Ok(tree)
    }

    /// Moves the slots of another into this one, which is empty and has room for them.
    pub fn take_over(&mut self, other: &mut Self) {
        if other.ranges.len() <= self.room() {
            self.ranges.append(&mut other.ranges);
            self.update(0, self.ranges.len().saturating_sub(1));
        }
    }

    /// Slots that fit.
    pub fn room(&self) -> usize {
        self.ranges.capacity().min(if self.ends.is_empty() { FEW } else { self.leaves() })
    }

    fn leaves(&self) -> usize {
        self.ends.len() / 2
    }

    /// Adds a slot, for which there is room. False: there is none.
    pub fn insert(&mut self, slot: &Memslot) -> bool {
        let range = Range::of(slot);
        let at = self.ranges.partition_point(|r| r.key() < range.key());
        if self.ranges.len() >= self.room() || at > self.ranges.len() {
            return false;
        }
        self.ranges.insert(at, range);
        self.update(at, self.ranges.len().saturating_sub(1));
        true
    }

    /// Adds a slot, for which there is room, of many: until [`put_in_order`](Self::put_in_order) nothing is found. False: there is
    /// none.
    pub fn append(&mut self, slot: &Memslot) -> bool {
        self.ranges.len() < self.room() && push_within_capacity(&mut self.ranges, Range::of(slot)).is_ok()
    }

    /// All are there that [`append`](Self::append) adds. `pause` as for [`order::sort`].
    pub fn put_in_order(&mut self, pause: impl FnMut()) {
        order::sort(&mut self.ranges, Range::key, pause);
        self.update(0, self.ranges.len().saturating_sub(1));
    }

    /// Takes a slot out.
    pub fn remove(&mut self, slot: &Memslot) {
        let key = Range::of(slot).key();
        let Ok(at) = self.ranges.binary_search_by_key(&key, Range::key) else { return };
        // To the end and off it; `Vec::remove` could panic, as far as the compiler can see.
        if let Some(tail) = self.ranges.get_mut(at..) {
            if tail.len() > 1 {
                tail.rotate_left(1);
            }
            self.ranges.pop();
        }
        // The place after the last one is empty now.
        self.update(at, self.ranges.len());
    }

    /// Computes the ends anew for the places from `first` to `last`, and what is above them.
    fn update(&mut self, first: usize, last: usize) {
        let leaves = self.leaves();
        if leaves == 0 {
            return;
        }
        let (mut first, mut last) = (leaves.wrapping_add(first), leaves.wrapping_add(last));
        #[cfg(test)]
        {
            self.computed += 2 * (last - first + 1);
        }
        for node in first..=last {
            let end = self.ranges.get(node.wrapping_sub(leaves)).map_or(0, |r| r.end);
            if let Some(leaf) = self.ends.get_mut(node) {
                *leaf = end;
            }
        }
        while first > 1 {
            (first, last) = (first / 2, last / 2);
            for node in first..=last {
                let end = self.end(2 * node).max(self.end(2 * node + 1));
                if let Some(e) = self.ends.get_mut(node) {
                    *e = end;
                }
            }
        }
    }

    fn end(&self, node: usize) -> u64 {
        self.ends.get(node).copied().unwrap_or(0)
    }

    /// Does the range of a node reach beyond `start`?
    fn reaches(&self, node: usize, start: u64) -> bool {
        #[cfg(test)]
        self.looked.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        self.end(node) > start
    }

    /// The first place from `from` on whose range ends after `start`.
    fn next(&self, from: usize, start: u64) -> Option<usize> {
        let leaves = self.leaves();
        if leaves == 0 {
            let later = self.ranges.get(from..)?;
            return later.iter().position(|r| r.end > start).map(|n| from.wrapping_add(n));
        }
        if from >= leaves {
            return None;
        }
        let mut node = leaves.wrapping_add(from);
        while !self.reaches(node, start) {
            // Up from right children, then to the one on the right.
            node >>= node.trailing_ones();
            if node == 0 {
                return None;
            }
            node += 1;
        }
        while node < leaves {
            node *= 2;
            if !self.reaches(node, start) {
                node += 1;
            }
        }
        Some(node.wrapping_sub(leaves))
    }

    /// The frames behind `[start, end)` of the VMM's memory, slot by slot, touched pages included; a page may be in
    /// several slots.
    pub fn gfns(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.overlapping(start, end, 0).map(move |range| range.gfns(start, end))
    }

    /// The same from a place on, with the place of each.
    pub fn gfns_from(&self, start: u64, end: u64, from: Place) -> impl Iterator<Item = (Place, (u64, u64))> + '_ {
        let from = self.ranges.partition_point(|r| r.key() < from.0);
        self.overlapping(start, end, from).map(move |range| (Place(range.key()), range.gfns(start, end)))
    }

    fn overlapping(&self, start: u64, end: u64, mut from: usize) -> impl Iterator<Item = &Range> + '_ {
        core::iter::from_fn(move || {
            let at = self.next(from, start)?;
            from = at.wrapping_add(1);
            self.ranges.get(at).filter(|r| r.start < end && start < end)
        })
    }
}
