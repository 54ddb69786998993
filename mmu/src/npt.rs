//! The nested page tables (APM 15.25): a radix tree that hardware walks while we change it.
//!
//! Entries are installed by compare-exchange while the lock of the maps is held for reading, by any number of vCPUs at
//! once; they are removed only while it is held for writing (hence `&mut self`). So whoever holds it for reading may
//! follow every table it finds.
//!
//! An absent entry is exactly 0. A, and D for writable entries, are set from the start: the hardware then never has to
//! write the table. Instruction fetch is always allowed.

use crate::cache::{FreeList, TableCache};
use arch::npt::{A, ADDR, D, P, PS, RW, US};
use arch::{HostPa, NestedRoot, npt};
use core::sync::atomic::{AtomicU64, Ordering::*};
use host::Host;

/// Software bit (APM 5.3.3, available to software): the entry names a table of ours, not a page of the guest.
const TABLE: u64 = 1 << 9;

/// 4 KiB pages that one entry of `level` maps.
pub const fn pages(level: u8) -> u64 {
    1 << (9 * (level as u32).saturating_sub(1))
}

/// The table that an entry names, if it names one.
pub const fn child(entry: u64) -> Option<HostPa> {
    if entry & (P | TABLE) == P | TABLE { Some(HostPa(entry & ADDR)) } else { None }
}

/// A page of the guest that is to be mapped.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// Where its 4 KiB page is.
    pub pa: HostPa,
    /// May the guest write it?
    pub write: bool,
    /// Largest level at which it may be mapped: the surroundings of `pa` are the surroundings of the guest's page.
    pub level: u8,
}

impl Leaf {
    const fn entry(&self, level: u8) -> u64 {
        let size = if level > 1 { PS } else { 0 };
        let write = if self.write { RW | D } else { 0 };
        self.pa.0 & ADDR & !((pages(level) << 12) - 1) | P | US | A | size | write
    }
}

/// What became of an attempt to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// It is mapped, with at least the permission asked for.
    Done,
    /// Something else is mapped there.
    Conflict,
    /// The cache has no table page left.
    NoTable,
}

/// The tree.
pub struct Tree {
    root: HostPa,
    levels: u8,
    /// Advances when tables are unlinked; changes under the lock for writing only.
    unlinked: u64,
}

impl Tree {
    /// A tree with nothing mapped; `root` is an empty table page, `levels` 4 or 5.
    pub const fn new(root: HostPa, levels: u8) -> Self {
        Self { root, levels, unlinked: 0 }
    }

    /// What nested CR3 holds.
    pub const fn root(&self) -> NestedRoot {
        NestedRoot::new(self.root)
    }

    /// Number of tables that are missing on the way to the entry of level 1 for a frame. The lock is held at least for
    /// reading.
    pub fn missing<H: Host>(&self, host: &H, gfn: u64) -> usize {
        let (mut table, mut level) = (self.root, self.levels);
        while let Some(cell) = Self::cell(host, table, gfn, level) {
            let entry = cell.load(Acquire);
            match child(entry) {
                Some(below) if level > 1 => (table, level) = (below, level - 1),
                _ if entry & P != 0 => return 0,
                _ => break,
            }
        }
        usize::from(level).saturating_sub(1)
    }

    /// Frames below this one can be mapped.
    pub const fn limit(&self) -> u64 {
        pages(self.levels).wrapping_mul(512)
    }

    fn cell<H: Host>(host: &H, table: HostPa, gfn: u64, level: u8) -> Option<&AtomicU64> {
        host.table(table)?.0.get(npt::index(gfn << 12, level))
    }

    /// Maps a frame. The lock is held at least for reading.
    pub fn install<H: Host>(&self, host: &H, cache: &mut TableCache<H>, gfn: u64, leaf: Leaf) -> Installed {
        let (mut table, mut level, mut target) = (self.root, self.levels, leaf.level.max(1));
        if let (1, Some(last)) = (target, cache.last_table(gfn, self.unlinked)) {
            (table, level) = (last, 1);
        }
        loop {
            let Some(cell) = Self::cell(host, table, gfn, level) else { return Installed::Conflict };
            let old = cell.load(Acquire);
            if let Some(below) = child(old) {
                if level == 1 {
                    return Installed::Conflict;
                }
                // A large page is wanted where smaller ones are mapped already: joins them.
                target = target.min(level - 1);
                (table, level) = (below, level - 1);
                if level == 1 {
                    cache.remember(gfn, table, self.unlinked);
                }
            } else if old & P != 0 {
                if old & RW != 0 || !leaf.write {
                    let same = old & ADDR & !((pages(level) << 12) - 1) == leaf.entry(level) & ADDR;
                    return if same { Installed::Done } else { Installed::Conflict };
                }
                // Read-only so far. More permission needs no flush: a processor that faults looks again.
                let new = leaf.entry(level);
                if (old ^ new) & ADDR != 0 || level > target {
                    return Installed::Conflict;
                }
                if cell.compare_exchange(old, new, AcqRel, Relaxed).is_ok() {
                    return Installed::Done;
                }
            } else if level <= target {
                if cell.compare_exchange(old, leaf.entry(level), AcqRel, Relaxed).is_ok() {
                    return Installed::Done;
                }
            } else {
                let Some(new) = cache.take() else { return Installed::NoTable };
                // On failure somebody else was faster: the next turn sees what is there now.
                if cell.compare_exchange(old, new.0 & ADDR | P | RW | US | A | TABLE, AcqRel, Relaxed).is_err() {
                    cache.put(new);
                }
            }
        }
    }

    /// The level of the entry that maps a frame; None if none does. The lock is held at least for reading.
    pub fn level<H: Host>(&self, host: &H, gfn: u64) -> Option<u8> {
        let (mut table, mut level) = (self.root, self.levels);
        loop {
            let entry = Self::cell(host, table, gfn, level)?.load(Acquire);
            match child(entry) {
                Some(below) if level > 1 => (table, level) = (below, level - 1),
                _ => return (entry & P != 0).then_some(level),
            }
        }
    }

    /// Unmaps the frames `[start, end)`, and whole large pages that reach into them. True if anything was mapped; then
    /// a flush is due before `list` is freed. Bounded: at most two partly covered tables per level are looked into.
    pub fn zap<H: Host>(&mut self, host: &H, start: u64, end: u64, list: &mut FreeList) -> bool {
        let (mut removed, mut unlinked) = (false, false);
        self.visit(host, start, end, &mut |cell, entry, covered| {
            if child(entry).is_some() && !covered {
                return true;
            }
            removed = true;
            // The value may have changed since: hardware sets A and D.
            if let Some(table) = child(cell.swap(0, AcqRel)) {
                list.push(host, table);
                unlinked = true;
            }
            false
        });
        self.unlinked = self.unlinked.wrapping_add(unlinked.into());
        removed
    }

    /// Counts the entries that map the frames `[start, end)`, by their level. The lock is held at least for reading;
    /// the caller bounds the range.
    pub fn count<H: Host>(&self, host: &H, start: u64, end: u64, counts: &mut [u64; 3]) {
        Self::count_table(host, self.root, self.levels, start, end.min(self.limit()), counts);
    }

    fn count_table<H: Host>(host: &H, table: HostPa, level: u8, start: u64, end: u64, counts: &mut [u64; 3]) {
        let Some(cells) = host.table(table) else { return };
        let span = pages(level);
        let mut at = start;
        while at < end {
            let first = at & !(span - 1);
            let stop = first.wrapping_add(span).min(end);
            let entry = cells.0.get(npt::index(at << 12, level)).map_or(0, |cell| cell.load(Acquire));
            match child(entry) {
                Some(below) if level > 1 => Self::count_table(host, below, level - 1, at, stop, counts),
                // A large page that reaches into the range from before was counted there.
                _ if entry & P != 0 && first >= start => {
                    if let Some(n) = counts.get_mut(usize::from(level).saturating_sub(1)) {
                        *n = n.saturating_add(1);
                    }
                }
                _ => {}
            }
            at = stop;
        }
    }

    /// Write-protects the frames `[start, end)`. Large pages that reach into them are unmapped instead, whether they may
    /// be written or not: they come back small. True if a flush is due. The caller bounds the range.
    pub fn protect<H: Host>(&mut self, host: &H, start: u64, end: u64) -> bool {
        let mut changed = false;
        self.visit(host, start, end, &mut |cell, entry, _| {
            if child(entry).is_some() {
                return true;
            }
            let before = if entry & PS != 0 { cell.swap(0, AcqRel) } else { cell.fetch_and(!(RW | D), AcqRel) };
            changed |= before & (PS | RW) != 0;
            false
        });
        changed
    }

    /// Was any of the frames `[start, end)` accessed since their A bits were cleared? With `clear` it clears them. The
    /// lock is held at least for reading.
    pub fn age<H: Host>(&self, host: &H, start: u64, end: u64, clear: bool) -> bool {
        let mut young = false;
        self.visit(host, start, end, &mut |cell, entry, _| {
            if child(entry).is_some() {
                return true;
            }
            young |= entry & A != 0;
            if clear && entry & A != 0 {
                cell.fetch_and(!A, Relaxed);
            }
            false
        });
        young
    }

    /// Unmaps everything.
    pub fn clear<H: Host>(&mut self, host: &H, list: &mut FreeList) -> bool {
        self.zap(host, 0, self.limit(), list)
    }

    /// Calls `f` for the present entries that map a part of `[start, end)`: with the cell, what it held, and whether
    /// all that it maps lies in the range. For a table, `f` says whether to look into it.
    fn visit<H: Host>(&self, host: &H, start: u64, end: u64, f: &mut impl FnMut(&AtomicU64, u64, bool) -> bool) {
        let end = end.min(self.limit());
        if start < end {
            Self::visit_table(host, self.root, self.levels, start, end, f);
        }
    }

    /// The same below one table, which maps all of the range. Recursion is as deep as the tree has levels.
    fn visit_table<H: Host>(
        host: &H,
        table: HostPa,
        level: u8,
        start: u64,
        end: u64,
        f: &mut impl FnMut(&AtomicU64, u64, bool) -> bool,
    ) {
        let Some(cells) = host.table(table) else { return };
        let span = pages(level);
        let mut at = start;
        while at < end {
            let first = at & !(span - 1);
            let next = first.wrapping_add(span);
            let stop = next.min(end);
            if let Some(cell) = cells.0.get(npt::index(at << 12, level)) {
                let entry = cell.load(Acquire);
                if entry & P != 0 && f(cell, entry, at == first && stop == next) && level > 1 {
                    if let Some(below) = child(entry) {
                        Self::visit_table(host, below, level - 1, at, stop, f);
                    }
                }
            }
            at = next;
        }
    }
}
