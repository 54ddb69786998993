//! Pages that hardware reads or writes, freed on drop.

use crate::{Pages, Platform};
use arch::HostPa;
use core::{marker::PhantomData, ptr::NonNull};
use host::Errno;

/// `1 << ORDER` pages owned by the switch.
pub(crate) struct Block<P: Platform, const ORDER: u32> {
    pages: Pages,
    platform: PhantomData<P>,
}

impl<P: Platform, const ORDER: u32> Block<P, ORDER> {
    /// Bytes in the block.
    pub const SIZE: usize = host::PAGE_SIZE << ORDER;

    /// Zeroed pages. Errors: ENOMEM.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self { pages: P::alloc_pages(ORDER).ok_or(Errno::ENOMEM)?, platform: PhantomData })
    }

    /// Physical address.
    pub fn pa(&self) -> HostPa {
        self.pages.pa
    }

    /// Address of the first byte; aligned to a page.
    pub fn va(&self) -> NonNull<u8> {
        self.pages.va
    }

    /// The bytes. Only for maps that the hardware reads and never writes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the platform gave out `SIZE` initialised bytes that nobody else in the host has.
        unsafe { core::slice::from_raw_parts_mut(self.pages.va.as_ptr(), Self::SIZE) }
    }
}

impl<P: Platform, const ORDER: u32> Drop for Block<P, ORDER> {
    fn drop(&mut self) {
        // SAFETY: they came from `alloc_pages` with this order. Their owner is a vCPU that no longer runs, or the
        // machine after SVM was switched off: no processor uses them.
        unsafe { P::free_pages(self.pages, ORDER) }
    }
}
