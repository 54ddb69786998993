//! Changing the slots: KVM_SET_USER_MEMORY_REGION (KVM API document, 4.35).
//!
//! Everything that can fail happens first. Then accesses through the VMM's addresses are shut out (`slots` held for
//! writing), a slot that goes away is retired (nothing new is mapped from it, the notifier still sees it), its entries
//! are removed and flushed, and only then does it disappear.

use crate::Mmu;
use crate::bitmap::Bitmap;
use crate::cache::FreeList;
use crate::dirty::{Admin, INITIALLY_SET};
use crate::maps::{Region, roomier};
use crate::slot::{Change, Slot, UserRegion};
use host::{Errno, Host};

/// Pages that are write-protected without letting go of the lock.
const BATCH: u64 = 4096;

impl<H: Host> Mmu<H> {
    /// Creates, deletes, moves a slot or changes its flags. Sleeps.
    ///
    /// `flush` as for [`invalidate_start`](Self::invalidate_start).
    ///
    /// Errors: EINVAL (unknown flag, unaligned, wrapping or too large range, slot id or address space out of range,
    /// not user memory, deletion of what is not there, other size, user address or read-only flag for an existing
    /// slot), EEXIST (overlap), ENOMEM. After an error nothing has changed.
    pub fn set_user_region(&self, r: &UserRegion, flush: &dyn Fn()) -> Result<(), Errno> {
        let mut admin = self.admin.lock();
        let change = self.slots.read().plan(&self.host, r)?;
        match change {
            Change::Nothing => Ok(()),
            Change::Create(slot) => self.create(&mut admin, slot),
            Change::Delete(slot) => self.delete(slot, flush),
            Change::Move { from, to } => self.relocate(&mut admin, from, to, flush),
            Change::Flags { from, to } if to.logs() => self.start_log(&mut admin, from, to, flush),
            Change::Flags { from, to } => self.stop_log(from, to, flush),
        }
    }

    /// A bitmap for a slot that logs, with room to read it out. Errors: ENOMEM.
    fn new_log(&self, admin: &mut Admin, slot: &Slot) -> Result<Option<Bitmap>, Errno> {
        if !slot.logs() {
            return Ok(None);
        }
        admin.reserve(slot.pages)?;
        Bitmap::new(slot.pages, admin.manual & INITIALLY_SET != 0).map(Some)
    }

    fn create(&self, admin: &mut Admin, slot: Slot) -> Result<(), Errno> {
        let dirty = self.new_log(admin, &slot)?;
        let (capacity, len) = self.maps.read().room();
        if len == capacity {
            let fresh = roomier(len)?;
            let _old = self.maps.write().rehouse(fresh);
        }
        let mut slots = self.slots.write();
        slots.reserve()?;
        let left = self.maps.write().insert(Region::new(slot, dirty));
        left.map_err(|_| Errno::ENOMEM)?;
        slots.apply(&Change::Create(slot));
        Ok(())
    }

    fn delete(&self, slot: Slot, flush: &dyn Fn()) -> Result<(), Errno> {
        let mut slots = self.slots.write();
        self.retire(&slot, flush);
        let gone = self.maps.write().remove(&slot);
        slots.apply(&Change::Delete(slot));
        drop(slots);
        drop(gone); // The bitmap, with no lock held.
        Ok(())
    }

    fn relocate(&self, admin: &mut Admin, from: Slot, to: Slot, flush: &dyn Fn()) -> Result<(), Errno> {
        let fresh = if from.logs() { None } else { self.new_log(admin, &to)? };
        let mut slots = self.slots.write();
        slots.reserve()?;
        self.retire(&from, flush);
        let (left, old) = {
            let mut maps = self.maps.write();
            let mut old = maps.remove(&from).and_then(|r| r.dirty);
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
    fn retire(&self, slot: &Slot, flush: &dyn Fn()) {
        let mut list = FreeList::default();
        {
            let mut maps = self.maps.write();
            maps.seq = maps.seq.wrapping_add(1);
            if let Some(r) = maps.of_mut(slot) {
                r.retiring = true;
            }
            if maps.tree.zap(&self.host, slot.base, slot.end(), &mut list) {
                self.note_removal();
            }
        }
        self.settle(list, flush, true);
    }

    fn start_log(&self, admin: &mut Admin, from: Slot, to: Slot, flush: &dyn Fn()) -> Result<(), Errno> {
        let dirty = self.new_log(admin, &to)?;
        self.set_flags(from, to, dirty);
        if admin.manual & INITIALLY_SET != 0 {
            // All pages count as written; they are protected piece by piece as user space clears its log.
            return Ok(());
        }
        let mut at = to.base;
        while at < to.end() {
            let next = at.wrapping_add(BATCH).min(to.end());
            {
                let mut maps = self.maps.write();
                if maps.tree.protect(&self.host, at, next) {
                    self.note_removal();
                }
            }
            self.host.cond_resched();
            at = next;
        }
        self.settle(FreeList::default(), flush, true);
        Ok(())
    }

    fn stop_log(&self, from: Slot, to: Slot, flush: &dyn Fn()) -> Result<(), Errno> {
        self.set_flags(from, to, None);
        // What was mapped in small, read-only pages comes back as large as it can be.
        let mut list = FreeList::default();
        {
            let mut maps = self.maps.write();
            if maps.tree.zap(&self.host, to.base, to.end(), &mut list) {
                self.note_removal();
            }
        }
        self.settle(list, flush, true);
        Ok(())
    }

    /// New flags and log for a slot that stays; faults that are under way start over.
    fn set_flags(&self, from: Slot, to: Slot, mut dirty: Option<Bitmap>) {
        let mut slots = self.slots.write();
        {
            let mut maps = self.maps.write();
            maps.seq = maps.seq.wrapping_add(1);
            if let Some(r) = maps.of_mut(&from) {
                r.slot = to;
                r.always_logged = false;
                core::mem::swap(&mut r.dirty, &mut dirty);
            }
        }
        slots.apply(&Change::Flags { from, to });
        drop(slots);
        drop(dirty);
    }
}
