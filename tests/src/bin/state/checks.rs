//! What the vCPU's ioctls take and what they refuse.

use crate::guest::{Chips, Guest};
use anyhow::Result;
use kvm_bindings::*;

const KVM_GET_SREGS2: u64 = 0x8140_aecc;
const KVM_SET_SREGS2: u64 = 0x4140_aecd;
const KVM_SET_MSRS: u64 = 0x4008_ae89;
const KVM_GET_NESTED_STATE: u64 = 0xc080_aebe;
const KVM_SET_NESTED_STATE: u64 = 0x4080_aebf;
const KVM_TPR_ACCESS_REPORTING: u64 = 0xc028_ae92;
const KVM_SET_VAPIC_ADDR: u64 = 0x4008_ae93;
const KVM_GET_XSAVE: u64 = 0x9000_aea4;
const KVM_SET_XSAVE: u64 = 0x5000_aea5;
const KVM_SET_SIGNAL_MASK: u64 = 0x4004_ae8b;
const KVM_ENABLE_CAP: u64 = 0x4068_aea3;
const KVM_SET_IDENTITY: u64 = 0x4008_ae48;

fn errno(result: Result<(), kvm_ioctls::Error>) -> i32 {
    result.err().map_or(0, |e| e.errno())
}

fn nop(a: &mut iced_x86::code_asm::CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.nop()
}

/// One change of the system registers, and its name.
type Change = (&'static str, fn(&mut kvm_sregs));

const CHANGES: &[Change] = &[
    ("nothing", |_| {}),
    ("cr0 28..6", |s| s.cr0 |= 0x1fff_ffc0),
    ("cr0 bit 6", |s| s.cr0 |= 1 << 6),
    ("cr0 bit 32", |s| s.cr0 |= 1 << 32),
    ("cr0 nw", |s| s.cr0 |= 1 << 29),
    ("cr0 nw cd", |s| s.cr0 |= 3 << 29),
    ("cr0 no pe", |s| s.cr0 &= !1),
    ("cr0 no pg", |s| s.cr0 &= !(1 << 31)),
    ("cr0 no et", |s| s.cr0 &= !(1 << 4)),
    ("cr0 zero", |s| (s.cr0, s.efer, s.cs.l) = (0, 0, 0)),
    ("cr3 high", |s| s.cr3 |= 1 << 52),
    ("cr3 beyond", |s| s.cr3 |= 1 << 50),
    ("cr3 bit 63", |s| s.cr3 |= 1 << 63),
    ("cr3 low", |s| s.cr3 |= 0xfff),
    ("cr4 no pae", |s| s.cr4 &= !0x20),
    ("cr4 vmxe", |s| s.cr4 |= 1 << 13),
    ("cr4 bit 15", |s| s.cr4 |= 1 << 15),
    ("cr4 bit 31", |s| s.cr4 |= 1 << 31),
    ("cr4 pcide", |s| s.cr4 |= 1 << 17),
    ("cr4 la57", |s| s.cr4 |= 1 << 12),
    ("efer lma off", |s| s.efer &= !0x400),
    ("efer lme off", |s| s.efer &= !0x100),
    ("efer svme", |s| s.efer |= 1 << 12),
    ("efer bit 1", |s| s.efer |= 2),
    ("efer bit 16", |s| s.efer |= 1 << 16),
    ("cs long and db", |s| s.cs.db = 1),
    ("cs not present", |s| s.cs.present = 0),
    ("cs unusable", |s| s.cs.unusable = 1),
    ("ss dpl", |s| s.ss.dpl = 3),
    ("ss rpl", |s| s.ss.selector |= 3),
    ("cs dpl", |s| (s.cs.dpl, s.cs.selector) = (3, 11)),
    ("ds type", |s| s.ds.type_ = 0),
    ("tr type", |s| s.tr.type_ = 9),
    ("tr unusable", |s| s.tr.unusable = 1),
    ("limit", |s| s.ds.limit = 0x12_3456),
    ("base", |s| s.fs.base = 0xdead_0000_0000_0000),
    ("cr8 15", |s| s.cr8 = 15),
    ("cr8 16", |s| s.cr8 = 16),
    ("apic base low", |s| s.apic_base |= 1),
    ("apic base bit 9", |s| s.apic_base |= 1 << 9),
    ("apic base x2 alone", |s| s.apic_base = s.apic_base & !0xc00 | 0x400),
    ("apic base x2", |s| s.apic_base |= 0xc00),
    ("apic base off", |s| s.apic_base &= !0xc00),
    ("apic base high", |s| s.apic_base |= 1 << 52),
    ("apic base moved", |s| s.apic_base = 0xfec0_0800),
    ("apic base zero", |s| s.apic_base = 0),
    ("long off", |s| (s.cr0, s.efer) = (0x33, 0)),
    ("32 bits", |s| (s.cr0, s.efer, s.cs.l, s.cs.db) = (0x33, 0, 0, 1)),
];

fn sregs(what: &str, before: &kvm_sregs, guest: &Guest) -> Result<()> {
    let s = guest.vcpu.get_sregs()?;
    let segments = [s.cs, s.ds, s.ss, s.fs, s.tr].map(|s| {
        [
            s.selector.into(),
            s.base,
            s.limit.into(),
            u64::from(s.type_),
            s.dpl.into(),
            s.present.into(),
            s.unusable.into(),
        ]
    });
    println!(
        "checks, {what}: cr0 {:x} cr3 {:x} cr4 {:x} cr8 {:x} efer {:x} base {:x} same {} {segments:x?}",
        s.cr0,
        s.cr3,
        s.cr4,
        s.cr8,
        s.efer,
        s.apic_base,
        s == *before
    );
    Ok(())
}

/// KVM_SET_SREGS, KVM_SET_SREGS2, and the others.
pub fn registers() -> Result<()> {
    for chips in [Chips::None, Chips::Split] {
        for &(name, change) in CHANGES {
            let name = format!("{chips:?} {name}");
            let guest = Guest::new(chips, nop)?;
            let before = guest.vcpu.get_sregs()?;
            let mut s = before;
            change(&mut s);
            println!("checks, {name}: {}", errno(guest.vcpu.set_sregs(&s)));
            sregs(&name, &before, &guest)?;
            // The same through the newer call.
            let mut s2 = kvm_sregs2::default();
            let got = guest.call(KVM_GET_SREGS2, &mut s2);
            let flags = s2.flags;
            s2 = kvm_sregs2 {
                cs: s.cs,
                ds: s.ds,
                es: s.es,
                fs: s.fs,
                gs: s.gs,
                ss: s.ss,
                tr: s.tr,
                ldt: s.ldt,
                gdt: s.gdt,
                idt: s.idt,
                cr0: s.cr0,
                cr2: s.cr2,
                cr3: s.cr3,
                cr4: s.cr4,
                cr8: s.cr8,
                efer: s.efer,
                apic_base: s.apic_base,
                ..Default::default()
            };
            println!("checks, {name}, second: {got} {flags:x} {}", guest.call(KVM_SET_SREGS2, &mut s2));
            for flags in [1, 2] {
                s2.flags = flags;
                println!("checks, {name}, second with flags {flags}: {}", guest.call(KVM_SET_SREGS2, &mut s2));
            }
        }
    }
    debugging()?;
    others()?;
    extended_state()
}

/// KVM_SET_XSAVE with one 64-bit word changed, and calls whose struct says how long it is.
fn extended_state() -> Result<()> {
    const MXCSR: usize = 3;
    const XSTATE_BV: usize = 64;
    for (name, at, value) in [
        ("as it was", 70, 0),
        ("mxcsr", MXCSR, 0x1f80),
        ("mxcsr reserved", MXCSR, 0x1_1f80),
        ("no component", XSTATE_BV, 0),
        ("x87 and sse", XSTATE_BV, 3),
        ("avx", XSTATE_BV, 7),
        ("unknown component", XSTATE_BV, 1 << 40),
        ("bit 63", XSTATE_BV, 1 << 63),
        ("compact", XSTATE_BV + 1, 1 << 63),
        ("reserved of the header", XSTATE_BV + 2, 1),
        ("last of the header", XSTATE_BV + 7, 1),
    ] {
        let guest = Guest::new(Chips::Split, nop)?;
        let mut area = [0u64; 512];
        let got = guest.call(KVM_GET_XSAVE, &mut area);
        area[at] = value;
        let set = guest.call(KVM_SET_XSAVE, &mut area);
        let mut back = [0u64; 512];
        guest.call(KVM_GET_XSAVE, &mut back);
        println!("checks, xsave {name}: {got} {set} {:x} {:x} {:x}", back[MXCSR], back[XSTATE_BV], back[XSTATE_BV + 1]);
    }
    let guest = Guest::new(Chips::Split, nop)?;
    for len in [0u32, 4, 8, 16, 128] {
        let mut mask = [len, 0, 0, 0, 0];
        println!("checks, signal mask of {len}: {}", guest.call(KVM_SET_SIGNAL_MASK, &mut mask));
    }
    for (cap, flags) in [(190, 0), (190, 1), (0, 0), (121, 0), (9999, 0)] {
        let mut enable = kvm_enable_cap { cap, flags, ..Default::default() };
        println!("checks, enable {cap} {flags}: {}", guest.call(KVM_ENABLE_CAP, &mut enable));
    }
    Ok(())
}

fn debugging() -> Result<()> {
    for control in
        [0u32, 1, 2, 4, 8, 0x1_0000, 0x2_0001, 0x10_0001, 0x20_0001, 0x40_0000, 0x8000_0001, 0xc_0001, 4 | 0x4_0001]
    {
        let guest = Guest::new(Chips::Split, nop)?;
        println!("checks, debug {control:x}: {}", guest.debug(control, [0; 8]));
        println!("checks, debug {control:x} again: {}", guest.debug(control, [!0; 8]));
        let e = guest.vcpu.get_vcpu_events()?;
        println!("checks, debug {control:x}: {} {} {}", e.exception.injected, e.exception.pending, e.exception.nr);
    }
    for (dr6, dr7, flags) in [
        (0, 0, 0),
        (0xffff_0ff0, 0x400, 0),
        (!0, 0x400, 0),
        (1 << 32, 0x400, 0),
        (0xffff_ffff, 0xffff_ffff, 0),
        (0, 1 << 32, 0),
        (0, 0, 1),
        (0xffff_1ff0, 0xd400, 0),
    ] {
        let guest = Guest::new(Chips::Split, nop)?;
        let mut d = guest.vcpu.get_debug_regs()?;
        (d.dr6, d.dr7, d.flags, d.db) = (dr6, dr7, flags, [!0, 1, 2, 3]);
        let result = errno(guest.vcpu.set_debug_regs(&d));
        let d = guest.vcpu.get_debug_regs()?;
        println!("checks, dr {dr6:x} {dr7:x} {flags}: {result} {:x} {:x} {:x?}", d.dr6, d.dr7, d.db);
    }
    Ok(())
}

fn others() -> Result<()> {
    let guest = Guest::new(Chips::Split, nop)?;
    for rflags in [0u64, 2, !0, 1 << 17, 0x3202] {
        guest.regs(|r| r.rflags = rflags)?;
        println!("checks, flags {rflags:x}: {:x}", guest.vcpu.get_regs()?.rflags);
    }
    guest.regs(|r| r.rflags = 2)?;
    for (nr, flags, xcr, value) in [
        (1, 0, 0, 1),
        (1, 0, 0, 3),
        (1, 0, 0, 7),
        (1, 0, 0, 0),
        (1, 0, 0, 2),
        (1, 0, 0, 5),
        (1, 0, 0, 1 << 62 | 1),
        (1, 1, 0, 3),
        (0, 0, 0, 7),
        (16, 0, 0, 3),
        (17, 0, 0, 3),
        (1, 0, 1, 3),
    ] {
        let mut x = kvm_xcrs { nr_xcrs: nr, flags, ..Default::default() };
        (x.xcrs[0].xcr, x.xcrs[0].value) = (xcr, value);
        let result = errno(guest.vcpu.set_xcrs(&x));
        println!("checks, xcrs {nr} {flags} {xcr} {value:x}: {result} {:x}", guest.vcpu.get_xcrs()?.xcrs[0].value);
    }
    for chips in [Chips::None, Chips::Split] {
        for flags in [0, 1, 2, 4, 8, 0x10, 0x20, 0x40, 0x8000_0000] {
            let guest = Guest::new(chips, nop)?;
            let mut e = guest.vcpu.get_vcpu_events()?;
            e.flags = flags;
            println!("checks, {chips:?} events flags {flags:x}: {}", errno(guest.vcpu.set_vcpu_events(&e)));
            for (name, smm, pending, inside, latched) in
                [("smm", 1, 0, 0, 0), ("smi", 0, 1, 0, 0), ("inside", 0, 0, 1, 0), ("latched", 0, 0, 0, 1)]
            {
                (e.smi.smm, e.smi.pending, e.smi.smm_inside_nmi, e.smi.latched_init) = (smm, pending, inside, latched);
                println!("checks, {chips:?} events {flags:x} {name}: {}", errno(guest.vcpu.set_vcpu_events(&e)));
            }
        }
        let guest = Guest::new(chips, nop)?;
        let mut tpr = kvm_tpr_access_ctl { enabled: 1, ..Default::default() };
        println!("checks, {chips:?} tpr reporting: {}", guest.call(KVM_TPR_ACCESS_REPORTING, &mut tpr));
        tpr.flags = 1;
        println!("checks, {chips:?} tpr reporting, flags: {}", guest.call(KVM_TPR_ACCESS_REPORTING, &mut tpr));
        for address in [0, 0x1000, 0x1004, 1 << 60] {
            let mut a = kvm_vapic_addr { vapic_addr: address };
            println!("checks, {chips:?} vapic {address:x}: {}", guest.call(KVM_SET_VAPIC_ADDR, &mut a));
        }
        let mut address = 0u64;
        println!("checks, {chips:?} no such call: {}", guest.call(KVM_SET_IDENTITY, &mut address));
        let mut lapic = kvm_lapic_state::default();
        println!("checks, {chips:?} lapic: {}", errno(guest.vcpu.set_lapic(&lapic)));
        lapic.regs[0x23] = 5;
        println!("checks, {chips:?} lapic of another: {}", errno(guest.vcpu.set_lapic(&lapic)));
    }
    Ok(())
}

#[repr(C)]
struct OneMsr {
    nmsrs: u32,
    pad: u32,
    entry: kvm_msr_entry,
}

/// Feature MSRs and CPUID, before and after the first KVM_RUN.
pub fn fixed_once_run() -> Result<()> {
    let mut guest = Guest::new(Chips::Split, nop)?;
    let features = guest.client.kvm.get_msr_feature_index_list()?;
    let mut msrs: Vec<u32> = features.as_slice().to_vec();
    // The VMX range is of no meaning here; others that are no features.
    msrs.retain(|m| !(0x480..=0x492).contains(m));
    msrs.extend([0x480, 0x48a, 0x8b, 0x1b, 0x3a, 0xc001_0015, 0x1a0, 0xc001_0140]);
    for round in ["before", "after"] {
        for &index in &msrs {
            let read = |guest: &Guest| {
                let mut m = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).ok()?;
                guest.vcpu.get_msrs(&mut m).ok().filter(|n| *n == 1)?;
                Some(m.as_slice()[0].data)
            };
            let old = read(&guest);
            let write = |data: u64| {
                let entry = kvm_msr_entry { index, data, ..Default::default() };
                guest.call(KVM_SET_MSRS, &mut OneMsr { nmsrs: 1, pad: 0, entry })
            };
            let value = old.unwrap_or(0);
            let written = [write(value), write(value ^ 2), write(0), write(value)];
            println!("fixed, msr {index:x} {round} run: {written:?}");
        }
        let cpuid = guest.client.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        let own = guest.vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)?;
        println!("fixed, same cpuid {round} run: {}", errno(guest.vcpu.set_cpuid2(&own)));
        let mut other = cpuid.clone();
        other.as_mut_slice().iter_mut().filter(|e| e.function == 1).for_each(|e| e.ecx &= !1);
        println!("fixed, other cpuid {round} run: {}", errno(guest.vcpu.set_cpuid2(&other)));
        println!("fixed, own cpuid again {round} run: {}", errno(guest.vcpu.set_cpuid2(&own)));
        println!("fixed, runs: {}", guest.run());
    }
    Ok(())
}

/// The header of the nested state, which clients ask for whether there is nested virtualisation or not.
pub fn nested_state() -> Result<()> {
    let guest = Guest::new(Chips::Split, nop)?;
    for size in [0, 127, 128, 4096 + 128] {
        let mut state = kvm_nested_state { size, ..Default::default() };
        let result = guest.call(KVM_GET_NESTED_STATE, &mut state);
        println!("nested, get {size}: {result} flags {:x} format {} size {}", state.flags, state.format, state.size);
    }
    for (flags, format, size) in [
        (0x100, 1, 128),
        (0x100, 1, 4096 + 128),
        (0x100, 1, 127),
        (0x100, 0, 128),
        (0x100, 2, 128),
        (0x101, 1, 128),
        (0x102, 1, 128),
        (0x104, 1, 128),
        (0x200, 1, 128),
        (0x102, 0, 128),
    ] {
        let mut state = kvm_nested_state { flags, format, size, ..Default::default() };
        let result = guest.call(KVM_SET_NESTED_STATE, &mut state);
        println!("nested, set {flags:x} {format} {size}: {result}");
    }
    Ok(())
}
