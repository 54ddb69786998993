//! Page-table entries: nested (APM 15.25) and the guest's own (APM 5.3), which share one format.

use crate::HostPa;

/// Present.
pub const P: u64 = 1 << 0;
/// Writable.
pub const RW: u64 = 1 << 1;
/// User. Nested walks are user accesses (APM 15.25.5), so every nested entry has it.
pub const US: u64 = 1 << 2;
/// Write-through.
pub const PWT: u64 = 1 << 3;
/// Cache disable.
pub const PCD: u64 = 1 << 4;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty.
pub const D: u64 = 1 << 6;
/// Large page (levels 2 and 3).
pub const PS: u64 = 1 << 7;
/// Global.
pub const G: u64 = 1 << 8;
/// No execute.
pub const NX: u64 = 1 << 63;
/// Physical address of the next level or page.
pub const ADDR: u64 = 0x000f_ffff_ffff_f000;

/// Index into the table of `level` (1 = page table ... 4 = PML4) for an address; always below 512.
pub const fn index(addr: u64, level: u8) -> usize {
    (addr >> (12 + 9 * (level as u32 - 1)) & 511) as usize
}

/// Where a guest's nested page tables begin: the physical address of a PML4 table that the mmu owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedRoot(HostPa);

impl NestedRoot {
    /// `pa` is the page of the top-level table, page aligned. **Memory safety hangs on it**: a guest reaches what the
    /// tables from there on name. The mmu makes it, for the tree that it owns; nobody else does.
    pub const fn new(pa: HostPa) -> Self {
        Self(HostPa(pa.0 & ADDR))
    }
    /// Its physical address.
    pub const fn pa(self) -> HostPa {
        self.0
    }
}
