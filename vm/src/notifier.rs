//! Guest memory from the VM's side: what the kernel tells about the VMM's memory, slots and dirty logs. Each hands the
//! mmu the flush that reaches all vCPUs.

use crate::Vm;
use arch::Hva;
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, Host};

impl<H: Host> Vm<H> {
    /// mmu notifier: the host is about to change `[start, end)` of the VMM's memory.
    pub fn mmu_invalidate_start(&self, start: Hva, end: Hva, may_block: bool) {
        self.mmu.invalidate_range_start(start, end, may_block, &|| self.flush_all());
    }

    /// mmu notifier: has the guest used `[start, end)` since the last call? Forgets it.
    pub fn mmu_age(&self, start: Hva, end: Hva) -> bool {
        self.mmu.age(start, end)
    }

    /// mmu notifier: has the guest used `[start, end)`?
    pub fn mmu_test_young(&self, start: Hva, end: Hva) -> bool {
        self.mmu.test_young(start, end)
    }

    /// mmu notifier: the VMM's address space goes away.
    pub fn mmu_release(&self) {
        self.mmu.release(&|| self.flush_all());
        self.kill();
    }

    /// KVM_SET_USER_MEMORY_REGION. Errors: EINVAL, EEXIST, ENOMEM (KVM API document, 4.35).
    pub fn set_user_region(&self, r: &mmu::UserRegion) -> Result<(), Errno> {
        self.mmu.set_memory_region(r, &|| self.flush_all())?;
        self.forget_noted();
        Ok(())
    }

    /// KVM_GET_DIRTY_LOG. Errors: EINVAL, ENOENT, EFAULT.
    pub fn get_dirty_log(&self, slot: u32, bitmap: Hva) -> Result<(), Errno> {
        self.mmu.get_dirty_log(slot, bitmap, &|| self.flush_all())
    }

    /// KVM_CLEAR_DIRTY_LOG. Errors: EINVAL, ENOENT, EFAULT.
    pub fn clear_dirty_log(&self, slot: u32, first: u64, pages: u32, bitmap: Hva) -> Result<(), Errno> {
        self.mmu.clear_dirty_log(slot, first, pages, bitmap, &|| self.flush_all())
    }

    /// KVM_RESET_DIRTY_RINGS. Ok: how many entries were emptied. Errors: EINVAL (there are no rings).
    pub fn reset_dirty_rings(&self) -> Result<u32, Errno> {
        if self.config.dirty_ring_size.load(Relaxed) == 0 {
            return Err(Errno::EINVAL);
        }
        let rings = self.vcpus().filter_map(|v| v.dirty_ring.as_ref());
        Ok(self.mmu.reset_dirty_rings(rings, &|| self.flush_all()))
    }

    /// mmu notifier: the host has changed it.
    pub fn mmu_invalidate_end(&self, start: Hva, end: Hva) {
        self.mmu.invalidate_range_end(start, end);
    }
}
