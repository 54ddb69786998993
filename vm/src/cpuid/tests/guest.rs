//! What one guest was given.

use super::*;

#[test]
fn lookup_agrees_with_a_plain_search() {
    let host = FakeHost::zen3();
    let mut entries = supported_cpuid(&host).unwrap();
    entries.reverse();
    // A duplicate (the first wins), entries outside of the table, a leaf with index but without the flag.
    entries.push(CpuidEntry { function: 1, index: 0, flags: 0, regs: [9; 4] });
    entries.push(CpuidEntry { function: 0xc000_0000, index: 0, flags: 0, regs: [0xc000_0001, 0, 0, 0] });
    entries.push(CpuidEntry { function: 0x8000_0040, index: 0, flags: 0, regs: [6; 4] });
    entries.push(CpuidEntry { function: 0x14, index: 5, flags: 0, regs: [7; 4] });
    let mut g = GuestCpuid::new(&Caps::new(&host));
    g.set(&entries, &Runtime::default(), false).unwrap();
    let functions = (0..0x30).chain(0x4000_0000..0x4000_0020).chain(0x8000_0000..0x8000_0050).chain([
        0xc000_0000,
        0xc000_0001,
        0xffff_ffff,
        0x7fff_ffff,
    ]);
    for function in functions {
        for index in [0, 1, 2, 3, 9, 63, u32::MAX] {
            let plain = g
                .entries()
                .iter()
                .find(|e| e.function == function && (e.flags & CPUID_SUBLEAF_MATTERS == 0 || e.index == index));
            assert_eq!(g.get(function, index), plain, "{function:#x}.{index}");
            if let Some(e) = plain {
                assert_eq!(g.lookup(function, index), e.regs);
            }
        }
    }
    assert_eq!(g.lookup(0x8000_0050, 0), [0; 4], "AMD reads zero beyond the limit");
}

#[test]
fn out_of_range_on_intel_reads_the_highest_basic_leaf() {
    let host = FakeHost::zen3();
    let mut g = GuestCpuid::new(&Caps::new(&host));
    let e = |function, index, flags, regs| CpuidEntry { function, index, flags, regs };
    let intel = [
        e(0, 0, 0, [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        e(0xb, 0, 1, [1, 2, 3, 4]),
        e(0xb, 1, 1, [1, 2, 3, 5]),
        e(0xd, 0, 1, [1, 7, 7, 7]),
        e(0x8000_0000, 0, 0, [0x8000_0004, 0, 0, 0]),
    ];
    g.set(&intel, &Runtime { xcr0: 1, ..Default::default() }, false).unwrap();
    assert!(!g.flags().is_amd);
    assert_eq!(g.lookup(0x20, 0), [1, 576, 7, 7]);
    assert_eq!(g.lookup(0x8000_0008, 0), [1, 576, 7, 7]);
    assert_eq!(g.lookup(0x4000_0000, 0), [1, 576, 7, 7]);
    assert_eq!(g.lookup(3, 0), [0; 4], "within the limit but absent");
    assert_eq!(g.lookup(0x8000_0002, 0), [0; 4]);
    assert_eq!(g.lookup(0x20, 1), [0; 4], "the highest leaf has no such index");
    assert_eq!(g.lookup(0xb, 0x123), [0, 0, 0x23, 5]);
}

#[test]
fn runtime_state_shows() {
    let host = FakeHost::zen3();
    let mut g = generous(&host);
    let cr4 = (arch::cr::Cr4::OSXSAVE | arch::cr::Cr4::PKE).bits();
    assert_eq!(g.lookup(1, 0)[2] >> 27 & 1, 0);
    let now = Runtime { cr4, apic_enabled: true, xcr0: 7, xss: 0, mwait: Some(true), hlt_in_guest: true };
    g.update(&now);
    assert_eq!(g.lookup(1, 0)[2] >> 27 & 1, 1);
    assert_eq!(g.lookup(1, 0)[2] >> 3 & 1, 1);
    assert_eq!(g.lookup(1, 0)[3] >> 9 & 1, 1);
    assert_eq!(g.lookup(7, 0)[2] >> 4 & 1, 1);
    assert_eq!(g.lookup(0xd, 0)[1], 832);
    assert_eq!(g.lookup(0xd, 1)[1], 832);
    assert_eq!(g.lookup(0x4000_0001, 0)[0] & KVM_PV_UNHALT, 0);
    g.update(&Runtime { apic_enabled: false, mwait: None, ..Runtime::default() });
    assert_eq!(g.lookup(1, 0)[2] >> 27 & 1, 0);
    assert_eq!(g.lookup(1, 0)[2] >> 3 & 1, 1, "the quirk leaves MWAIT alone");
    assert_eq!(g.lookup(1, 0)[3] >> 9 & 1, 0);
}

#[test]
fn what_set_refuses() {
    let host = FakeHost::zen3();
    let mut g = generous(&host);
    let entries = supported_cpuid(&host).unwrap();
    let now = Runtime::default();
    let many: Vec<_> = (0..257).map(|i| CpuidEntry { function: i, ..Default::default() }).collect();
    assert_eq!(g.set(&many, &now, false), Err(Errno::E2BIG));
    assert_eq!(g.set(&many[..256], &now, true), Err(Errno::EINVAL));
    assert_eq!(g.set(&entries, &now, true), Ok(()));
    assert_eq!(g.entries().len(), entries.len());
    let one = |function, eax| [CpuidEntry { function, index: 0, flags: 0, regs: [eax, 0, 0, 0] }];
    assert_eq!(g.set(&one(0x8000_0008, 0x3430), &now, false), Err(Errno::EINVAL));
    assert_eq!(g.set(&one(0xd, 1 << 18), &now, false), Err(Errno::EPERM));
    assert_eq!(g.entries().len(), entries.len(), "a refused set changes nothing");
    for eax in [0x3930, 0x3030, 0x30] {
        assert_eq!(g.set(&one(0x8000_0008, eax), &now, false), Ok(()));
    }
    assert_eq!(g.set(&many[..256], &now, false), Ok(()));
    assert_eq!(g.set(&[], &now, false), Ok(()));
    assert_eq!(g.lookup(0, 0), [0; 4]);
}

#[test]
fn flags_follow_guest_and_host() {
    let host = FakeHost::zen3();
    let g = generous(&host);
    let f = g.flags();
    assert!(f.is_amd && f.nx && f.lm && f.xsave && f.rdtscp && f.spec_ctrl && f.ibpb && f.page_1g && f.x2apic);
    assert_eq!((f.family, f.model, f.phys_bits), (0x19, 0x21, 48));
    assert_eq!(f.reserved_gpa_bits, !0 << 48);
    assert_eq!(f.xcr0, 0x207);
    assert_eq!(f.kvm_features, KVM_FEATURES);
    assert!(g.cr4_valid(arch::cr::Cr4::SMAP.bits()) && !g.cr4_valid(arch::cr::Cr4::VMXE.bits()));
    assert!(g.efer_valid(0xd01) && !g.efer_valid(1 << 12) && !g.efer_valid(1 << 15));
    for (xcr0, ok) in
        [(0, false), (1, true), (3, true), (5, false), (7, true), (0x207, true), (0x27, false), (0xe7, false)]
    {
        assert_eq!(g.xcr0_valid(xcr0), ok, "{xcr0:#x}");
    }
    // A guest without CPUID has nothing.
    let bare = GuestCpuid::new(&Caps::new(&host));
    let f = bare.flags();
    assert!(!f.is_amd && !f.nx && !f.lm && !f.xsave && f.phys_bits == 36 && f.xcr0 == 0);
    assert!(bare.xcr0_valid(1) && !bare.xcr0_valid(3));
    // Its registers may be loaded before its CPUID, and empty CPUID is not none.
    assert!(bare.cr4_valid(arch::cr::Cr4::SMEP.bits()) && !bare.cr4_valid(arch::cr::Cr4::VMXE.bits()));
    let mut empty = GuestCpuid::new(&Caps::new(&host));
    empty.set(&[], &Runtime::default(), false).unwrap();
    assert!(!empty.cr4_valid(arch::cr::Cr4::SMEP.bits()) && empty.efer_valid(0xd01));
    // Nor does it become none in the next engine, and none does not become empty.
    for (was, takes) in [(&empty, false), (&bare, true)] {
        let kind = state::Section::new(*b"test", 3);
        let mut w = state::Writer::new(4096);
        w.section(kind, 0, was);
        let bytes = w.finish().unwrap();
        let mut next = GuestCpuid::new(&Caps::new(&host));
        state::Sections::new(&bytes).unwrap().load(kind, 0, &mut next).unwrap();
        assert_eq!(next.cr4_valid(arch::cr::Cr4::SMEP.bits()), takes);
    }
    // Later kernels take from user space, too, only what the guest was told of.
    for (major, minor, cr4, efer) in
        [(6, 13, true, true), (6, 14, false, true), (7, 2, false, true), (7, 3, false, false)]
    {
        let host = FakeHost { linux_version: host::linux_version(major, minor), ..FakeHost::zen3() };
        let bare = GuestCpuid::new(&Caps::new(&host));
        assert_eq!(
            (bare.cr4_valid(arch::cr::Cr4::SMEP.bits()), bare.efer_valid(0xd01)),
            (cr4, efer),
            "{major}.{minor}"
        );
    }
    // Claims without substance stay claims.
    let mut liar = GuestCpuid::new(&Caps::new(&host));
    let e = CpuidEntry { function: 0x8000_0001, index: 0, flags: 0, regs: [u32::MAX; 4] };
    liar.set(&[e], &Runtime::default(), false).unwrap();
    assert!(liar.shows(Feature(Word::X1Ecx, 2)) && !liar.caps().has(Feature(Word::X1Ecx, 2)));
}

#[test]
fn kvm_leaf_is_found_behind_another_hypervisors() {
    let host = FakeHost::zen3();
    let mut g = GuestCpuid::new(&Caps::new(&host));
    let e = |function, regs| CpuidEntry { function, index: 0, flags: 0, regs };
    let list = [
        e(0x4000_0000, [0x4000_000a, 0x7263_694d, 0x666f_736f, 0x7648_2074]),
        e(0x4000_0001, [0x3123_7648, 0, 0, 0]),
        e(0x4000_0100, [0x4000_0101, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        e(0x4000_0101, [u32::MAX, 0, 0, 0]),
    ];
    g.set(&list, &Runtime::default(), false).unwrap();
    assert_eq!(g.flags().kvm_features, KVM_FEATURES);
}

#[test]
fn any_entries_and_any_leaf_are_harmless() {
    let host = FakeHost::zen3();
    let mut seed = 1u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 32) as u32
    };
    for _ in 0..500 {
        let n = random() % 60;
        let mut entries = Vec::new();
        for _ in 0..n {
            let base = [0, 0x4000_0000, 0x8000_0000, 0xc000_0000][random() as usize % 4];
            let e = CpuidEntry {
                function: base + random() % 0x48,
                index: random() % 4,
                flags: random() % 2,
                regs: [random(), random(), random(), random()],
            };
            entries.push(e);
        }
        let mut g = GuestCpuid::new(&Caps::new(&host));
        let now = Runtime {
            cr4: random().into(),
            apic_enabled: true,
            xcr0: u64::from(random()) << 32 | u64::from(random()),
            xss: random().into(),
            mwait: None,
            hlt_in_guest: true,
        };
        if g.set(&entries, &now, false).is_ok() {
            assert!((1..=52).contains(&g.phys_bits()));
        }
        for _ in 0..100 {
            g.lookup(random() & 0xc000_00ff, random() % 8);
            g.lookup(random(), random());
        }
    }
}

const fn entry(function: u32, index: u32, flags: u32, regs: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, index, flags, regs }
}

fn shown(entries: &[CpuidEntry], now: &Runtime) -> GuestCpuid {
    let mut guest = GuestCpuid::new(&Caps::new(&FakeHost::zen3()));
    guest.set(entries, now, false).unwrap();
    guest
}

#[test]
fn topology_as_the_highest_leaf() {
    let intel = entry(0, 0, 0, [0xb, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
    let g = shown(&[intel, entry(0xb, 0, 1, [1, 2, 3, 4]), entry(0xb, 1, 1, [5, 6, 7, 8])], &Runtime::default());
    assert_eq!((g.lookup(0x20, 1), g.lookup(0x20, 0x105)), ([5, 6, 7, 8], [0, 0, 5, 8]));
}

#[test]
fn a_leaf_whose_index_matters_for_nothing() {
    let now = Runtime { apic_enabled: true, ..Runtime::default() };
    let leaves = [
        entry(0, 5, 1, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        entry(1, 5, 1, [0xa2_0f12, 0, u32::MAX, 0]),
        entry(0x8000_0000, 5, 1, [0x8000_0008, 0, 0, 0]),
        entry(0x8000_0008, 5, 1, [0x3028, 0, 0, 0]),
    ];
    let mut g = shown(&leaves, &now);
    assert_eq!((g.flags().is_amd, g.flags().family, g.phys_bits()), (true, 0x19, 40));
    // The guest finds it with that index alone, and features are those of index 0.
    assert_eq!((g.lookup(1, 0), g.lookup(1, 5)), ([0; 4], [0xa2_0f12, 0, !(1 << 27), 1 << 9]));
    assert!(!g.flags().x2apic);
    assert_eq!(g.set(&[entry(0x8000_0008, 5, 1, [0x3430, 0, 0, 0])], &now, false), Err(Errno::EINVAL));
}
