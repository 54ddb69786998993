//! The dirty log as user space reads it: KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG and
//! KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (KVM API document, 4.8, 4.117 and 7.13).
//!
//! Clearing a bit and write-protecting its page happen under the lock for writing, marking and making writable under the
//! lock for reading: a write is either in what was read or faults again. User space gets the bits after the flush.

use crate::Mmu;
use crate::bitmap::WORD;
use crate::maps::Maps;
use crate::npt::Stale;
use crate::slot::{ADDRESS_SPACES, Memslot, USER_SLOTS};
use alloc::vec::Vec;
use arch::Hva;
use host::{Errno, Host, Stop};

/// KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: reading the log does not clear it.
pub(crate) const MANUAL: u64 = 1 << 0;
/// KVM_DIRTY_LOG_INITIALLY_SET: a new log has all bits set, and pages are protected as they are cleared.
pub(crate) const INITIALLY_SET: u64 = 1 << 1;
/// What KVM_CHECK_EXTENSION answers for KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
pub const MANUAL_DIRTY_LOG_BITS: u64 = MANUAL | INITIALLY_SET;

/// Words of a bitmap that are handled without letting go of the lock.
const BATCH: u64 = 64;

/// What changes of slots and readers of logs share, one of them at a time.
#[derive(Default)]
pub struct SlotsLock {
    /// [`MANUAL`] and [`INITIALLY_SET`].
    pub manual: u64,
    /// Written pages are recorded in the vCPUs' rings, not in bitmaps.
    pub rings: bool,
    /// A log on its way to or from user space; large enough for every slot that logs, if none came from another engine.
    pub(crate) scratch: Vec<u8>,
}

impl SlotsLock {
    /// Room for the log of a slot of `pages` pages. Errors: ENOMEM.
    pub fn reserve(&mut self, pages: u64) -> Result<(), Errno> {
        let bytes = bytes_of(pages)?;
        if let Some(more) = bytes.checked_sub(self.scratch.len()) {
            self.scratch.try_reserve_exact(more).map_err(|_| Errno::ENOMEM)?;
            // As in `Bitmap::new`: no further growth.
            if self.scratch.capacity() < bytes {
                return Err(Errno::ENOMEM);
            }
            self.scratch.resize(bytes, 0);
        }
        Ok(())
    }
}

impl<H: Host> Mmu<H> {
    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. Errors: EINVAL (unknown bit, or INITIALLY_SET alone).
    pub fn set_manual_dirty_log(&self, bits: u64) -> Result<(), Errno> {
        if bits & !MANUAL_DIRTY_LOG_BITS != 0 || bits == INITIALLY_SET {
            return Err(Errno::EINVAL);
        }
        self.slots_lock.lock().manual = bits;
        Ok(())
    }

    /// KVM_GET_DIRTY_LOG: writes the log of a slot, rounded up to 64 pages, to `bitmap`. Unless the log is cleared
    /// manually, it starts anew. Sleeps. Errors: ENXIO (dirty rings are in use), EINVAL (slot out of range), ENOENT (no
    /// such slot, or it does not log), ENOMEM, EFAULT (the bits are lost).
    pub fn get_dirty_log(&self, slot: u32, bitmap: Hva, flush: &dyn Fn()) -> Result<(), Errno> {
        let mut lock = self.slots_lock.lock();
        if lock.rings {
            return Err(Errno::ENXIO);
        }
        let slot = self.logging_slot(slot)?;
        // It is there already, but for the first time in this engine.
        lock.reserve(slot.pages)?;
        let clear = lock.manual & MANUAL == 0;
        // INDEX: a length; what depends on it is a copy, and no address.
        let out = lock.scratch.get_mut(..bytes_of(slot.pages)?).ok_or(Errno::ENOENT)?;
        let mut stale = Stale::nothing();
        for (batch, chunk) in out.chunks_mut(BATCH as usize * 8).enumerate() {
            let first = batch as u64 * BATCH;
            let words = (first..).zip(chunk.chunks_exact_mut(8));
            if clear {
                let mut maps = self.mmu_lock.write();
                for (n, word) in words {
                    let dirty;
                    (dirty, stale) = self.clear_dirty(&mut maps, &slot, n, u64::MAX, stale);
                    word.copy_from_slice(&dirty.to_le_bytes());
                }
            } else {
                let maps = self.mmu_lock.read();
                for (n, word) in words {
                    word.copy_from_slice(&maps.dirty_bitmap(&slot).map_or(0, |bitmap| bitmap.word(n)).to_le_bytes());
                }
            }
            self.host.cond_resched();
        }
        self.flush_remote_tlbs(stale, flush, true);
        self.host.write_user(bitmap, out).map_err(errno)
    }

    /// KVM_CLEAR_DIRTY_LOG: clears the bits that are set in `bitmap`, whose bit 0 is page `first_page`. Sleeps.
    /// Errors: ENXIO (dirty rings are in use), EINVAL (slot out of range, `first_page` no multiple of 64, range beyond the slot, length no multiple of
    /// 64 although the slot goes on), ENOENT, ENOMEM, EFAULT; nothing has changed then.
    pub fn clear_dirty_log(
        &self,
        slot: u32,
        first_page: u64,
        num_pages: u32,
        bitmap: Hva,
        flush: &dyn Fn(),
    ) -> Result<(), Errno> {
        let mut lock = self.slots_lock.lock();
        if lock.rings {
            return Err(Errno::ENXIO);
        }
        if first_page % WORD != 0 {
            return Err(Errno::EINVAL);
        }
        let slot = self.logging_slot(slot)?;
        let (num_pages, left) = (u64::from(num_pages), slot.pages.checked_sub(first_page).ok_or(Errno::EINVAL)?);
        if num_pages > left || num_pages < left && num_pages % WORD != 0 {
            return Err(Errno::EINVAL);
        }
        lock.reserve(slot.pages)?;
        // INDEX: a length; what depends on it is a copy, and no address.
        let asked = lock.scratch.get_mut(..bytes_of(num_pages)?).ok_or(Errno::EINVAL)?;
        self.host.read_user(bitmap, asked).map_err(errno)?;
        let mut stale = Stale::nothing();
        for (batch, chunk) in asked.chunks(BATCH as usize * 8).enumerate() {
            let first = first_page / WORD + batch as u64 * BATCH;
            let mut maps = self.mmu_lock.write();
            for (n, word) in (first..).zip(chunk.chunks_exact(8)) {
                let mask = word.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b));
                (_, stale) = self.clear_dirty(&mut maps, &slot, n, mask, stale);
            }
            drop(maps);
            self.host.cond_resched();
        }
        self.flush_remote_tlbs(stale, flush, true);
        Ok(())
    }

    /// Clears those bits of a word of the log that are in `mask`, and write-protects the pages that they stand for.
    /// Returns the bits that were set.
    fn clear_dirty(&self, maps: &mut Maps<H>, slot: &Memslot, n: u64, mask: u64, stale: Stale) -> (u64, Stale) {
        let cleared = maps.dirty_bitmap(slot).map_or(0, |bitmap| bitmap.clear(n, mask));
        (cleared, self.write_protect_mask(maps, slot.base.wrapping_add(n * WORD), cleared, stale))
    }

    /// Write-protects those of the 64 frames from `first` on whose bit is set.
    pub(crate) fn write_protect_mask(&self, maps: &mut Maps<H>, first: u64, mask: u64, mut stale: Stale) -> Stale {
        let mut rest = mask;
        while rest != 0 {
            // A run of written pages: from its lowest bit up to the next one clear.
            let from = rest.trailing_zeros();
            let len = (rest >> from).trailing_ones();
            let start = first.wrapping_add(from.into());
            stale = maps.tree.write_protect(&self.host, start, start.wrapping_add(len.into()), stale);
            rest &= (u64::MAX << from).checked_shl(len).unwrap_or(0);
        }
        stale
    }

    fn logging_slot(&self, slot: u32) -> Result<Memslot, Errno> {
        self.slot_of(slot).and_then(|s| if s.logs() { Ok(s) } else { Err(Errno::ENOENT) })
    }

    /// The slot that user space calls so. Errors: EINVAL (a number that none can have), ENOENT.
    pub(crate) fn slot_of(&self, slot: u32) -> Result<Memslot, Errno> {
        let (space, n) = (slot >> 16, slot as u16);
        if space >= ADDRESS_SPACES || n >= USER_SLOTS {
            return Err(Errno::EINVAL);
        }
        self.slots.read().by_id(slot).copied().ok_or(Errno::ENOENT)
    }
}

/// Bytes of a log. A slot has fewer than 2^31 pages.
fn bytes_of(pages: u64) -> Result<usize, Errno> {
    usize::try_from(pages.div_ceil(WORD) * 8).map_err(|_| Errno::EINVAL)
}

fn errno(stop: Stop) -> Errno {
    match stop {
        Stop::Fault | Stop::ReadOnly => Errno::EFAULT,
        Stop::Poison => Errno::EHWPOISON,
        Stop::Errno(e) => e,
    }
}
