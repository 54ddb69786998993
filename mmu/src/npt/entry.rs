//! One entry of a nested page table, and all that can be done to it.
//!
//! **Memory safety hangs on this file**, on [`stale`](super::stale) beside it and on the tree above: what an entry
//! names, the guest reads and writes. An entry gains without ceremony; whoever takes something away needs a
//! [`Stale`](super::Stale), because a processor may hold the old entry in its TLB.

use super::stale::Removed;
use arch::npt::{A, ADDR, D, P, PS, RW, US};
use arch::{HostPa, npt};
use core::sync::atomic::{AtomicU64, Ordering::*};
use host::{Host, Pfn, TableCells, TablePage};

/// Software bit (APM 5.3.3, available to software): the entry names a table of ours, not a page of the guest.
const TABLE: u64 = 1 << 9;

/// 4 KiB pages that one entry of `level` maps.
pub const fn pages(level: u8) -> u64 {
    1 << (9 * (level as u32).saturating_sub(1))
}

/// What an entry holds. An absent one is exactly 0.
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

    /// Was it used since [`Cell::clear_accessed`]?
    pub const fn accessed(self) -> bool {
        self.0 & A != 0
    }

    /// The table that it names, if it names one.
    pub const fn child(self) -> Option<HostPa> {
        if self.0 & (P | TABLE) == P | TABLE { Some(HostPa(self.0 & ADDR)) } else { None }
    }

    /// Where the memory begins that it maps as an entry of `level`.
    pub const fn start(self, level: u8) -> HostPa {
        HostPa(self.0 & ADDR & !((pages(level) << 12) - 1))
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
        match self.0.compare_exchange(0, Entry::table(&page).0, AcqRel, Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => Err(page),
        }
    }

    /// Clears A. TLBs may go on using the entry without setting it again.
    pub fn clear_accessed(self) {
        self.0.fetch_and(!A, Relaxed);
    }

    /// Removes the entry. A table that it named is listed in `removed`, with all below it.
    pub fn zap<H: Host>(self, host: &H, removed: &mut Removed) {
        // The value may have changed since it was looked at: hardware sets A and D.
        let old = Entry(self.0.swap(0, AcqRel));
        if old.present() {
            removed.note();
        }
        if let Some(table) = old.child() {
            removed.unlink(host, table);
        }
    }

    /// Takes the right to write from an entry that maps a 4 KiB page.
    pub fn write_protect(self, removed: &mut Removed) {
        if Entry(self.0.fetch_and(!(RW | D), AcqRel)).writable() {
            removed.note();
        }
    }
}
