//! The guest's registers, wherever they are switched: it finds what user space set, and user space what the guest left.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::arch::Intercepts;
use sim::arch::exit::code;
use sim::arch::msr;
use sim::host::{Cpu, CpuFeatures, Errno};
use tests::scenario::{Machine, PLAIN, RAM, RAM_HVA};

fn machine(features: CpuFeatures) -> Machine {
    let m = Machine::bare(features).unwrap();
    assert_eq!(m.enable(KVM_CAP_SPLIT_IRQCHIP, 24), Ok(0));
    assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
    assert_eq!(m.add_vcpu(0), Ok(0));
    m.long(0, &[0x0f, 0x09]); // wbinvd
    m
}

#[test]
fn general_registers() {
    let m = machine(PLAIN);
    let value = |n: u64| n << 56 | 0x77_0000 | n;
    m.with_regs(0, |r| {
        (r.rax, r.rcx, r.rdx, r.rbx) = (value(0), value(1), value(2), value(3));
        (r.rsp, r.rbp, r.rsi, r.rdi) = (value(4), value(5), value(6), value(7));
        (r.r8, r.r9, r.r10, r.r11) = (value(8), value(9), value(10), value(11));
        (r.r12, r.r13, r.r14, r.r15) = (value(12), value(13), value(14), value(15));
    });
    // Twice, with an exit between, that changes none.
    for _ in 0..2 {
        m.does(0, move |c| {
            for n in 0..16 {
                assert_eq!(c.gpr(n), value(n.into()), "register {n}");
            }
        });
        m.exit(0, code::WBINVD);
    }
    m.does(0, move |c| (0..16).for_each(|n| c.set_gpr(n, !value(n.into()))));
    m.run_out(0);
    let r = m.regs(0);
    let left = [r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi];
    let more = [r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15];
    assert!(left.into_iter().chain(more).eq((0..16).map(|n| !value(n))), "{r:x?}");
    m.end();
}

#[test]
fn segments_and_registers_of_system_calls() {
    let m = machine(PLAIN);
    let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    (s.fs.base, s.gs.base, s.ldt.base, s.tr.base) = (0x1f000, 0x2f000, 0x3f000, 0x4f000);
    (s.fs.selector, s.gs.selector) = (0x23, 0x2b);
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    let msrs = [
        (msr::STAR, 0x1_0000),
        (msr::LSTAR, 0x2_0000),
        (msr::CSTAR, 0x3_0000),
        (msr::SYSCALL_MASK, 0x700),
        (msr::KERNEL_GS_BASE, 0x5_0000),
        (msr::SYSENTER_CS, 0x60),
        (msr::SYSENTER_ESP, 0x7_0000),
        (msr::SYSENTER_EIP, 0x8_0000),
    ];
    for (index, value) in msrs {
        assert_eq!(m.set_msr(0, index, value), Ok(1));
    }
    for _ in 0..2 {
        m.does(0, move |c| {
            let g = c.guest();
            assert_eq!([g.fs.base, g.gs.base, g.ldtr.base, g.tr.base], [0x1f000, 0x2f000, 0x3f000, 0x4f000]);
            assert_eq!((g.fs.selector, g.gs.selector), (0x23, 0x2b));
            let now = [g.star, g.lstar, g.cstar, g.sfmask, g.kernel_gs_base];
            let sysenter = [g.sysenter_cs, g.sysenter_esp, g.sysenter_eip];
            assert!(now.into_iter().chain(sysenter).eq(msrs.map(|(_, value)| value)));
        });
        m.exit(0, code::WBINVD);
    }
    // SWAPGS, and what else needs no exit.
    m.does(0, |c| {
        let g = c.guest();
        (g.gs.base, g.kernel_gs_base) = (g.kernel_gs_base, g.gs.base);
        (g.fs.base, g.lstar, g.sfmask, g.sysenter_eip) = (0x9f000, 0xa_0000, 0x200, 0xb_0000);
    });
    m.run_out(0);
    let s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    assert_eq!((s.fs.base, s.gs.base, s.tr.base), (0x9f000, 0x5_0000, 0x4f000));
    let now = [msr::KERNEL_GS_BASE, msr::LSTAR, msr::SYSCALL_MASK, msr::SYSENTER_EIP, msr::STAR].map(|n| m.msr(0, n));
    assert_eq!(now, [0x2f000, 0xa_0000, 0x200, 0xb_0000, 0x1_0000]);
    m.end();
}

#[test]
fn spec_ctrl() {
    for v_spec_ctrl in [false, true] {
        let m = machine(CpuFeatures { spec_ctrl: true, v_spec_ctrl, ..PLAIN });
        m.does(0, |c| assert_eq!(c.extra().spec_ctrl, 0));
        m.run_out(0);
        assert_eq!(m.set_msr(0, msr::SPEC_CTRL, 4), Ok(1));
        m.does(0, |c| assert_eq!(c.extra().spec_ctrl, 4));
        m.exit(0, code::WBINVD);
        // From its first use on the guest writes it without an exit.
        m.does(0, |c| {
            assert_eq!(c.msr_intercepts[&msr::SPEC_CTRL], (false, false));
            c.extra_mut().spec_ctrl = 5;
        });
        m.exit(0, code::WBINVD);
        m.does(0, |c| assert_eq!(c.extra().spec_ctrl, 5));
        m.run_out(0);
        assert_eq!(m.msr(0, msr::SPEC_CTRL), 5);
        m.end();
    }
}

#[test]
fn tsc_aux() {
    let m = machine(CpuFeatures { tsc_aux: true, ..PLAIN });
    let other = machine(CpuFeatures { tsc_aux: true, ..PLAIN });
    for (m, value) in [(&m, 3), (&other, 4), (&m, 5), (&other, 6)] {
        assert_eq!(m.set_msr(0, msr::TSC_AUX, value), Ok(1));
        m.does(0, move |c| assert_eq!(c.extra().tsc_aux, value));
        m.run_out(0);
    }
    m.end();
    other.end();
}

#[test]
fn a_guest_without_invpcid_gets_ud() {
    let m = Machine::bare(PLAIN).unwrap();
    assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
    for id in 0..2 {
        let with = id == 1;
        let vcpu = if with { m.add_vcpu(id) } else { m.add_vcpu_without_cpuid(id) }.unwrap();
        m.long(vcpu, &[0x66, 0x0f, 0x38, 0x82, 0x03]);
        m.does(vcpu, move |c| assert_eq!(c.vmcb().intercept_5, u32::from(!with) << 2));
        m.run_out(vcpu);
    }
    m.exit(0, code::INVPCID);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).iter().map(|e| e.vector()).collect::<Vec<_>>(), [6]);
    m.end();
}

/// RDPID cannot be intercepted, and RDTSCP is #UD.
#[test]
fn a_guest_without_rdtscp_finds_nothing_of_the_host_in_tsc_aux() {
    let m = Machine::bare(CpuFeatures { tsc_aux: true, ..PLAIN }).unwrap();
    assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
    for id in 0..2 {
        let with = id == 1;
        let vcpu = if with { m.add_vcpu(id) } else { m.add_vcpu_without_cpuid(id) }.unwrap();
        m.long(vcpu, &[0x0f, 0x01, 0xf9]);
        m.does(vcpu, move |c| {
            assert_eq!(c.extra().tsc_aux, 0);
            let intercepts = u64::from(c.vmcb().intercept_3) | u64::from(c.vmcb().intercept_4) << 32;
            assert_eq!(intercepts & Intercepts::RDTSCP.bits() == 0, with);
        });
        m.run_out(vcpu);
    }
    m.exit(0, code::RDTSCP);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).iter().map(|e| e.vector()).collect::<Vec<_>>(), [6]);
    m.end();
}

#[test]
fn xcr0() {
    let m = machine(PLAIN);
    let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    s.cr4 |= 1 << 18; // OSXSAVE
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    for value in [3, 7, 1] {
        let mut x: kvm_xcrs = m.vcpu_get(0, KVM_GET_XCRS);
        x.xcrs[0].value = value;
        assert_eq!(m.vcpu_with(0, KVM_SET_XCRS, &x), Ok(0));
        m.does(0, move |c| assert_eq!(c.extra().xcr0, value));
        m.exit(0, code::WBINVD);
        m.does(0, move |c| assert_eq!(c.extra().xcr0, value));
        m.run_out(0);
    }
    m.end();
}

#[test]
fn debug_addresses() {
    let m = machine(PLAIN);
    let mut d: kvm_debugregs = m.vcpu_get(0, KVM_GET_DEBUGREGS);
    (d.db, d.dr7) = ([0x10, 0x20, 0x30, 0x40], 0x4ff);
    assert_eq!(m.vcpu_with(0, KVM_SET_DEBUGREGS, &d), Ok(0));
    m.does(0, |c| assert_eq!((c.extra().load_dr, c.extra().dr), (true, [0x10, 0x20, 0x30, 0x40])));
    m.run_out(0);
    m.end();
}

#[test]
fn instructions_that_idle_need_not_exit() {
    let m = Machine::bare(CpuFeatures { pause_filter: true, pause_filter_threshold: true, ..PLAIN }).expect("a VM");
    assert_eq!(m.enable(KVM_CAP_X86_DISABLE_EXITS, 0xe), Ok(0));
    m.add_vcpu(0).expect("a vCPU");
    let intercepts = m.inside(0, |c| c.core.cpu.control().intercept_3);
    assert_eq!((intercepts >> 23 & 1, intercepts >> 24 & 1), (0, 0), "PAUSE, HLT");
    // Later it is for vCPUs to come. What has to exit on this machine (MWAIT) does, and nobody is refused.
    assert_eq!([2, 1, 16].map(|which| m.enable(KVM_CAP_X86_DISABLE_EXITS, which)), [Ok(0), Ok(0), Err(Errno::EINVAL)]);
    m.add_vcpu(1).expect("a vCPU");
    assert_eq!(m.inside(1, |c| c.core.cpu.control().intercept_4) >> 10 & 7, 7, "MONITOR, MWAIT");
    // Later kernels refuse both, and then another frequency for vCPUs to come.
    assert_eq!(m.vm(KVM_SET_TSC_KHZ, 0), Ok(0));
    m.sim.set_linux_version(6, 17);
    assert_eq!(m.vm(KVM_SET_TSC_KHZ, 0), Err(Errno::EINVAL));
    assert_eq!(m.enable(KVM_CAP_X86_DISABLE_EXITS, 2), Err(Errno::EINVAL));
    let m = Machine::bare(PLAIN).expect("a VM");
    m.sim.set_linux_version(6, 14);
    assert_eq!([1, 2].map(|which| m.enable(KVM_CAP_X86_DISABLE_EXITS, which)), [Err(Errno::EINVAL), Ok(0)]);
}
