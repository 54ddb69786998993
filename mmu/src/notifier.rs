//! What the kernel tells about the VMM's address space (mmu notifier): pages that go away, pages to be aged.
//!
//! Between [`invalidate_start`](Mmu::invalidate_start) and [`invalidate_end`](Mmu::invalidate_end) nothing of the range
//! can be mapped, and when the first returns nothing of it is mapped or in a TLB. Slots may come and go in between: the
//! range is kept in the VMM's addresses, so the two stay paired whatever the slots do.

use crate::Mmu;
use crate::cache::FreeList;
use arch::Hva;
use host::Host;

impl<H: Host> Mmu<H> {
    /// `[start, end)` of the VMM's memory is about to change. Paired with [`invalidate_end`](Self::invalidate_end).
    ///
    /// `flush` returns when every vCPU has left the guest at least once since it was called, and will flush before it
    /// enters again; it is called without a lock of ours held, and only if something was mapped. Without `may_block`
    /// nothing here sleeps.
    pub fn invalidate_start(&self, start: Hva, end: Hva, may_block: bool, flush: &dyn Fn()) {
        let mut list = FreeList::default();
        {
            let mut maps = self.maps.write();
            maps.begin(start.0, end.0);
            let maps = &mut *maps;
            let mut removed = false;
            let (tree, gfns) = maps.split(start.0, end.0);
            for (first, last) in gfns {
                removed |= tree.zap(&self.host, first, last, &mut list);
            }
            if removed {
                self.note_removal();
            }
        }
        self.settle(list, flush, may_block);
    }

    /// The change that [`invalidate_start`](Self::invalidate_start) announced is done.
    pub fn invalidate_end(&self, _start: Hva, _end: Hva) {
        self.maps.write().end();
    }

    /// Did the guest use `[start, end)` since the last call? Forgets that it did. TLBs are not flushed: a page that is
    /// used from there alone looks old a little early, which costs less than the flush (the kernel does the same with
    /// its own tables).
    pub fn age(&self, start: Hva, end: Hva) -> bool {
        self.look(start, end, true)
    }

    /// As [`age`](Self::age), and changes nothing.
    pub fn test_young(&self, start: Hva, end: Hva) -> bool {
        self.look(start, end, false)
    }

    fn look(&self, start: Hva, end: Hva, clear: bool) -> bool {
        let maps = self.maps.read();
        let mut young = false;
        for (first, last) in maps.gfns(start.0, end.0) {
            young |= maps.tree.age(&self.host, first, last, clear);
        }
        young
    }

    /// The address space is going away: unmaps all. Later faults fail with EIO.
    pub fn release(&self, flush: &dyn Fn()) {
        let mut list = FreeList::default();
        {
            let mut maps = self.maps.write();
            maps.released = true;
            maps.seq = maps.seq.wrapping_add(1);
            if maps.tree.clear(&self.host, &mut list) {
                self.note_removal();
            }
        }
        self.settle(list, flush, true);
    }
}
