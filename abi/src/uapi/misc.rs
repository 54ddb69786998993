//! Clock, capabilities, attributes, signal mask (KVM API document 4.17, 4.29, 4.30, 4.37, 4.79, 4.80).

use crate::codec::abi;

abi! {
    /// KVM_GET/SET_CLOCK.
    struct kvm_clock_data: 48 {
        0 => clock: u64,
        8 => flags: u32,
        12 => pad0: u32,
        16 => realtime: u64,
        24 => host_tsc: u64,
        32 => pad: [u32; 4],
    }

    /// KVM_ENABLE_CAP.
    struct kvm_enable_cap: 104 {
        0 => cap: u32,
        4 => flags: u32,
        8 => args: [u64; 4],
        40 => pad: [u8; 64],
    }

    /// KVM_HAS/GET/SET_DEVICE_ATTR.
    struct kvm_device_attr: 24 {
        0 => flags: u32,
        4 => group: u32,
        8 => attr: u64,
        16 => addr: u64,
    }

    /// KVM_CREATE_DEVICE.
    struct kvm_create_device: 12 {
        0 => type_: u32,
        4 => fd: u32,
        8 => flags: u32,
    }

    /// What a file of KVM_GET_STATS_FD begins with.
    struct kvm_stats_header: 24 {
        0 => flags: u32,
        4 => name_size: u32,
        8 => num_desc: u32,
        12 => id_offset: u32,
        16 => desc_offset: u32,
        20 => data_offset: u32,
    }

    /// One number in it; `name_size` bytes of name follow.
    struct kvm_stats_desc: 16 {
        0 => flags: u32,
        4 => exponent: u16,
        6 => size: u16,
        8 => offset: u32,
        12 => bucket_size: u32,
    }

    /// Header of KVM_SET_SIGNAL_MASK; `len` bytes of mask follow.
    struct kvm_signal_mask: 4 {
        0 => len: u32,
    }
}

/// `kvm_stats_desc.flags`: KVM_STATS_TYPE_*, KVM_STATS_UNIT_*; the base is ten.
pub mod stats_flags {
    /// Only ever grows.
    pub const CUMULATIVE: u32 = 0;
    /// As it is now.
    pub const INSTANT: u32 = 1;
    /// The most that there ever was.
    pub const PEAK: u32 = 2;
    /// Numbers of values, by their length in bits.
    pub const LOG_HIST: u32 = 4;
    /// Seconds.
    pub const SECONDS: u32 = 2 << 4;
    /// 0 or 1.
    pub const BOOLEAN: u32 = 4 << 4;
}

/// `kvm_clock_data.flags`: the clock runs off a stable TSC.
pub const KVM_CLOCK_TSC_STABLE: u32 = 2;
/// `kvm_clock_data.flags`: `realtime` is valid.
pub const KVM_CLOCK_REALTIME: u32 = 4;
/// `kvm_clock_data.flags`: `host_tsc` is valid.
pub const KVM_CLOCK_HOST_TSC: u32 = 8;

/// Attribute group of /dev/kvm; attribute 0 is KVM_X86_XCOMP_GUEST_SUPP.
pub const KVM_X86_GRP_SYSTEM: u32 = 0;
/// The XCR0 bits that a guest may be given.
pub const KVM_X86_XCOMP_GUEST_SUPP: u64 = 0;
/// Attribute group of a vCPU; attribute 0 is KVM_VCPU_TSC_OFFSET.
pub const KVM_VCPU_TSC_CTRL: u32 = 0;
/// The TSC offset of a vCPU.
pub const KVM_VCPU_TSC_OFFSET: u64 = 0;
/// Of KVM_CREATE_DEVICE: only ask whether there is such a type.
pub const KVM_CREATE_DEVICE_TEST: u32 = 1;
/// Which VFIO groups and devices a VM uses.
pub const KVM_DEV_TYPE_VFIO: u32 = 4;
/// Attribute group of the VFIO device, by an older name KVM_DEV_VFIO_GROUP.
pub const KVM_DEV_VFIO_FILE: u32 = 1;
/// Attribute: one more file of VFIO's; the descriptor is behind the address.
pub const KVM_DEV_VFIO_FILE_ADD: u64 = 1;
/// Attribute: one less.
pub const KVM_DEV_VFIO_FILE_DEL: u64 = 2;
