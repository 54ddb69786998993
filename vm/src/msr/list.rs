//! Which MSRs KVM_GET_MSR_INDEX_LIST and KVM_GET_MSR_FEATURE_INDEX_LIST name (KVM API document 4.3).

use super::number::{DE_CFG_LFENCE, PLATFORM_INFO_CPUID_FAULT, POWER_CTL};
use crate::cpuid::{Caps, Feature, HostInfo};
use arch::msr::*;
use host::linux_version;

/// Guest state that the processor has, too; named where the host can read it.
const SAVED: [u32; 19] = [
    SYSENTER_CS,
    SYSENTER_ESP,
    SYSENTER_EIP,
    STAR,
    CSTAR,
    KERNEL_GS_BASE,
    SYSCALL_MASK,
    LSTAR,
    TSC,
    PAT,
    VM_HSAVE_PA,
    TSC_AUX,
    SPEC_CTRL,
    FEAT_CTL,
    DEBUGCTL,
    LASTBRANCH_FROM,
    LASTBRANCH_TO,
    LASTINT_FROM,
    LASTINT_TO,
];

/// Those of them that not every processor has.
const PROBED: [u32; 6] = [FEAT_CTL, DEBUGCTL, LASTBRANCH_FROM, LASTBRANCH_TO, LASTINT_FROM, LASTINT_TO];

/// The clock, which exists whatever the processor has. Hyper-V's registers are named behind these.
const CLOCK: [u32; 4] = [KVM_WALL_CLOCK, KVM_SYSTEM_TIME, KVM_WALL_CLOCK_NEW, KVM_SYSTEM_TIME_NEW];

/// Other guest state that exists whatever the processor has.
const EMULATED: [u32; 22] = [
    TSC_ADJUST,
    TSC_DEADLINE,
    ARCH_CAPABILITIES,
    MISC_ENABLE,
    MCG_STATUS,
    MCG_CTL,
    PLATFORM_INFO,
    MISC_FEATURES_ENABLES,
    VIRT_SPEC_CTRL,
    TSC_RATIO,
    POWER_CTL,
    BIOS_SIGN_ID,
    KVM_POLL_CONTROL,
    HWCR,
    KVM_STEAL_TIME,
    KVM_PV_EOI_EN,
    KVM_ASYNC_PF_EN,
    KVM_ASYNC_PF_INT,
    KVM_ASYNC_PF_ACK,
    SMBASE,
    SMI_COUNT,
    PERF_CAPABILITIES,
];

/// MSRs that describe the processor, for KVM_GET_MSRS on /dev/kvm.
const FEATURES: [u32; 5] = [DE_CFG, BIOS_SIGN_ID, ARCH_CAPABILITIES, PERF_CAPABILITIES, PLATFORM_INFO];

/// Before Linux 6.13 PLATFORM_INFO is guest state like other.
fn is_feature(msr: u32, linux: u32) -> bool {
    FEATURES.contains(&msr) && (msr != PLATFORM_INFO || linux >= linux_version(6, 13))
}

/// What ARCH_CAPABILITIES says by default: none of Intel's leaks (RDCL_NO, MDS_NO, GDS_NO, RFDS_NO, ITS_NO), no flush of
/// the L1D at nested entry needed, no machine check by changing a page's size; and SSB_NO where the processor does not leak so.
pub(super) fn arch_capabilities(caps: &Caps) -> u64 {
    let ssb_no = u64::from(caps.has(Feature::AMD_SSB_NO)) << 4;
    1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 26 | 1 << 27 | 1 << 62 | ssb_no
}

/// MSRs that user space saves and restores, in this order: to restore HV_X64_MSR_VP_ASSIST_PAGE, which is zero of a guest that is none
/// of Hyper-V's, switches KVM_PV_EOI_EN off, so that this one has to come behind it.
pub fn msr_index_list(host: &impl HostInfo, each: &mut impl FnMut(u32)) {
    let switch = host.switch_features();
    for msr in SAVED {
        let exists = match msr {
            TSC_AUX => switch.tsc_aux,
            SPEC_CTRL => switch.spec_ctrl || host.describing_msr(msr).is_some(),
            _ => !PROBED.contains(&msr) || host.describing_msr(msr).is_some(),
        };
        if exists {
            each(msr);
        }
    }
    CLOCK.into_iter().chain(crate::hyperv::SAVED).chain(EMULATED).for_each(each);
}

/// Is it one that [`msr_index_list`] names? TSC_AUX and SPEC_CTRL are known always, so that nobody asks for them.
/// `has`: can the processor's be read?
pub(super) fn is_advertised(msr: u32, has: impl FnOnce() -> bool) -> bool {
    CLOCK.contains(&msr) || EMULATED.contains(&msr) || SAVED.contains(&msr) && (!PROBED.contains(&msr) || has())
}

/// Does it describe the processor, so that it is fixed once the vCPU has run? The microcode's revision may change under a
/// running guest, and a range is VMX's. `linux`: [`HostInfo::linux_version`].
pub fn is_fixed_once_run(msr: u32, linux: u32) -> bool {
    msr != BIOS_SIGN_ID && is_feature(msr, linux) || matches!(msr, 0x480..=0x491)
}

/// MSRs of which [`feature_msr`] knows a value.
pub fn feature_index_list(host: &impl HostInfo, each: &mut impl FnMut(u32)) {
    FEATURES.into_iter().filter(|&msr| feature_msr(host, msr).is_some()).for_each(each);
}

/// What can be offered in a describing MSR; None if it is none, or the host has none.
pub fn feature_msr(host: &impl HostInfo, msr: u32) -> Option<u64> {
    match msr {
        _ if !is_feature(msr, host.linux_version()) => None,
        DE_CFG => Some(de_cfg(&Caps::new(host))),
        BIOS_SIGN_ID => host.describing_msr(BIOS_SIGN_ID),
        ARCH_CAPABILITIES => Some(arch_capabilities(&Caps::new(host))),
        // No performance monitoring.
        PERF_CAPABILITIES => Some(0),
        PLATFORM_INFO => Some(PLATFORM_INFO_CPUID_FAULT),
        _ => None,
    }
}

/// DE_CFG bits that a guest may set: LFENCE serializes if the host's does.
pub(super) fn de_cfg(caps: &Caps) -> u64 {
    if caps.has(Feature::LFENCE_RDTSC) { DE_CFG_LFENCE } else { 0 }
}
