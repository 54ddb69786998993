//! MSR rules, driven as a guest and as user space.
//!
//! Long because: tables of MSR rules, one after the other.

mod machine;

use super::number::*;
use super::*;
use crate::cpuid::tests::{FakeHost, generous};
use crate::cpuid::{Caps, Feature, GuestCpuid, HostInfo, Runtime, supported_cpuid};
use crate::state::CpuidEntry;
use arch::msr::*;
use arch::{CleanBits, cr};
use core::sync::atomic::Ordering::Relaxed;
use host::Command;
use machine::Machine;
use std::collections::BTreeMap;
use std::vec::Vec;

const BAD: Result<u64, MsrError> = Err(MsrError::Invalid);
const NONE: Result<u64, MsrError> = Err(MsrError::Unknown);
const W_BAD: Result<MsrEffect, MsrError> = Err(MsrError::Invalid);
const W_NONE: Result<MsrEffect, MsrError> = Err(MsrError::Unknown);
const W_OK: Result<MsrEffect, MsrError> = Ok(MsrEffect::None);

#[test]
fn what_a_new_guest_reads() {
    let mut m = Machine::generous();
    for (msr, value) in [
        (TSC, Ok(2_000_000)),
        (TSC_ADJUST, Ok(0)),
        (APIC_BASE, Ok(0xfee0_0900)),
        (TSC_DEADLINE, Ok(0)),
        (EFER, Ok(0)),
        (PAT, Ok(PAT_RESET)),
        (MTRRCAP, Ok(0x508)),
        (MTRR_DEF_TYPE, Ok(0)),
        (MISC_ENABLE, Ok(0x1800)),
        (MCG_CAP, Ok(32)),
        (MCG_STATUS, Ok(0)),
        (MCG_CTL, BAD),
        (BIOS_SIGN_ID, Ok(0x0100_0065)),
        (ARCH_CAPABILITIES, Ok(0x4000_0000_0c00_0079)),
        (PLATFORM_INFO, Ok(1 << 31)),
        (HWCR, Ok(0)),
        (DE_CFG, Ok(0)),
        (VM_CR, Ok(0)),
        (OSVW_ID_LENGTH, Ok(5)),
        (OSVW_STATUS, Ok(0x11)),
        (SYSCFG, Ok(0)),
        (NB_CFG, Ok(0)),
        (PERF_EVT_SEL0, Ok(0)),
        (PERF_CTR0, Ok(0)),
        (0xc001_0007, Ok(0)),
        (0xc001_0008, NONE),
        (F15H_PERF_CTL0, NONE),
        (DEBUGCTL, Ok(0)),
        (LASTBRANCH_FROM, Ok(0)),
        (TSC_RATIO, BAD),
        (VIRT_SPEC_CTRL, Ok(0)),
        (PRED_CMD, NONE),
        (KVM_WALL_CLOCK_NEW, Ok(0)),
        (KVM_POLL_CONTROL, Ok(1)),
        (KVM_STEAL_TIME, Ok(0)),
        (KVM_PV_EOI_EN, Ok(0)),
        (KVM_ASYNC_PF_EN, Ok(0)),
        (KVM_ASYNC_PF_INT, Ok(0)),
        (KVM_ASYNC_PF_ACK, Ok(0)),
        (KVM_MIGRATION_CONTROL, NONE),
        (0x4000_0000, NONE),
        (PERF_STATUS, Ok(0x400_0000_03e8)),
        (0xcd, Ok(3)),
        (0x2c, Ok(1 << 24)),
        (BBL_CR_CTL3, Ok(0xbe70_2111)),
        (K7_CLK_CTL, Ok(0x2000_0000)),
        (TOP_MEM, NONE),
        (LS_CFG, NONE),
        (MPERF, NONE),
        (0x480, NONE),
        (0x3a, NONE),
        (0x8ff, BAD),
        (0x802, BAD), // not in x2APIC mode
    ] {
        assert_eq!(m.rd(msr), value, "{msr:#x}");
    }
}

#[test]
fn what_a_guest_may_write() {
    let mut m = Machine::generous();
    for (msr, value, want) in [
        (HWCR, 1 << 3 | 1 << 6 | 1 << 8, W_OK),
        (HWCR, 1 << 18 | 1 << 24, W_OK),
        (HWCR, 1 << 4, W_BAD),
        (DE_CFG, 2, W_OK),
        (DE_CFG, 3, W_BAD),
        (VM_CR, 0x20, W_BAD),
        (VM_HSAVE_PA, 0x1000, W_OK),
        (VM_HSAVE_PA, 0x1001, W_BAD),
        (VM_HSAVE_PA, 1 << 48, W_BAD),
        (PAT, 0x0007_0406_0007_0106, W_OK),
        (PAT, 2, W_BAD),
        (MTRRCAP, 0, W_NONE),
        (MTRR_DEF_TYPE, 0xc06, W_OK),
        (MTRR_DEF_TYPE, 0x1c06, W_BAD),
        (0x210, 0, W_BAD),
        (MCG_STATUS, 4, W_OK),
        (0x400, 1, W_BAD),
        (0x400, !0, W_OK),
        (0x401, 1, W_OK), // HWCR.McStatusWrEn is set above
        (0x480, 0, W_NONE),
        (MISC_ENABLE, 0x1801, W_OK),
        (MISC_ENABLE, 1, W_BAD),
        (PLATFORM_INFO, 0, W_BAD),
        (MISC_FEATURES_ENABLES, 1, Ok(MsrEffect::CpuidChanged)),
        (MISC_FEATURES_ENABLES, 2, W_BAD),
        (BIOS_SIGN_ID, 7, W_OK),
        (BIOS_UPDT_TRIG, 7, W_OK),
        (PERF_EVT_SEL0, 0x53_0076, W_OK),
        (DEBUGCTL, 1, W_OK),
        (LASTBRANCH_FROM, 1, W_NONE),
        (SYSCFG, 0, W_NONE),
        (NB_CFG, 1, W_OK),
        (PATCH_LOADER, 1, W_OK),
        (0xc001_0058, 0, W_OK),
        (0xc001_0058, 1, W_BAD),
        (XSS, 0, W_OK),
        (XSS, 1 << 11, W_BAD),
        (TSC_AUX, 0xffff_ffff_0000_0003, W_OK),
        (SPEC_CTRL, 0x80, Ok(MsrEffect::SpecCtrl)),
        (SPEC_CTRL, 7, W_OK),
        (SPEC_CTRL, 8, W_BAD),
        (PRED_CMD, 0, W_OK),
        (PRED_CMD, 1, Ok(MsrEffect::Command(Command::Prediction(1)))),
        (PRED_CMD, 2, W_BAD),
        (FLUSH_CMD, 0, W_OK),
        (FLUSH_CMD, 1, Ok(MsrEffect::Command(Command::FlushL1d))),
        (FLUSH_CMD, 2, W_BAD),
        (VIRT_SPEC_CTRL, 4, W_OK),
        (VIRT_SPEC_CTRL, 1, W_BAD),
        (ARCH_CAPABILITIES, 0, W_BAD),
        (PERF_CAPABILITIES, 0, W_BAD),
        (SMBASE, 0x3_0000, W_BAD),
        (SMI_COUNT, 0, W_BAD),
        (TSC_RATIO, TSC_RATIO_DEFAULT, W_BAD),
        (OSVW_STATUS, 3, W_OK),
        (KVM_POLL_CONTROL, 0, W_OK),
        (KVM_POLL_CONTROL, 2, W_BAD),
        (KVM_WALL_CLOCK_NEW, 0x1000, Ok(MsrEffect::WallClock(0x1000))),
        (KVM_SYSTEM_TIME, 0x2001, Ok(MsrEffect::SystemTime { old_msr: Some(true) })),
        (KVM_SYSTEM_TIME_NEW, 0x2001, Ok(MsrEffect::SystemTime { old_msr: Some(false) })),
        (KVM_STEAL_TIME, 0x41, Ok(MsrEffect::StealTime)),
        (KVM_STEAL_TIME, 0x21, W_BAD),
        (KVM_PV_EOI_EN, 0x1005, Ok(MsrEffect::PvEoi(0x1005))),
        (KVM_PV_EOI_EN, 0x1003, W_BAD),
        (KVM_ASYNC_PF_EN, 0x104b, Ok(MsrEffect::AsyncPf(0x104b))),
        (KVM_ASYNC_PF_EN, 0x105b, W_BAD),
        (KVM_ASYNC_PF_EN, 0x106b, W_BAD),
        (KVM_ASYNC_PF_INT, 0xff, W_OK),
        (KVM_ASYNC_PF_INT, 0x100, W_BAD),
        (KVM_ASYNC_PF_ACK, 0, W_OK),
        (KVM_ASYNC_PF_ACK, 1, Ok(MsrEffect::AsyncPfAck)),
        (0x8ff, 0, W_BAD),
    ] {
        assert_eq!(m.wr(msr, value), want, "{msr:#x} {value:#x}");
    }
    for (msr, value) in [
        (HWCR, 1 << 18 | 1 << 24),
        (DE_CFG, 2),
        (VM_HSAVE_PA, 0x1000),
        (PAT, 0x0007_0406_0007_0106),
        (MTRR_DEF_TYPE, 0xc06),
        (0x401, 1),
        (BIOS_SIGN_ID, 0x0100_0065),
        (PERF_EVT_SEL0, 0),
        (DEBUGCTL, 0),
        (TSC_AUX, 3),
        (SPEC_CTRL, 7),
        (KVM_WALL_CLOCK, 0x1000),
        (KVM_SYSTEM_TIME, 0x2001),
        (OSVW_STATUS, 3),
    ] {
        assert_eq!(m.rd(msr), Ok(value), "{msr:#x}");
    }
    assert!(m.state.cpuid_faulting() && m.clock.active());
    assert!(m.cpu.touched.contains(CleanBits::NP), "PAT is cached");
    m.state.reset();
    assert!(!m.state.cpuid_faulting());
}

#[test]
fn user_space_has_more_rights() {
    let mut m = Machine::bare();
    for (msr, value) in [
        (BIOS_SIGN_ID, 0xa20_1016),
        (PLATFORM_INFO, 0),
        (TSC_AUX, 5),
        (SPEC_CTRL, 1),
        (VIRT_SPEC_CTRL, 4),
        (0x405, 1 << 63),
        (POWER_CTL, 9),
        (TSC_ADJUST, 0), // the guest has none: not kept
    ] {
        assert!(m.put(msr, value).is_ok(), "{msr:#x}");
        assert_eq!(m.get(msr), Ok(value), "{msr:#x}");
    }
    assert_eq!(m.put(TSC_RATIO, 0), W_OK);
    assert_eq!(m.put(TSC_RATIO, 5), W_BAD);
    assert_eq!(m.get(TSC_RATIO), Ok(TSC_RATIO_DEFAULT));
    assert_eq!(m.put(VM_HSAVE_PA, 0x1234), W_OK);
    assert_eq!(m.get(VM_HSAVE_PA), Ok(0x1000));
    assert_eq!(m.put(TSC, 77), Ok(MsrEffect::SyncTsc(77)));
    assert_eq!(m.put(KVM_SYSTEM_TIME, 0x1001), Ok(MsrEffect::SystemTime { old_msr: None }));
    // For user space it is there whatever the guest was shown.
    assert_eq!(m.get(ARCH_CAPABILITIES), Ok(0x4000_0000_0c00_0079));
    assert_eq!(m.put(ARCH_CAPABILITIES, 1), W_OK);
    assert_eq!(m.get(ARCH_CAPABILITIES), Ok(1));
    // The guest itself has none of these.
    for msr in [TSC_AUX, SPEC_CTRL, VIRT_SPEC_CTRL, XSS, OSVW_STATUS] {
        assert_eq!(m.rd(msr), BAD, "{msr:#x}");
        assert_eq!(m.wr(msr, 0), W_BAD, "{msr:#x}");
    }
    assert_eq!(m.rd(ARCH_CAPABILITIES), BAD);
    assert_eq!((m.wr(PRED_CMD, 1), m.wr(FLUSH_CMD, 1)), (W_BAD, W_BAD));
    assert_eq!(m.put(PRED_CMD, 1), Ok(MsrEffect::Command(Command::Prediction(1))));
    let mut m = Machine::generous();
    assert_eq!(m.put(ARCH_CAPABILITIES, 1), W_OK);
    assert_eq!(m.rd(ARCH_CAPABILITIES), Ok(1));
    m.vm.platform_info_hidden.store(true, Relaxed);
    assert_eq!((m.rd(PLATFORM_INFO), m.get(PLATFORM_INFO)), (BAD, Ok(1 << 31)));
    m.wr(MISC_FEATURES_ENABLES, 1).unwrap();
    assert_eq!(m.put(PLATFORM_INFO, 0), W_BAD, "CPUID faulting is on");
    let later = FakeHost { linux_version: host::linux_version(6, 13), ..FakeHost::zen3() };
    let mut m = Machine::with(&later, generous(&later));
    m.wr(MISC_FEATURES_ENABLES, 1).unwrap();
    assert_eq!((m.put(PLATFORM_INFO, 0), m.wr(PLATFORM_INFO, 0)), (W_OK, W_BAD));
}

/// Zero is what listed MSRs read that a guest does not have, and the list names what the processor can read.
#[test]
fn absent_msrs_are_listed_where_the_processor_has_them() {
    let mut m = Machine::generous();
    assert_eq!((m.get(FEAT_CTL), m.put(FEAT_CTL, 0)), (NONE, W_NONE));
    assert_eq!(m.put(LASTBRANCH_FROM, 0), W_NONE);
    m.time.2 = &[FEAT_CTL, LASTBRANCH_FROM];
    assert_eq!((m.get(FEAT_CTL), m.put(FEAT_CTL, 0), m.put(FEAT_CTL, 1)), (Ok(0), W_OK, W_NONE));
    assert_eq!((m.put(LASTBRANCH_FROM, 0), m.put(LASTBRANCH_FROM, 1)), (W_OK, W_NONE));
    assert_eq!((m.rd(FEAT_CTL), m.wr(FEAT_CTL, 0)), (NONE, W_NONE));
}

/// From Linux 6.13 on user space, too, has them only with their CPUID bits: without, they are among those that read
/// zero because they are listed.
#[test]
fn describing_msrs_hang_on_their_bits() {
    let host = FakeHost { linux_version: host::linux_version(6, 13), ..FakeHost::zen3() };
    let mut m = Machine::with(&host, GuestCpuid::new(&Caps::new(&host)));
    for msr in [ARCH_CAPABILITIES, PERF_CAPABILITIES] {
        assert_eq!((m.get(msr), m.put(msr, 0), m.put(msr, 1)), (Ok(0), W_OK, W_NONE), "{msr:#x}");
        assert_eq!((m.rd(msr), m.wr(msr, 0)), (NONE, W_NONE), "{msr:#x}");
    }
    let mut m = Machine::with(&host, generous(&host));
    assert_eq!(
        (m.get(ARCH_CAPABILITIES), m.rd(ARCH_CAPABILITIES)),
        (Ok(0x4000_0000_0c00_0079), Ok(0x4000_0000_0c00_0079))
    );
    assert_eq!((m.put(ARCH_CAPABILITIES, 1), m.rd(ARCH_CAPABILITIES)), (W_OK, Ok(1)));
    assert_eq!(m.wr(ARCH_CAPABILITIES, 1), W_NONE);
    assert_eq!((m.get(PERF_CAPABILITIES), m.put(PERF_CAPABILITIES, 1)), (Ok(0), W_NONE));
}

#[test]
fn efer() {
    let mut m = Machine::generous();
    let svme = cr::Efer::SVME.bits();
    assert_eq!(m.wr(EFER, 0x901), Ok(MsrEffect::Efer { old: 0 }));
    assert_eq!(m.cpu.save.efer, 0x901 | svme);
    assert!(m.cpu.touched.contains(CleanBits::CRX));
    assert_eq!(m.wr(EFER, 0x901), W_OK, "nothing changed");
    // LMA is not software's.
    assert_eq!(m.wr(EFER, 0xd01), W_OK);
    m.cpu.save.efer |= 0x400;
    m.cr0 = 1 << 31;
    assert_eq!(m.wr(EFER, 0x900), Ok(MsrEffect::Efer { old: 0xd01 }));
    assert_eq!(m.rd(EFER), Ok(0xd00));
    assert_eq!(m.wr(EFER, 0x800), W_BAD, "LME with paging on");
    for reserved in [svme, 1 << 1, 1 << 13, 1 << 15, 1 << 63] {
        assert_eq!(m.wr(EFER, 0xd00 | reserved), W_BAD, "{reserved:#x}");
        assert_eq!(m.put(EFER, 0xd00 | reserved), W_BAD, "{reserved:#x}");
    }
    assert!(m.put(EFER, 0x800).is_ok(), "user space may restore any order");
    let mut m = Machine::bare();
    for bits in [1 << 8, 1 << 11, 1 << 14, 1 << 21] {
        assert_eq!(m.wr(EFER, bits), W_BAD, "the guest does not know {bits:#x}");
        assert!(m.put(EFER, bits).is_ok());
    }
}

#[test]
fn addresses_are_canonical() {
    let mut lesser = FakeHost::zen3();
    let without_la57 = |word: &mut [u32; 4]| word[2] &= !(1 << 16);
    lesser.leaves.entry((7, 0)).and_modify(without_la57);
    // What the guest was told does not matter.
    for (mut m, la57) in
        [(Machine::generous(), true), (Machine::bare(), true), (Machine::with(&lesser, generous(&lesser)), false)]
    {
        let wide = if la57 { W_OK } else { W_BAD };
        for msr in [LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE] {
            assert_eq!(m.wr(msr, 0xffff_8000_0000_0000), W_OK);
            assert_eq!((m.wr(msr, 0x8000_0000_0000), m.put(msr, 0x8000_0000_0000)), (wide, wide));
            assert_eq!((m.wr(msr, 1 << 60), m.put(msr, 1 << 60)), (W_BAD, W_BAD));
            assert_eq!(m.rd(msr) == Ok(0x8000_0000_0000), la57);
        }
    }
    let mut m = Machine::generous();
    assert_eq!(m.wr(STAR, !0), W_OK);
    assert_eq!(m.wr(SYSENTER_CS, 0x1234_5678), W_OK);
    assert_eq!(m.wr(SYSENTER_EIP, 0xffff_ffff_8000_0001), W_OK);
    assert_eq!(m.rd(SYSENTER_EIP), Ok(0x8000_0001), "AMD keeps 32 bits");
    let mut m = Machine::bare();
    assert_eq!(m.wr(SYSENTER_EIP, 0xffff_ffff_8000_0001), W_OK);
    assert_eq!(m.rd(SYSENTER_EIP), Ok(0xffff_ffff_8000_0001), "Intel keeps 64");
    assert_eq!(m.wr(SYSENTER_ESP, 0x1334_8000_0000_0000), W_OK);
    assert_eq!(m.rd(SYSENTER_ESP), Ok(0xff34_8000_0000_0000), "made canonical instead of a fault");
    let mut m = Machine::with(&lesser, GuestCpuid::new(&Caps::new(&lesser)));
    assert_eq!(m.put(SYSENTER_ESP, 0x1334_8000_0000_0000), W_OK);
    assert_eq!(m.rd(SYSENTER_ESP), Ok(0xffff_8000_0000_0000));
}

#[test]
fn tsc_and_its_adjustment() {
    let mut m = Machine::generous();
    assert_eq!(m.wr(TSC, 5_000), Ok(MsrEffect::TscOffset));
    assert_eq!(m.rd(TSC), Ok(5_000));
    assert_eq!(m.rd(TSC_ADJUST), Ok(5_000u64.wrapping_sub(2_000_000)));
    assert_eq!(m.wr(TSC_ADJUST, 0), Ok(MsrEffect::TscOffset));
    assert_eq!(m.rd(TSC), Ok(2_000_000));
    m.time.0 += 10;
    assert_eq!(m.rd(TSC), Ok(2_000_020));
    assert_eq!(m.put(TSC_ADJUST, 99), W_OK);
    assert_eq!((m.rd(TSC), m.rd(TSC_ADJUST)), (Ok(2_000_020), Ok(99)), "a restore moves nothing");
}

#[test]
fn apic() {
    let mut m = Machine::generous();
    assert_eq!(m.wr(APIC_BASE, 0xfee0_0d00), Ok(MsrEffect::ApicBase));
    assert_eq!(m.rd(APIC_BASE), Ok(0xfee0_0d00));
    assert_eq!(m.wr(APIC_BASE, 0xfee0_0900), W_BAD, "x2APIC goes to disabled only");
    assert_eq!(m.rd(0x803).map(|v| v & 0xff), Ok(0x14));
    assert!(matches!(m.wr(0x808, 0x20), Ok(MsrEffect::Lapic(_))));
    assert_eq!(m.rd(0x808), Ok(0x20));
    assert_eq!(m.wr(0x803, 0), W_BAD);
    assert!(matches!(m.wr(TSC_DEADLINE, 5), Ok(MsrEffect::Timer(_))));
    m.lapic = None;
    assert_eq!(m.rd(0x808), BAD);
    assert_eq!(m.wr(0x808, 0), W_BAD);
    assert_eq!(m.rd(TSC_DEADLINE), Ok(0));
    assert_eq!(m.wr(APIC_BASE, 0xfee0_1900), Ok(MsrEffect::ApicBase));
    assert_eq!(m.rd(APIC_BASE), Ok(0xfee0_1900));
    for bad in [0xfee0_0500, 0xfee0_0901, 0xfee0_0b00, 1 << 48] {
        assert_eq!(m.wr(APIC_BASE, bad), W_BAD, "{bad:#x}");
    }
}

#[test]
fn paravirtual_msrs_can_be_tied_to_cpuid() {
    let mut m = Machine::bare();
    assert_eq!(m.rd(KVM_SYSTEM_TIME_NEW), Ok(0));
    m.state.enforce_pv = true;
    for msr in [KVM_SYSTEM_TIME_NEW, KVM_SYSTEM_TIME, KVM_WALL_CLOCK, KVM_WALL_CLOCK_NEW, KVM_POLL_CONTROL] {
        assert_eq!((m.rd(msr), m.wr(msr, 0)), (NONE, W_NONE), "{msr:#x}");
    }
    let mut m = Machine::generous();
    m.state.enforce_pv = true;
    assert_eq!(m.rd(KVM_SYSTEM_TIME_NEW), Ok(0));
}

#[test]
fn ignored_msrs() {
    let mut m = Machine::generous();
    assert_eq!((m.rd(LS_CFG), m.wr(LS_CFG, 1)), (NONE, W_NONE));
    m.time.1 = true;
    assert_eq!((m.rd(LS_CFG), m.wr(LS_CFG, 1)), (Ok(0), W_OK));
    assert_eq!(m.rd(TSC_RATIO), BAD, "known ones keep their rules");
}

#[test]
fn mwait_shows_when_the_quirk_is_off() {
    let mut m = Machine::generous();
    assert_eq!(m.wr(MISC_ENABLE, 0x4_1800), W_OK);
    m.vm.misc_enable_mwait.store(true, Relaxed);
    assert_eq!(m.wr(MISC_ENABLE, 0x1800), Ok(MsrEffect::CpuidChanged));
    assert_eq!(m.wr(MISC_ENABLE, 0x1880), W_OK);
    assert_eq!(m.rd(MISC_ENABLE), Ok(0x1800), "EMON is read-only");
    assert_eq!(m.put(MISC_ENABLE, 1), W_OK);
    let mut m = Machine::bare();
    m.vm.misc_enable_mwait.store(true, Relaxed);
    assert_eq!(m.wr(MISC_ENABLE, 0x4_1800), W_BAD, "needs SSE3");
}

#[test]
fn lists_name_what_can_be_read_and_written_back() {
    let host = FakeHost::zen3();
    let mut all = Vec::new();
    msr_index_list(&host, &mut |n| all.push(n));
    for mut m in [Machine::generous(), Machine::bare()] {
        // Those of Hyper-V are not kept here: a scenario reads them, and writes them back.
        for &n in all.iter().filter(|n| !crate::hyperv::is_msr(**n)) {
            let value = m.get(n).unwrap_or_else(|e| panic!("{n:#x}: {e:?}"));
            assert!(m.put(n, value).is_ok(), "{n:#x} = {value:#x}");
        }
    }
    let mut sorted = all.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), all.len());
    assert!(all.contains(&TSC_AUX) && all.contains(&SPEC_CTRL));
    let mut lesser = host.clone();
    lesser.features = Default::default();
    all.clear();
    msr_index_list(&lesser, &mut |n| all.push(n));
    assert!(!all.contains(&TSC_AUX) && !all.contains(&SPEC_CTRL));

    let mut features = Vec::new();
    feature_index_list(&host, &mut |n| features.push(n));
    assert_eq!(features, [DE_CFG, ARCH_CAPABILITIES, PERF_CAPABILITIES], "the fake host does not tell its patch level");
    assert_eq!(
        (feature_msr(&host, PLATFORM_INFO), is_fixed_once_run(PLATFORM_INFO, host.linux_version)),
        (None, false)
    );
    let later = FakeHost { linux_version: host::linux_version(6, 13), ..FakeHost::zen3() };
    features.clear();
    feature_index_list(&later, &mut |n| features.push(n));
    assert_eq!(features, [DE_CFG, ARCH_CAPABILITIES, PERF_CAPABILITIES, PLATFORM_INFO]);
    assert_eq!(feature_msr(&later, PLATFORM_INFO), Some(1 << 31));
    assert_eq!(feature_msr(&host, DE_CFG), Some(DE_CFG_LFENCE));
    assert_eq!(feature_msr(&host, TSC), None);
    assert!(host.describing_msr(BIOS_SIGN_ID).is_none());
}

fn passed(m: &Machine, filter: Option<&MsrFilter>) -> BTreeMap<u32, (bool, bool)> {
    let mut map = BTreeMap::new();
    passthrough(&m.cpuid, &m.state, filter, &mut |n, r, w| {
        assert!(map.insert(n, (!r, !w)).is_none(), "{n:#x} twice");
    });
    map
}

#[test]
fn what_passes_through() {
    let mut m = Machine::generous();
    let p = passed(&m, None);
    for n in [STAR, LSTAR, CSTAR, SYSCALL_MASK, FS_BASE, GS_BASE, KERNEL_GS_BASE, SYSENTER_CS, SYSENTER_EIP] {
        assert_eq!(p[&n], (true, true), "{n:#x}");
    }
    assert_eq!((p[&SPEC_CTRL], p[&PRED_CMD]), ((false, false), (false, true)));
    m.wr(SPEC_CTRL, 0).unwrap();
    assert_eq!(passed(&m, None)[&SPEC_CTRL], (false, false));
    m.wr(SPEC_CTRL, 1).unwrap();
    assert_eq!(passed(&m, None)[&SPEC_CTRL], (true, true));
    let bits = [0u8; 8];
    let deny = [FilterRange { flags: 2, base: LSTAR, nmsrs: 1, bitmap: &bits }];
    let f = MsrFilter::new(0, &deny).unwrap();
    let p = passed(&m, f.as_ref());
    assert_eq!((p[&LSTAR], p[&CSTAR]), ((true, false), (true, true)));
    let p = passed(&Machine::bare(), None);
    assert_eq!((p[&SYSENTER_EIP], p[&SPEC_CTRL], p[&PRED_CMD]), ((false, false), (false, false), (false, false)));
    let mut host = FakeHost::zen3();
    host.features.v_spec_ctrl = true;
    assert_eq!(passed(&Machine::with(&host, generous(&host)), None)[&SPEC_CTRL], (true, true));
}

#[test]
fn an_amd_guest_of_an_old_host() {
    let mut host = FakeHost::zen3();
    host.features = Default::default();
    host.leaves.insert((0x8000_0008, 0), [0x3028, 0, 0, 0]);
    let mut entries = supported_cpuid(&host).unwrap();
    for e in entries.iter_mut().filter(|e| e.function == 1) {
        e.regs[0] = 0x0060_0f20; // family 15h, model 2
    }
    let mut cpuid = GuestCpuid::new(&Caps::new(&host));
    cpuid.set(&entries, &Runtime::default(), false).unwrap();
    assert!(!cpuid.caps().has(Feature::AMD_IBRS));
    let mut m = Machine::with(&host, cpuid);
    assert_eq!(m.rd(IC_CFG), Ok(0x1e));
    assert_eq!(m.put(SPEC_CTRL, 1), W_BAD, "the processor has none");
    assert_eq!(m.put(TSC_AUX, 1), W_BAD);
    assert_eq!(m.put(PRED_CMD, 1), W_BAD);
    assert_eq!(m.wr(0x200, 1 << 40 | 6), W_BAD);
    assert_eq!(m.wr(0x200, 1 << 39 | 6), W_OK);
}

#[test]
fn no_number_and_no_value_does_harm() {
    let mut seed = 7u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let e = CpuidEntry { function: 0x8000_0008, index: 0, flags: 0, regs: [0xff, 0, 0, 0] };
    let mut odd = Machine::bare();
    odd.cpuid.set(&[e], &Runtime::default(), false).unwrap();
    let ranges = [0..0x2000u32, 0xc000_0000..0xc000_2000, 0xc001_0000..0xc001_2000, 0x4b56_4d00..0x4b56_4d20];
    for mut m in [Machine::generous(), Machine::bare(), odd] {
        for msr in ranges.iter().cloned().flatten().chain([u32::MAX, 0x4000_0000, 0x8000_0000]) {
            for value in [0, 1, !0, 1 << 63, random(), random() & random()] {
                let host = random() & 1 != 0;
                let written = m.access().write(msr, value, host);
                let read = m.access().read(msr, host);
                if written == W_NONE && !host {
                    continue;
                }
                // What a guest wrote without a fault, it reads without one (commands aside).
                let command = matches!(msr, PRED_CMD | BIOS_UPDT_TRIG | PATCH_LOADER | IGNNE | 0x80b | 0x83f);
                if written.is_ok() && !host && !command && !(0x800..=0x8ff).contains(&msr) {
                    assert!(read.is_ok(), "{msr:#x} {value:#x} {read:?}");
                }
            }
        }
        assert_eq!(m.cpu.save.efer & cr::Efer::SVME.bits(), cr::Efer::SVME.bits());
        assert!(super::mtrr::pat_valid(m.cpu.save.g_pat));
    }
}
