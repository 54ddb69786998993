//! The structs, numbers and flags that user space and KVM share (KVM API document; `include/uapi/linux/kvm.h` and
//! `arch/x86/include/uapi/asm/kvm.h` of the kernel, whose names are kept).
#![allow(non_camel_case_types)]

pub mod cap;
mod cpuid;
mod events;
pub mod ioctl;
mod irq;
mod memory;
mod misc;
mod regs;
pub mod run;

pub use cpuid::*;
pub use events::*;
pub use irq::*;
pub use memory::*;
pub use misc::*;
pub use regs::*;

/// A struct's layout as this crate has it.
pub struct Layout {
    /// The C tag.
    pub name: &'static str,
    /// `sizeof`, without a flexible array at the end.
    pub size: usize,
    /// Fields and their offsets. Fields of unions and anonymous structs carry names of ours.
    pub fields: &'static [(&'static str, usize)],
}

/// All layouts, to be compared with the kernel's headers where the module is built.
pub const LAYOUTS: &[Layout] = &[
    kvm_regs::LAYOUT,
    kvm_segment::LAYOUT,
    kvm_dtable::LAYOUT,
    kvm_sregs::LAYOUT,
    kvm_sregs2::LAYOUT,
    kvm_fpu::LAYOUT,
    kvm_lapic_state::LAYOUT,
    kvm_xcr::LAYOUT,
    kvm_xcrs::LAYOUT,
    kvm_debugregs::LAYOUT,
    kvm_mp_state::LAYOUT,
    kvm_vcpu_events::LAYOUT,
    kvm_guest_debug::LAYOUT,
    kvm_translation::LAYOUT,
    kvm_interrupt::LAYOUT,
    kvm_x86_mce::LAYOUT,
    kvm_tpr_access_ctl::LAYOUT,
    kvm_vapic_addr::LAYOUT,
    kvm_nested_state::LAYOUT,
    kvm_cpuid_entry::LAYOUT,
    kvm_cpuid_entry2::LAYOUT,
    kvm_cpuid::LAYOUT,
    kvm_cpuid2::LAYOUT,
    kvm_msr_entry::LAYOUT,
    kvm_msrs::LAYOUT,
    kvm_msr_list::LAYOUT,
    kvm_msr_filter_range::LAYOUT,
    kvm_msr_filter::LAYOUT,
    kvm_userspace_memory_region::LAYOUT,
    kvm_userspace_memory_region2::LAYOUT,
    kvm_pre_fault_memory::LAYOUT,
    kvm_dirty_log::LAYOUT,
    kvm_stats_header::LAYOUT,
    kvm_stats_desc::LAYOUT,
    kvm_clear_dirty_log::LAYOUT,
    kvm_irqfd::LAYOUT,
    kvm_ioeventfd::LAYOUT,
    kvm_hyperv_eventfd::LAYOUT,
    kvm_msi::LAYOUT,
    kvm_irq_routing::LAYOUT,
    kvm_clock_data::LAYOUT,
    kvm_enable_cap::LAYOUT,
    kvm_device_attr::LAYOUT,
    kvm_create_device::LAYOUT,
    kvm_signal_mask::LAYOUT,
];
