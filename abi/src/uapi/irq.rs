//! Interrupt structs (KVM API document 4.25, 4.26, 4.52, 4.59, 4.70, 4.75).

use crate::codec::abi;

abi! {
    /// KVM_IRQ_LINE and KVM_IRQ_LINE_STATUS. `irq` is `status` on return.
    struct kvm_irq_level: 8 {
        0 => irq as __bindgen_anon_1: u32,
        4 => level: u32,
    }

    /// KVM_GET/SET_IRQCHIP.
    struct kvm_irqchip: 520 {
        0 => chip_id: u32,
        4 => pad: u32,
        8 => chip: [u8; 512],
    }

    /// KVM_CREATE_PIT2.
    struct kvm_pit_config: 64 {
        0 => flags: u32,
        4 => pad: [u32; 15],
    }

    /// KVM_GET/SET_PIT, as bytes.
    struct kvm_pit_state: 72 {
        0 => channels: [[u64; 3]; 3],
    }

    /// KVM_REINJECT_CONTROL.
    struct kvm_reinject_control: 32 {
        0 => pit_reinject: u8,
        1 => reserved: [u8; 31],
    }

    /// KVM_GET/SET_PIT2, as bytes.
    struct kvm_pit_state2: 112 {
        0 => channels: [[u64; 3]; 3],
        72 => flags: u32,
        76 => reserved: [u32; 9],
    }

    /// KVM_IRQFD.
    struct kvm_irqfd: 32 {
        0 => fd: u32,
        4 => gsi: u32,
        8 => flags: u32,
        12 => resamplefd: u32,
        16 => pad: [u8; 16],
    }

    /// KVM_IOEVENTFD.
    struct kvm_ioeventfd: 64 {
        0 => datamatch: u64,
        8 => addr: u64,
        16 => len: u32,
        20 => fd: i32,
        24 => flags: u32,
        28 => pad: [u8; 36],
    }

    /// KVM_HYPERV_EVENTFD.
    struct kvm_hyperv_eventfd: 24 {
        0 => conn_id: u32,
        4 => fd: i32,
        8 => flags: u32,
        12 => padding: [u32; 3],
    }

    /// KVM_SIGNAL_MSI.
    struct kvm_msi: 32 {
        0 => address_lo: u32,
        4 => address_hi: u32,
        8 => data: u32,
        12 => flags: u32,
        16 => devid: u32,
        20 => pad: [u8; 12],
    }

    /// Header of KVM_SET_GSI_ROUTING; entries follow.
    struct kvm_irq_routing: 8 {
        0 => nr: u32,
        4 => flags: u32,
    }

    /// An entry of KVM_SET_GSI_ROUTING. `u` is `{irqchip, pin}`, `{address_lo, address_hi, data, devid}` or, of Hyper-V,
    /// `{vcpu, sint}`.
    struct kvm_irq_routing_entry: 48 {
        0 => gsi: u32,
        4 => type_: u32,
        8 => flags: u32,
        12 => pad: u32,
        16 => u: [u32; 8],
    }
}

/// `kvm_irqfd.flags`: take the binding back.
pub const KVM_IRQFD_FLAG_DEASSIGN: u32 = 1;
/// `kvm_irqfd.flags`: `resamplefd` is signalled at EOI.
pub const KVM_IRQFD_FLAG_RESAMPLE: u32 = 2;

/// `kvm_ioeventfd.flags`: only writes of `datamatch` count.
pub const KVM_IOEVENTFD_FLAG_DATAMATCH: u32 = 1;
/// `kvm_ioeventfd.flags`: a port, not memory.
pub const KVM_IOEVENTFD_FLAG_PIO: u32 = 2;
/// `kvm_ioeventfd.flags`: take the binding back.
pub const KVM_IOEVENTFD_FLAG_DEASSIGN: u32 = 4;
/// `kvm_ioeventfd.flags`: has a number, and no effect. (8 is a bus of another architecture.)
pub const KVM_IOEVENTFD_FLAG_FAST_MMIO: u32 = 16;

/// `kvm_msi.flags` and the flags of an MSI route: `devid` is valid (ignored on x86).
pub const KVM_MSI_VALID_DEVID: u32 = 1;
/// `kvm_irq_routing_entry.type`: a pin.
pub const KVM_IRQ_ROUTING_IRQCHIP: u32 = 1;
/// `kvm_irq_routing_entry.type`: an MSI.
pub const KVM_IRQ_ROUTING_MSI: u32 = 2;
/// `kvm_irq_routing_entry.type`: a source of a synthetic interrupt controller.
pub const KVM_IRQ_ROUTING_HV_SINT: u32 = 4;

/// `kvm_hyperv_eventfd.flags`: take the binding back.
pub const KVM_HYPERV_EVENTFD_DEASSIGN: u32 = 1;
