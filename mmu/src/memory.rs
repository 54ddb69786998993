//! Guest memory by guest physical address, through the VMM's mapping of it.

use crate::View;
use crate::slot::{Memslot, Memslots, Space, frame};
use arch::{Gpa, Hva, array_index_nospec};
use core::cell::Cell;
use core::sync::atomic::Ordering::Relaxed;
use host::{Host, PAGE_SIZE, Stop, rank};
use lock_api::RwLockReadGuard;

/// Attempts to learn what memory holds that a compare-exchange did not match.
const TRIES: u32 = 8;

/// Why an access to guest memory did not happen, or only up to this address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhysError {
    /// No memory there, or a write to a read-only slot or to memory of that kind ([`Stop::ReadOnly`]): a device's business.
    /// Also a compare-exchange that is not naturally aligned or not of 1, 2, 4 or 8 bytes.
    NoSlot(Gpa),
    /// The VMM's memory behind it cannot be used.
    Host {
        /// Where.
        gpa: Gpa,
        /// Why.
        stop: Stop,
    },
}

impl PhysError {
    fn writing(gpa: Gpa, stop: Stop) -> Self {
        if stop == Stop::ReadOnly { Self::NoSlot(gpa) } else { Self::Host { gpa, stop } }
    }
}

/// The slots, held in place for a few accesses. Nothing else of the mmu may be called by the same thread meanwhile:
/// a second reader may have to wait for a writer that waits for this one.
pub struct Memory<'a, H: Host> {
    view: View<'a, H>,
    slots: RwLockReadGuard<'a, H::RawRwSem<{ rank::SLOTS }>, Memslots>,
    window: Cell<Window>,
    /// Accesses are those of an instruction of the guest's, which can be begun anew.
    for_guest: bool,
}

/// The slot that was accessed last, in bytes.
#[derive(Clone, Copy, Default)]
struct Window {
    gpa: u64,
    len: u64,
    hva: u64,
}

impl Window {
    fn of(slot: Option<&Memslot>) -> Self {
        slot.map_or(Self::default(), |s| Self { gpa: frame(s.base) << 12, len: s.pages << 12, hva: s.hva })
    }
}

impl<'a, H: Host> View<'a, H> {
    /// Access to guest memory. Sleeps.
    #[inline]
    pub fn memory(&self) -> Memory<'a, H> {
        self.access(false)
    }

    /// Access to guest memory on behalf of an instruction of the guest's: a signal ends the wait for memory, and memory
    /// that has failed means SIGBUS ([`Host::read_guest`]). Sleeps.
    #[inline]
    pub fn guest_memory(&self) -> Memory<'a, H> {
        self.access(true)
    }

    #[inline]
    fn access(&self, for_guest: bool) -> Memory<'a, H> {
        let slots = self.mmu.slots.read();
        let last = slots.at(self.mmu.last.load(Relaxed)).filter(|s| Space::of(s.base) == self.space);
        let window = Cell::new(Window::of(last));
        Memory { view: *self, slots, window, for_guest }
    }

    /// Reads guest memory; the range may cross pages and slots. Sleeps.
    pub fn read_phys(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), PhysError> {
        self.memory().read(gpa, buf)
    }

    /// Writes guest memory and marks it dirty. Sleeps.
    pub fn write_phys(&self, gpa: Gpa, data: &[u8]) -> Result<(), PhysError> {
        self.memory().write(gpa, data)
    }

    /// Atomic compare-exchange of `size` bytes for the guest; returns what memory held. Sleeps.
    pub fn cmpxchg_phys(&self, gpa: Gpa, size: u8, old: u64, new: u64) -> Result<u64, PhysError> {
        let memory = self.guest_memory();
        let mask = u64::MAX >> 64u32.saturating_sub(u32::from(size) * 8).min(63);
        let (old, new) = (old & mask, new & mask);
        for _ in 0..TRIES {
            if memory.cmpxchg(gpa, size, old, new)? {
                return Ok(old);
            }
            let mut bytes = [0; 8];
            // INDEX: an operand's size, which the decoder made; a wrong one would only make a copy longer.
            memory.read(gpa, bytes.get_mut(..size.into()).unwrap_or(&mut []))?;
            let seen = u64::from_le_bytes(bytes);
            if seen != old {
                return Ok(seen);
            }
            // It changed back in between.
        }
        // As if the other value had been seen: the caller cannot tell how long ago that was.
        Ok(!old & mask)
    }

    /// Sleeps until the page at `gpa` is there, or it is certain that it will not be, whatever signals are pending; only
    /// one that kills ends this. Returns at once where there is no memory.
    pub fn wait_for_page(&self, gpa: Gpa) {
        let memory = self.memory();
        let writable = memory.writable(gpa).map(|(hva, ..)| (hva, true));
        let place = writable.or_else(|_| memory.readable(gpa).map(|(hva, _)| (hva, false)));
        // It may take long: slots can be changed meanwhile.
        drop(memory);
        if let Ok((hva, write)) = place {
            self.host.wait_for_page(hva, write);
        }
    }

    /// Is there memory that the guest may read, or (with `write`) write?
    pub fn is_memory(&self, gpa: Gpa, write: bool) -> bool {
        let memory = self.memory();
        if write { memory.writable(gpa).is_ok() } else { memory.readable(gpa).is_ok() }
    }
}

impl<H: Host> Memory<'_, H> {
    /// Where to read: the VMM's address, and how many bytes follow it in the slot.
    #[inline]
    fn readable(&self, gpa: Gpa) -> Result<(Hva, u64), PhysError> {
        let mut w = self.window.get();
        if gpa.0.wrapping_sub(w.gpa) >= w.len {
            w = self.find(gpa)?;
        }
        let offset = clamp(gpa.0.wrapping_sub(w.gpa), w.len);
        Ok((Hva(w.hva.wrapping_add(offset)), w.len.wrapping_sub(offset)))
    }

    #[cold]
    fn find(&self, gpa: Gpa) -> Result<Window, PhysError> {
        let (place, slot) = self.slots.find(self.view.space.gfn(gpa.gfn().0)).ok_or(PhysError::NoSlot(gpa))?;
        let window = Window::of(Some(slot));
        self.window.set(window);
        self.view.mmu.last.store(place, Relaxed);
        Ok(window)
    }

    /// The same for writing, and the slot.
    fn writable(&self, gpa: Gpa) -> Result<(Hva, u64, &Memslot), PhysError> {
        let gfn = self.view.space.gfn(gpa.gfn().0);
        let (_, slot) = self.slots.find(gfn).filter(|f| !f.1.read_only()).ok_or(PhysError::NoSlot(gpa))?;
        let offset = clamp(gpa.0.wrapping_sub(frame(slot.base) << 12), slot.pages << 12);
        Ok((Hva(slot.hva.wrapping_add(offset)), (slot.pages << 12).wrapping_sub(offset), slot))
    }

    /// The VMM's address of a byte that may be written, good as long as this value lives; None without memory.
    pub fn user_address(&self, gpa: Gpa) -> Option<Hva> {
        self.writable(gpa).ok().map(|(hva, ..)| hva)
    }

    #[inline]
    fn copy_in(&self, hva: Hva, buf: &mut [u8]) -> Result<(), Stop> {
        if self.for_guest { self.view.host.read_guest(hva, buf) } else { self.view.host.read_user(hva, buf) }
    }

    /// Reads an aligned 64-bit entry of a table.
    #[inline]
    pub(crate) fn entry64(&self, gpa: Gpa) -> Result<u64, PhysError> {
        let (hva, _) = self.readable(gpa)?;
        let host = &self.view.host;
        let word = if self.for_guest { host.read_guest_u64(hva) } else { host.read_user_u64(hva) };
        word.map_err(|stop| PhysError::Host { gpa, stop })
    }

    /// Reads bytes that lie on one page, and so in one slot.
    #[inline]
    pub(crate) fn read_page(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), PhysError> {
        let (hva, _) = self.readable(gpa)?;
        self.copy_in(hva, buf).map_err(|stop| PhysError::Host { gpa, stop })
    }

    /// Reads; on an error the buffer's contents are undefined.
    #[inline]
    pub fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), PhysError> {
        let (mut gpa, mut buf) = (gpa, buf);
        while !buf.is_empty() {
            let (hva, left) = self.readable(gpa)?;
            let (now, later) = buf.split_at_mut(fitting(left, buf.len()));
            self.copy_in(hva, now).map_err(|stop| PhysError::Host { gpa, stop })?;
            gpa = Gpa(gpa.0.wrapping_add(now.len() as u64));
            buf = later;
        }
        Ok(())
    }

    /// Writes and marks dirty, slot by slot; on an error the slots before may have been written.
    pub fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), PhysError> {
        let (mut gpa, mut data) = (gpa, data);
        while !data.is_empty() {
            let (hva, left, slot) = self.writable(gpa)?;
            let (now, later) = data.split_at(fitting(left, data.len()));
            let host = &self.view.host;
            let done = if self.for_guest { host.write_guest(hva, now) } else { host.write_user(hva, now) };
            done.map_err(|stop| PhysError::writing(gpa, stop))?;
            self.mark(slot, gpa, now.len());
            gpa = Gpa(gpa.0.wrapping_add(now.len() as u64));
            data = later;
        }
        Ok(())
    }

    /// Atomic compare-exchange of `size` bytes; true if memory held `old`.
    pub fn cmpxchg(&self, gpa: Gpa, size: u8, old: u64, new: u64) -> Result<bool, PhysError> {
        if !matches!(size, 1 | 2 | 4 | 8) || gpa.0 % u64::from(size) != 0 {
            return Err(PhysError::NoSlot(gpa));
        }
        let (hva, _, slot) = self.writable(gpa)?;
        let host = &self.view.host;
        let done = match self.for_guest {
            true => host.cmpxchg_guest(hva, old, new, size),
            false => host.cmpxchg_user(hva, old, new, size),
        };
        let done = done.map_err(|stop| PhysError::writing(gpa, stop))?;
        if done {
            self.mark(slot, gpa, size.into());
        }
        Ok(done)
    }

    /// Marks the pages of `[gpa, gpa + len)` as written; the write has happened, so whoever takes a bit after this
    /// sees its page as it is.
    #[inline]
    fn mark(&self, slot: &Memslot, gpa: Gpa, len: usize) {
        if slot.logs() {
            self.mark_pages(gpa, len);
        }
    }

    #[cold]
    fn mark_pages(&self, gpa: Gpa, len: usize) {
        let maps = self.view.mmu_lock.read();
        let end = gpa.offset().wrapping_add(len).div_ceil(PAGE_SIZE) as u64;
        let first = self.view.space.gfn(gpa.gfn().0);
        for page in 0..end {
            maps.mark_page_dirty(&self.view.host, self.view.ring, first.wrapping_add(page));
        }
    }
}

/// An offset that is below `len`, also where the processor guesses that it is: a guest chooses it.
#[inline(always)]
fn clamp(offset: u64, len: u64) -> u64 {
    array_index_nospec(offset as usize, len as usize) as u64
}

/// The smaller of the bytes left in a slot and the bytes wanted.
fn fitting(left: u64, wanted: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
}
