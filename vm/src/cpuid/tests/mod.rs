//! CPUID policy against a scripted host.

mod guest;

use super::*;
use crate::state::{CPUID_SUBLEAF_MATTERS, CpuidEntry};
use host::{CpuFeatures, Errno};
use std::collections::BTreeMap;
use std::vec::Vec;

/// A processor that exists only here.
#[derive(Clone)]
pub(crate) struct FakeHost {
    pub leaves: BTreeMap<(u32, u32), [u32; 4]>,
    pub xcr0: u64,
    pub features: CpuFeatures,
    pub five_levels: bool,
    pub linux_version: u32,
    pub msrs: BTreeMap<u32, u64>,
}

impl HostInfo for FakeHost {
    fn leaf(&self, function: u32, index: u32) -> [u32; 4] {
        self.leaves.get(&(function, index)).copied().unwrap_or([0; 4])
    }
    fn xcr0(&self) -> u64 {
        self.xcr0
    }
    fn switch_features(&self) -> CpuFeatures {
        self.features
    }
    fn steal_time(&self) -> bool {
        true
    }
    fn five_nested_levels(&self) -> bool {
        self.five_levels
    }
    fn linux_version(&self) -> u32 {
        self.linux_version
    }
    fn describing_msr(&self, msr: u32) -> Option<u64> {
        self.msrs.get(&msr).copied()
    }
}

const AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65]; // EBX, ECX, EDX

impl FakeHost {
    /// About what a Zen 3 says, with every bit set in the feature words, so that whatever is not masked shows.
    pub fn zen3() -> Self {
        let all = u32::MAX;
        let leaves = BTreeMap::from([
            ((0, 0), [0x10, AMD[0], AMD[1], AMD[2]]),
            ((1, 0), [0x00a2_0f12, 0x0b20_0800, all & !(1 << 31), all]),
            ((6, 0), [all; 4]),
            ((7, 0), [1, all, all, all]),
            ((7, 1), [all; 4]),
            ((0xb, 0), [1, 2, 0x100, 11]),
            ((0xb, 1), [7, 32, 0x201, 11]),
            ((0xd, 0), [0x207, 832, 2440, 0]),
            ((0xd, 1), [0xf, 840, 0x1800, 0]),
            ((0xd, 2), [256, 576, 0, 0]),
            ((0xd, 9), [8, 2432, 0, 0]),
            ((0xd, 11), [16, 0, 1, 0]),
            ((0x8000_0000, 0), [0x8000_0023, AMD[0], AMD[1], AMD[2]]),
            ((0x8000_0001, 0), [0x00a2_0f12, 0x2fff_1234, all, all]),
            ((0x8000_0002, 0), [0x2044_4d41; 4]),
            ((0x8000_0005, 0), [1, 2, 3, 4]),
            ((0x8000_0006, 0), [1, 2, 3, all]),
            ((0x8000_0007, 0), [0, 0x3b, 0, 0x6799]),
            ((0x8000_0008, 0), [0x3030, all, 0x0001_501f, 0x1_0000]),
            ((0x8000_000a, 0), [1, 0x8000, 0, all]),
            ((0x8000_0019, 0), [1, 2, 3, 4]),
            ((0x8000_001a, 0), [0xff, 1, 1, 1]),
            ((0x8000_001d, 0), [0x121, 1, 2, 3]),
            ((0x8000_001d, 1), [0x143, 4, 5, 6]),
            ((0x8000_001d, 2), [0, 0, 0, 0]),
            ((0x8000_001d, 3), [0x999, 0, 0, 0]),
            ((0x8000_001e, 0), [11, 0x105, 0, 0]),
            ((0x8000_001f, 0), [all; 4]),
            ((0x8000_0021, 0), [all, 0, all, all]),
        ]);
        let features = CpuFeatures { spec_ctrl: true, tsc_aux: true, page_1g: true, nx: true, ..Default::default() };
        let msrs = BTreeMap::from([(arch::msr::OSVW_ID_LENGTH, 5), (arch::msr::OSVW_STATUS, 0x17)]);
        Self { leaves, xcr0: 0x207, features, five_levels: false, linux_version: host::linux_version(6, 12), msrs }
    }
}

/// A guest that got everything that is offered.
pub(crate) fn generous(host: &FakeHost) -> GuestCpuid {
    let mut g = GuestCpuid::new(&Caps::new(host));
    g.set(&supported_cpuid(host).unwrap(), &Runtime::default(), false).unwrap();
    g
}

pub(crate) fn find(list: &[CpuidEntry], function: u32, index: u32) -> [u32; 4] {
    let hits: Vec<_> = list.iter().filter(|e| e.function == function && e.index == index).collect();
    assert_eq!(hits.len(), 1, "{function:#x}.{index}");
    hits[0].regs
}

#[test]
fn supported_leaf_by_leaf() {
    let list = supported_cpuid(&FakeHost::zen3()).unwrap();
    let leaf = |f, i| find(&list, f, i);
    assert_eq!(leaf(0, 0), [0x10, AMD[0], AMD[1], AMD[2]]);
    // No MONITOR, VMX, PDCM, DCA, OSXSAVE; X2APIC, TSC deadline and the hypervisor bit are there.
    assert_eq!(leaf(1, 0)[..3], [0x00a2_0f12, 0x0b20_0800, 0xf7fa_3203]);
    assert_eq!(leaf(1, 0)[3], 0x0f8b_fbff);
    assert_eq!(leaf(6, 0), [4, 0, 0, 0]);
    assert_eq!(leaf(7, 0)[0], 1);
    assert_eq!(leaf(7, 0)[1] & 0x0240_5004, 0, "SGX, PQM, MPX, PQE, PCOMMIT, PT");
    assert_eq!(leaf(7, 0)[1] & 2, 2, "TSC_ADJUST is emulated");
    assert_eq!(leaf(7, 0)[2] >> 4 & 1, 0, "OSPKE follows CR4");
    assert_eq!(leaf(7, 0)[3] & 0xbc00_0000, 0xbc00_0000, "SPEC_CTRL, STIBP, SSBD, ARCH_CAPABILITIES, L1D flush");
    assert_eq!(leaf(7, 1)[1..3], [0, 0]);
    assert_eq!(leaf(0xb, 0), [0, 0, 0, 11]);
    assert_eq!(leaf(0xd, 0), [0x207, 2440, 2440, 0]);
    assert_eq!(leaf(0xd, 1), [0xf, 840, 0, 0]);
    assert_eq!(leaf(0xd, 2), [256, 576, 0, 0]);
    assert_eq!(leaf(0xd, 9), [8, 2432, 0, 0]);
    assert!(!list.iter().any(|e| e.function == 0xd && e.index == 11), "no supervisor state");
    assert_eq!(leaf(0x8000_0000, 0)[0], 0x8000_0022);
    assert_eq!(leaf(0x8000_0001, 0)[1], 0x2000_1234);
    assert_eq!(leaf(0x8000_0001, 0)[2] & 0x0080_343c, 0x30, "no SVM, ExtApicSpace, IBS, SKINIT, WDT, PerfCtr");
    assert_eq!(leaf(0x8000_0002, 0), [0; 4]);
    assert_eq!(leaf(0x8000_0006, 0), [1, 2, 3, 0xfffc_ffff]);
    assert_eq!(leaf(0x8000_0007, 0), [0, 0, 0, 0x100]);
    assert_eq!(leaf(0x8000_0008, 0), [0x30_3030, 0x571a_d205, 0x501f, 0]);
    assert_eq!(leaf(0x8000_000a, 0), [0; 4]);
    assert_eq!(leaf(0x8000_001a, 0), [7, 0, 0, 0]);
    assert_eq!(leaf(0x8000_001d, 1), [0x143, 4, 5, 6]);
    assert_eq!(leaf(0x8000_001d, 2), [0; 4]);
    assert!(!list.iter().any(|e| e.function == 0x8000_001d && e.index == 3));
    assert_eq!(leaf(0x8000_001e, 0), [0; 4]);
    assert_eq!(leaf(0x8000_001f, 0), [0; 4]);
    assert_eq!(leaf(0x8000_0021, 0), [0x7890_0367, 0, 0x86, 0]);
    assert_eq!(leaf(0x4000_0000, 0), [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
    assert_eq!(leaf(0x4000_0001, 0), [KVM_FEATURES, 0, 0, 0]);
}

#[test]
fn supported_order_and_flags() {
    let list = supported_cpuid(&FakeHost::zen3()).unwrap();
    let functions: Vec<u32> = list.iter().map(|e| e.function).collect();
    let mut deduplicated = functions.clone();
    deduplicated.dedup();
    let want: Vec<u32> = (0..=0x10).chain(0x8000_0000..=0x8000_0022).chain([0x4000_0000, 0x4000_0001]).collect();
    assert_eq!(deduplicated, want);
    assert!(list.len() < MAX_ENTRIES);
    for e in &list {
        let indexed = matches!(e.function, 4 | 7 | 0xb | 0xd | 0xf | 0x10 | 0x8000_001d);
        assert_eq!(e.flags, if indexed { CPUID_SUBLEAF_MATTERS } else { 0 }, "{:#x}", e.function);
    }
}

#[test]
fn what_the_host_lacks_is_not_offered() {
    let mut host = FakeHost::zen3();
    host.xcr0 = 0;
    host.features = CpuFeatures::default();
    host.leaves.get_mut(&(7, 0)).unwrap()[2] &= !(1 << 4);
    let caps = Caps::new(&host);
    for f in [
        Feature::XSAVE,
        Feature::XSAVES,
        Feature::PKU,
        Feature::RDTSCP,
        Feature::RDPID,
        Feature::AMD_IBRS,
        Feature::SPEC_CTRL,
        Feature::SPEC_CTRL_SSBD,
    ] {
        assert!(!caps.has(f), "{f:?}");
    }
    assert!(caps.has(Feature::AMD_IBPB), "a command, not a state");
    let list = supported_cpuid(&host).unwrap();
    assert_eq!(find(&list, 0xd, 0), [0; 4]);
    // A host without leaf 0x80000021 still gets one for LFENCE.
    host.leaves.get_mut(&(0x8000_0000, 0)).unwrap()[0] = 0x8000_001e;
    host.leaves.remove(&(0x8000_0021, 0));
    let list = supported_cpuid(&host).unwrap();
    assert_eq!(find(&list, 0x8000_0000, 0)[0], 0x8000_0021);
    assert_eq!(find(&list, 0x8000_0021, 0), [1 << 2 | 1 << 9, 0, 0, 0]);
    // And for what the kernel knows by the processor's model: TSA_SQ_NO, TSA_L1_NO, TSA_FILL_NO.
    host.leaves.insert((0x8000_0021, 0), [0, 0, 0x86, 0]);
    let list = supported_cpuid(&host).unwrap();
    assert_eq!(find(&list, 0x8000_0021, 0), [1 << 2 | 1 << 9, 0, 0x86, 0]);
    assert_eq!(find(&list, 0x8000_001f, 0), [0; 4]);
    // But not one without the leaf of the caches.
    host.leaves.get_mut(&(0x8000_0000, 0)).unwrap()[0] = 0x8000_001c;
    assert_eq!(find(&supported_cpuid(&host).unwrap(), 0x8000_0000, 0)[0], 0x8000_001c);
    // Stores that are bypassed came with the family after Llano's.
    host.leaves.get_mut(&(0x8000_0008, 0)).unwrap()[1] = 0;
    for (signature, ssb_no) in [(0x0010_0f23, true), (0x0030_0f10, true), (0x0060_0f12, false), (0x00a2_0f12, false)] {
        host.leaves.get_mut(&(1, 0)).unwrap()[0] = signature;
        assert_eq!(Caps::new(&host).has(Feature::AMD_SSB_NO), ssb_no, "{signature:#x}");
        let value = crate::msr::feature_msr(&host, arch::msr::ARCH_CAPABILITIES);
        assert_eq!(value, Some(0x4000_0000_0c00_0069 | u64::from(ssb_no) << 4));
    }
}
