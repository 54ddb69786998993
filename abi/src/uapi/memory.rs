//! Memory structs (KVM API document 4.8, 4.35, 4.117, 4.140).

use crate::codec::abi;

abi! {
    /// KVM_SET_USER_MEMORY_REGION.
    struct kvm_userspace_memory_region: 32 {
        0 => slot: u32,
        4 => flags: u32,
        8 => guest_phys_addr: u64,
        16 => memory_size: u64,
        24 => userspace_addr: u64,
    }

    /// KVM_SET_USER_MEMORY_REGION2.
    struct kvm_userspace_memory_region2: 160 {
        0 => slot: u32,
        4 => flags: u32,
        8 => guest_phys_addr: u64,
        16 => memory_size: u64,
        24 => userspace_addr: u64,
        32 => guest_memfd_offset: u64,
        40 => guest_memfd: u32,
        44 => pad1: u32,
        48 => pad2: [u64; 14],
    }

    /// KVM_GET_DIRTY_LOG.
    struct kvm_dirty_log: 16 {
        0 => slot: u32,
        4 => padding1: u32,
        8 => dirty_bitmap as __bindgen_anon_1: u64,
    }

    /// KVM_CLEAR_DIRTY_LOG.
    struct kvm_clear_dirty_log: 24 {
        0 => slot: u32,
        4 => num_pages: u32,
        8 => first_page: u64,
        16 => dirty_bitmap as __bindgen_anon_1: u64,
    }

    /// KVM_PRE_FAULT_MEMORY.
    struct kvm_pre_fault_memory: 64 {
        0 => gpa: u64,
        8 => size: u64,
        16 => flags: u64,
        24 => padding: [u64; 5],
    }

    /// KVM_(UN)REGISTER_COALESCED_MMIO.
    struct kvm_coalesced_mmio_zone: 16 {
        0 => addr: u64,
        8 => size: u32,
        12 => pio as __bindgen_anon_1: u32,
    }
}

/// `kvm_userspace_memory_region.flags`: log writes.
pub const KVM_MEM_LOG_DIRTY_PAGES: u32 = 1;
/// `kvm_userspace_memory_region.flags`: writes go to user space.
pub const KVM_MEM_READONLY: u32 = 2;
