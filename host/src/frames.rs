//! What nested page tables are made of, as values of their own: a number that somebody has computed is neither.

use arch::HostPa;

/// A 4 KiB frame of the host's that may be mapped for a guest (KVM's `kvm_pfn_t`).
///
/// **Memory safety hangs on its origin**: a guest reads, and perhaps writes, what its tables lead to. Implementers of
/// [`Host`](crate::Host) make it, for memory of the VMM; nobody else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pfn(HostPa);

impl Pfn {
    /// The frame of a page of user memory that the host has just looked up; `pa` is page aligned.
    #[inline]
    pub const fn from_host(pa: HostPa) -> Self {
        Self(pa)
    }

    /// Its physical address.
    #[inline]
    pub const fn pa(self) -> HostPa {
        self.0
    }

    /// Its physical address over 4096.
    #[inline]
    pub const fn number(self) -> u64 {
        self.0.0 >> 12
    }
}

/// A page for a nested page table, owned: whoever has the value may link it into a tree or free it, and nobody else
/// knows of it.
///
/// **Memory safety hangs on its origin**: a page that is freed while a processor can reach it belongs to somebody else
/// then. Implementers of [`Host`](crate::Host) make it when they allocate the page, and the mmu when a page that was
/// linked has been unlinked and flushed; nobody else does.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the page would leak"]
pub struct TablePage(HostPa);

impl TablePage {
    /// The page at `pa`, of [`Host::alloc_table`](crate::Host::alloc_table), which nothing refers to.
    #[inline]
    pub const fn from_host(pa: HostPa) -> Self {
        Self(pa)
    }

    /// Its physical address.
    #[inline]
    pub const fn pa(&self) -> HostPa {
        self.0
    }
}
