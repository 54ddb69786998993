//! The guest's paging modes as data: what a walk is told, what it answers, and the format of the entries
//! (APM 5.2 to 5.6).

use arch::cr::{Cr0, Cr4, Efer};
use arch::npt::{ADDR, G, NX, PS};
use arch::{Gpa, npt};
use host::Stop;

use crate::PhysError;

/// Error code of #PF (APM 8.4.2).
pub mod code {
    /// The page was present.
    pub const P: u32 = 1 << 0;
    /// A write.
    pub const W: u32 = 1 << 1;
    /// By user code.
    pub const U: u32 = 1 << 2;
    /// A reserved bit was set in an entry.
    pub const RSV: u32 = 1 << 3;
    /// An instruction fetch (only told with NXE or SMEP).
    pub const ID: u32 = 1 << 4;
    /// A protection key forbade it.
    pub const PK: u32 = 1 << 5;
}

/// The state of a vCPU that decides how linear addresses are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// CR0 as the guest sees it.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER; LMA decides between long and legacy mode.
    pub efer: u64,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// RFLAGS.AC.
    pub ac: bool,
    /// PKRU.
    pub pkru: u32,
    /// Physical address bits of the guest's CPUID: bits above are reserved in entries.
    pub phys_bits: u8,
}

/// What an access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read by the instruction, at the CPL.
    Read,
    /// A write by the instruction.
    Write,
    /// An instruction fetch.
    Fetch,
    /// A read by the processor itself (descriptor tables, TSS): supervisor whatever the CPL (APM 5.6.1), and SMAP
    /// applies whatever RFLAGS.AC says (APM 5.6.6).
    SystemRead,
    /// A write of that kind.
    SystemWrite,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest physical address.
    pub gpa: Gpa,
    /// All levels allow writing.
    pub writable: bool,
    /// All levels allow user access.
    pub user: bool,
    /// No level forbids execution.
    pub execute: bool,
    /// Level of the entry that maps it: 1 (4 KiB), 2 (2 MiB, or 4 MiB with 32-bit paging), 3 (1 GiB).
    pub level: u8,
}

/// Why a walk ended without a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// #PF with this error code.
    Fault {
        /// See [`code`].
        code: u32,
    },
    /// The VMM's memory behind a page table cannot be used.
    Host {
        /// The entry.
        gpa: Gpa,
        /// Why.
        stop: Stop,
    },
}

impl WalkError {
    /// A table entry could not be read: outside of all memory nothing is present.
    #[cold]
    pub(crate) fn reading(e: PhysError, p: &Paging, kind: Kind) -> Self {
        match e {
            PhysError::NoSlot(_) => p.absent(kind),
            PhysError::Host { gpa, stop } => Self::Host { gpa, stop },
        }
    }
}

impl Kind {
    pub(crate) const fn write(self) -> bool {
        matches!(self, Kind::Write | Kind::SystemWrite)
    }
    pub(crate) const fn system(self) -> bool {
        matches!(self, Kind::SystemRead | Kind::SystemWrite)
    }
}

impl Paging {
    pub(crate) const fn cr0(&self, bit: Cr0) -> bool {
        self.cr0 & bit.bits() != 0
    }
    pub(crate) const fn cr4(&self, bit: Cr4) -> bool {
        self.cr4 & bit.bits() != 0
    }
    pub(crate) const fn efer(&self, bit: Efer) -> bool {
        self.efer & bit.bits() != 0
    }
    /// Is the access made with user privilege?
    pub(crate) const fn user(&self, kind: Kind) -> bool {
        self.cpl == 3 && !kind.system()
    }

    /// The error code's bits that follow from the access alone.
    pub(crate) const fn access_code(&self, kind: Kind) -> u32 {
        let write = if kind.write() { code::W } else { 0 };
        let user = if self.user(kind) { code::U } else { 0 };
        let told = self.nx() || self.cr4(Cr4::SMEP);
        let fetch = if matches!(kind, Kind::Fetch) && told { code::ID } else { 0 };
        write | user | fetch
    }

    /// #PF for an entry that is not present.
    pub(crate) const fn absent(&self, kind: Kind) -> WalkError {
        WalkError::Fault { code: self.access_code(kind) }
    }

    /// #PF for an entry with a reserved bit set.
    pub(crate) const fn malformed(&self, kind: Kind) -> WalkError {
        WalkError::Fault { code: code::P | code::RSV | self.access_code(kind) }
    }

    /// Does the no-execute bit exist? Only in the 64-bit entries of PAE and long mode (APM 5.6.3).
    pub(crate) const fn nx(&self) -> bool {
        self.efer(Efer::NXE) && (self.cr4(Cr4::PAE) || self.efer(Efer::LMA))
    }

    /// #PF error code if the access is not allowed to a present page; None if it is (APM 5.6), as always without
    /// paging. `pkey` is the page's protection key.
    #[inline]
    pub(crate) fn refuses(&self, kind: Kind, t: &Translation, pkey: u8) -> Option<u32> {
        if !self.cr0(Cr0::PG) {
            return None;
        }
        let by_user = self.user(kind);
        let fetch = matches!(kind, Kind::Fetch);
        let mut refused = by_user && !t.user;
        refused |= kind.write() && !t.writable && (by_user || self.cr0(Cr0::WP));
        refused |= fetch && !t.execute;
        if !by_user && t.user {
            refused |= fetch && self.cr4(Cr4::SMEP);
            refused |= !fetch && self.cr4(Cr4::SMAP) && (kind.system() || !self.ac);
        }
        let mut code = code::P | self.access_code(kind);
        // Protection keys: long mode, user pages, data accesses (APM 5.6.7).
        if t.user && !fetch && self.cr4(Cr4::PKE) && self.efer(Efer::LMA) {
            let rights = self.pkru >> (2 * (pkey & 15));
            let no_write = rights & 2 != 0 && kind.write() && (by_user || self.cr0(Cr0::WP));
            if rights & 1 != 0 || no_write {
                refused = true;
                code |= code::PK;
            }
        }
        refused.then_some(code)
    }

    /// Bits that are reserved in 64-bit entries of every level (APM 5.3, 5.4).
    #[inline]
    pub(crate) const fn reserved64(&self) -> u64 {
        let beyond = ADDR & !self.phys_mask();
        let nx = if self.efer(Efer::NXE) { 0 } else { NX };
        // Bits 62:52 are software's in long mode only.
        let high = if self.efer(Efer::LMA) { 0 } else { 0x7ff << 52 };
        beyond | nx | high
    }

    /// Bytes in a table entry.
    pub(crate) const fn entry_size(&self) -> u8 {
        if self.efer(Efer::LMA) || self.cr4(Cr4::PAE) { 8 } else { 4 }
    }

    /// Address bits that the guest's physical addresses have.
    pub(crate) const fn phys_mask(&self) -> u64 {
        match self.phys_bits {
            n @ 1..=63 => (1 << n) - 1,
            _ => u64::MAX,
        }
    }

    /// Reserved bits of a 4 MiB entry of 32-bit paging: bit 21, and the bits 20:13 (address bits 39:32, APM 5.2.2)
    /// that the guest's addresses do not reach.
    pub(crate) const fn reserved_4m(&self) -> u64 {
        let high = (self.phys_mask() >> 32) & 0xff;
        1 << 21 | (!high & 0xff) << 13
    }
}

/// Bits that are reserved in a 64-bit entry besides [`Paging::reserved64`]: by level, whether it maps a large page, and
/// whether 1 GiB pages exist (APM 5.3.3; AMD's processors reserve G in entries of level 4 and 5, and ignore it in those below
/// that name a table).
#[inline]
pub(crate) const fn reserved_at(level: u8, large: bool, page_1g: bool) -> u64 {
    match level {
        1 => 0,
        2 if large => 0x1f_e000,
        2 => 0,
        3 if large && page_1g => 0x3fff_e000,
        3 if large => PS,
        3 => 0,
        _ => PS | G,
    }
}

/// Bits that are reserved in the four entries that PAE's CR3 points to (APM 5.2.3): they have neither permissions nor
/// a page size.
pub(crate) const RESERVED_PAE_TOP: u64 = NX | G | PS | npt::D | npt::A | npt::US | npt::RW;
