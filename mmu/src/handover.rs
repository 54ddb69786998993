//! A VM's memory goes from one engine to the next (docs/decisions/0033, 0034).
//!
//! The slots are written into a section. What the hardware knows, the nested tables, and what is large, the bitmaps of written
//! pages, change their owner and not their place: the last step, which cannot fail, takes them over. So does what the kernel
//! may have changed since the section was written: which ranges it is invalidating.

use crate::Mmu;
use crate::dirty::SlotsLock;
use crate::maps::{Maps, Region, Regions};
use crate::slot::{Change, Memslot, UserRegion, frame};
use alloc::vec::Vec;
use core::mem;
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, Host};
use state::{Reader, Refused, Section, Sections, State, Why, Writer};

/// The section.
pub const SECTION: Section = Section::new(*b"mem ", 1);

/// What the section holds.
struct Saved {
    /// Levels of the nested tables.
    levels: u8,
    manual: u64,
    rings: bool,
    slots: Vec<SavedSlot>,
}

/// One slot.
#[derive(Clone, Copy)]
struct SavedSlot {
    id: u32,
    flags: u32,
    base: u64,
    pages: u64,
    hva: u64,
    always_logged: bool,
}

state::state! {
    value SavedSlot { id, flags, base, pages, hva, always_logged }
    place Saved { levels, manual, rings, slots }
}

impl SavedSlot {
    fn of(region: &Region) -> Self {
        // `invalid` is set within an ioctl only, and the bitmap is taken over.
        let Region { slot, invalid: _, dirty_bitmap: _, always_logged } = region;
        let Memslot { id, flags, base, pages, hva } = *slot;
        Self { id, flags, base, pages, hva, always_logged: *always_logged }
    }

    fn request(&self) -> UserRegion {
        let Self { id, flags, base, pages, hva, .. } = *self;
        UserRegion { slot: id, flags, gpa: frame(base) << 12, size: pages << 12, hva }
    }
}

impl<H: Host> Mmu<H> {
    /// Writes the section. No ioctl on the VM is under way.
    pub fn save_state(&self, w: &mut Writer) {
        let Self {
            // The machine and what follows from it.
            host: _,
            page_1g: _,
            roots: _,
            slots_lock,
            // The regions say the same.
            slots: _,
            mmu_lock,
            // Taken over.
            invalidations: _,
            invalidations_in_progress: _,
            // Where the last access went, and what was flushed: nothing is left to be.
            last: _,
            flushes: _,
        } = self;
        // The room to read a log out is made anew.
        let SlotsLock { manual, rings, scratch: _ } = &*slots_lock.lock();
        let maps = mmu_lock.read();
        // The tables and `released` are taken over, and no fault is under way that would look at the sequence number.
        let Maps { tree, regions, invalidate_seq: _, released: _ } = &*maps;
        w.section_by(SECTION, 0, 1, |w| {
            tree.levels().save(w);
            manual.save(w);
            rings.save(w);
            w.count(regions.all().len());
            regions.all().iter().for_each(|region| SavedSlot::of(region).save(w));
        });
    }

    /// A VM's memory with the slots of the section, of which nothing is mapped or logged yet.
    pub fn load_state(host: H, sections: &mut Sections<'_>) -> Result<Self, Refused> {
        let mut r = sections.next(SECTION, 0)?;
        let mut saved = Saved { levels: 0, manual: 0, rings: false, slots: Vec::new() };
        saved.load(&mut r)?;
        let mut mmu = Self::new(host).map_err(|_| r.refuse(Why::NoMemory))?;
        mmu.take_slots(&saved, &r)?;
        r.end()?;
        Ok(mmu)
    }

    fn take_slots(&mut self, saved: &Saved, r: &Reader<'_>) -> Result<(), Refused> {
        let no_memory = |_: Errno| r.refuse(Why::NoMemory);
        let Self { host, slots_lock, slots, mmu_lock, .. } = self;
        let (lock, slots, maps) = (slots_lock.get_mut(), slots.get_mut(), mmu_lock.get_mut());
        if saved.levels != maps.tree.levels() {
            return Err(r.refuse(Why::Cannot("the nested tables have another number of levels on this machine")));
        }
        (lock.manual, lock.rings) = (saved.manual, saved.rings);
        drop(maps.rehouse(Regions::roomier(saved.slots.len()).map_err(no_memory)?));
        for one in &saved.slots {
            // By the rules for one that user space makes.
            let Ok(Change::Create(slot)) = slots.plan(host, &one.request()) else { return Err(r.bad("a memory slot")) };
            if slot.base != one.base {
                return Err(r.bad("the address space of a slot"));
            }
            if slot.logs() && !lock.rings {
                lock.reserve(slot.pages).map_err(no_memory)?;
            }
            slots.reserve().map_err(no_memory)?;
            let mut region = Region::new(slot, None);
            region.always_logged = one.always_logged;
            maps.insert(region).map_err(|_| r.refuse(Why::NoMemory))?;
            slots.apply(&Change::Create(slot));
        }
        Ok(())
    }

    /// The last step: the tables and bitmaps of `old`, whose slots these are, are this one's from now on; `old` is left with
    /// nothing mapped.
    ///
    /// **Memory safety hangs on the caller**: no vCPU is in the guest, no call of the kernel's is under way in `old` (so that
    /// what was removed has been flushed), and the kernel calls this one from now on.
    pub fn succeed(&mut self, old: &mut Self) {
        let (maps, was) = (self.mmu_lock.get_mut(), old.mmu_lock.get_mut());
        maps.tree.exchange(&mut was.tree);
        maps.released = was.released;
        for region in was.regions.all_mut() {
            if let Some(mine) = maps.region_mut(&region.slot) {
                mem::swap(&mut mine.dirty_bitmap, &mut region.dirty_bitmap);
            }
        }
        (self.roots, old.roots) = (maps.tree.roots(), was.tree.roots());
        *self.invalidations.get_mut() = mem::take(old.invalidations.get_mut());
        self.invalidations_in_progress.store(self.invalidations.get_mut().count(), Relaxed);
    }
}
