//! Guest memory as one vCPU sees it.

use crate::ring::RingOf;
use crate::{Mmu, Space};
use core::ops::Deref;
use host::Host;

/// Guest memory in one address space, and where it is recorded that somebody writes there.
pub struct View<'a, H: Host> {
    pub(crate) mmu: &'a Mmu<H>,
    pub(crate) space: Space,
    pub(crate) ring: Option<RingOf<'a, H>>,
}

impl<H: Host> Clone for View<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H: Host> Copy for View<'_, H> {}

impl<H: Host> Deref for View<'_, H> {
    type Target = Mmu<H>;

    fn deref(&self) -> &Mmu<H> {
        self.mmu
    }
}

impl<H: Host> Mmu<H> {
    /// Guest memory in an address space. `ring` is the dirty ring of the vCPU that works on it, whose thread the caller is.
    #[inline]
    pub fn view<'a>(&'a self, space: Space, ring: Option<RingOf<'a, H>>) -> View<'a, H> {
        View { mmu: self, space, ring }
    }
}
