//! Quirks (KVM_CAP_DISABLE_QUIRKS2): on at first, and what goes when they are switched off.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::Page;
use sim::arch::exit::code;
use sim::host::{CpuFeatures, Errno};
use tests::scenario::{CODE, DATA, Left, Machine, PLAIN, RAM, RAM_HVA};

const UD: u64 = code::EXCP0 + 6;
const VMCALL: &[u8] = &[0x0f, 0x01, 0xc1];
const VMMCALL: u32 = 0xd9_010f;

fn machine(off: u64, bytes: &[u8]) -> Machine {
    let m = Machine::new();
    assert_eq!(m.enable(KVM_CAP_DISABLE_QUIRKS2, off), Ok(0));
    m.long(0, bytes);
    m
}

fn vectors(m: &Machine) -> Vec<u8> {
    m.injected(0).iter().map(|e| e.vector()).collect()
}

#[test]
fn the_other_makers_hypercall_is_patched() {
    let m = machine(0, VMCALL);
    assert_eq!(m.inside(0, |c| sim::host::Cpu::control(&c.core.cpu).intercept_exceptions) & 1 << 6, 1 << 6);
    m.exit(0, UD);
    m.does(0, |c| assert_eq!((c.guest().rip, c.injected.len()), (CODE, 0), "runs again"));
    m.run_out(0);
    assert_eq!(m.read_ram::<u32>(CODE) & 0xff_ffff, VMMCALL);

    let m = machine(KVM_X86_QUIRK_FIX_HYPERCALL_INSN.into(), VMCALL);
    m.exit(0, UD);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((vectors(&m), m.read_ram::<u32>(CODE) & 0xff_ffff), (vec![6], 0xc1_010f));

    // Anything else that is undefined is the guest's.
    let m = machine(0, &[0x0f, 0x0b]);
    m.exit(0, UD);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((vectors(&m), m.read_ram::<u32>(CODE) & 0xffff), (vec![6], 0x0b0f));
}

/// The code is in memory that is only read: user space is told of the write, each time.
#[test]
fn a_hypercall_that_cannot_be_patched() {
    let m = machine(0, &[]);
    m.write_ram(RAM, VMCALL);
    assert_eq!(m.region(1, KVM_MEM_READONLY, RAM, 0x1000, RAM_HVA + RAM), Ok(0));
    m.with_regs(0, |r| r.rip = RAM);
    for _ in 0..2 {
        m.exit(0, UD);
        assert_eq!(m.run(0), Ok(Left::Mmio { gpa: RAM + 2, write: true, data: vec![0xd9] }));
    }
    m.does(0, |c| assert_eq!((c.guest().rip, c.injected.len()), (RAM, 0)));
    m.run_out(0);
}

/// Whether it is one cannot be told without the code: that is no reason for #UD.
#[test]
fn undefined_code_that_cannot_be_read_now() {
    for how in [Page::Missing, Page::Poisoned] {
        let m = machine(0, VMCALL);
        m.host_changes(CODE & !0xfff, 1, how);
        m.exit(0, UD);
        assert_eq!((m.run(0), vectors(&m)), (Err((Errno::EINTR, Left::Intr)), vec![]));
        m.host_changes(CODE & !0xfff, 1, Page::Writable);
        m.exit(0, UD);
        m.does(0, move |c| assert_eq!((c.guest().rip, c.injected.len()), (CODE, 0), "{how:?}"));
        m.run_out(0);
        assert_eq!(m.read_ram::<u32>(CODE) & 0xff_ffff, VMMCALL);
    }
}

#[test]
fn monitor_and_mwait_without_them() {
    for off in [0, u64::from(KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS)] {
        for (bytes, exit) in [([0x0f, 0x01, 0xc8], code::MONITOR), ([0x0f, 0x01, 0xc9], code::MWAIT)] {
            let m = machine(off, &bytes);
            m.exit(0, exit);
            m.does(0, |_| ());
            m.run_out(0);
            assert_eq!((vectors(&m), m.regs(0).rip), if off == 0 { (vec![], CODE + 3) } else { (vec![6], CODE) });
        }
    }
}

#[test]
fn lint0_after_reset() {
    let lint0 = |off| {
        let m = Machine::without_vcpu(true);
        assert_eq!(m.enable(KVM_CAP_DISABLE_QUIRKS2, off), Ok(0));
        m.add_vcpu(0).expect("a vCPU");
        let l: kvm_lapic_state = m.vcpu_get(0, KVM_GET_LAPIC);
        [0x350, 0x351, 0x352].map(|n| l.regs[n] as u8)
    };
    assert_eq!(lint0(0), [0, 7, 0], "ExtINT, open");
    assert_eq!(lint0(KVM_X86_QUIRK_LINT0_REENABLED.into()), [0, 0, 1], "masked");
}

#[test]
fn unknown_quirks() {
    let m = Machine::new();
    let all = m.vm(KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2.into()).expect("a capability") as u64;
    for bit in (0..64).filter(|bit| all >> bit & 1 == 0) {
        assert_eq!(m.enable(KVM_CAP_DISABLE_QUIRKS2, 1 << bit), Err(Errno::EINVAL));
        assert_eq!(m.enable(KVM_CAP_DISABLE_QUIRKS, 1 << bit), Ok(0));
    }
    assert_eq!(m.enable(KVM_CAP_DISABLE_QUIRKS2, all), Ok(0));
}

/// What goes with a slot is the kernel's to say since 6.12.
#[test]
fn quirks_of_the_kernel() {
    for (version, known) in [(11, false), (12, true)] {
        let m = Machine::new();
        m.sim.set_linux_version(6, version);
        let all = m.vm(KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2.into()).expect("a capability") as u64;
        assert_eq!(all & u64::from(KVM_X86_QUIRK_SLOT_ZAP_ALL) != 0, known, "6.{version}");
        let switched = m.enable(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL.into());
        assert_eq!(switched, if known { Ok(0) } else { Err(Errno::EINVAL) }, "6.{version}");
    }
}

/// A guest's vendor string becomes Intel's.
fn intel(m: &Machine) {
    let mut cpuid: [u8; 8 + 40 * 256] = [0; 8 + 40 * 256];
    m.put_at(tests::scenario::DATA, &[256u32, 0]);
    assert_eq!(m.vcpu(0, KVM_GET_CPUID2, tests::scenario::DATA), Ok(0));
    let n = m.get_at::<u32>(tests::scenario::DATA) as usize;
    for (at, byte) in cpuid.iter_mut().enumerate() {
        *byte = m.get_at(tests::scenario::DATA + at as u64);
    }
    for entry in cpuid[8..8 + 40 * n].chunks_mut(40) {
        if entry[..4] == [0; 4] || entry[..4] == 0x8000_0000u32.to_le_bytes() {
            entry[16..20].copy_from_slice(b"Genu");
            entry[20..24].copy_from_slice(b"ntel");
            entry[24..28].copy_from_slice(b"ineI");
        }
    }
    m.put_at(tests::scenario::DATA, &cpuid);
    assert_eq!(m.vcpu(0, KVM_SET_CPUID2, tests::scenario::DATA), Ok(0));
}

/// 32-bit programs under a 64-bit kernel that takes the processor for one of Intel's.
#[test]
fn sysenter_and_sysexit_in_long_mode() {
    const SYSENTER: &[u8] = &[0x0f, 0x34];
    const SYSEXIT: &[u8] = &[0x0f, 0x35];
    const SYSEXIT64: &[u8] = &[0x48, 0x0f, 0x35];
    const ENTRY: u64 = 0xffff_8000_0001_0000;
    let ready = |bytes: &[u8], user: bool, vendor: bool, selector: u64| {
        let m = machine(0, bytes);
        if vendor {
            intel(&m);
        }
        for (msr, value) in [(0x174, selector), (0x175, 0xffff_8000_0002_0000), (0x176, ENTRY)] {
            assert_eq!(m.set_msr(0, msr, value), Ok(1));
        }
        let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
        if user {
            (s.cs.l, s.cs.db, s.cs.dpl, s.cs.selector, s.ss.dpl, s.ss.selector) = (0, 1, 3, 0x23, 3, 0x2b);
        }
        assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
        m.with_regs(0, |r| (r.rcx, r.rdx, r.rflags) = (0x1_0000_5000, 0x1_0000_6000, 0x202));
        m.exit(0, UD);
        m.does(0, |_| ());
        m.run_out(0);
        m
    };
    let state = |m: &Machine| {
        let (r, s) = (m.regs(0), m.vcpu_get::<kvm_sregs>(0, KVM_GET_SREGS));
        (r.rip, r.rsp, [s.cs.selector, s.ss.selector], [s.cs.l, s.cs.db, s.cs.dpl, s.ss.dpl], r.rflags)
    };
    let m = ready(SYSENTER, true, true, 0x10);
    assert_eq!(state(&m), (ENTRY, 0xffff_8000_0002_0000, [0x10, 0x18], [1, 0, 0, 0], 2));
    let m = ready(SYSEXIT, false, true, 0x10);
    assert_eq!(state(&m), (0x6000, 0x5000, [0x23, 0x2b], [0, 1, 3, 3], 0x202));
    let m = ready(SYSEXIT64, false, true, 0x10);
    assert_eq!(state(&m), (0x1_0000_6000, 0x1_0000_5000, [0x33, 0x3b], [1, 0, 3, 3], 0x202));
    // No selector, or no privilege; and AMD's own do not have them at all.
    for (bytes, user, vendor, selector, vector) in [
        (SYSENTER, true, true, 0, 13),
        (SYSEXIT, false, true, 0, 13),
        (SYSEXIT, true, true, 0x10, 13),
        (SYSENTER, true, false, 0x10, 6),
        (SYSEXIT, false, false, 0x10, 6),
    ] {
        let m = ready(bytes, user, vendor, selector);
        assert_eq!((vectors(&m), m.regs(0).rip), (vec![vector], CODE), "{bytes:x?} {user} {vendor} {selector}");
    }
}

/// VMCALL is privileged: user code is neither changed nor served.
#[test]
fn a_hypercall_of_the_other_maker_in_user_code() {
    for off in [0, u64::from(KVM_X86_QUIRK_FIX_HYPERCALL_INSN)] {
        let m = machine(off, VMCALL);
        let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
        (s.cs.dpl, s.cs.selector, s.ss.dpl, s.ss.selector) = (3, 0x23, 3, 0x2b);
        assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
        m.exit(0, UD);
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!((vectors(&m), m.read_ram::<u32>(CODE) & 0xff_ffff), (vec![13], 0xc1_010f));
    }
}

/// MOVBE and RDPID, which this processor lacks, for a guest whose CPUID shows them.
#[test]
fn what_the_processor_lacks_is_emulated_for_who_was_promised_it() {
    let show = |m: &Machine| {
        let entries = [
            kvm_cpuid_entry2 { function: 1, ecx: 1 << 22, ..Default::default() },
            kvm_cpuid_entry2 { function: 7, flags: 1, ecx: 1 << 22, ..Default::default() },
            kvm_cpuid_entry2 { function: 0x8000_0001, edx: 1 << 27 | 1 << 29, ..Default::default() },
        ];
        m.put_at(DATA, &[entries.len() as u32, 0]);
        m.put_at(DATA + 8, &entries);
        assert_eq!(m.vcpu(0, KVM_SET_CPUID2, DATA), Ok(0));
        assert_eq!(m.set_msr(0, 0xc000_0103, 0x1_2345), Ok(1));
    };
    // movbe eax, [rbx] and movbe [rbx], rcx
    let load: &[u8] = &[0x0f, 0x38, 0xf0, 0x03];
    let store: &[u8] = &[0x48, 0x0f, 0x38, 0xf1, 0x0b];
    let rdpid: &[u8] = &[0xf3, 0x41, 0x0f, 0xc7, 0xf9];
    for (code, shown) in [load, store, rdpid].into_iter().flat_map(|code| [(code, true), (code, false)]) {
        let m = Machine::on(CpuFeatures { tsc_aux: true, ..PLAIN });
        if shown {
            show(&m);
        }
        m.long(0, code);
        m.write_ram(0x9000, &0x1122_3344_5566_7788u64.to_le_bytes());
        m.with_regs(0, |r| (r.rax, r.rbx, r.rcx, r.r9) = (!0, 0x9000, 0x0102_0304_0506_0708, !0));
        m.exit(0, UD);
        m.does(0, |_| ());
        m.run_out(0);
        let r = m.regs(0);
        let seen = (r.rax, m.read_ram::<u64>(0x9000), r.r9);
        let mut want = (!0, 0x1122_3344_5566_7788, !0);
        match code {
            _ if !shown => {}
            [0x0f, ..] => want.0 = 0x8877_6655,
            [0x48, ..] => want.1 = 0x0807_0605_0403_0201,
            _ => want.2 = 0x1_2345,
        }
        assert_eq!(seen, want, "{code:x?} {shown}");
        let rip = if shown { CODE + code.len() as u64 } else { CODE };
        assert_eq!((r.rip, vectors(&m)), (rip, if shown { vec![] } else { vec![6] }), "{code:x?}");
    }
}
