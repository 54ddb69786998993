//! What was taken away from the nested tables and may still be in a TLB.
//!
//! **Memory safety hangs on this file.** The host takes a page back, and a table page is freed, as soon as the call that
//! removed it returns; a processor that holds the old translation would go on using it.

use super::entry::Entry;
use arch::{HostPa, npt};
use core::sync::atomic::{AtomicU64, Ordering::*};
use host::{Host, TablePage};

/// Freed tables between two offers to give the CPU away.
const FREE_BATCH: u32 = 64;

/// Counts removals that were flushed; belongs to one tree.
#[derive(Default)]
pub struct Flushes(AtomicU64);

/// Proof that something may have been taken from the tree, or that somebody else did so before: the caller must not
/// return before it has been flushed. Tables that were unlinked are in here, and come out only through the flush.
#[must_use = "TLBs may hold what was removed: pass it to flush_remote_tlbs"]
pub struct Stale {
    /// Removals up to this one have to be flushed.
    removals: u64,
    tables: Option<HostPa>,
}

impl Stale {
    /// Nothing so far.
    pub const fn nothing() -> Self {
        Self { removals: 0, tables: None }
    }

    /// Flushes, unless somebody has done it since; then frees the tables. With `may_block` it gives the CPU away now
    /// and then.
    ///
    /// `flush` returns when every vCPU has left the guest at least once since it was called, and will flush before it
    /// enters again. The caller holds no lock that `flush` needs.
    pub fn flush<H: Host>(mut self, host: &H, flushes: &Flushes, flush: &dyn Fn(), may_block: bool) {
        if flushes.0.load(Acquire) < self.removals {
            flush();
            flushes.0.fetch_max(self.removals, AcqRel);
        }
        self.free(host, may_block);
    }

    /// Frees the tables of a tree that no vCPU is left to use (ASIDs are flushed before they are used again).
    pub fn free_unused<H: Host>(mut self, host: &H) {
        self.free(host, true);
    }

    fn free<H: Host>(&mut self, host: &H, may_block: bool) {
        self.removals = 0;
        let mut done = 0u32;
        while let Some(pa) = self.tables.take() {
            if let Some(table) = host.table(pa) {
                let mut cells = table.0.iter();
                // Masked: a walker that was under way may have set A or D in what it took for an entry.
                let link = cells.next().map_or(0, |c| c.load(Relaxed)) & npt::ADDR;
                self.tables = (link != 0).then_some(HostPa(link));
                for cell in cells {
                    if let Some(below) = Entry::of(cell.load(Relaxed)).child() {
                        list(&mut self.tables, host, below);
                    }
                }
            }
            // It was linked, so it came from the host, and nothing names it any more.
            host.free_table(TablePage::from_host(pa));
            done = done.wrapping_add(1);
            if may_block && done % FREE_BATCH == 0 {
                host.cond_resched();
            }
        }
    }
}

/// Lists a table that the tree no longer reaches, and those that its first entries lead to.
///
/// The list needs no memory: entry 0 of a listed table holds the address of the next one, with the present bit clear,
/// so that a processor which still looks there finds nothing. A child in entry 0 is listed itself first.
fn list<H: Host>(head: &mut Option<HostPa>, host: &H, pa: HostPa) {
    let mut next = Some(pa);
    while let Some(pa) = next.take() {
        let Some(first) = host.table(pa).and_then(|t| t.0.first()) else { return };
        // Release: whoever follows the link finds the listed table's own link written.
        let child = first.swap(head.map_or(0, |h| h.0 & npt::ADDR), Release);
        *head = Some(pa);
        next = Entry::of(child).child();
    }
}

/// What one operation of the tree takes away, while the lock is held for writing.
pub struct Removed {
    tables: Option<HostPa>,
    any: bool,
    unlinked: bool,
}

impl Removed {
    /// Goes on from what was removed before.
    pub(super) fn after(mut before: Stale) -> Self {
        before.removals = 0; // The count at the end is no smaller.
        Self { tables: before.tables.take(), any: false, unlinked: false }
    }

    /// An entry was removed or has fewer rights.
    pub(super) fn note(&mut self) {
        self.any = true;
    }

    /// A table was taken out of the tree.
    pub(super) fn unlink<H: Host>(&mut self, host: &H, table: HostPa) {
        self.unlinked = true;
        list(&mut self.tables, host, table);
    }

    /// Were tables taken out?
    pub(super) fn unlinked(&self) -> bool {
        self.unlinked
    }

    /// Counts it. What others removed and have perhaps not flushed yet counts as well: who finds nothing left to remove
    /// must wait for their flush.
    pub(super) fn count(self, removals: &mut u64) -> Stale {
        *removals = removals.wrapping_add(self.any.into());
        Stale { removals: *removals, tables: self.tables }
    }
}

#[cfg(test)]
impl Drop for Stale {
    /// Nobody drops one that is not flushed.
    fn drop(&mut self) {
        assert!(self.removals == 0 && self.tables.is_none() || std::thread::panicking(), "removed and not flushed");
    }
}
