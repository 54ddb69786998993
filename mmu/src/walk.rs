//! The walk of the guest's own page tables: linear address to guest physical address, as the processor does it
//! (APM 5.2 to 5.6). Used for the instructions that are emulated, so hot only for their fetch.

use crate::Mmu;
use crate::memory::{Memory, PhysError};
use crate::paging::{Kind, Paging, Translation, WalkError, code};
use arch::Gpa;
use arch::cr::{Cr0, Cr4, Efer};
use arch::npt::{A, ADDR, D, NX, P, PS, RW, US};
use host::{Host, PAGE_SIZE};

/// Walks that start over because a table changes under them, before A and D are left as they are.
const TRIES: u32 = 8;

/// The entries that a walk went through: address and value, top level first.
#[derive(Default)]
struct Trail {
    steps: [(Gpa, u64); 5],
    len: usize,
    /// Bytes per entry.
    size: u8,
}

impl Trail {
    #[inline]
    fn push(&mut self, gpa: Gpa, entry: u64) {
        if let Some(step) = self.steps.get_mut(self.len) {
            *step = (gpa, entry);
            self.len += 1;
        }
    }
}

impl<H: Host> Mmu<H> {
    /// Translates a linear address for one access, with the checks and the A and D bits of a real one. Sleeps.
    ///
    /// `linear` is canonical where that matters (the caller's #GP or #SS). Table entries outside of all slots count
    /// as not present; A and D in tables that the guest cannot write stay as they are.
    pub fn walk(&self, p: &Paging, linear: u64, kind: Kind) -> Result<Translation, WalkError> {
        let memory = self.memory();
        let mut trail = Trail::default();
        for _ in 0..TRIES {
            trail.len = 0;
            let (t, pkey) = self.descend(&memory, p, linear, kind, &mut trail)?;
            if let Some(code) = p.refuses(kind, &t, pkey) {
                return Err(WalkError::Fault { code });
            }
            if mark(&memory, &trail, kind.write())? {
                return Ok(t);
            }
        }
        // The guest keeps changing the entries: it asked for a race on A and D, and gets one.
        let (t, pkey) = self.descend(&memory, p, linear, kind, &mut trail)?;
        p.refuses(kind, &t, pkey).map_or(Ok(t), |code| Err(WalkError::Fault { code }))
    }

    /// Where a linear address leads, without checks of permission and without a trace in the tables (KVM_TRANSLATE).
    pub fn translate(&self, p: &Paging, linear: u64) -> Option<Translation> {
        let found = self.descend(&self.memory(), p, linear, Kind::SystemRead, &mut Trail::default());
        found.ok().map(|f| f.0)
    }

    /// Instruction bytes from a linear address on, at most `buf.len()`; how many there are. Fewer (or 0) if a page
    /// cannot be fetched from: [`walk`](Self::walk) then says why. Leaves A bits alone, since the processor has just
    /// fetched from there.
    #[inline]
    pub fn fetch(&self, p: &Paging, linear: u64, buf: &mut [u8]) -> usize {
        let memory = self.memory();
        let mut done = 0usize;
        while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            let at = linear.wrapping_add(done as u64);
            let Ok((t, pkey)) = self.descend(&memory, p, at, Kind::Fetch, &mut Trail::default()) else { break };
            let here = rest.len().min(PAGE_SIZE.wrapping_sub(at as usize % PAGE_SIZE));
            let Some(piece) = rest.get_mut(..here) else { break };
            if p.refuses(Kind::Fetch, &t, pkey).is_some() || memory.read(t.gpa, piece).is_err() {
                break;
            }
            done = done.wrapping_add(here);
        }
        done
    }

    /// Goes down to the entry that maps the address. Returns it with the page's protection key; errors are faults of
    /// the tables, not of permission.
    #[inline]
    fn descend(
        &self,
        memory: &Memory<'_, H>,
        p: &Paging,
        linear: u64,
        kind: Kind,
        trail: &mut Trail,
    ) -> Result<(Translation, u8), WalkError> {
        if !p.cr0(Cr0::PG) {
            let gpa = Gpa(linear & 0xffff_ffff);
            return Ok((Translation { gpa, writable: true, user: true, execute: true, level: 1 }, 0));
        }
        if p.efer(Efer::LMA) {
            let levels = if p.cr4(Cr4::LA57) { 5 } else { 4 };
            self.descend64(memory, p, linear, kind, (p.cr3 & ADDR & p.phys_mask(), levels), trail)
        } else if p.cr4(Cr4::PAE) {
            self.descend64(memory, p, linear & 0xffff_ffff, kind, (p.cr3 & 0xffff_ffe0, 3), trail)
        } else {
            descend32(memory, p, linear, kind, trail)
        }
    }

    /// PAE and long mode: 64-bit entries, 9 bits of the address per level.
    #[inline]
    fn descend64(
        &self,
        memory: &Memory<'_, H>,
        p: &Paging,
        linear: u64,
        kind: Kind,
        (mut table, mut level): (u64, u8),
        trail: &mut Trail,
    ) -> Result<(Translation, u8), WalkError> {
        trail.size = 8;
        let long = p.efer(Efer::LMA);
        let (mut allows, mut forbids) = (RW | US, 0);
        loop {
            let shift = 3 + 9 * u32::from(level);
            let gpa = Gpa(table.wrapping_add((linear >> shift & 511) << 3));
            let mut bytes = [0; 8];
            memory.read(gpa, &mut bytes).map_err(|e| WalkError::reading(e, p.access_code(kind)))?;
            let entry = u64::from_le_bytes(bytes);
            if entry & P == 0 {
                return Err(WalkError::Fault { code: p.access_code(kind) });
            }
            let large = level > 1 && entry & PS != 0;
            if entry & p.reserved64(level, large, self.page_1g) != 0 {
                return Err(WalkError::Fault { code: code::P | code::RSV | p.access_code(kind) });
            }
            // The top of PAE has no permissions, and no A bit.
            if long || level < 3 {
                allows &= entry;
                forbids |= entry;
                trail.push(gpa, entry);
            }
            if level == 1 || large {
                let offset = (1 << shift) - 1;
                let gpa = Gpa(entry & ADDR & !offset | linear & offset);
                let t = Translation {
                    gpa,
                    writable: allows & RW != 0,
                    user: allows & US != 0,
                    execute: forbids & NX == 0,
                    level,
                };
                return Ok((t, (entry >> 59 & 15) as u8));
            }
            table = entry & ADDR;
            level -= 1;
        }
    }
}

/// 32-bit paging: two levels of 32-bit entries, with 4 MiB pages if CR4.PSE.
fn descend32<H: Host>(
    memory: &Memory<'_, H>,
    p: &Paging,
    linear: u64,
    kind: Kind,
    trail: &mut Trail,
) -> Result<(Translation, u8), WalkError> {
    trail.size = 4;
    let read = |gpa: Gpa| {
        let mut bytes = [0; 4];
        memory.read(gpa, &mut bytes).map_err(|e: PhysError| WalkError::reading(e, p.access_code(kind)))?;
        match u64::from(u32::from_le_bytes(bytes)) {
            entry if entry & P == 0 => Err(WalkError::Fault { code: p.access_code(kind) }),
            entry => Ok(entry),
        }
    };
    let at = Gpa((p.cr3 & 0xffff_f000).wrapping_add((linear >> 22 & 1023) << 2));
    let entry = read(at)?;
    trail.push(at, entry);
    let (gpa, allows, level) = if entry & PS != 0 && p.cr4(Cr4::PSE) {
        if entry & p.reserved_4m() != 0 {
            return Err(WalkError::Fault { code: code::P | code::RSV | p.access_code(kind) });
        }
        // PSE-36: bits 20:13 are address bits 39:32 (APM 5.2.2).
        (entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32 | linear & 0x3f_ffff, entry, 2)
    } else {
        let at = Gpa((entry & 0xffff_f000).wrapping_add((linear >> 12 & 1023) << 2));
        let last = read(at)?;
        trail.push(at, last);
        (last & 0xffff_f000 | linear & 0xfff, entry & last, 1)
    };
    let (writable, user) = (allows & RW != 0, allows & US != 0);
    Ok((Translation { gpa: Gpa(gpa), writable, user, execute: true, level }, 0))
}

/// Sets A in the entries of a walk, and D in the last for a write. False if an entry is not what it was: walk again.
fn mark<H: Host>(memory: &Memory<'_, H>, trail: &Trail, write: bool) -> Result<bool, WalkError> {
    for (n, &(gpa, entry)) in trail.steps.iter().take(trail.len).enumerate() {
        let last = n.wrapping_add(1) == trail.len;
        let new = entry | A | if last && write { D } else { 0 };
        if new == entry {
            continue;
        }
        match memory.cmpxchg(gpa, trail.size, entry, new) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            // Tables in a read-only slot.
            Err(PhysError::NoSlot(_)) => {}
            Err(PhysError::Host { gpa, stop }) => return Err(WalkError::Host { gpa, stop }),
        }
    }
    Ok(true)
}
