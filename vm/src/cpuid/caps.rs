//! What this hypervisor can offer on this host: one mask per feature word.

use super::feature::{Feature, Word};
use super::supported::EXTENDED_2;
use super::{HostInfo, XstateTable};
use arch::cr::Xcr0;
use host::linux_version;

/// Feature words after the hypervisor's own limits, and the XSAVE layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    words: [u32; Word::ALL.len()],
    xcr0: u64,
    xstate: XstateTable,
    max_basic: u32,
    max_extended: u32,
    linux_version: u32,
}

const fn bits(list: &[u8]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < list.len() {
        // INDEX: a constant of ours.
        mask |= 1 << list[i];
        i += 1;
    }
    mask
}

/// State components that a guest may enable: those with nothing but registers behind them. AMX would need XFD, MPX is
/// gone.
const GUEST_XCR0: u64 = 0x2e7;

/// Features that need nothing but the processor, plus those that the world switch or the code here takes care of.
/// What is left out: SVM, monitor/mwait, performance counters, debug store, power management, SGX, PT, MPX, AMX,
/// LWP, IBS, bus-lock detection, memory encryption.
const fn passed(word: Word) -> u32 {
    match word {
        // SSE3 PCLMULQDQ SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 X2APIC MOVBE POPCNT AES XSAVE AVX F16C RDRAND
        Word::F1Ecx => bits(&[0, 1, 9, 12, 13, 17, 19, 20, 21, 22, 23, 25, 26, 28, 29, 30]),
        // FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFLUSH MMX FXSR SSE SSE2 SS
        Word::F1Edx => bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 27]),
        // FSGSBASE BMI1 HLE AVX2 FDP_EXCPTN SMEP BMI2 ERMS INVPCID RTM ZERO_FCS_FDS AVX512F,DQ RDSEED ADX SMAP
        // AVX512IFMA CLFLUSHOPT CLWB AVX512PF,ER,CD SHA AVX512BW,VL
        Word::F7Ebx => {
            bits(&[0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 16, 17, 18, 19, 20, 21, 23, 24, 26, 27, 28, 29, 30, 31])
        }
        // AVX512VBMI UMIP PKU VBMI2 GFNI VAES VPCLMULQDQ VNNI BITALG VPOPCNTDQ LA57 RDPID CLDEMOTE MOVDIRI MOVDIR64B
        Word::F7Ecx => bits(&[1, 2, 3, 6, 8, 9, 10, 11, 12, 14, 16, 22, 25, 27, 28]),
        // AVX512_4VNNIW AVX512_4FMAPS FSRM VP2INTERSECT SERIALIZE TSXLDTRK AVX512_FP16 FLUSH_L1D. The rest is set below.
        Word::F7Edx => bits(&[2, 3, 4, 8, 14, 16, 23, 28]),
        // SHA512 SM3 SM4 AVX_VNNI AVX512_BF16 CMPCCXADD FZRM FSRS FSRC AVX_IFMA
        Word::F71Eax => bits(&[0, 1, 2, 4, 5, 7, 10, 11, 12, 23]),
        // AVX_VNNI_INT8 AVX_NE_CONVERT AVX_VNNI_INT16 PREFETCHITI
        Word::F71Edx => bits(&[4, 5, 10, 14]),
        // XSAVEOPT XSAVEC XGETBV(1) XSAVES
        Word::Fd1Eax => bits(&[0, 1, 2, 3]),
        // LAHF CmpLegacy AltMovCr8 ABM SSE4A MisAlignSse 3DNowPrefetch OSVW XOP FMA4 TBM TopologyExtensions
        Word::X1Ecx => bits(&[0, 1, 4, 5, 6, 7, 8, 9, 11, 16, 21, 22]),
        // As F1Edx, with SYSCALL NX MMXEXT FFXSR Page1GB RDTSCP LM 3DNowExt 3DNow
        Word::X1Edx => {
            bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 20, 22, 23, 24, 25, 26, 27, 29, 30, 31])
        }
        // TscInvariant
        Word::X7Edx => bits(&[8]),
        // CLZERO RstrFpErrPtrs WBNOINVD IBPB IBRS STIBP STIBP_ALWAYS_ON IBRS_SAME_MODE EFER_LMSLE_MBZ SSBD
        // SsbdNotRequired PSFD IBPB_RET
        Word::X8Ebx => bits(&[0, 2, 9, 12, 14, 15, 17, 19, 20, 24, 26, 28, 30]),
        // NoNestedDataBp WRMSR_XX_BASE_NS LFenceAlwaysSerializing VERW_CLEAR NullSelectorClearsBase AutomaticIBRS
        // PREFETCHI AVX512_BMM SBPB IBPB_BRTYPE SRSO_NO SRSO_USER_KERNEL_NO
        Word::X21Eax => bits(&[0, 1, 2, 5, 6, 8, 20, 23, 27, 28, 29, 30]),
        // TSA_SQ_NO TSA_L1_NO TSA_FILL_NO
        Word::X21Ecx => bits(&[1, 2, 7]),
    }
}

impl Caps {
    /// Looks at the host.
    pub fn new(host: &impl HostInfo) -> Self {
        let xcr0 = guest_xcr0(host.xcr0());
        let [max_basic, ..] = host.leaf(0, 0);
        let [max_extended, ..] = host.leaf(0x8000_0000, 0);
        let (words, xstate) = ([0; Word::ALL.len()], XstateTable::new(host, xcr0));
        let mut caps = Self { words, xcr0, xstate, max_basic, max_extended, linux_version: host.linux_version() };
        for (cap, word) in caps.words.iter_mut().zip(Word::ALL) {
            let (function, index, register) = word.place();
            let known = match function {
                // The host's kernel may know of it what the processor does not say.
                EXTENDED_2 => true,
                0x8000_0000.. => function <= max_extended,
                _ => function <= max_basic,
            };
            if known {
                // INDEX: a constant of ours.
                *cap = host.leaf(function, index).get(register).copied().unwrap_or(0) & passed(word);
            }
        }
        caps.limit(host);
        caps
    }

    /// Whose KVM's interface it is ([`host::Host::linux_version`]).
    pub fn linux_version(&self) -> u32 {
        self.linux_version
    }

    /// Adds what is emulated and takes away what hangs on something that the host or the world switch lacks.
    fn limit(&mut self, host: &impl HostInfo) {
        let switch = host.switch_features();
        for f in [Feature::X2APIC, Feature::TSC_DEADLINE, Feature::HYPERVISOR, Feature::TSC_ADJUST] {
            self.set(f, true);
        }
        self.set(Feature::ARCH_CAPABILITIES, true);
        self.set(Feature::NO_SMM_CTL_MSR, true);
        if self.xcr0 == 0 {
            self.set(Feature::XSAVE, false);
        }
        if !self.has(Feature::XSAVE) {
            self.xcr0 = 0;
            self.set_word(Word::Fd1Eax, 0);
        }
        let [_, _, host_7_ecx, _] = host.leaf(7, 0);
        if host_7_ecx >> Feature::OSPKE.1 & 1 == 0 {
            self.set(Feature::PKU, false);
        }
        if !switch.tsc_aux {
            self.set(Feature::RDTSCP, false);
            self.set(Feature::RDPID, false);
        }
        if !switch.spec_ctrl {
            for f in [Feature::AMD_IBRS, Feature::AMD_STIBP, Feature::AMD_STIBP_ALWAYS_ON, Feature::AMD_SSBD] {
                self.set(f, false);
            }
            self.set(Feature::AMD_PSFD, false);
        }
        self.set(Feature::VIRT_SSBD, switch.virt_ssbd || self.has(Feature::AMD_SSBD));
        // Intel's names for the same controls, for guests that were started on Intel's model names. Intel's barrier
        // takes predicted returns, too, which Linux minds from 6.13 on.
        let as_intels = self.has(Feature::AMD_IBPB_RET) || self.linux_version < linux_version(6, 13);
        self.set(Feature::SPEC_CTRL, as_intels && self.has(Feature::AMD_IBPB) && self.has(Feature::AMD_IBRS));
        self.set(Feature::INTEL_STIBP, self.has(Feature::AMD_STIBP));
        self.set(Feature::SPEC_CTRL_SSBD, self.has(Feature::AMD_SSBD));
        // The kernel makes LFENCE serializing on every processor with SSE2; Zen 2 clears bases of null segments
        // without saying so. Under another hypervisor, silence means that some host of its pool does not.
        self.set(Feature::LFENCE_RDTSC, self.word(Word::F1Edx) >> 26 & 1 != 0);
        let [signature, _, features, _] = host.leaf(1, 0);
        // Processors from before the leak (K8 to Llano) say nothing of it either.
        if matches!(family(signature), 0xf..=0x12) {
            self.set(Feature::AMD_SSB_NO, true);
        }
        if family(signature) == 0x17 && model(signature) >= 0x30 && features >> 31 == 0 {
            self.set(Feature::NULL_SEL_CLR_BASE, true);
        }
    }

    fn set_word(&mut self, word: Word, value: u32) {
        // INDEX: as many words as `Word` has values.
        if let Some(w) = self.words.get_mut(word as usize) {
            *w = value;
        }
    }

    fn set(&mut self, f: Feature, on: bool) {
        let (w, bit) = (self.word(f.0), 1 << (f.1 & 31));
        self.set_word(f.0, if on { w | bit } else { w & !bit });
    }

    /// The bits of one word.
    pub fn word(&self, word: Word) -> u32 {
        // INDEX: as many words as `Word` has values.
        self.words.get(word as usize).copied().unwrap_or(0)
    }

    /// Is the feature offered?
    pub fn has(&self, f: Feature) -> bool {
        self.word(f.0) >> (f.1 & 31) & 1 != 0
    }

    /// State components that a guest may enable; 0 without XSAVE.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Sizes of the state components.
    pub fn xstate(&self) -> &XstateTable {
        &self.xstate
    }

    /// Highest basic and highest extended function of the host.
    pub fn limits(&self) -> (u32, u32) {
        (self.max_basic, self.max_extended)
    }
}

/// The components of the host's XCR0 that a guest may have, whole groups only.
fn guest_xcr0(host: u64) -> u64 {
    let avx512 = Xcr0::OPMASK | Xcr0::ZMM_HI256 | Xcr0::HI16_ZMM;
    let mut xcr0 = Xcr0::from_bits_truncate(host & GUEST_XCR0);
    if !xcr0.contains(Xcr0::X87 | Xcr0::SSE) {
        return 0;
    }
    if !xcr0.contains(avx512 | Xcr0::AVX) {
        xcr0 -= avx512;
    }
    xcr0.bits()
}

/// Family from CPUID Fn0000_0001_EAX.
pub(super) const fn family(signature: u32) -> u32 {
    let base = signature >> 8 & 0xf;
    if base == 0xf { base + (signature >> 20 & 0xff) } else { base }
}

/// Model from CPUID Fn0000_0001_EAX, with the extended model as families 6 and 15 up have it.
pub(super) const fn model(signature: u32) -> u32 {
    let (base, low) = (signature >> 8 & 0xf, signature >> 4 & 0xf);
    if base == 0xf || base == 6 { low | signature >> 12 & 0xf0 } else { low }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::tests::FakeHost;

    /// From Linux 6.13 on only where the barrier does what Intel's does.
    #[test]
    fn spec_ctrl_needs_a_barrier_for_returns() {
        for (minor, ibpb_ret, offered) in [(12, true, true), (12, false, true), (13, true, true), (13, false, false)] {
            let mut host = FakeHost { linux_version: linux_version(6, minor), ..FakeHost::zen3() };
            let others = |word: &mut [u32; 4]| word[1] &= !(u32::from(!ibpb_ret) << 30);
            host.leaves.entry((0x8000_0008, 0)).and_modify(others);
            let caps = Caps::new(&host);
            assert_eq!(caps.has(Feature::SPEC_CTRL), offered, "6.{minor} {ibpb_ret}");
            assert!(caps.has(Feature::INTEL_STIBP) && caps.has(Feature::AMD_IBPB));
        }
    }
}
