//! One entry of a nested page table, and all that can be done to it.
//!
//! **Memory safety hangs on this file**, on [`stale`](super::stale) beside it and on the tree above: what an entry
//! names, the guest reads and writes. An entry gains without ceremony, and so does a large one make way for a table that
//! maps the same memory with the same rights ([`Parts`]); whoever takes something away needs a [`Stale`](super::Stale),
//! because a processor may hold the old entry in its TLB.

use super::stale::Removed;
use arch::npt::{A, ADDR, D, P, PS, RW, US};
use arch::{HostPa, npt};
use core::sync::atomic::{AtomicU64, Ordering::*};
use host::{Host, Pfn, TableCells, TablePage};

/// Software bit (APM 5.3.3, available to software): the entry names a table of ours, not a page of the guest. Tables go from one
/// engine to the next as they are, so this and [`ABSENT`] are part of the border (`linux/src/shim.rs`).
pub const TABLE: u64 = 1 << 9;
/// An entry that maps nothing and names nothing.
pub const ABSENT: u64 = 0;

/// 4 KiB pages that one entry of `level` maps.
pub const fn pages(level: u8) -> u64 {
    1 << (9 * (level as u32).saturating_sub(1))
}

/// What an entry holds. An absent one is exactly [`ABSENT`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// An entry of `level` that maps the page of `pfn`, and at level 2 and 3 all that surrounds it. A, and D for
    /// writable entries, are set from the start: the hardware then never has to write the table. Instruction fetch is
    /// always allowed.
    pub const fn leaf(pfn: Pfn, level: u8, write: bool) -> Self {
        let size = if level > 1 { PS } else { 0 };
        let write = if write { RW | D } else { 0 };
        Self(pfn.pa().0 & ADDR & !((pages(level) << 12) - 1) | P | US | A | size | write)
    }

    /// What a cell holds.
    pub(super) const fn of(value: u64) -> Self {
        Self(value)
    }

    const fn table(page: &TablePage) -> Self {
        Self(page.pa().0 & ADDR | P | RW | US | A | TABLE)
    }

    /// Does it map something or name a table?
    pub const fn present(self) -> bool {
        self.0 & P != 0
    }

    /// May the guest write through it?
    pub const fn writable(self) -> bool {
        self.0 & RW != 0
    }

    /// Does it map a large page?
    pub const fn large(self) -> bool {
        self.0 & (P | PS) == P | PS
    }

    /// Of an entry of `level` that maps a large page: the entry one level below that maps its `n`th part. It has the
    /// same rights, and was used if this one was.
    const fn part(self, level: u8, n: u64) -> Self {
        let size = if level > 2 { PS } else { 0 };
        Self((self.0 & !PS | size).wrapping_add(n.wrapping_mul(pages(level.saturating_sub(1)) << 12)))
    }

    /// Was it used since [`Cell::clear_accessed`]?
    pub const fn accessed(self) -> bool {
        self.0 & A != 0
    }

    /// The table that it names, if it names one.
    pub const fn child(self) -> Option<HostPa> {
        if self.0 & (P | TABLE) == P | TABLE { Some(HostPa(self.0 & ADDR)) } else { None }
    }

    /// The 4 KiB page that it maps a frame to, as an entry of `level`.
    #[inline]
    pub const fn page(self, gfn: u64, level: u8) -> HostPa {
        let inside = pages(level) - 1;
        HostPa(self.0 & ADDR & !(inside << 12) | (gfn & inside) << 12)
    }
}

/// A table of the tree.
pub struct Cells<'a>(&'a TableCells);

impl<'a> Cells<'a> {
    /// The table at `table`. None: there is none.
    pub fn of<H: Host>(host: &'a H, table: HostPa) -> Option<Self> {
        host.table(table).map(Self)
    }

    /// The place of the entry for a frame, in a table of `level`.
    pub fn cell(&self, gfn: u64, level: u8) -> Option<Cell<'a>> {
        self.0.0.get(npt::index(gfn << 12, level)).map(Cell)
    }
}

/// A table that maps what a large entry maps, with the same rights, and that nobody else knows of.
#[must_use = "the page would leak"]
pub struct Parts<'a> {
    page: TablePage,
    cells: &'a TableCells,
    whole: Entry,
}

impl<'a> Parts<'a> {
    /// Makes `page`, all of whose entries are absent, the table for `whole`, an entry of `level` (2 or 3) that maps a
    /// large page. Gives it back if `whole` is no such entry, or the host does not know the page.
    pub fn of<H: Host>(host: &'a H, page: TablePage, whole: Entry, level: u8) -> Result<Self, TablePage> {
        let Some(cells) = host.table(page.pa()).filter(|_| whole.large() && matches!(level, 2 | 3)) else {
            return Err(page);
        };
        for (cell, n) in cells.0.iter().zip(0..) {
            cell.store(whole.part(level, n).0, Relaxed);
        }
        Ok(Self { page, cells, whole })
    }
}

/// The place of an entry in a table of the tree.
#[derive(Clone, Copy)]
pub struct Cell<'a>(&'a AtomicU64);

impl Cell<'_> {
    /// What is there.
    pub fn load(self) -> Entry {
        Entry(self.0.load(Acquire))
    }

    /// Puts `new` in the place of `old`, which is absent or maps the same memory with no more rights. That needs no
    /// flush: a processor that faults looks again. False: it would take something away, or `old` is not there any more.
    pub fn map(self, old: Entry, new: Entry) -> bool {
        let adds = !old.present() || (old.0 ^ new.0) & ADDR == 0 && old.0 & !new.0 == 0;
        adds && self.0.compare_exchange(old.0, new.0, AcqRel, Relaxed).is_ok()
    }

    /// Puts a table, all of whose entries are absent, in the place of an absent entry; the tree owns it then. Gives it
    /// back if something is there already.
    pub fn link(self, page: TablePage) -> Result<(), TablePage> {
        match self.0.compare_exchange(ABSENT, Entry::table(&page).0, AcqRel, Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => Err(page),
        }
    }

    /// Puts a table in the place of the large entry that it was made for; the tree owns it then. That takes nothing
    /// away, so it needs no flush: what a processor may hold of either it finds in the other. Gives the page back, with
    /// all entries absent, if the entry is not there any more.
    pub fn split(self, parts: Parts<'_>) -> Result<(), TablePage> {
        let Parts { page, cells, whole } = parts;
        // Release: whoever follows the table finds its entries.
        match self.0.compare_exchange(whole.0, Entry::table(&page).0, AcqRel, Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => {
                cells.0.iter().for_each(|cell| cell.store(ABSENT, Relaxed));
                Err(page)
            }
        }
    }

    /// Clears A, if the entry is still the one that was seen there: a table may have taken its place. TLBs may go on
    /// using the entry without setting it again.
    pub fn clear_accessed(self, seen: Entry) -> bool {
        self.0.compare_exchange(seen.0, seen.0 & !A, Relaxed, Relaxed).is_ok()
    }

    /// Removes the entry. A table that it named is listed in `removed`, with all below it.
    pub fn zap<H: Host>(self, host: &H, removed: &mut Removed) {
        // The value may have changed since it was looked at: hardware sets A and D.
        let old = Entry(self.0.swap(ABSENT, AcqRel));
        if old.present() {
            removed.note();
        }
        if let Some(table) = old.child() {
            removed.unlink(host, table);
        }
    }

    /// Takes the right to write from an entry that maps a page, of whatever size.
    pub fn write_protect(self, removed: &mut Removed) {
        if Entry(self.0.fetch_and(!(RW | D), AcqRel)).writable() {
            removed.note();
        }
    }
}

#[cfg(test)]
#[path = "../tests/entry.rs"]
mod tests;
