//! Pages for tables: those put aside for the next fault, and those that were taken out of the tree.

use arch::{HostPa, npt};
use core::sync::atomic::Ordering::{Relaxed, Release};
use host::{Errno, Host};

/// Most tables that one fault can need: all levels but the root.
const MOST: usize = 4;
/// Freed tables between two offers to give the CPU away.
const FREE_BATCH: u32 = 64;

/// Empty table pages of one vCPU, allocated before the lock of the tables is taken. Gives them back when dropped.
pub struct TableCache<H: Host> {
    host: H,
    pages: [Option<HostPa>; MOST],
    len: usize,
    last: Option<LastTable>,
}

/// The table of level 1 that the last fault ended in; faults come in rows.
#[derive(Clone, Copy)]
struct LastTable {
    /// Frame number over 512.
    place: u64,
    table: HostPa,
    /// The tree's count of unlinked tables: while it holds, the table is where it was.
    unlinked: u64,
}

impl<H: Host> TableCache<H> {
    /// An empty one; allocates nothing yet.
    pub fn new(host: &H) -> Self {
        Self { host: host.clone(), pages: [None; MOST], len: 0, last: None }
    }

    /// Makes sure that there are `n` pages (at most 4). May sleep. Errors: ENOMEM.
    #[inline]
    pub(crate) fn fill(&mut self, n: usize) -> Result<(), Errno> {
        while self.len < n {
            let Some(place) = self.pages.get_mut(self.len) else { return Ok(()) };
            *place = Some(self.host.alloc_table()?);
            self.len += 1;
        }
        Ok(())
    }

    /// The table of level 1 for a frame, if it is the last one and none was unlinked since.
    #[inline]
    pub(crate) fn last_table(&self, gfn: u64, unlinked: u64) -> Option<HostPa> {
        self.last.filter(|l| l.place == gfn >> 9 && l.unlinked == unlinked).map(|l| l.table)
    }

    /// Remembers the table of level 1 for a frame.
    pub(crate) fn remember(&mut self, gfn: u64, table: HostPa, unlinked: u64) {
        self.last = Some(LastTable { place: gfn >> 9, table, unlinked });
    }

    /// One page, all entries not present.
    pub(crate) fn take(&mut self) -> Option<HostPa> {
        let n = self.len.checked_sub(1)?;
        self.len = n;
        self.pages.get_mut(n)?.take()
    }

    /// Puts back what [`take`](Self::take) gave and nobody saw.
    pub(crate) fn put(&mut self, pa: HostPa) {
        match self.pages.get_mut(self.len) {
            Some(place) => {
                *place = Some(pa);
                self.len += 1;
            }
            None => self.host.free_table(pa),
        }
    }
}

impl<H: Host> Drop for TableCache<H> {
    fn drop(&mut self) {
        while let Some(pa) = self.take() {
            self.host.free_table(pa);
        }
    }
}

/// Tables that were unlinked from the tree, with all that hangs below them. A processor may still be walking them,
/// so they are freed only after a flush.
///
/// The list needs no memory: entry 0 of a listed table holds the address of the next one, with the present bit clear,
/// so that a processor which still looks there finds nothing. A child in entry 0 is listed itself first.
#[must_use = "the tables would leak"]
#[derive(Default)]
pub struct FreeList {
    head: Option<HostPa>,
}

impl FreeList {
    /// Lists a table that the tree no longer reaches.
    pub(crate) fn push<H: Host>(&mut self, host: &H, pa: HostPa) {
        let mut next = Some(pa);
        while let Some(pa) = next.take() {
            let Some(first) = host.table(pa).and_then(|t| t.0.first()) else { return };
            // Release: whoever follows the link finds the listed table's own link written.
            let child = first.swap(self.head.map_or(0, |h| h.0 & npt::ADDR), Release);
            self.head = Some(pa);
            next = crate::npt::child(child);
        }
    }

    /// Is there nothing to free?
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// Frees all, after the flush. With `may_block` it gives the CPU away now and then.
    pub(crate) fn free<H: Host>(mut self, host: &H, may_block: bool) {
        let mut done = 0u32;
        while let Some(pa) = self.head.take() {
            if let Some(table) = host.table(pa) {
                let mut cells = table.0.iter();
                // Masked: a walker that was under way may have set A or D in what it took for an entry.
                let link = cells.next().map_or(0, |c| c.load(Relaxed)) & npt::ADDR;
                self.head = (link != 0).then_some(HostPa(link));
                for cell in cells {
                    if let Some(below) = crate::npt::child(cell.load(Relaxed)) {
                        self.push(host, below);
                    }
                }
            }
            host.free_table(pa);
            done = done.wrapping_add(1);
            if may_block && done % FREE_BATCH == 0 {
                host.cond_resched();
            }
        }
    }
}
