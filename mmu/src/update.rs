//! Changing the slots: KVM_SET_USER_MEMORY_REGION (KVM API document, 4.35).
//!
//! Everything that can fail happens first. Then accesses through the VMM's addresses are shut out (`slots` held for
//! writing), a slot that goes away becomes invalid (nothing new is mapped from it, the notifier still sees it), its entries
//! are removed and flushed, and only then does it disappear.

use crate::Mmu;
use crate::bitmap::Bitmap;
use crate::dirty::{INITIALLY_SET, SlotsLock};
use crate::maps::{Region, Regions};
use crate::npt::Stale;
use crate::slot::{Change, Memslot, UserRegion};
use alloc::vec::Vec;
use host::{Errno, Host};

/// Pages that are write-protected without letting go of the lock.
const BATCH: u64 = 4096;

impl<H: Host> Mmu<H> {
    /// Creates, deletes, moves a slot or changes its flags. Sleeps.
    ///
    /// `flush` as for [`invalidate_range_start`](Self::invalidate_range_start).
    ///
    /// Errors: EINVAL (unknown flag, unaligned, wrapping or too large range, slot id or address space out of range,
    /// addresses that the processor cannot make, not user memory, deletion of what is not there, other size, user
    /// address or read-only flag for an existing slot), EEXIST (overlap), ENOMEM. After an error nothing has changed.
    pub fn set_memory_region(&self, r: &UserRegion, flush: &dyn Fn()) -> Result<(), Errno> {
        let mut lock = self.slots_lock.lock();
        let change = self.slots.read().plan(&self.host, r)?;
        let result = match change {
            Change::Nothing => Ok(()),
            Change::Create(slot) => self.create_memslot(&mut lock, slot),
            Change::Delete(slot) => self.delete_memslot(slot, flush),
            Change::Move { from, to } => self.move_memslot(&mut lock, from, to, flush),
            Change::Flags { from, to } if to.logs() => self.start_log(&mut lock, from, to, flush),
            Change::Flags { from, to } => self.stop_log(from, to, flush),
        };
        // The room to read a log out goes with the last one: it may be large, and is the VMM's to account for.
        if !lock.scratch.is_empty() && !self.slots.read().log() {
            lock.scratch = Vec::new();
        }
        result
    }

    /// A bitmap for a slot that logs, with room to read it out; none where rings are used. Errors: ENOMEM.
    fn alloc_dirty_bitmap(&self, lock: &mut SlotsLock, slot: &Memslot) -> Result<Option<Bitmap<H>>, Errno> {
        if !slot.logs() || lock.rings {
            return Ok(None);
        }
        lock.reserve(slot.pages)?;
        Bitmap::new(&self.host, slot.pages, lock.manual & INITIALLY_SET != 0).map(Some)
    }

    fn create_memslot(&self, lock: &mut SlotsLock, slot: Memslot) -> Result<(), Errno> {
        let dirty = self.alloc_dirty_bitmap(lock, &slot)?;
        let (capacity, len) = self.mmu_lock.read().room();
        if len == capacity {
            let fresh = Regions::roomier(len)?;
            let _old = self.mmu_lock.write().rehouse(fresh);
        }
        let mut slots = self.slots.write();
        slots.reserve()?;
        let left = self.mmu_lock.write().insert(Region::new(slot, dirty));
        left.map_err(|_| Errno::ENOMEM)?;
        slots.apply(&Change::Create(slot));
        Ok(())
    }

    fn delete_memslot(&self, slot: Memslot, flush: &dyn Fn()) -> Result<(), Errno> {
        let mut slots = self.slots.write();
        self.invalidate_memslot(&slot, flush);
        let removed = self.mmu_lock.write().remove(&slot);
        slots.apply(&Change::Delete(slot));
        drop(slots);
        drop(removed); // The bitmap, with no lock held.
        Ok(())
    }

    fn move_memslot(&self, lock: &mut SlotsLock, from: Memslot, to: Memslot, flush: &dyn Fn()) -> Result<(), Errno> {
        let fresh = if from.logs() { None } else { self.alloc_dirty_bitmap(lock, &to)? };
        let mut slots = self.slots.write();
        slots.reserve()?;
        self.invalidate_memslot(&from, flush);
        let (left, old) = {
            let mut maps = self.mmu_lock.write();
            let mut old = maps.remove(&from).and_then(|r| r.dirty_bitmap);
            // The log goes with the slot, unless it ends here.
            let dirty = if to.logs() { fresh.or_else(|| old.take()) } else { None };
            (maps.insert(Region::new(to, dirty)), old)
        };
        slots.apply(&Change::Move { from, to });
        drop(slots);
        drop(old);
        left.map_err(|_| Errno::ENOMEM)
    }

    /// Nothing new is mapped from the slot, and nothing of it is mapped or in a TLB when this returns.
    fn invalidate_memslot(&self, slot: &Memslot, flush: &dyn Fn()) {
        let stale = {
            let mut maps = self.mmu_lock.write();
            maps.invalidate_seq = maps.invalidate_seq.wrapping_add(1);
            if let Some(r) = maps.region_mut(slot) {
                r.invalid = true;
            }
            maps.tree.zap(&self.host, slot.base, slot.end(), Stale::nothing())
        };
        self.flush_remote_tlbs(stale, flush, true);
    }

    fn start_log(&self, lock: &mut SlotsLock, from: Memslot, to: Memslot, flush: &dyn Fn()) -> Result<(), Errno> {
        let dirty = self.alloc_dirty_bitmap(lock, &to)?;
        self.update_flags_memslot(from, to, dirty);
        if lock.manual & INITIALLY_SET != 0 && !lock.rings {
            // All pages count as written; they are protected piece by piece as user space clears its log.
            return Ok(());
        }
        let (mut at, mut stale) = (to.base, Stale::nothing());
        while at < to.end() {
            let next = at.wrapping_add(BATCH).min(to.end());
            stale = self.mmu_lock.write().tree.write_protect(&self.host, at, next, stale);
            self.host.cond_resched();
            at = next;
        }
        self.flush_remote_tlbs(stale, flush, true);
        Ok(())
    }

    fn stop_log(&self, from: Memslot, to: Memslot, flush: &dyn Fn()) -> Result<(), Errno> {
        self.update_flags_memslot(from, to, None);
        // What was mapped in small, read-only pages comes back as large as it can be.
        let stale = self.mmu_lock.write().tree.zap(&self.host, to.base, to.end(), Stale::nothing());
        self.flush_remote_tlbs(stale, flush, true);
        Ok(())
    }

    /// New flags and log for a slot that stays; faults that are under way start over.
    fn update_flags_memslot(&self, from: Memslot, to: Memslot, mut dirty: Option<Bitmap<H>>) {
        let mut slots = self.slots.write();
        {
            let mut maps = self.mmu_lock.write();
            maps.invalidate_seq = maps.invalidate_seq.wrapping_add(1);
            if let Some(r) = maps.region_mut(&from) {
                r.slot = to;
                r.always_logged = false;
                core::mem::swap(&mut r.dirty_bitmap, &mut dirty);
            }
        }
        slots.apply(&Change::Flags { from, to });
        drop(slots);
        drop(dirty);
    }
}
