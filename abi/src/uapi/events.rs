//! Events, debugging and run state (KVM API document 4.16, 4.31, 4.32, 4.38, 4.39, 4.87, 4.107).

use crate::codec::abi;

abi! {
    /// `kvm_vcpu_events.exception`.
    struct kvm_vcpu_events_exception as kvm_vcpu_events__bindgen_ty_1: 8 {
        0 => injected: u8,
        1 => nr: u8,
        2 => has_error_code: u8,
        3 => pending: u8,
        4 => error_code: u32,
    }

    /// `kvm_vcpu_events.interrupt`.
    struct kvm_vcpu_events_interrupt as kvm_vcpu_events__bindgen_ty_2: 4 {
        0 => injected: u8,
        1 => nr: u8,
        2 => soft: u8,
        3 => shadow: u8,
    }

    /// `kvm_vcpu_events.nmi`.
    struct kvm_vcpu_events_nmi as kvm_vcpu_events__bindgen_ty_3: 4 {
        0 => injected: u8,
        1 => pending: u8,
        2 => masked: u8,
        3 => pad: u8,
    }

    /// `kvm_vcpu_events.smi`.
    struct kvm_vcpu_events_smi as kvm_vcpu_events__bindgen_ty_4: 4 {
        0 => smm: u8,
        1 => pending: u8,
        2 => smm_inside_nmi: u8,
        3 => latched_init: u8,
    }

    /// `kvm_vcpu_events.triple_fault`.
    struct kvm_vcpu_events_triple_fault as kvm_vcpu_events__bindgen_ty_5: 1 {
        0 => pending: u8,
    }

    /// KVM_GET/SET_VCPU_EVENTS.
    struct kvm_vcpu_events: 64 {
        0 => exception: kvm_vcpu_events_exception,
        8 => interrupt: kvm_vcpu_events_interrupt,
        12 => nmi: kvm_vcpu_events_nmi,
        16 => sipi_vector: u32,
        20 => flags: u32,
        24 => smi: kvm_vcpu_events_smi,
        28 => triple_fault: kvm_vcpu_events_triple_fault,
        29 => reserved: [u8; 26],
        55 => exception_has_payload: u8,
        56 => exception_payload: u64,
    }

    /// KVM_GET/SET_MP_STATE.
    struct kvm_mp_state: 4 {
        0 => mp_state: u32,
    }

    /// `kvm_guest_debug.arch`.
    struct kvm_guest_debug_arch: 64 {
        0 => debugreg: [u64; 8],
    }

    /// KVM_SET_GUEST_DEBUG.
    struct kvm_guest_debug: 72 {
        0 => control: u32,
        4 => pad: u32,
        8 => arch: kvm_guest_debug_arch,
    }

    /// KVM_INTERRUPT.
    struct kvm_interrupt: 4 {
        0 => irq: u32,
    }

    /// KVM_X86_SET_MCE.
    struct kvm_x86_mce: 64 {
        0 => status: u64,
        8 => addr: u64,
        16 => misc: u64,
        24 => mcg_status: u64,
        32 => bank: u8,
        33 => pad1: [u8; 7],
        40 => pad2: [u64; 3],
    }

    /// KVM_TPR_ACCESS_REPORTING.
    struct kvm_tpr_access_ctl: 40 {
        0 => enabled: u32,
        4 => flags: u32,
        8 => reserved: [u32; 8],
    }

    /// The header of KVM_GET/SET_NESTED_STATE; what follows it is for a vCPU that runs a guest of its own.
    struct kvm_nested_state: 128 {
        0 => flags: u16,
        2 => format: u16,
        4 => size: u32,
        8 => hdr: [u64; 15],
    }

    /// KVM_SET_VAPIC_ADDR.
    struct kvm_vapic_addr: 8 {
        0 => vapic_addr: u64,
    }
}

/// Bits of `kvm_vcpu_events.flags`.
pub mod vcpuevent {
    #![allow(missing_docs)]
    pub const VALID_NMI_PENDING: u32 = 0x01;
    pub const VALID_SIPI_VECTOR: u32 = 0x02;
    pub const VALID_SHADOW: u32 = 0x04;
    pub const VALID_SMM: u32 = 0x08;
    pub const VALID_PAYLOAD: u32 = 0x10;
    pub const VALID_TRIPLE_FAULT: u32 = 0x20;
    pub const ALL: u32 = 0x3f;
}

/// `kvm_nested_state.flags`: global interrupts are on (APM 15.17).
pub const KVM_STATE_NESTED_GIF_SET: u16 = 0x100;
/// `kvm_nested_state.format`.
pub const KVM_STATE_NESTED_FORMAT_SVM: u16 = 1;

/// `kvm_guest_debug.control` bits that exist on x86 (KVM_CAP_SET_GUEST_DEBUG2): ENABLE, SINGLESTEP, USE_SW_BP,
/// USE_HW_BP, INJECT_DB, INJECT_BP, BLOCKIRQ.
pub const KVM_GUESTDBG_VALID_MASK: u32 = 0x1f_0003;
