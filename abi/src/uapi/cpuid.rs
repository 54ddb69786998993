//! CPUID and MSR structs (KVM API document 4.3, 4.18 to 4.20, 4.46, 4.97).

use crate::codec::abi;

abi! {
    /// An entry of KVM_SET_CPUID.
    struct kvm_cpuid_entry: 24 {
        0 => function: u32,
        4 => eax: u32,
        8 => ebx: u32,
        12 => ecx: u32,
        16 => edx: u32,
        20 => padding: u32,
    }

    /// An entry of the CPUID2 calls.
    struct kvm_cpuid_entry2: 40 {
        0 => function: u32,
        4 => index: u32,
        8 => flags: u32,
        12 => eax: u32,
        16 => ebx: u32,
        20 => ecx: u32,
        24 => edx: u32,
        28 => padding: [u32; 3],
    }

    /// Header of KVM_SET_CPUID; entries follow.
    struct kvm_cpuid: 8 {
        0 => nent: u32,
        4 => padding: u32,
    }

    /// Header of the CPUID2 calls; entries follow.
    struct kvm_cpuid2: 8 {
        0 => nent: u32,
        4 => padding: u32,
    }

    /// An entry of KVM_GET/SET_MSRS.
    struct kvm_msr_entry: 16 {
        0 => index: u32,
        4 => reserved: u32,
        8 => data: u64,
    }

    /// Header of KVM_GET/SET_MSRS; entries follow.
    struct kvm_msrs: 8 {
        0 => nmsrs: u32,
        4 => pad: u32,
    }

    /// Header of the MSR index lists; `u32` indices follow.
    struct kvm_msr_list: 4 {
        0 => nmsrs: u32,
    }

    /// A range of KVM_X86_SET_MSR_FILTER.
    struct kvm_msr_filter_range: 24 {
        0 => flags: u32,
        4 => nmsrs: u32,
        8 => base: u32,
        16 => bitmap: u64,
    }

    /// KVM_X86_SET_MSR_FILTER.
    struct kvm_msr_filter: 392 {
        0 => flags: u32,
        8 => ranges: [kvm_msr_filter_range; 16],
    }
}

/// KVM_MAX_CPUID_ENTRIES.
pub const MAX_CPUID_ENTRIES: usize = 256;
/// KVM_GET/SET_MSRS takes fewer entries than this.
pub const MAX_IO_MSRS: usize = 256;
/// KVM_MSR_FILTER_MAX_BITMAP_SIZE, bytes.
pub const MSR_FILTER_MAX_BITMAP_SIZE: usize = 0x600;
/// Size of `kvm_msr_filter` where pointers have 32 bits: flags, and sixteen ranges of four words each.
pub const MSR_FILTER_COMPAT_SIZE: usize = 4 + 16 * 16;
/// `kvm_msr_filter.flags`: what no range covers is refused.
pub const KVM_MSR_FILTER_DEFAULT_DENY: u32 = 1;
/// `kvm_msr_filter_range.flags`: the range is about reads.
pub const KVM_MSR_FILTER_READ: u32 = 1;
/// `kvm_msr_filter_range.flags`: the range is about writes.
pub const KVM_MSR_FILTER_WRITE: u32 = 2;
