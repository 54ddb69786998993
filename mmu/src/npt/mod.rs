//! The nested page tables (APM 15.25): a radix tree that hardware walks while we change it.
//!
//! Entries are added by compare-exchange while the lock of the mmu is held for reading, by any number of vCPUs at once;
//! they are taken away only while it is held for writing (hence `&mut self`). So whoever holds it for reading may
//! follow every table it finds. What takes something away returns a [`Stale`], which only the flush consumes.
//!
//! A large page may be mapped read-only although its memory can be written: the dirty log protects it as it is, and the
//! host may have it read-only so far. Reads go on. A write makes all of it writable, if the fault has found that to be
//! right just now; else the entry is split on the way to the page that is written, which takes nothing away.
//!
//! **Memory safety hangs on this folder**: it alone makes entries, and it makes them of what the host gave ([`Pfn`],
//! [`host::TablePage`]).

mod entry;
mod stale;

pub use entry::{ABSENT, TABLE, pages};
pub use stale::{Flushes, Stale};

use crate::cache::{Before, MemoryCache};
use crate::slot::{Space, frame};
use arch::{HostPa, NestedRoot};
use entry::{Cell, Cells, Entry, Parts};
use host::{Host, Pfn, TablePage};
use stale::Removed;

/// A page of the guest that is to be mapped.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// Where its 4 KiB page is.
    pub pfn: Pfn,
    /// May the guest write it?
    pub write: bool,
    /// Largest level at which it may be mapped: the surroundings of `pfn` are the surroundings of the guest's page.
    pub level: u8,
}

impl Leaf {
    const fn entry(&self, level: u8) -> Entry {
        Entry::leaf(self.pfn, level, self.write)
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

/// The tree: one for each address space, under one count of what was taken away.
pub struct Tree {
    roots: [HostPa; 2],
    levels: u8,
    /// The top tables, and with them all others, are this tree's to free; else another engine's.
    owned: bool,
    /// How often something was taken away.
    removals: u64,
    /// Advances when tables are unlinked; changes under the lock for writing only.
    unlinked: u64,
}

impl Tree {
    /// A tree with nothing mapped; `roots` are empty table pages, which the tree owns, `levels` 4 or 5.
    pub const fn new(roots: [TablePage; 2], levels: u8) -> Self {
        let [normal, smm] = &roots;
        Self { roots: [normal.pa(), smm.pa()], levels, owned: true, removals: 0, unlinked: 0 }
    }

    /// What nested CR3 holds in each address space.
    pub fn roots(&self) -> [NestedRoot; 2] {
        self.roots.map(NestedRoot::new)
    }

    /// 4 or 5.
    pub const fn levels(&self) -> u8 {
        self.levels
    }

    /// The tree of which another engine has said where it begins ([`roots`](Self::roots)), and which it still has: this one
    /// is not used before [`own`](Self::own). **Memory safety hangs on the caller**: these are numbers of such roots.
    pub const fn lent(roots: [u64; 2], levels: u8) -> Self {
        let [normal, smm] = roots;
        Self { roots: [HostPa(normal), HostPa(smm)], levels, owned: false, removals: 0, unlinked: 0 }
    }

    /// Whose the tables are changes. **Memory safety hangs on the caller**: what was removed has been flushed, and of the trees
    /// with these roots one owns them.
    pub fn own(&mut self, yes: bool) {
        self.owned = yes;
        self.unlinked = self.unlinked.wrapping_add(1);
    }

    /// The top table for a frame.
    #[inline]
    const fn top(&self, gfn: u64) -> HostPa {
        let [normal, smm] = self.roots;
        match Space::of(gfn) {
            Space::Normal => normal,
            Space::Smm => smm,
        }
    }

    /// Guest physical frames below this one can be mapped.
    const fn limit(&self) -> u64 {
        pages(self.levels).wrapping_mul(512)
    }

    /// Can `pages` frames from `gfn` on be mapped?
    #[inline]
    pub const fn reaches(&self, gfn: u64, pages: u64) -> bool {
        frame(gfn).wrapping_add(pages) <= self.limit()
    }

    /// The lowest entry there is for a frame, and its level. The lock is held at least for reading.
    fn lowest<H: Host>(&self, host: &H, gfn: u64) -> Option<(Entry, u8)> {
        let (mut table, mut level) = (self.top(gfn), self.levels);
        loop {
            let entry = Cells::of(host, table)?.cell(gfn, level)?.load();
            match entry.child() {
                Some(below) if level > 1 => (table, level) = (below, level - 1),
                _ => return Some((entry, level)),
            }
        }
    }

    /// Number of tables that are missing on the way to the entry of level 1 for a frame; with `split` also where a
    /// large page is in the way that may not be written. The lock is held at least for reading.
    pub fn missing<H: Host>(&self, host: &H, gfn: u64, split: bool) -> usize {
        match self.lowest(host, gfn) {
            Some((entry, level)) if !entry.present() || split && !entry.writable() => {
                usize::from(level).saturating_sub(1)
            }
            _ => 0,
        }
    }

    /// Maps a frame. The lock is held at least for reading.
    pub fn map<H: Host>(&self, host: &H, cache: &mut MemoryCache<H>, gfn: u64, leaf: Leaf) -> Installed {
        let (mut table, mut level, mut target) = (self.top(gfn), self.levels, leaf.level.max(1));
        if let (1, Some(last)) = (target, cache.last_table(gfn, self.unlinked)) {
            (table, level) = (last, 1);
        }
        loop {
            let Some(cell) = Cells::of(host, table).and_then(|cells| cells.cell(gfn, level)) else {
                return Installed::Conflict;
            };
            let old = cell.load();
            if let Some(below) = old.child() {
                if level == 1 {
                    return Installed::Conflict;
                }
                // A large page is wanted where smaller ones are mapped already: joins them.
                target = target.min(level - 1);
                (table, level) = (below, level - 1);
                if level == 1 {
                    cache.remember(gfn, table, self.unlinked);
                }
            } else if old.present() {
                if old.page(gfn, level) != leaf.pfn.pa() {
                    return Installed::Conflict;
                }
                if old.writable() || !leaf.write {
                    cache.found(Before::Mapped);
                    return Installed::Done;
                }
                // Read-only so far.
                if level > target {
                    // Nothing is known of the rest of it: only this page becomes writable.
                    let Some(page) = cache.alloc() else { return Installed::NoTable };
                    let Ok(parts) = Parts::of(host, page, old, level).map_err(|page| cache.put(page)) else {
                        return Installed::Conflict;
                    };
                    // As for a table that is linked.
                    if let Err(page) = cell.split(parts) {
                        cache.put(page);
                    }
                } else if cell.map(old, leaf.entry(level)) {
                    cache.found(Before::ReadOnly);
                    return Installed::Done;
                }
            } else if level <= target {
                if cell.map(old, leaf.entry(level)) {
                    cache.found(Before::Absent);
                    return Installed::Done;
                }
            } else {
                let Some(page) = cache.alloc() else { return Installed::NoTable };
                // On failure somebody else was faster: the next turn sees what is there now.
                if let Err(page) = cell.link(page) {
                    cache.put(page);
                }
            }
        }
    }

    /// The level of the entry that maps a frame; None if none does. The lock is held at least for reading.
    pub fn level<H: Host>(&self, host: &H, gfn: u64) -> Option<u8> {
        self.lowest(host, gfn).filter(|(entry, _)| entry.present()).map(|(_, level)| level)
    }

    /// Unmaps the frames `[start, end)`, and whole large pages that reach into them. Bounded: at most two partly covered
    /// tables per level are looked into.
    pub fn zap<H: Host>(&mut self, host: &H, start: u64, end: u64, before: Stale) -> Stale {
        self.remove(before, |tree, removed| {
            tree.visit(host, start, end, &mut |cell, entry, at| {
                let descend = entry.child().is_some() && !at.covered;
                if !descend {
                    cell.zap(host, removed);
                }
                descend
            });
        })
    }

    /// Unmaps everything.
    pub fn zap_all<H: Host>(&mut self, host: &H, before: Stale) -> Stale {
        let end = self.limit();
        Space::ALL
            .iter()
            .fold(before, |stale, space| self.zap(host, space.gfn(0), space.gfn(0).wrapping_add(end), stale))
    }

    /// Write-protects the frames `[start, end)`, for the dirty log, and whole large pages that reach into them: the
    /// next write splits those ([`map`](Self::map)). The caller bounds the range.
    pub fn write_protect<H: Host>(&mut self, host: &H, start: u64, end: u64, before: Stale) -> Stale {
        self.remove(before, |tree, removed| {
            tree.visit(host, start, end, &mut |cell, entry, _| {
                let table = entry.child().is_some();
                if !table {
                    cell.write_protect(removed);
                }
                table
            });
        })
    }

    /// The last call: everything that is this tree's goes, the top tables as well.
    pub fn destroy<H: Host>(&mut self, host: &H) -> Stale {
        if !self.owned {
            return Stale::nothing();
        }
        let roots = self.roots;
        self.remove(Stale::nothing(), |_, removed| roots.into_iter().for_each(|root| removed.unlink(host, root)))
    }

    /// One operation that takes something away.
    fn remove(&mut self, before: Stale, f: impl FnOnce(&Self, &mut Removed)) -> Stale {
        let mut removed = Removed::after(before);
        f(self, &mut removed);
        self.unlinked = self.unlinked.wrapping_add(removed.unlinked().into());
        removed.count(&mut self.removals)
    }

    /// Counts the entries that map the frames `[start, end)`, by their level. The lock is held at least for reading;
    /// the caller bounds the range.
    pub fn count<H: Host>(&self, host: &H, start: u64, end: u64, counts: &mut [u64; 3]) {
        self.visit(host, start, end, &mut |_, entry, at| {
            // A large page that reaches into the range from before was counted there.
            if entry.child().is_none() && at.first >= frame(start) {
                if let Some(n) = counts.get_mut(usize::from(at.level).saturating_sub(1)) {
                    *n = n.saturating_add(1);
                }
            }
            true
        });
    }

    /// Does a large page that may not be written map a part of the frames `[start, end)`? The lock is held at least for
    /// reading; the caller bounds the range.
    pub fn has_protected_large<H: Host>(&self, host: &H, start: u64, end: u64) -> bool {
        let mut found = false;
        self.visit(host, start, end, &mut |_, entry, at| {
            found |= entry.large() && !entry.writable();
            // Below the tables of level 2 nothing is large.
            !found && at.level > 2
        });
        found
    }

    /// Was any of the frames `[start, end)` accessed since their A bits were cleared? With `clear` it clears them. The
    /// lock is held at least for reading.
    pub fn age<H: Host>(&self, host: &H, start: u64, end: u64, clear: bool) -> bool {
        let mut young = false;
        self.visit(host, start, end, &mut |cell, entry, _| {
            if entry.child().is_some() {
                return true;
            }
            young |= entry.accessed();
            if clear && entry.accessed() {
                cell.clear_accessed(entry);
            }
            false
        });
        young
    }

    /// Calls `f` for the present entries that map a part of `[start, end)`, with the cell and what it held. For a
    /// table, `f` says whether to look into it. All of the range is in one address space.
    fn visit<H: Host>(&self, host: &H, start: u64, end: u64, f: &mut impl FnMut(Cell, Entry, At) -> bool) {
        let root = self.top(start);
        let len = end.saturating_sub(start);
        let start = frame(start);
        let end = start.saturating_add(len).min(self.limit());
        if start < end {
            Self::visit_table(host, root, self.levels, start, end, f);
        }
    }

    /// The same below one table, which maps all of the range. Recursion is as deep as the tree has levels.
    fn visit_table<H: Host>(
        host: &H,
        table: HostPa,
        level: u8,
        start: u64,
        end: u64,
        f: &mut impl FnMut(Cell, Entry, At) -> bool,
    ) {
        let Some(cells) = Cells::of(host, table) else { return };
        let span = pages(level);
        let mut at = start;
        while at < end {
            let first = at & !(span - 1);
            let next = first.wrapping_add(span);
            let stop = next.min(end);
            if let Some(cell) = cells.cell(at, level) {
                let entry = cell.load();
                let covered = at == first && stop == next;
                if entry.present() && f(cell, entry, At { level, first, covered }) && level > 1 {
                    if let Some(below) = entry.child() {
                        Self::visit_table(host, below, level - 1, at, stop, f);
                    }
                }
            }
            at = next;
        }
    }
}

/// Where [`Tree::visit`] is.
#[derive(Clone, Copy)]
struct At {
    level: u8,
    /// The first guest physical frame that the entry maps.
    first: u64,
    /// Does all that it maps lie in the range?
    covered: bool,
}
