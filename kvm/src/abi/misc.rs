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

    /// Header of KVM_SET_SIGNAL_MASK; `len` bytes of mask follow.
    struct kvm_signal_mask: 4 {
        0 => len: u32,
    }
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
