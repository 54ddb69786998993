//! Pages for tables that are put aside for the next fault.

use arch::HostPa;
use host::{Errno, Host, TablePage};

/// Most tables that one fault can need: all levels but the root.
const MOST: usize = 4;

/// What was there before a frame was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Absent,
    /// The same page, without the permission to write.
    ReadOnly,
    /// All that was asked for: another vCPU was faster.
    Mapped,
}

/// Empty table pages of one vCPU (KVM's `kvm_mmu_memory_cache`), allocated before the mmu's lock is taken. Gives them back when dropped.
pub struct MemoryCache<H: Host> {
    host: H,
    pages: [Option<TablePage>; MOST],
    len: usize,
    last: Option<LastTable>,
    before: Before,
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

impl<H: Host> MemoryCache<H> {
    /// An empty one; allocates nothing yet.
    pub fn new(host: &H) -> Self {
        Self { host: host.clone(), pages: [const { None }; MOST], len: 0, last: None, before: Before::Absent }
    }

    /// Makes sure that there are `n` pages (at most 4). May sleep. Errors: ENOMEM.
    #[inline]
    pub(crate) fn topup(&mut self, n: usize) -> Result<(), Errno> {
        while self.len < n {
            let Some(place) = self.pages.get_mut(self.len) else { return Ok(()) };
            *place = Some(self.host.alloc_table()?);
            self.len += 1;
        }
        Ok(())
    }

    /// What the last fault that mapped a frame had found.
    #[inline]
    pub fn before(&self) -> Before {
        self.before
    }

    /// Notes it.
    #[inline]
    pub(crate) fn found(&mut self, before: Before) {
        self.before = before;
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
    pub(crate) fn alloc(&mut self) -> Option<TablePage> {
        let n = self.len.checked_sub(1)?;
        self.len = n;
        self.pages.get_mut(n)?.take()
    }

    /// Puts back what [`alloc`](Self::alloc) gave and nobody saw.
    pub(crate) fn put(&mut self, page: TablePage) {
        match self.pages.get_mut(self.len) {
            Some(place) => {
                *place = Some(page);
                self.len += 1;
            }
            None => self.host.free_table(page),
        }
    }
}

impl<H: Host> Drop for MemoryCache<H> {
    fn drop(&mut self) {
        while let Some(page) = self.alloc() {
            self.host.free_table(page);
        }
    }
}
