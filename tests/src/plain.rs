//! Structs of the KVM API as bytes, as they lie in a VMM's memory.

use kvm_bindings::*;

/// A C struct of integers.
///
/// # Safety
/// Any bytes are a value, and there is no padding that the compiler inserted.
pub unsafe trait Plain: Copy {
    /// Its image.
    fn bytes(&self) -> Vec<u8> {
        let at = core::ptr::from_ref(self).cast::<u8>();
        // SAFETY: the struct is that many bytes long, all of them initialised because there is no padding.
        unsafe { core::slice::from_raw_parts(at, size_of::<Self>()) }.to_vec()
    }

    /// From its image. Panics if that is too short.
    fn from_bytes(bytes: &[u8]) -> Self {
        assert!(bytes.len() >= size_of::<Self>());
        // SAFETY: there are enough bytes, and any bytes are a value.
        unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() }
    }
}

macro_rules! plain {
    ($($t:ty)*) => {$(
        // SAFETY: integers, or a struct of the kernel's API whose padding is written out.
        unsafe impl Plain for $t {}
    )*};
}
plain! {
    u8 u32 u64 i32
    kvm_regs kvm_sregs kvm_sregs2 kvm_fpu kvm_debugregs kvm_vcpu_events kvm_mp_state kvm_xcrs kvm_lapic_state
    kvm_guest_debug kvm_translation kvm_interrupt kvm_cpuid_entry2 kvm_msr_entry
    kvm_userspace_memory_region kvm_dirty_log kvm_clear_dirty_log kvm_clock_data kvm_enable_cap kvm_msi kvm_ioeventfd
    kvm_hyperv_eventfd kvm_irqfd kvm_irq_level kvm_irq_routing_entry kvm_device_attr kvm_create_device kvm_irqchip kvm_pit_config
    kvm_reinject_control kvm_coalesced_mmio_zone
}

// SAFETY: the elements have no padding, and an array adds none.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// `struct kvm_msr_filter_range`, padding written out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MsrFilterRange {
    /// KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE.
    pub flags: u32,
    /// Number of MSRs.
    pub nmsrs: u32,
    /// The first.
    pub base: u32,
    /// Padding.
    pub pad: u32,
    /// Address of a bit per MSR; 1 allows.
    pub bitmap: u64,
}

/// `struct kvm_msr_filter`, padding written out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MsrFilter {
    /// KVM_MSR_FILTER_DEFAULT_DENY.
    pub flags: u32,
    /// Padding.
    pub pad: u32,
    /// Those with `nmsrs` 0 do not count.
    pub ranges: [MsrFilterRange; 16],
}

const _: () = assert!(size_of::<MsrFilter>() == size_of::<kvm_msr_filter>());
plain! { MsrFilterRange MsrFilter }
