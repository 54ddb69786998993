//! Guest memory: memory slots, nested page tables, dirty log, and the walk of the guest's own page tables.
//!
//! [`Mmu`] belongs to the VM, a [`TableCache`] to each vCPU. There is no shadow paging: the guest's tables are the
//! guest's business, the nested ones below them follow the VMM's address space.
//!
//! # Locks, in this order
//! 1. `admin`, sleeping: one change of the slots, or reading of a dirty log, at a time.
//! 2. `slots`, sleeping, read-write: accesses to guest memory through the VMM's addresses hold it for reading, so that
//!    once a change of the slots has returned nobody uses the old ones. Such an access may fault and wait for the
//!    kernel's lock of the address space, and the kernel may call the notifier with that one held: so nothing the
//!    notifier does takes this lock, and no fault of the guest does.
//! 3. `maps`, spinning, read-write: the nested tables and a copy of the slots ([`maps`]).
//!
//! # How a page gets mapped and unmapped
//! A fault notes a sequence number under `maps`, asks the host for the page without any lock, takes `maps` again and
//! installs the entry if the number still holds and the page is not being invalidated. The notifier announces the
//! range, removes entries and flushes ([`notifier`]); a change of a slot advances the number, removes and flushes.
//! Whoever removes entries counts it, and a flush remembers up to which count it reached: nobody returns while an entry
//! that somebody else removed may still be in a TLB.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bitmap;
mod cache;
mod dirty;
mod fault;
mod maps;
mod memory;
mod notifier;
mod npt;
mod paging;
mod slot;
#[cfg(test)]
mod tests;
mod update;
mod walk;

pub use cache::TableCache;
pub use dirty::MANUAL_DIRTY_LOG_BITS;
pub use fault::Mapped;
pub use memory::{Memory, PhysError};
pub use paging::{Kind, Paging, Translation, WalkError};
pub use slot::{ADDRESS_SPACES, LOG_DIRTY_PAGES, READONLY, USER_SLOTS, UserRegion};

use arch::{HostPa, NestedRoot};
use cache::FreeList;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use dirty::Admin;
use host::{Errno, Host, rank};
use lock_api::{Mutex, RwLock};
use maps::Maps;
use npt::Tree;
use slot::SlotTable;

/// The memory of one VM.
pub struct Mmu<H: Host> {
    host: H,
    root: NestedRoot,
    page_1g: bool,
    admin: Mutex<H::RawMutex<{ rank::SLOT_CHANGES }>, Admin>,
    slots: RwLock<H::RawRwSem<{ rank::SLOTS }>, SlotTable>,
    maps: RwLock<H::RawRwSpin<{ rank::MMU }>, Maps>,
    /// Place of the slot that was last found: most accesses go where the one before went.
    last: AtomicUsize,
    /// How often entries were removed, or made read-only, so that TLBs may be stale.
    removals: AtomicU64,
    /// Removals up to this one have been flushed.
    flushed: AtomicU64,
}

impl<H: Host> Mmu<H> {
    /// A VM's memory without slots. Errors: ENOMEM.
    pub fn new(host: H) -> Result<Self, Errno> {
        let levels = if host.nested_levels() == 5 { 5 } else { 4 };
        let tree = Tree::new(host.alloc_table()?, levels);
        Ok(Self {
            root: tree.root(),
            page_1g: host.features().page_1g,
            admin: Mutex::new(Admin::default()),
            slots: RwLock::new(SlotTable::default()),
            maps: RwLock::new(Maps::new(tree)),
            last: AtomicUsize::new(0),
            removals: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            host,
        })
    }

    /// Where the nested tables begin; the same as long as the VM lives.
    pub fn root(&self) -> NestedRoot {
        self.root
    }

    /// Notes, with `maps` held for writing, that entries were removed or lost permission.
    fn note_removal(&self) {
        self.removals.fetch_add(1, Relaxed);
    }

    /// Flushes if anything that was removed up to now may still be in a TLB, whoever removed it; then frees the tables
    /// of `list`. No lock of ours but `admin` or `slots` may be held.
    fn settle(&self, list: FreeList, flush: &dyn Fn(), may_block: bool) {
        // What this thread waits for was counted under `maps`, which it held after.
        let target = self.removals.load(Acquire);
        if self.flushed.load(Acquire) < target {
            flush();
            self.flushed.fetch_max(target, AcqRel);
        }
        if !list.is_empty() {
            list.free(&self.host, may_block);
        }
    }
}

impl<H: Host> Drop for Mmu<H> {
    fn drop(&mut self) {
        // No vCPU is left: nothing can be in a TLB that anybody will use (ASIDs are flushed before they are reused).
        let mut list = FreeList::default();
        list.push(&self.host, HostPa(self.root.pa().0));
        list.free(&self.host, true);
    }
}
