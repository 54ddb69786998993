//! Register structs (KVM API document 4.11 to 4.14, 4.22, 4.23, 4.38, 4.42 to 4.48, 4.134).

use crate::codec::abi;

abi! {
    /// KVM_GET/SET_REGS.
    struct kvm_regs: 144 {
        0 => rax: u64,
        8 => rbx: u64,
        16 => rcx: u64,
        24 => rdx: u64,
        32 => rsi: u64,
        40 => rdi: u64,
        48 => rsp: u64,
        56 => rbp: u64,
        64 => r8: u64,
        72 => r9: u64,
        80 => r10: u64,
        88 => r11: u64,
        96 => r12: u64,
        104 => r13: u64,
        112 => r14: u64,
        120 => r15: u64,
        128 => rip: u64,
        136 => rflags: u64,
    }

    /// One segment register.
    struct kvm_segment: 24 {
        0 => base: u64,
        8 => limit: u32,
        12 => selector: u16,
        14 => type_: u8,
        15 => present: u8,
        16 => dpl: u8,
        17 => db: u8,
        18 => s: u8,
        19 => l: u8,
        20 => g: u8,
        21 => avl: u8,
        22 => unusable: u8,
        23 => padding: u8,
    }

    /// GDTR or IDTR.
    struct kvm_dtable: 16 {
        0 => base: u64,
        8 => limit: u16,
        10 => padding: [u16; 3],
    }

    /// KVM_GET/SET_FPU.
    struct kvm_fpu: 416 {
        0 => fpr: [[u8; 16]; 8],
        128 => fcw: u16,
        130 => fsw: u16,
        132 => ftwx: u8,
        133 => pad1: u8,
        134 => last_opcode: u16,
        136 => last_ip: u64,
        144 => last_dp: u64,
        152 => xmm: [[u8; 16]; 16],
        408 => mxcsr: u32,
        412 => pad2: u32,
    }

    /// KVM_GET/SET_LAPIC.
    struct kvm_lapic_state: 1024 {
        0 => regs: [u8; 1024],
    }

    /// One extended control register.
    struct kvm_xcr: 16 {
        0 => xcr: u32,
        4 => reserved: u32,
        8 => value: u64,
    }

    /// KVM_GET/SET_XCRS.
    struct kvm_xcrs: 392 {
        0 => nr_xcrs: u32,
        4 => flags: u32,
        8 => xcrs: [kvm_xcr; 16],
        264 => padding: [u64; 16],
    }

    /// KVM_GET/SET_DEBUGREGS.
    struct kvm_debugregs: 128 {
        0 => db: [u64; 4],
        32 => dr6: u64,
        40 => dr7: u64,
        48 => flags: u64,
        56 => reserved: [u64; 9],
    }

    /// KVM_TRANSLATE.
    struct kvm_translation: 24 {
        0 => linear_address: u64,
        8 => physical_address: u64,
        16 => valid: u8,
        17 => writeable: u8,
        18 => usermode: u8,
        19 => pad: [u8; 5],
    }
}

/// The special registers, which two structs begin with.
macro_rules! special {
    ($($(#[$m:meta])* $name:ident: $size:literal { $($rest:tt)* })*) => {
        abi! {
            $($(#[$m])*
            struct $name: $size {
                0 => cs: kvm_segment,
                24 => ds: kvm_segment,
                48 => es: kvm_segment,
                72 => fs: kvm_segment,
                96 => gs: kvm_segment,
                120 => ss: kvm_segment,
                144 => tr: kvm_segment,
                168 => ldt: kvm_segment,
                192 => gdt: kvm_dtable,
                208 => idt: kvm_dtable,
                224 => cr0: u64,
                232 => cr2: u64,
                240 => cr3: u64,
                248 => cr4: u64,
                256 => cr8: u64,
                264 => efer: u64,
                272 => apic_base: u64,
                $($rest)*
            })*
        }
    };
}
special! {
    /// KVM_GET/SET_SREGS.
    kvm_sregs: 312 {
        280 => interrupt_bitmap: [u64; 4],
    }

    /// KVM_GET/SET_SREGS2.
    kvm_sregs2: 320 {
        280 => flags: u64,
        288 => pdptrs: [u64; 4],
    }
}

/// `kvm_sregs2.flags`: `pdptrs` is valid.
pub const KVM_SREGS2_FLAGS_PDPTRS_VALID: u64 = 1;
