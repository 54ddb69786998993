//! Guest memory (KVM API document 4.8, 4.35, 4.36, 4.41, 4.117, 4.140).

use crate::codec::get;
use crate::uapi::*;
use arch::Hva;
use host::{Errno, Host};
use vm::Vm;
use vm::mmu::UserRegion;

/// Highest address of the three pages of KVM_SET_TSS_ADDR.
const TSS_LIMIT: u64 = u32::MAX as u64 + 1 - 3 * 4096;

/// KVM_SET_USER_MEMORY_REGION. Errors: EINVAL, EEXIST, ENOMEM.
pub fn set_region<H: Host>(vm: &Vm<H>, arg: u64) -> Result<(), Errno> {
    let r: kvm_userspace_memory_region = get(&vm.host, arg)?;
    set(vm, r.slot, r.flags, r.guest_phys_addr, r.memory_size, r.userspace_addr)
}

/// KVM_SET_USER_MEMORY_REGION2: the same; its own flag (guest_memfd) is not supported.
pub fn set_region2<H: Host>(vm: &Vm<H>, arg: u64) -> Result<(), Errno> {
    let r: kvm_userspace_memory_region2 = get(&vm.host, arg)?;
    set(vm, r.slot, r.flags, r.guest_phys_addr, r.memory_size, r.userspace_addr)
}

fn set<H: Host>(vm: &Vm<H>, slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> Result<(), Errno> {
    if flags & !(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY) != 0 {
        return Err(Errno::EINVAL);
    }
    vm.set_user_region(&UserRegion { slot, flags, gpa, size, hva })
}

/// KVM_SET_NR_MMU_PAGES: the most pages that may shadow the guest's own page tables. None does, as on stock with
/// nested paging, so every limit is kept. Errors: EINVAL (below the least, 64).
pub fn limit_shadow_pages(limit: u64) -> Result<(), Errno> {
    if limit < 64 { Err(Errno::EINVAL) } else { Ok(()) }
}

/// KVM_GET_DIRTY_LOG. Errors: ENXIO (there are dirty rings), EINVAL (slot), ENOENT (not logged), EFAULT.
pub fn get_dirty_log<H: Host>(vm: &Vm<H>, log: &kvm_dirty_log) -> Result<(), Errno> {
    vm.get_dirty_log(log.slot, Hva(log.dirty_bitmap))
}

/// KVM_CLEAR_DIRTY_LOG. Errors: ENXIO (there are dirty rings), EINVAL (slot, range), ENOENT (not logged), EFAULT.
pub fn clear_dirty_log<H: Host>(vm: &Vm<H>, log: &kvm_clear_dirty_log) -> Result<(), Errno> {
    vm.clear_dirty_log(log.slot, log.first_page, log.num_pages, Hva(log.dirty_bitmap))
}

/// KVM_SET_TSS_ADDR: three pages below 4 GiB that Intel's processors need for real mode. SVM needs none, so the
/// address is only checked. Errors: EINVAL.
pub fn set_tss_addr(arg: u64) -> Result<(), Errno> {
    if arg > TSS_LIMIT { Err(Errno::EINVAL) } else { Ok(()) }
}

/// KVM_SET_IDENTITY_MAP_ADDR: as above, SVM needs no such page. Errors: EINVAL (there are vCPUs), EFAULT.
pub fn set_identity_map_addr<H: Host>(vm: &Vm<H>, arg: u64) -> Result<(), Errno> {
    if vm.has_vcpus() {
        return Err(Errno::EINVAL);
    }
    get::<H, u64>(&vm.host, arg).map(|_| ())
}
