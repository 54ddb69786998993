//! CPUID leaf numbers and feature bits (APM volume 3, appendix E).

/// Leaf of KVM signature and features (KVM API document, "KVM CPUID bits").
pub const KVM_SIGNATURE: u32 = 0x4000_0000;
/// Leaf of the KVM paravirtual features.
pub const KVM_FEATURES: u32 = 0x4000_0001;
