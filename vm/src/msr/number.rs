//! MSR numbers and bits that only this module knows, beside those of [`arch::msr`] (APM appendix A, Intel SDM volume
//! 4).

pub const P5_MC_ADDR: u32 = 0;
pub const P5_MC_TYPE: u32 = 1;
/// Pentium 4 clock ratios; old kernels ask for it.
pub const EBC_FREQUENCY_ID: u32 = 0x2c;
pub const P6_PERFCTR0: u32 = 0xc1;
pub const P6_PERFCTR1: u32 = 0xc2;
pub const FSB_FREQ: u32 = 0xcd;
pub const P6_EVNTSEL0: u32 = 0x186;
pub const P6_EVNTSEL1: u32 = 0x187;
pub const PERF_CTL: u32 = 0x199;
pub const POWER_CTL: u32 = 0x1fc;
pub const MTRR_LAST_VARIABLE: u32 = 0x20f;
pub const RAPL_POWER_UNIT: u32 = 0x606;
pub const PKG_ENERGY_STATUS: u32 = 0x611;
pub const DRAM_ENERGY_STATUS: u32 = 0x619;
pub const PP0_ENERGY_STATUS: u32 = 0x639;
pub const PP1_ENERGY_STATUS: u32 = 0x641;
pub const K7_PERFCTR3: u32 = 0xc001_0007;
pub const K7_CLK_CTL: u32 = 0xc001_001b;
pub const INT_PENDING_MSG: u32 = 0xc001_0055;
pub const MMIO_CONF_BASE: u32 = 0xc001_0058;
pub const TSEG_ADDR: u32 = 0xc001_0112;
pub const TSEG_MASK: u32 = 0xc001_0113;
pub const TW_CFG: u32 = 0xc001_1023;
pub const EX_CFG: u32 = 0xc001_102c;

/// SPEC_CTRL bits: IBRS, STIBP, SSBD, PSFD.
pub const SPEC_CTRL_IBRS: u64 = 1;
pub const SPEC_CTRL_STIBP: u64 = 1 << 1;
pub const SPEC_CTRL_SSBD: u64 = 1 << 2;
pub const SPEC_CTRL_PSFD: u64 = 1 << 7;
/// PRED_CMD bits.
pub const PRED_CMD_IBPB: u64 = 1;
pub const PRED_CMD_SBPB: u64 = 1 << 7;
/// FLUSH_CMD: the L1 data cache.
pub const FLUSH_CMD_L1D: u64 = 1;
/// DE_CFG: LFENCE serializes.
pub const DE_CFG_LFENCE: u64 = 1 << 1;
/// MISC_ENABLE: read-only for software (EMON), and absence of BTS and PEBS, which is fixed.
pub const MISC_ENABLE_EMON: u64 = 1 << 7;
pub const MISC_ENABLE_NO_BTS_PEBS: u64 = 1 << 11 | 1 << 12;
pub const MISC_ENABLE_MWAIT: u64 = 1 << 18;
/// PLATFORM_INFO and MISC_FEATURES_ENABLES: CPUID faulting.
pub const PLATFORM_INFO_CPUID_FAULT: u64 = 1 << 31;
pub const FEATURES_CPUID_FAULT: u64 = 1;
/// TSC_RATIO for 1:1 (8.32 fixed point).
pub const TSC_RATIO_DEFAULT: u64 = 1 << 32;
/// HWCR bits.
pub const HWCR_TLB_CACHE_DIS: u64 = 1 << 3;
pub const HWCR_FF_DIS: u64 = 1 << 6;
pub const HWCR_IGNNE_EM: u64 = 1 << 8;
pub const HWCR_MCI_STATUS_WR_EN: u64 = 1 << 18;
pub const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// VM_CR: LOCK and SVMDIS, and the bits that exist.
pub const VM_CR_LOCKED: u64 = 1 << 3 | 1 << 4;
pub const VM_CR_VALID: u64 = 0x1f;
