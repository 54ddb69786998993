//! Guest memory: memory slots, nested page tables, dirty log, and the walk of the guest's own page tables.
//!
//! [`Mmu`] belongs to the VM, a [`MemoryCache`] to each vCPU. There is no shadow paging: the guest's tables are the
//! guest's business, the nested ones below them follow the VMM's address space.
//!
//! # Locks, in this order
//! 1. `slots_lock`, sleeping: one change of the slots, or reading of a dirty log, at a time.
//! 2. `slots`, sleeping, read-write: accesses to guest memory through the VMM's addresses hold it for reading, so that
//!    once a change of the slots has returned nobody uses the old ones. Such an access may fault and wait for the
//!    kernel's lock of the address space, and the kernel may call the notifier with that one held: so nothing the
//!    notifier does takes this lock, and no fault of the guest does.
//! 3. `mmu_lock`, spinning, read-write: the nested tables and a copy of the slots ([`maps`]).
//! 4. `invalidations`, spinning, for a few instructions: the ranges that the kernel is changing.
//!
//! # How a page gets mapped and unmapped
//! A fault notes a sequence number under `mmu_lock`, unless the page is being invalidated, asks the host for the page
//! without any lock, takes `mmu_lock` again and maps the page if the number still holds. The notifier announces the
//! range, and where it touches a slot advances the number, removes entries and flushes ([`notifier`]); so does a change
//! of a slot. Whatever takes something away from the nested tables returns a [`npt::Stale`], which only
//! [`Mmu::flush_remote_tlbs`] takes. Removals are counted, and a flush remembers up to which count it reached: nobody
//! returns while an entry that somebody else removed may still be in a TLB.
//!
//! # Two address spaces
//! In system management mode a guest sees other slots, through other nested tables ([`Space`]). One lock, one count of
//! removals and one flush are for both: frame numbers carry their space in a bit that no address reaches, so slots, regions
//! and the tree hold the frames of both in one order, and only the tree's top and [`View`] know which is which. A vCPU that
//! changes between them gets another nested CR3, and its translations are flushed.
//!
//! # What is trusted
//! What the nested tables map, a guest reads and writes, so a mistake here is one in the kernel's memory safety, although
//! there is no `unsafe`. It hangs on [`npt`], which alone makes and changes entries; on [`fault`], which decides what
//! of the host's a guest frame is (`fits` above all); and on [`notifier`] with [`maps`], which find all frames that a
//! page of the host's is mapped at.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::let_underscore_must_use))]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bitmap;
mod cache;
mod dirty;
mod fault;
pub mod handover;
mod hva_tree;
mod maps;
mod memory;
mod notifier;
mod npt;
mod order;
mod paging;
mod ring;
mod slot;
#[cfg(test)]
mod tests;
mod update;
mod view;
mod walk;

pub use cache::{Before, MemoryCache};
pub use dirty::MANUAL_DIRTY_LOG_BITS;
pub use fault::RetPf;
pub use memory::{Memory, PhysError};
pub use paging::{Kind, Paging, Translation, WalkError};
pub use ring::{DIRTY_GFN, DirtyRing, MAX_DIRTY_ENTRIES, RingOf};
pub use slot::{ADDRESS_SPACES, LOG_DIRTY_PAGES, READONLY, Space, USER_SLOTS, UserRegion};
pub use view::View;

use arch::NestedRoot;
use core::sync::atomic::{AtomicU32, AtomicUsize};
use dirty::SlotsLock;
use host::{Errno, Host, rank};
use lock_api::{Mutex, RwLock};
use maps::Maps;
use notifier::Invalidations;
use npt::{Flushes, Stale, Tree};
use slot::Memslots;

/// The memory of one VM.
pub struct Mmu<H: Host> {
    host: H,
    /// By address space.
    roots: [NestedRoot; 2],
    page_1g: bool,
    slots_lock: Mutex<H::RawMutex<{ rank::SLOT_CHANGES }>, SlotsLock>,
    slots: RwLock<H::RawRwSem<{ rank::SLOTS }>, Memslots>,
    mmu_lock: RwLock<H::RawRwSpin<{ rank::MMU }>, Maps<H>>,
    invalidations: Mutex<H::RawSpin<{ rank::INVALIDATIONS }>, Invalidations>,
    /// How many they are: nearly always none, and a fault sees it without the lock.
    invalidations_in_progress: AtomicU32,
    /// Place of the slot that was last found: most accesses go where the one before went.
    last: AtomicUsize,
    flushes: Flushes,
}

impl<H: Host> Mmu<H> {
    /// A VM's memory without slots. Errors: ENOMEM.
    pub fn new(host: H) -> Result<Self, Errno> {
        let levels = if host.nested_levels() == 5 { 5 } else { 4 };
        let normal = host.alloc_table()?;
        let smm = match host.alloc_table() {
            Ok(table) => table,
            Err(errno) => {
                host.free_table(normal);
                return Err(errno);
            }
        };
        Ok(Self::with(host, Tree::new([normal, smm], levels)))
    }

    /// The same with nested tables that begin there, and are another engine's ([`handover`]).
    fn with_roots(host: H, roots: [u64; 2]) -> Self {
        let levels = if host.nested_levels() == 5 { 5 } else { 4 };
        Self::with(host, Tree::lent(roots, levels))
    }

    fn with(host: H, tree: Tree) -> Self {
        Self {
            roots: tree.roots(),
            page_1g: host.features().page_1g,
            slots_lock: Mutex::new(SlotsLock::default()),
            slots: RwLock::new(Memslots::default()),
            mmu_lock: RwLock::new(Maps::new(tree)),
            invalidations: Mutex::new(Invalidations::default()),
            invalidations_in_progress: AtomicU32::new(0),
            last: AtomicUsize::new(0),
            flushes: Flushes::default(),
            host,
        }
    }

    /// Where the nested tables of an address space begin; the same as long as the VM lives.
    pub fn root(&self, space: Space) -> NestedRoot {
        let [normal, smm] = self.roots;
        match space {
            Space::Normal => normal,
            Space::Smm => smm,
        }
    }

    /// Flushes if anything that was taken away up to now may still be in a TLB, whoever did it; then frees the tables
    /// that were unlinked. No lock of ours but `slots_lock` or `slots` may be held.
    fn flush_remote_tlbs(&self, stale: Stale, flush: &dyn Fn(), may_block: bool) {
        stale.flush(&self.host, &self.flushes, flush, may_block);
    }
}

impl<H: Host> Drop for Mmu<H> {
    fn drop(&mut self) {
        self.mmu_lock.get_mut().tree.destroy(&self.host).free_unused(&self.host);
    }
}
