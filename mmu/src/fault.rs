//! Nested page faults: from a guest address that has no mapping to one that has.

use crate::cache::MemoryCache;
use crate::maps::{Maps, Region};
use crate::npt::{Installed, Leaf, pages};
use crate::slot::Memslot;
use crate::{Mmu, View};
use arch::{Gpa, Hva, NpfCode};
use host::{Errno, Host, MapLevel, Pfn, Stop, UserPage};

/// How often a fault starts over when the address space changes under it, before it lets the guest try again.
const TRIES: u32 = 4;

/// Frames that are looked at without letting go of the lock.
const COUNTED: u64 = 1 << 14;

/// What the vCPU does after a nested fault (KVM's RET_PF_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetPf {
    /// The address is mapped: enter the guest.
    Fixed,
    /// The slots or the VMM's memory are changing right now: enter the guest, which faults again.
    Retry,
    /// No memory there, or a write to a read-only slot or to a device's memory that the host may only read: emulate the instruction.
    Emulate,
    /// The host has to bring the page at this address in first, which [`Mmu::page_fault_nowait`] does not wait for.
    Late(Hva),
}

/// A page of the host's.
struct Found {
    pfn: Pfn,
    /// May the guest write it?
    writable: bool,
    /// Size of the host's mapping, if that is known already.
    level: Option<MapLevel>,
}

/// One attempt.
enum Attempt {
    Ends(RetPf),
    /// The page that the host gave may be stale.
    Again,
}

impl<H: Host> View<'_, H> {
    /// Handles a nested page fault at `gpa` (APM 15.25.6). Sleeps; the caller holds no lock of ours.
    ///
    /// Errors: [`Stop::Fault`] (the VMM has nothing usable mapped there: EFAULT), [`Stop::Poison`], and
    /// [`Stop::Errno`] with ENOMEM, with EINTR (a signal), or with EIO (the VMM's address space is gone, or the
    /// tables are broken).
    pub fn page_fault(&self, cache: &mut MemoryCache<H>, gpa: Gpa, code: NpfCode) -> Result<RetPf, Stop> {
        self.resolve(cache, gpa, code, true)
    }

    /// The same, but for a page that somebody has to bring in first: [`RetPf::Late`].
    pub fn page_fault_nowait(&self, cache: &mut MemoryCache<H>, gpa: Gpa, code: NpfCode) -> Result<RetPf, Stop> {
        self.resolve(cache, gpa, code, false)
    }

    fn resolve(&self, cache: &mut MemoryCache<H>, gpa: Gpa, code: NpfCode, wait: bool) -> Result<RetPf, Stop> {
        if code.reserved() {
            self.host.warn("KVM_RUN fails with EIO: a nested page table has a reserved bit set, a bug to be reported with `hsavectl report`; guest frame", gpa.gfn().0);
            return Err(Stop::Errno(Errno::EIO));
        }
        let gfn = self.space.gfn(gpa.gfn().0);
        if let Some(m) = self.page_fault_mapped(cache, gfn, code.write()) {
            return Ok(m);
        }
        for n in 0..TRIES {
            if let Attempt::Ends(m) = self.try_fault(cache, gfn, code.write(), wait, n > 0)? {
                return Ok(m);
            }
        }
        Ok(RetPf::Retry)
    }

    /// Where the mapping that a frame is part of ends; that of its page if it is not mapped.
    pub fn mapping_end(&self, gpa: Gpa) -> Gpa {
        let gfn = gpa.gfn().0;
        let size = pages(self.mmu_lock.read().tree.level(&self.host, self.space.gfn(gfn)).unwrap_or(1));
        Gpa((gfn & !(size - 1)).wrapping_add(size) << 12)
    }

    /// Where the host has the page mapped already there is nothing to ask for: it is looked up and installed under one
    /// hold of the lock, which an invalidation of the page has to wait for. None: it takes more than that.
    #[inline]
    fn page_fault_mapped(&self, cache: &mut MemoryCache<H>, gfn: u64, write: bool) -> Option<RetPf> {
        let maps = self.mmu_lock.read();
        let Some(region) = maps.region(gfn) else {
            return (!maps.released).then_some(RetPf::Emulate);
        };
        let slot = &region.slot;
        let hva = slot.hva_of(gfn);
        if region.invalid
            || maps.released
            || self.invalidation_nearby(hva)
            || write && slot.read_only()
            || !maps.tree.reaches(gfn, 1)
        {
            return None;
        }
        let (pfn, level) = self.host.mapped_page(hva)?;
        let leaf = self.leaf(&maps, region, gfn, &Found { pfn, writable: true, level: Some(level) }, write);
        if leaf.write && slot.logs() {
            if self.ring_is_full() {
                return Some(RetPf::Retry);
            }
            maps.mark_page_dirty(&self.host, self.ring, gfn);
        }
        match maps.tree.map(&self.host, cache, gfn, leaf) {
            Installed::Done => Some(RetPf::Fixed),
            Installed::NoTable | Installed::Conflict => None,
        }
    }

    /// Is there no place left in the vCPU's dirty ring? It has been asked to leave for user space then.
    fn ring_is_full(&self) -> bool {
        self.ring.is_some_and(|r| r.ring.full())
    }

    /// The largest level at which anything is mapped.
    #[inline]
    fn largest(&self) -> u8 {
        if self.page_1g { MapLevel::Page1G as u8 } else { MapLevel::Page2M as u8 }
    }

    /// Is a part being invalidated of what the largest page around `hva` would map? Asked before the host says how large its page
    /// there is, as in [`leaf`](Self::leaf).
    #[inline]
    fn invalidation_nearby(&self, hva: Hva) -> bool {
        let size = pages(self.largest());
        self.invalidation_in_progress(Hva(hva.0 & !((size << 12) - 1)), size)
    }
}

impl<H: Host> Mmu<H> {
    /// How many entries map guest memory, by their level: 4 KiB, 2 MiB, 1 GiB. Memory that changes meanwhile is in or
    /// not. Sleeps.
    pub fn mapped_pages(&self) -> [u64; 3] {
        let (mut counts, mut at) = ([0; 3], 0);
        loop {
            {
                let maps = self.mmu_lock.read();
                let Some((start, end)) = maps.next(at) else { return counts };
                at = end.min(start.saturating_add(COUNTED));
                maps.tree.count(&self.host, start, at, &mut counts);
            }
            self.host.cond_resched();
        }
    }
}

impl<H: Host> View<'_, H> {
    /// One attempt; `again`: it is not the first.
    fn try_fault(
        &self,
        cache: &mut MemoryCache<H>,
        gfn: u64,
        write: bool,
        wait: bool,
        again: bool,
    ) -> Result<Attempt, Stop> {
        let (slot, seq, tables) = {
            let maps = self.mmu_lock.read();
            if maps.released {
                return Err(Stop::Errno(Errno::EIO));
            }
            let Some(region) = maps.region(gfn) else { return Ok(Attempt::Ends(RetPf::Emulate)) };
            if region.invalid || self.invalidation_in_progress(region.slot.hva_of(gfn), 1) {
                return Ok(Attempt::Ends(RetPf::Retry));
            }
            if write && region.slot.read_only() || !maps.tree.reaches(gfn, 1) {
                return Ok(Attempt::Ends(RetPf::Emulate));
            }
            // A large page that may not be written is split for the log. Without one it nearly always becomes writable
            // as it is, which takes no table: those come with the second attempt.
            let split = write && (region.slot.logs() || again);
            (region.slot, maps.invalidate_seq, maps.tree.missing(&self.host, gfn, split))
        };
        // Before the spin lock: neither of these may be done while it is held.
        cache.topup(tables).map_err(Stop::Errno)?;
        let hva = slot.hva_of(gfn);
        let page = if wait { self.host.user_page(hva, write).map(Some) } else { self.host.user_page_now(hva, write) };
        let page = match page {
            Err(Stop::ReadOnly) => return Ok(Attempt::Ends(RetPf::Emulate)),
            page => page?,
        };
        let Some(page) = page else { return Ok(Attempt::Ends(RetPf::Late(hva))) };

        let maps = self.mmu_lock.read();
        if maps.invalidate_seq != seq {
            return Ok(Attempt::Again);
        }
        let found = Found { pfn: page.pfn(), writable: page.writable(), level: None };
        let Some(region) = maps.region(gfn) else { return Ok(Attempt::Again) };
        let leaf = self.leaf(&maps, region, gfn, &found, write);
        if leaf.write && slot.logs() {
            if self.ring_is_full() {
                return Ok(Attempt::Ends(RetPf::Retry));
            }
            // With the lock held: reading the log cannot fall between the bit and the entry that it stands for.
            maps.mark_page_dirty(&self.host, self.ring, gfn);
        }
        match maps.tree.map(&self.host, cache, gfn, leaf) {
            Installed::Done => Ok(Attempt::Ends(RetPf::Fixed)),
            Installed::NoTable => Ok(Attempt::Again),
            Installed::Conflict => {
                // The host replaced a page without telling: going on would let the guest write to somebody else's.
                self.host.warn("KVM_RUN fails with EIO: the host has replaced a page without saying so, to be reported with `hsavectl report`; guest frame", gfn);
                Err(Stop::Errno(Errno::EIO))
            }
        }
    }

    /// With what permission, and how large, a page is mapped. The sequence number has been checked, so the slot is as
    /// it was copied.
    #[inline]
    fn leaf(&self, maps: &Maps<H>, region: &Region<H>, gfn: u64, page: &Found, write: bool) -> Leaf {
        let (pfn, slot) = (page.pfn, &region.slot);
        let writable = page.writable && !slot.read_only();
        if slot.logs() {
            // 4 KiB pages, and who makes one writable marks it. As on stock, the first read of a page does: clients
            // count on it. Where the log came later that cannot be told from the first read since then.
            return Leaf { pfn, write: writable && (write || region.always_logged), level: 1 };
        }
        let write = writable;
        if page.level == Some(MapLevel::Page4K) {
            return Leaf { pfn, write, level: 1 };
        }
        // A large page has one permission for all of it, and the host's mapping of that size has one as well. What is
        // only readable so far becomes writable with a write, which comes here again: as a whole, or page by page if
        // the host's mapping is smaller by then. The host's own tables are looked at only where the page's place allows
        // a large one at all.
        let whole = fits(maps, slot, gfn, pfn.number(), MapLevel::Page2M as u8);
        let mut most = if !whole { 1 } else { self.largest() };
        // That 2 MiB fit is known by now.
        while most > MapLevel::Page2M as u8 && !fits(maps, slot, gfn, pfn.number(), most) {
            most -= 1;
        }
        // What surrounds the page is not mapped with it while the host changes a part of that. This is asked before the host's
        // tables are looked at: a change that begins later waits for our lock, one that has ended is in the tables.
        let changing = |size: u64| self.invalidation_in_progress(slot.hva_of(gfn & !(size - 1)), size);
        while most > 1 && changing(pages(most)) {
            most -= 1;
        }
        let level = match page.level {
            _ if most <= 1 => 1,
            Some(level) => most.min(level as u8),
            None => most.min(self.host.user_level(slot.hva_of(gfn)) as u8),
        };
        Leaf { pfn, write, level: level.max(1) }
    }
}

/// May an entry of `level` map the frame: does all of it lie in the slot, and are guest address, user address and
/// physical address congruent?
fn fits<H: Host>(maps: &Maps<H>, slot: &Memslot, gfn: u64, pfn: u64, level: u8) -> bool {
    let size = pages(level);
    let mask = size - 1;
    let first = gfn & !mask;
    (slot.hva_of(gfn).0 >> 12 ^ gfn) & mask == 0
        && (pfn ^ gfn) & mask == 0
        && first >= slot.base
        && first.wrapping_add(size) <= slot.end()
        && maps.tree.reaches(first, size)
}
