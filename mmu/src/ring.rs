//! Dirty rings: the log as a queue of each vCPU (KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM API document 8.29).
//!
//! An entry has the states *empty*, *dirty* (the vCPU has filled it in) and *harvested* (user space has seen it), which its
//! flags tell; KVM_RESET_DIRTY_RINGS makes it empty again and protects its page. The pages are user space's to write at any
//! time, so nothing that is read there is trusted: which entry comes next, and how many there are, is counted here; slot and
//! page only say which of the guest's pages is protected, and are looked up as if an ioctl had named them.

use crate::Mmu;
use crate::bitmap::WORD;
use crate::npt::Stale;
use crate::slot::Memslot;
use alloc::vec::Vec;
use arch::GuestIndexed;
use core::sync::atomic::{AtomicU32, Ordering::*, fence};
use host::{Errno, Host, PAGE_SIZE, Request, SharedPage, Trace, VcpuRequests, push_within_capacity};

/// Bytes of an entry, `struct kvm_dirty_gfn`: flags and slot in the first word, the page in the second.
pub const DIRTY_GFN: u32 = 16;
/// Most entries of a ring.
pub const MAX_DIRTY_ENTRIES: u32 = 65536;
/// Entries that are left when the vCPU has to leave for user space: what it is doing may dirty some more pages.
const RESERVED: u32 = 64;
/// KVM_DIRTY_GFN_F_DIRTY.
const DIRTY: u64 = 1 << 0;
/// KVM_DIRTY_GFN_F_RESET: harvested.
const RESET: u64 = 1 << 1;
/// Entries of a page.
pub(crate) const PER_PAGE: u32 = PAGE_SIZE as u32 / DIRTY_GFN;
/// Entries between two looks at whether somebody else wants the CPU.
const BATCH: u32 = 64;
/// Words of an entry.
const WORDS: usize = DIRTY_GFN as usize / 8;

/// The ring of one vCPU, which alone adds to it.
pub struct DirtyRing<H: Host> {
    pub(crate) pages: GuestIndexed<Vec<H::SharedPage>>,
    /// The number of its vCPU, as those who trace the host are told.
    pub(crate) index: u32,
    /// Entries, a power of two.
    pub(crate) size: u32,
    /// Entries ever added, modulo 2^32.
    pub(crate) dirty_index: AtomicU32,
    /// Entries ever emptied; changes under the lock of slot changes.
    pub(crate) reset_index: AtomicU32,
}

impl<H: Host> DirtyRing<H> {
    /// Is a ring of so many bytes possible? Errors: EINVAL (no power of two, or too small), E2BIG.
    pub fn check_size(bytes: u32) -> Result<(), Errno> {
        if !bytes.is_power_of_two() || bytes < PAGE_SIZE as u32 || bytes < RESERVED * DIRTY_GFN {
            return Err(Errno::EINVAL);
        }
        if bytes > MAX_DIRTY_ENTRIES * DIRTY_GFN { Err(Errno::E2BIG) } else { Ok(()) }
    }

    /// An empty one of vCPU number `index`, of a size that [`check_size`](Self::check_size) allows. Errors: ENOMEM.
    pub fn new(host: &H, index: u32, bytes: u32) -> Result<Self, Errno> {
        let size = bytes / DIRTY_GFN;
        let n = (size / PER_PAGE) as usize;
        let mut pages = Vec::new();
        pages.try_reserve_exact(n).map_err(|_| Errno::ENOMEM)?;
        for _ in 0..n {
            let page = host.new_shared_page()?;
            push_within_capacity(&mut pages, page).map_err(|_| Errno::ENOMEM)?;
        }
        let (dirty_index, reset_index) = (AtomicU32::new(0), AtomicU32::new(0));
        Ok(Self { pages: GuestIndexed::new(pages), index, size, dirty_index, reset_index })
    }

    /// Page `n` of its mapping.
    pub fn page(&self, n: usize) -> Option<&H::SharedPage> {
        self.pages.get_nospec(n)
    }

    fn used(&self) -> u32 {
        self.dirty_index.load(Relaxed).wrapping_sub(self.reset_index.load(Acquire))
    }

    /// Is so little left that the vCPU has to leave for user space?
    pub fn soft_full(&self) -> bool {
        self.used() >= self.size.saturating_sub(RESERVED)
    }

    /// Is nothing left?
    pub fn full(&self) -> bool {
        self.used() >= self.size
    }

    /// The page of entry `n` and the entry's first word there.
    fn entry(&self, n: u32) -> Option<(&H::SharedPage, usize)> {
        let n = n & self.size.wrapping_sub(1);
        Some((self.page((n / PER_PAGE) as usize)?, (n % PER_PAGE) as usize * WORDS))
    }

    /// Adds a page. Only the vCPU's own thread calls it. One that finds no place is not recorded, and the kernel log says so:
    /// who gets here has written on and on without leaving for user space.
    fn push(&self, host: &H, slot: u32, page: u64) {
        let n = self.dirty_index.load(Relaxed);
        let Some((shared, word)) = self.entry(n).filter(|_| !self.full()) else {
            return host.warn(
                "a dirty ring is full, and a page is written that it does not say: the VMM has to empty it; slot",
                slot.into(),
            );
        };
        shared.set_word(word + 1, page);
        // Who sees the flag sees the page.
        fence(Release);
        shared.set_word(word, u64::from(slot) << 32 | DIRTY);
        let dirty = n.wrapping_add(1);
        self.dirty_index.store(dirty, Relaxed);
        host.tell(|| {
            let (index, reset) = (self.index, self.reset_index.load(Relaxed));
            Trace::DirtyRingPush { index, dirty, reset, slot, offset: page }
        });
    }

    /// The next harvested entry, made empty: slot and page as they stand there. None: user space has not harvested more.
    fn take(&self) -> Option<(u32, u64)> {
        let n = self.reset_index.load(Relaxed);
        if n == self.dirty_index.load(Acquire) {
            return None;
        }
        let (shared, word) = self.entry(n)?;
        let first = shared.word(word);
        if first & RESET == 0 {
            return None;
        }
        fence(Acquire);
        let page = shared.word(word + 1);
        shared.set_word(word, first >> 32 << 32);
        // The vCPU fills the entry in again only when it sees this.
        self.reset_index.store(n.wrapping_add(1), Release);
        Some(((first >> 32) as u32, page))
    }
}

/// The ring of the vCPU that runs, and how it hears that the ring is full.
pub struct RingOf<'a, H: Host> {
    /// The ring.
    pub ring: &'a DirtyRing<H>,
    /// Its vCPU's requests.
    pub requests: &'a VcpuRequests,
}

impl<H: Host> Clone for RingOf<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H: Host> Copy for RingOf<'_, H> {}

impl<H: Host> RingOf<'_, H> {
    /// Records that page number `page` of a slot was written.
    pub(crate) fn push(self, host: &H, slot: &Memslot, page: u64) {
        self.ring.push(host, slot.id, page);
        if self.ring.soft_full() {
            self.requests.make_request(Request::DirtyRingFull);
        }
    }
}

/// Neighbouring pages of a slot that are protected together.
#[derive(Clone, Copy)]
struct Run {
    slot: u32,
    /// Its first page.
    first: u64,
    mask: u64,
}

impl<H: Host> Mmu<H> {
    /// From now on written pages are recorded in rings, and slots that begin to log have no bitmap.
    pub fn use_dirty_rings(&self) {
        self.slots_lock.lock().rings = true;
    }

    /// KVM_RESET_DIRTY_RINGS: protects the pages of harvested entries again and empties these. Returns how many they were. Sleeps.
    pub fn reset_dirty_rings<'a>(&self, rings: impl Iterator<Item = &'a DirtyRing<H>>, flush: &dyn Fn()) -> u32
    where
        H: 'a,
    {
        let _lock = self.slots_lock.lock();
        let (mut count, mut stale) = (0u32, Stale::nothing());
        for ring in rings {
            let mut run: Option<Run> = None;
            // As many as there can be when this begins: the vCPU may go on filling in, and user space harvesting.
            for n in 0..ring.size {
                let Some((slot, page)) = ring.take() else { break };
                if n % BATCH == BATCH - 1 {
                    self.host.cond_resched();
                }
                count = count.saturating_add(1);
                let joined = run.and_then(|r| {
                    let bit = page.checked_sub(r.first).filter(|bit| r.slot == slot && *bit < WORD)?;
                    Some(Run { mask: r.mask | 1 << bit, ..r })
                });
                if joined.is_none() {
                    stale = self.protect_run(run, stale);
                }
                run = joined.or(Some(Run { slot, first: page, mask: 1 }));
            }
            stale = self.protect_run(run, stale);
            self.host.tell(|| {
                let [dirty, reset] = [&ring.dirty_index, &ring.reset_index].map(|index| index.load(Relaxed));
                Trace::DirtyRingReset { index: ring.index, dirty, reset }
            });
            self.host.cond_resched();
        }
        self.flush_remote_tlbs(stale, flush, true);
        count
    }

    /// Write-protects pages that user space has named; those that do not exist do not matter.
    fn protect_run(&self, run: Option<Run>, stale: Stale) -> Stale {
        let Some(Run { slot, first, mask }) = run else { return stale };
        let Ok(slot) = self.slot_of(slot) else { return stale };
        if first >= slot.pages {
            return stale;
        }
        // INDEX: it only says which of the guest's own pages loses the right to write.
        let left = slot.pages.wrapping_sub(first);
        let mask = if left < WORD { mask & ((1 << left) - 1) } else { mask };
        let mut maps = self.mmu_lock.write();
        self.write_protect_mask(&mut maps, slot.base.wrapping_add(first), mask, stale)
    }
}
