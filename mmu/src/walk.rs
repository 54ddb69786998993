//! The walk of the guest's own page tables: linear address to guest physical address, as the processor does it
//! (APM 5.2 to 5.6). Used for the instructions that are emulated, so hot only for their fetch.

use crate::View;
use crate::memory::{Memory, PhysError};
use crate::paging::{Kind, Paging, RESERVED_PAE_TOP, Translation, WalkError, reserved_at};
use arch::Gpa;
use arch::cr::{Cr0, Cr4, Efer};
use arch::npt::{A, ADDR, D, G, NX, P, PS, RW, US};
use host::{Host, PAGE_SIZE};

/// Walks that start over because a table changes under them, before A and D are left as they are.
const TRIES: u32 = 8;

/// The entries that a walk went through: address and value, top level first.
#[derive(Default)]
struct Trail {
    steps: [(Gpa, u64); 5],
    len: usize,
}

impl Trail {
    fn push(&mut self, gpa: Gpa, entry: u64) {
        if let Some(step) = self.steps.get_mut(self.len) {
            *step = (gpa, entry);
            self.len += 1;
        }
    }
}

impl<H: Host> View<'_, H> {
    /// Translates a linear address for one access, with the checks and the A and D bits of a real one. Sleeps.
    ///
    /// `linear` is canonical where that matters (the caller's #GP or #SS). Table entries outside of all slots count
    /// as not present; A and D in tables that the guest cannot write stay as they are.
    pub fn walk(&self, p: &Paging, linear: u64, kind: Kind) -> Result<Translation, WalkError> {
        let memory = if kind.system() { self.memory() } else { self.guest_memory() };
        self.walk_in(&memory, p, linear, kind)
    }

    /// The same by accesses to the tables as `memory` makes them.
    pub fn walk_in(
        &self,
        memory: &Memory<'_, H>,
        p: &Paging,
        linear: u64,
        kind: Kind,
    ) -> Result<Translation, WalkError> {
        for turn in 0..=TRIES {
            let mut trail = Trail::default();
            let (t, pkey) = self.descend(memory, p, linear, kind, |gpa, entry| trail.push(gpa, entry))?;
            if let Some(code) = p.refuses(kind, &t, pkey) {
                return Err(WalkError::Fault { code });
            }
            // The guest that keeps changing the entries asked for a race on A and D, and in the end gets one.
            if turn == TRIES || mark(memory, &trail, p.entry_size(), kind.write())? {
                return Ok(t);
            }
        }
        Err(p.absent(kind)) // Not reached: the last turn returns.
    }

    /// Where a linear address leads, without checks of permission and without a trace in the tables (KVM_TRANSLATE).
    pub fn translate(&self, p: &Paging, linear: u64) -> Option<Translation> {
        self.descend(&self.memory(), p, linear, Kind::SystemRead, |_, _| ()).ok().map(|f| f.0)
    }

    /// Instruction bytes from a linear address on, at most `buf.len()` (15 are enough
    /// for any instruction, two pages are the most); how many there are. Fewer (or 0) if a page
    /// cannot be fetched from: [`walk`](Self::walk) then says why. Leaves A bits alone, since the processor has just
    /// fetched from there.
    #[inline]
    pub fn fetch(&self, p: &Paging, linear: u64, buf: &mut [u8]) -> usize {
        let memory = self.guest_memory();
        let here = buf.len().min(PAGE_SIZE.wrapping_sub(linear as usize % PAGE_SIZE));
        let Some((first, second)) = buf.split_at_mut_checked(here) else { return 0 };
        match self.fetch_page(&memory, p, linear, first) {
            None => 0,
            Some(()) if second.is_empty() => here,
            Some(()) => self.fetch_next(&memory, p, linear.wrapping_add(here as u64), second).wrapping_add(here),
        }
    }

    /// The part of an instruction that lies on the page after its first.
    #[cold]
    fn fetch_next(&self, memory: &Memory<'_, H>, p: &Paging, linear: u64, buf: &mut [u8]) -> usize {
        let here = buf.len().min(PAGE_SIZE);
        let piece = buf.get_mut(..here).unwrap_or(&mut []);
        if self.fetch_page(memory, p, linear, piece).is_some() { here } else { 0 }
    }

    /// Instruction bytes that lie on one page.
    #[inline(always)]
    fn fetch_page(&self, memory: &Memory<'_, H>, p: &Paging, linear: u64, buf: &mut [u8]) -> Option<()> {
        let (t, pkey) = self.descend(memory, p, linear, Kind::Fetch, |_, _| ()).ok()?;
        if p.refuses(Kind::Fetch, &t, pkey).is_some() {
            return None;
        }
        memory.read_page(t.gpa, buf).ok()
    }

    /// Goes down to the entry that maps the address, and tells `note` where each entry with an A bit is and what it
    /// holds. Returns the translation and the page's protection key; errors are faults of the tables, not of
    /// permission.
    #[inline(always)] // Three callers, one of them hot, with a constant `kind`.
    fn descend(
        &self,
        memory: &Memory<'_, H>,
        p: &Paging,
        linear: u64,
        kind: Kind,
        note: impl FnMut(Gpa, u64),
    ) -> Result<(Translation, u8), WalkError> {
        if !p.cr0(Cr0::PG) {
            let gpa = Gpa(linear & 0xffff_ffff);
            return Ok((Translation { gpa, writable: true, user: true, execute: true, level: 1 }, 0));
        }
        if p.efer(Efer::LMA) {
            let levels = if p.cr4(Cr4::LA57) { 5 } else { 4 };
            self.descend64(memory, p, linear, kind, (p.cr3 & ADDR & p.phys_mask(), levels), note)
        } else if p.cr4(Cr4::PAE) {
            self.descend_pae(memory, p, linear, kind, note)
        } else {
            descend32(memory, p, linear, kind, note)
        }
    }

    #[inline(never)] // Old guests only.
    fn descend_pae(
        &self,
        memory: &Memory<'_, H>,
        p: &Paging,
        linear: u64,
        kind: Kind,
        note: impl FnMut(Gpa, u64),
    ) -> Result<(Translation, u8), WalkError> {
        let table = pae_top(memory, p, linear, kind)?;
        self.descend64(memory, p, linear, kind, (table, 2), note)
    }

    /// PAE (below its top) and long mode: 64-bit entries, 9 bits of the address per level.
    #[inline(always)]
    fn descend64(
        &self,
        memory: &Memory<'_, H>,
        p: &Paging,
        linear: u64,
        kind: Kind,
        (mut table, mut level): (u64, u8),
        mut note: impl FnMut(Gpa, u64),
    ) -> Result<(Translation, u8), WalkError> {
        let reserved = p.reserved64();
        let (mut allows, mut forbids) = (RW | US, 0);
        loop {
            let shift = 3 + 9 * u32::from(level);
            let gpa = Gpa(table.wrapping_add((linear >> shift & 511) << 3));
            let entry = memory.entry64(gpa).map_err(|e| WalkError::reading(e, p, kind))?;
            if entry & P == 0 {
                return Err(p.absent(kind));
            }
            allows &= entry;
            forbids |= entry;
            note(gpa, entry);
            table = entry & ADDR;
            // Nearly every entry: nothing reserved at any level, and it names a table.
            if level > 1 && entry & (reserved | PS | G) == 0 {
                level -= 1;
                continue;
            }
            let large = level > 1 && entry & PS != 0;
            if entry & (reserved | reserved_at(level, large, self.page_1g)) != 0 {
                return Err(p.malformed(kind));
            }
            if level == 1 || large {
                let offset = (1 << shift) - 1;
                let gpa = Gpa(table & !offset | linear & offset);
                let (writable, user) = (allows & RW != 0, allows & US != 0);
                let t = Translation { gpa, writable, user, execute: forbids & NX == 0, level };
                return Ok((t, (entry >> 59 & 15) as u8));
            }
            level -= 1;
        }
    }
}

/// The table that one of the four entries at the top of PAE names. They have neither permissions nor an A bit.
fn pae_top<H: Host>(memory: &Memory<'_, H>, p: &Paging, linear: u64, kind: Kind) -> Result<u64, WalkError> {
    let gpa = Gpa((p.cr3 & 0xffff_ffe0).wrapping_add((linear >> 30 & 3) << 3));
    let entry = memory.entry64(gpa).map_err(|e| WalkError::reading(e, p, kind))?;
    match entry {
        _ if entry & P == 0 => Err(p.absent(kind)),
        _ if entry & (p.reserved64() | RESERVED_PAE_TOP) != 0 => Err(p.malformed(kind)),
        _ => Ok(entry & ADDR),
    }
}

/// 32-bit paging: two levels of 32-bit entries, with 4 MiB pages if CR4.PSE.
#[inline(never)]
fn descend32<H: Host>(
    memory: &Memory<'_, H>,
    p: &Paging,
    linear: u64,
    kind: Kind,
    mut note: impl FnMut(Gpa, u64),
) -> Result<(Translation, u8), WalkError> {
    let mut read = |gpa: Gpa| {
        let mut bytes = [0; 4];
        memory.read(gpa, &mut bytes).map_err(|e| WalkError::reading(e, p, kind))?;
        let entry = u64::from(u32::from_le_bytes(bytes));
        if entry & P == 0 {
            return Err(p.absent(kind));
        }
        note(gpa, entry);
        Ok(entry)
    };
    let entry = read(Gpa((p.cr3 & 0xffff_f000).wrapping_add((linear >> 22 & 1023) << 2)))?;
    let (gpa, allows, level) = if entry & PS != 0 && p.cr4(Cr4::PSE) {
        if entry & p.reserved_4m() != 0 {
            return Err(p.malformed(kind));
        }
        // PSE-36: bits 20:13 are address bits 39:32 (APM 5.2.2).
        (entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32 | linear & 0x3f_ffff, entry, 2)
    } else {
        let last = read(Gpa((entry & 0xffff_f000).wrapping_add((linear >> 12 & 1023) << 2)))?;
        (last & 0xffff_f000 | linear & 0xfff, entry & last, 1)
    };
    let (writable, user) = (allows & RW != 0, allows & US != 0);
    Ok((Translation { gpa: Gpa(gpa), writable, user, execute: true, level }, 0))
}

/// Sets A in the entries of a walk, and D in the last for a write. False if an entry is not what it was: walk again.
fn mark<H: Host>(memory: &Memory<'_, H>, trail: &Trail, size: u8, write: bool) -> Result<bool, WalkError> {
    for (n, &(gpa, entry)) in trail.steps.iter().take(trail.len).enumerate() {
        let last = n.wrapping_add(1) == trail.len;
        let new = entry | A | if last && write { D } else { 0 };
        if new == entry {
            continue;
        }
        match memory.cmpxchg(gpa, size, entry, new) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            // Tables in a read-only slot.
            Err(PhysError::NoSlot(_)) => {}
            Err(PhysError::Host { gpa, stop }) => return Err(WalkError::Host { gpa, stop }),
        }
    }
    Ok(true)
}
