//! Memory slots as data: what a slot is, which ones a VM has, and the rules of KVM_SET_USER_MEMORY_REGION
//! (KVM API document, 4.35).

use crate::order;
use alloc::vec::Vec;
use arch::{Hva, array_index_nospec};
use host::{Errno, Host, push_within_capacity};

/// Slots that user space may use in an address space (KVM_CAP_NR_MEMSLOTS).
pub const USER_SLOTS: u16 = 32764;
/// Address spaces (KVM_CAP_MULTI_ADDRESS_SPACE): see [`Space`].
pub const ADDRESS_SPACES: u32 = 2;
/// KVM_MEM_LOG_DIRTY_PAGES: keep a bitmap of pages that are written.
pub const LOG_DIRTY_PAGES: u32 = 1 << 0;
/// KVM_MEM_READONLY: the guest's writes go to user space as MMIO.
pub const READONLY: u32 = 1 << 1;

/// Most pages of a slot; the API has their number in 31 bits.
const MAX_PAGES: u64 = (1 << 31) - 1;
/// Bytes in a page.
const PAGE: u64 = host::PAGE_SIZE as u64;

/// An address space of the guest. Frame numbers inside of this crate carry it in a bit that no physical address reaches
/// (52 bits of address have 40 of frame number, 64 have 52): whatever orders, searches or counts frames knows both at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Space {
    /// What a vCPU sees outside of system management mode.
    #[default]
    Normal,
    /// What it sees inside (KVM API document, 4.35): the slots whose number has 1 in bits 31:16, and no others.
    Smm,
}

::state::units! { Space { Normal, Smm } }

/// The bit of frame numbers that tells the address spaces apart.
const SPACE: u64 = 1 << 52;

impl Space {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; ADDRESS_SPACES as usize] = [Self::Normal, Self::Smm];

    /// The space of a frame number.
    #[inline]
    pub(crate) const fn of(gfn: u64) -> Self {
        if gfn & SPACE == 0 { Self::Normal } else { Self::Smm }
    }

    /// The frame number for a guest physical frame, below 2^52, of this space.
    #[inline]
    pub(crate) const fn gfn(self, frame: u64) -> u64 {
        match self {
            Self::Normal => frame,
            Self::Smm => frame | SPACE,
        }
    }
}

/// The guest physical frame that a frame number stands for.
#[inline]
pub(crate) const fn frame(gfn: u64) -> u64 {
    gfn & !SPACE
}

/// `struct kvm_userspace_memory_region`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserRegion {
    /// Address space in bits 31:16, slot id in 15:0.
    pub slot: u32,
    /// [`LOG_DIRTY_PAGES`], [`READONLY`].
    pub flags: u32,
    /// `guest_phys_addr`, in bytes.
    pub gpa: u64,
    /// `memory_size`, in bytes; 0 deletes the slot.
    pub size: u64,
    /// `userspace_addr`.
    pub hva: u64,
}

/// A range of guest memory and the VMM's memory behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memslot {
    /// User space's name for it: the address space in bits 31:16, below them a number below [`USER_SLOTS`].
    pub id: u32,
    /// [`LOG_DIRTY_PAGES`], [`READONLY`].
    pub flags: u32,
    /// First guest frame, with its address space.
    pub base: u64,
    /// Number of 4 KiB pages, at least 1.
    pub pages: u64,
    /// Where its first page is in the VMM's memory, page aligned.
    pub hva: u64,
}

impl Memslot {
    /// The frame after its last one.
    pub const fn end(&self) -> u64 {
        self.base.wrapping_add(self.pages)
    }
    /// Is the frame in it?
    #[inline]
    pub const fn holds(&self, gfn: u64) -> bool {
        gfn.wrapping_sub(self.base) < self.pages
    }
    /// The VMM's page behind a frame that it holds. A guest chooses the frame, and the processor may guess that it is in
    /// the slot: it is led to no other memory.
    #[inline]
    pub fn hva_of(&self, gfn: u64) -> Hva {
        let page = array_index_nospec(gfn.wrapping_sub(self.base) as usize, self.pages as usize);
        Hva(self.hva.wrapping_add((page as u64) << 12))
    }
    /// May the guest not write it?
    pub const fn read_only(&self) -> bool {
        self.flags & READONLY != 0
    }
    /// Are written pages recorded?
    pub const fn logs(&self) -> bool {
        self.flags & LOG_DIRTY_PAGES != 0
    }
}

/// What a valid request amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is that way already.
    Nothing,
    /// A new slot.
    Create(Memslot),
    /// The slot goes away.
    Delete(Memslot),
    /// Same memory at another guest address; `flags` may change with it.
    Move { from: Memslot, to: Memslot },
    /// Only `flags` change.
    Flags { from: Memslot, to: Memslot },
}

/// The slots of a VM, ordered by guest address; they never overlap.
#[derive(Default)]
pub struct Memslots {
    by_gfn: Vec<Memslot>,
    /// Id and first frame, ordered by id.
    by_id: Vec<(u32, u64)>,
}

impl Memslots {
    /// The slot that holds a frame, and its place for [`at`](Self::at).
    #[inline]
    pub fn find(&self, gfn: u64) -> Option<(usize, &Memslot)> {
        let n = self.by_gfn.partition_point(|s| s.base <= gfn).checked_sub(1)?;
        // INDEX: a search bounds it, whatever was searched for.
        let slot = self.by_gfn.get(n)?;
        slot.holds(gfn).then_some((n, slot))
    }

    /// The slot at a place that [`find`](Self::find) told, if there still is one.
    #[inline]
    pub fn at(&self, place: usize) -> Option<&Memslot> {
        // INDEX: a place that a search found before.
        self.by_gfn.get(place)
    }

    /// The slot with an id.
    pub fn by_id(&self, id: u32) -> Option<&Memslot> {
        let n = self.by_id.binary_search_by_key(&id, |e| e.0).ok()?;
        // INDEX: a search bounds it, whatever was searched for.
        let (_, base) = self.by_id.get(n)?;
        self.find(*base).map(|f| f.1)
    }

    /// Does any log?
    pub fn log(&self) -> bool {
        self.by_gfn.iter().any(Memslot::logs)
    }

    /// Makes room for one more. Errors: ENOMEM.
    pub fn reserve(&mut self) -> Result<(), Errno> {
        self.by_gfn.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.by_id.try_reserve(1).map_err(|_| Errno::ENOMEM)
    }

    /// Carries out a change that [`plan`](Self::plan) allowed, after [`reserve`](Self::reserve).
    pub fn apply(&mut self, change: &Change) {
        match *change {
            Change::Nothing => {}
            Change::Create(s) => self.insert(s),
            Change::Delete(s) => self.remove(&s),
            Change::Move { from, to } | Change::Flags { from, to } => {
                self.remove(&from);
                self.insert(to);
            }
        }
    }

    fn insert(&mut self, s: Memslot) {
        let at = self.by_gfn.partition_point(|o| o.base < s.base);
        insert_reserved(&mut self.by_gfn, at, s);
        let at = self.by_id.partition_point(|o| o.0 < s.id);
        insert_reserved(&mut self.by_id, at, (s.id, s.base));
    }

    fn remove(&mut self, s: &Memslot) {
        self.by_gfn.retain(|o| o.id != s.id);
        self.by_id.retain(|o| o.0 != s.id);
    }

    /// Makes room for so many, where there are none. Errors: ENOMEM.
    pub fn reserve_all(&mut self, n: usize) -> Result<(), Errno> {
        self.by_gfn.try_reserve_exact(n).map_err(|_| Errno::ENOMEM)?;
        self.by_id.try_reserve_exact(n).map_err(|_| Errno::ENOMEM)
    }

    /// A slot as a request wants it, behind all that there are, for which there is [room](Self::reserve_all). None is found by its id
    /// before [`put_in_order`](Self::put_in_order). Errors: EINVAL (as for [`plan`](Self::plan); or it does not lie there).
    pub fn append<H: Host>(&mut self, host: &H, r: &UserRegion) -> Result<Memslot, Errno> {
        let s = wanted(host, r)?;
        let behind = self.by_gfn.last().is_none_or(|last| last.end() <= s.base);
        if s.pages == 0 || !reaches(host, &s) || !behind {
            return Err(Errno::EINVAL);
        }
        // Whoever is refused goes with all that there are.
        let appended = push_within_capacity(&mut self.by_gfn, s).is_ok()
            && push_within_capacity(&mut self.by_id, (s.id, s.base)).is_ok();
        if appended { Ok(s) } else { Err(Errno::EINVAL) }
    }

    /// All are there that [`append`](Self::append) adds. `pause` as for [`order::sort`]. Errors: EEXIST (two have the same id).
    pub fn put_in_order(&mut self, pause: impl FnMut()) -> Result<(), Errno> {
        order::sort(&mut self.by_id, |e| e.0, pause);
        let mut ids = self.by_id.iter().map(|e| e.0);
        let twice = ids.next().is_some_and(|first| {
            // INDEX: steps through an iterator that ends.
            ids.try_fold(first, |before, id| (before != id).then_some(id)).is_none()
        });
        if twice { Err(Errno::EEXIST) } else { Ok(()) }
    }

    /// Checks a request against the rules and the slots there are.
    ///
    /// Errors: EINVAL (unknown flag, unaligned or wrapping range, slot or address space out of range, too large,
    /// memory that is no user memory, frames beyond the processor's physical addresses, deletion of what is not there, other size, user address or read-only flag for
    /// an existing slot), EEXIST (overlap with another slot).
    pub fn plan<H: Host>(&self, host: &H, r: &UserRegion) -> Result<Change, Errno> {
        let to = wanted(host, r)?;
        let Some(from) = self.by_id(r.slot).copied() else {
            if to.pages == 0 {
                return Err(Errno::EINVAL);
            }
            return self.place(host, &to).map(|()| Change::Create(to));
        };
        if to.pages == 0 {
            return Ok(Change::Delete(from));
        }
        if to.hva != from.hva || to.pages != from.pages || (to.flags ^ from.flags) & READONLY != 0 {
            return Err(Errno::EINVAL);
        }
        if to.base != from.base {
            return self.place(host, &to).map(|()| Change::Move { from, to });
        }
        Ok(if to.flags == from.flags { Change::Nothing } else { Change::Flags { from, to } })
    }

    /// May a slot lie there? Its own old place does not count. Overlaps are looked for first, as on stock.
    fn place<H: Host>(&self, host: &H, s: &Memslot) -> Result<(), Errno> {
        let after = self.by_gfn.partition_point(|o| o.base < s.end());
        // INDEX: a search bounds it, whatever was searched for.
        let mut before = self.by_gfn.get(..after).unwrap_or(&[]).iter().rev().filter(|o| o.id != s.id);
        if before.next().is_some_and(|o| o.end() > s.base) {
            return Err(Errno::EEXIST);
        }
        if reaches(host, s) { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

/// The slot that a request wants, by the rules that no other slot has to do with; without pages it wants none. Errors: see
/// [`Memslots::plan`].
fn wanted<H: Host>(host: &H, r: &UserRegion) -> Result<Memslot, Errno> {
    let (space, n) = (r.slot >> 16, r.slot as u16);
    let aligned = (r.gpa | r.size | r.hva) & (PAGE - 1) == 0;
    let base = if space == 0 { Space::Normal } else { Space::Smm }.gfn(r.gpa >> 12);
    let to = Memslot { id: r.slot, flags: r.flags, base, pages: r.size >> 12, hva: r.hva };
    let wrong = r.flags & !(LOG_DIRTY_PAGES | READONLY) != 0
        || !aligned
        || space >= ADDRESS_SPACES
        || n >= USER_SLOTS
        || r.gpa.checked_add(r.size).is_none()
        || to.pages > MAX_PAGES
        || !host.user_range_ok(Hva(r.hva), r.size);
    if wrong { Err(Errno::EINVAL) } else { Ok(to) }
}

/// Can the processor make all addresses of a slot?
fn reaches<H: Host>(host: &H, s: &Memslot) -> bool {
    frame(s.base).wrapping_add(s.pages) <= max_gfn(host)
}

/// Guest frames are below this one (KVM's `kvm_mmu_max_gfn`): with nested paging a guest's physical addresses have as
/// many bits as the processor's own. Nested tables of four levels do not reach as far on all of them; what lies beyond
/// can be a slot nevertheless, as on stock.
fn max_gfn<H: Host>(host: &H) -> u64 {
    1 << u32::from(host.features().phys_bits.clamp(36, 52)).saturating_sub(12)
}

/// `Vec::insert` where there is room: never allocates, never panics.
fn insert_reserved<T>(v: &mut Vec<T>, at: usize, value: T) {
    if v.len() < v.capacity() && at <= v.len() {
        v.insert(at, value);
    }
}
