//! A VM's memory goes from one engine to the next (docs/decisions/0033, 0034).
//!
//! The slots are written into a section. What is large, the bitmaps of written pages, is lent: both engines have it until one of
//! them goes. What the hardware knows, the nested tables, has one owner, and keeps its place: the new engine knows from the
//! beginning where they begin, and the last step, which cannot fail, makes them its own. With them goes what the kernel may have
//! changed since the section was written: which ranges it is invalidating ([`Moved`]).

use crate::Mmu;
use crate::bitmap::Bitmap;
use crate::dirty::SlotsLock;
use crate::maps::{Maps, Region, Regions};
use crate::notifier::Invalidations;
pub use crate::npt::{ABSENT, TABLE};
use crate::ring::{DIRTY_GFN, DirtyRing, PER_PAGE};
use crate::slot::{ADDRESS_SPACES, Memslot, USER_SLOTS, UserRegion, frame};
use alloc::vec::Vec;
use arch::GuestIndexed;
use core::mem;
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, Host, Lent, LentFor, Numbers, try_push};
use state::{Reader, Refused, Section, Sections, State, Why, Writer};

/// The section. With version 2 a large page may be mapped read-only although the guest may write it; nothing else is
/// different. An engine that knows version 1 alone would take a write there for a mistake of the host's.
pub const SECTION: Section = Section::new(*b"mem ", 2);

/// What goes from the old engine to the new one in the last step, beside the tables themselves: plain numbers. Part of the border
/// between base and engines, which has a hash of it (`xtask/src/border.rs`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// 1: the address space is gone.
    pub released: u64,
    /// How many of `ranges` are under invalidation.
    pub single: u64,
    /// How many further ones are kept as one range around them, and that.
    pub more: u64,
    pub around_start: u64,
    pub around_end: u64,
    /// Start and end of each.
    pub ranges: [u64; 16],
    /// The VM's counters of flushes that the kernel may have asked for since its section was written: for whoever has the VM.
    pub remote_tlb_flush: u64,
    pub remote_tlb_flush_requests: u64,
}

/// Words of [`Moved`].
pub const MOVED: usize = size_of::<Moved>() / 8;

/// Slots that are gone through before another task may have the CPU, and others the lock.
const AT_A_TIME: usize = 64;
/// Frames of a slot that are looked at in one go: those below one table of level 2.
const FRAMES_AT_A_TIME: u64 = 1 << 18;
/// Most slots of a VM.
const MOST: usize = USER_SLOTS as usize * ADDRESS_SPACES as usize;

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
}

impl SavedSlot {
    fn of<H: Host>(region: &Region<H>) -> Self {
        // `invalid` is set within an ioctl only, and the bitmap is lent.
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
            // Go with the tables.
            invalidations: _,
            invalidations_in_progress: _,
            // Where the last access went, and what was flushed: nothing is left to be.
            last: _,
            flushes: _,
        } = self;
        // The room to read a log out is made anew when one is read: a guest would wait for it now.
        let SlotsLock { manual, rings, scratch: _ } = &*slots_lock.lock();
        let (levels, count) = {
            let maps = mmu_lock.read();
            // The tables and `released` go in the last step, and no fault is under way that would look at the sequence number.
            let Maps { tree, regions, invalidate_seq: _, released: _ } = &*maps;
            (tree.levels(), regions.all().len())
        };
        let protected_large = self.has_protected_large();
        // How many levels the nested tables have, how logs are kept, and the slots in order of their addresses.
        w.section_by(SECTION, 0, |w| {
            if protected_large {
                w.needs_version(2);
            }
            levels.save(w);
            manual.save(w);
            rings.save(w);
            w.count(count);
            self.each_region(|region| SavedSlot::of(region).save(w));
        });
    }

    /// Is a large page mapped read-only that the guest may write? No vCPU is in the guest: at most pages go away
    /// meanwhile.
    fn has_protected_large(&self) -> bool {
        let mut at = 0;
        loop {
            let maps = self.mmu_lock.read();
            for _ in 0..AT_A_TIME {
                let Some((start, end)) = maps.next(at) else { return false };
                at = end.min(start.saturating_add(FRAMES_AT_A_TIME));
                let written = maps.region(start).is_some_and(|region| !region.slot.read_only());
                if written && maps.tree.has_protected_large(&self.host, start, at) {
                    return true;
                }
            }
            drop(maps);
            self.host.cond_resched();
        }
    }

    /// Shows all regions to `f`, under the lock, which is let go of now and then. No ioctl is under way, so nobody changes which there
    /// are.
    fn each_region(&self, mut f: impl FnMut(&Region<H>)) {
        let mut first = 0;
        loop {
            let maps = self.mmu_lock.read();
            let left = maps.regions.all().get(first..).unwrap_or_default();
            left.iter().take(AT_A_TIME).for_each(&mut f);
            let over = left.len() <= AT_A_TIME;
            drop(maps);
            self.host.cond_resched();
            if over {
                return;
            }
            first += AT_A_TIME;
        }
    }

    /// Lends what [`load_state`](Self::load_state) needs beside the section. Errors: ENOMEM.
    pub fn lend(&self, to: &mut Numbers) -> Result<(), Errno> {
        let roots = self.roots;
        roots.iter().try_for_each(|root| to.plain(LentFor::NestedRoot, root.pa().0))?;
        // Nothing is allocated under the lock.
        let (_, regions) = self.mmu_lock.read().room();
        to.reserve(regions)?;
        let mut result = Ok(());
        self.each_region(|region| {
            result = result.and(Bitmap::lend(region.dirty_bitmap.as_ref(), to));
        });
        result
    }

    /// A VM's memory with the slots of the section. Its tables are still another engine's: until [`take`](Self::take) nobody may
    /// use it. **Memory safety hangs on the caller**: `lent` is what [`lend`](Self::lend) wrote of a VM that lives.
    pub fn load_state(host: H, sections: &mut Sections<'_>, lent: &mut Lent<'_>) -> Result<Self, Refused> {
        let mut r = sections.next(SECTION, 0)?;
        let mut mmu = Self::with_roots(host, [root(lent)?, root(lent)?]);
        mmu.take_slots(&mut r, lent)?;
        r.end()?;
        Ok(mmu)
    }

    /// They come in order of their addresses, so that each is compared with the one before alone.
    fn take_slots(&mut self, r: &mut Reader<'_>, lent: &mut Lent<'_>) -> Result<(), Refused> {
        let Self { host, slots_lock, slots, mmu_lock, .. } = self;
        let (lock, slots, maps) = (slots_lock.get_mut(), slots.get_mut(), mmu_lock.get_mut());
        let levels: u8 = r.value()?;
        if levels != maps.tree.levels() {
            return Err(r.refuse(Why::Cannot("the nested tables have another number of levels on this machine")));
        }
        (lock.manual, lock.rings) = (r.value()?, r.value()?);
        let count = r.count()?;
        if count > MOST {
            return Err(r.bad("the number of memory slots"));
        }
        let no_memory = |r: &Reader<'_>| r.refuse(Why::NoMemory);
        drop(maps.rehouse(Regions::roomier(count).map_err(|_| no_memory(r))?));
        slots.reserve_all(count).map_err(|_| no_memory(r))?;
        for n in 1..=count {
            let one: SavedSlot = r.value()?;
            // By the rules for one that user space makes.
            let slot = slots.append(host, &one.request()).map_err(|_| r.bad("a memory slot"))?;
            if slot.base != one.base {
                return Err(r.bad("the address space of a slot"));
            }
            // One that logged before there were rings keeps its bitmap.
            let fits = |there: bool| there == slot.logs() || !there && lock.rings;
            let bitmap = Bitmap::lent(lent, slot.pages).filter(|bitmap| fits(bitmap.is_some()));
            let mut region = Region::new(slot, bitmap.ok_or_else(|| r.bad("the bitmap of a slot"))?);
            region.always_logged = one.always_logged;
            maps.append(region).map_err(|_| no_memory(r))?;
            if n % AT_A_TIME == 0 {
                host.cond_resched();
            }
        }
        slots.put_in_order(|| host.cond_resched()).map_err(|_| r.bad("the number of a memory slot"))?;
        maps.put_in_order(|| host.cond_resched());
        Ok(())
    }

    /// The old engine's last step: the tables are not its own any more.
    ///
    /// **Memory safety hangs on the caller**: no vCPU is in the guest, no call of the kernel's is under way (so that what was
    /// removed has been flushed), and [`take`](Self::take) of the VM that was made of this one's state follows before the kernel
    /// calls again; this one is only dropped then.
    pub fn give(&self) -> Moved {
        let mut maps = self.mmu_lock.write();
        maps.tree.own(false);
        mem::take(&mut *self.invalidations.lock()).moved(maps.released)
    }

    /// The new engine's last step: they are its own. **Memory safety hangs on the caller**: see [`give`](Self::give).
    pub fn take(&self, moved: &Moved) {
        let mut maps = self.mmu_lock.write();
        maps.tree.own(true);
        maps.released = moved.released != 0;
        let mut invalidations = self.invalidations.lock();
        *invalidations = Invalidations::of_moved(moved);
        self.invalidations_in_progress.store(invalidations.count(), Relaxed);
    }
}

impl<H: Host> DirtyRing<H> {
    /// Writes what of a ring is not in its pages.
    pub fn save(&self, w: &mut Writer) {
        let Self { pages: _, index: _, size: _, dirty_index, reset_index } = self;
        dirty_index.save(w);
        reset_index.save(w);
    }

    /// Lends the pages. Errors: ENOMEM.
    pub fn lend(&self, to: &mut Numbers) -> Result<(), Errno> {
        (0..self.size.div_ceil(PER_PAGE))
            .filter_map(|n| self.page(n as usize))
            .try_for_each(|page| to.lend(LentFor::DirtyRing, page))
    }

    /// The ring of `bytes` of vCPU number `index`, which [`check_size`](Self::check_size) allows, with the pages that were lent and
    /// what [`save`](Self::save) wrote.
    pub fn arrive(index: u32, bytes: u32, r: &mut Reader<'_>, lent: &mut Lent<'_>) -> Result<Self, Refused> {
        let size = bytes / DIRTY_GFN;
        let mut pages = Vec::new();
        for _ in 0..size.div_ceil(PER_PAGE) {
            let page = lent.handle(LentFor::DirtyRing).ok_or(r.bad("the pages of a dirty ring"))?;
            try_push(&mut pages, page).map_err(|_| r.refuse(Why::NoMemory))?;
        }
        let (dirty, reset): (u32, u32) = r.value()?;
        if dirty.wrapping_sub(reset) > size {
            return Err(r.bad("how much is in a dirty ring"));
        }
        Ok(Self { pages: GuestIndexed::new(pages), index, size, dirty_index: dirty.into(), reset_index: reset.into() })
    }
}

/// Where nested tables begin, of the numbers that were lent.
fn root(lent: &mut Lent<'_>) -> Result<u64, Refused> {
    lent.plain(LentFor::NestedRoot).ok_or(Refused::cannot("the nested tables are missing"))
}
