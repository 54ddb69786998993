//! MSRs that are plain values of one vCPU.

use super::number::*;
use super::{Mce, Mtrr};
use crate::cpuid::{Caps, Feature, HostInfo};
use arch::msr;
use arch::smram::SMBASE_RESET;
use host::Errno;

/// PAT after reset (APM 7.8.1).
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// Microcode patch level of an AMD guest until user space says otherwise, as stock has it.
const PATCH_LEVEL: u64 = 0x0100_0065;

/// MSRs of one vCPU that live nowhere else.
#[derive(Clone, Debug)]
pub struct MsrState {
    /// The vCPU's number, for the log.
    pub vcpu_id: u32,
    /// PAT, which the processor has in the save area: a shutdown leaves nothing there.
    pub pat: u64,
    /// TSC_ADJUST.
    pub tsc_adjust: u64,
    /// MISC_ENABLE.
    pub misc_enable: u64,
    /// MISC_FEATURES_ENABLES.
    pub misc_features: u64,
    /// PLATFORM_INFO.
    pub platform_info: u64,
    /// Microcode patch level.
    pub patch_level: u64,
    /// ARCH_CAPABILITIES.
    pub arch_capabilities: u64,
    /// POWER_CTL.
    pub power_ctl: u64,
    /// DE_CFG, and the bits of it that may be set.
    pub de_cfg: u64,
    /// See `de_cfg`.
    pub de_cfg_supported: u64,
    /// HWCR.
    pub hwcr: u64,
    /// VM_CR.
    pub vm_cr: u64,
    /// VM_HSAVE_PA.
    pub hsave_pa: u64,
    /// SPEC_CTRL bits that the processor has.
    pub spec_ctrl_supported: u64,
    /// SPEC_CTRL is virtualised in the VMCB.
    pub spec_ctrl_virtual: bool,
    /// PRED_CMD bits that the processor has.
    pub pred_cmd_supported: u64,
    /// TSC_AUX exists.
    pub has_tsc_aux: bool,
    /// OSVW_ID_LENGTH and OSVW_STATUS.
    pub osvw: (u64, u64),
    /// SMBASE: where the handler of SMIs is, and the state that it interrupts. User space's to set, and RSM's.
    pub smbase: u64,
    /// SMI_COUNT: SMIs taken since reset.
    pub smi_count: u64,
    /// KVM_CAP_ENFORCE_PV_FEATURE_CPUID: paravirtual MSRs exist only for a guest that was shown them.
    pub enforce_pv: bool,
    /// KVM_STEAL_TIME.
    pub steal_time: u64,
    /// KVM_PV_EOI_EN.
    pub pv_eoi: u64,
    /// KVM_ASYNC_PF_EN.
    pub async_pf: u64,
    /// KVM_ASYNC_PF_INT: the vector that says that a page is ready.
    pub async_pf_vector: u8,
    /// The kernel accounts how long threads wait.
    pub has_steal_time: bool,
    /// KVM_POLL_CONTROL.
    pub poll_control: u64,
    /// High halves of SYSENTER_ESP and SYSENTER_EIP: the processor keeps 32 bits, Intel's keep 64.
    pub sysenter_high: (u32, u32),
    /// Memory types, which nested paging ignores.
    pub mtrr: Mtrr,
    /// Machine check.
    pub mce: Mce,
    pub(super) spec_ctrl_used: bool,
}

::state::state! {
    // What is left out the processor, its save area and the kernel say.
    place MsrState {
        vcpu_id, tsc_adjust, misc_enable, misc_features, platform_info, patch_level, arch_capabilities, power_ctl, de_cfg, hwcr,
        vm_cr, hsave_pa, osvw, smbase, smi_count, enforce_pv, steal_time, pv_eoi, async_pf, async_pf_vector, poll_control, sysenter_high,
        mtrr, mce, spec_ctrl_used;
        not pat, de_cfg_supported, spec_ctrl_supported, spec_ctrl_virtual, pred_cmd_supported, has_tsc_aux, has_steal_time
    }
}

impl MsrState {
    /// MISC_ENABLE bit 18.
    pub(crate) fn shows_mwait(&self) -> bool {
        self.misc_enable & MISC_ENABLE_MWAIT != 0
    }

    /// Does the host look around for the guest before it sleeps in HLT (KVM_POLL_CONTROL)?
    pub(crate) fn polls_for_halt(&self) -> bool {
        self.poll_control & 1 != 0
    }

    /// Values of a new vCPU.
    pub fn new(host: &impl HostInfo, caps: &Caps) -> Self {
        let bit = |f, mask| if caps.has(f) { mask } else { 0 };
        let de_cfg_supported = super::list::de_cfg(caps);
        Self {
            vcpu_id: 0,
            pat: PAT_RESET,
            tsc_adjust: 0,
            misc_enable: MISC_ENABLE_NO_BTS_PEBS,
            misc_features: 0,
            platform_info: PLATFORM_INFO_CPUID_FAULT,
            patch_level: PATCH_LEVEL,
            arch_capabilities: super::list::arch_capabilities(caps),
            power_ctl: 0,
            de_cfg: 0,
            de_cfg_supported,
            hwcr: 0,
            vm_cr: 0,
            hsave_pa: 0,
            spec_ctrl_supported: bit(Feature::AMD_IBRS, SPEC_CTRL_IBRS)
                | bit(Feature::AMD_STIBP, SPEC_CTRL_STIBP)
                | bit(Feature::AMD_SSBD, SPEC_CTRL_SSBD)
                | bit(Feature::AMD_PSFD, SPEC_CTRL_PSFD),
            spec_ctrl_virtual: host.switch_features().v_spec_ctrl,
            pred_cmd_supported: bit(Feature::AMD_IBPB, PRED_CMD_IBPB) | bit(Feature::SBPB, PRED_CMD_SBPB),
            has_tsc_aux: host.switch_features().tsc_aux,
            osvw: osvw(host, caps.has(Feature::OSVW)),
            smbase: SMBASE_RESET.into(),
            smi_count: 0,
            enforce_pv: false,
            steal_time: 0,
            pv_eoi: 0,
            async_pf: 0,
            async_pf_vector: 0,
            has_steal_time: host.steal_time(),
            poll_control: 1,
            sysenter_high: (0, 0),
            mtrr: Mtrr::default(),
            mce: Mce::default(),
            spec_ctrl_used: false,
        }
    }

    /// RESET (power-on, not INIT), as far as stock resets MSRs: the rest is user space's.
    pub fn reset(&mut self) {
        self.pat = PAT_RESET;
        self.misc_enable = MISC_ENABLE_NO_BTS_PEBS;
        self.misc_features = 0;
        self.sysenter_high = (0, 0);
        self.smbase = SMBASE_RESET.into();
    }

    /// Does CPUID fault outside of CPL 0?
    #[inline]
    pub fn cpuid_faulting(&self) -> bool {
        self.misc_features & FEATURES_CPUID_FAULT != 0
    }

    /// Has SPEC_CTRL ever been nonzero? From then on the guest reaches it without an exit.
    pub fn spec_ctrl_used(&self) -> bool {
        self.spec_ctrl_used
    }

    /// KVM_X86_SETUP_MCE. Errors: EINVAL.
    pub fn setup_mce(&mut self, mcg_cap: u64) -> Result<(), Errno> {
        self.mce.setup(mcg_cap)
    }
}

/// OS-visible workarounds (APM appendix A), length and status. Bits 1 and 2 are errata of HLT and port I/O, which do not
/// reach a guest whose HLT and ports are intercepted: known (a length of at least 3) and absent.
fn osvw(host: &impl HostInfo, has: bool) -> (u64, u64) {
    let read = |n| host.describing_msr(n);
    let (length, status) = match (has, read(msr::OSVW_ID_LENGTH), read(msr::OSVW_STATUS)) {
        (true, Some(length), Some(status)) => (length.min(64), status),
        _ => (0, 0),
    };
    (length.max(3), status & !6)
}
