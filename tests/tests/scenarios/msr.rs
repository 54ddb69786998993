//! RDMSR and WRMSR: in the kernel, refused, filtered, or user space's.

use abi::uapi::ioctl::KVM_X86_SET_MSR_FILTER;
use abi::uapi::run::exit::{MSR_DATA, MSR_ERROR};
use kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR;
use tests::plain::{MsrFilter, MsrFilterRange};
use tests::scenario::{DATA, Left, Machine, PLAIN, RAM, RAM_HVA};

const PAT: u32 = 0x277;
const NOBODYS: u32 = 0x1234_5678;
const GP: (u8, Option<u32>) = (13, Some(0));

fn machine() -> Machine {
    let m = Machine::new();
    m.long(0, &[]);
    m
}

fn injected(m: &Machine) -> Vec<(u8, Option<u32>)> {
    m.injected(0).iter().map(|e| (e.vector(), e.error_code())).collect()
}

fn deny(m: &Machine, flags: u32, index: u32) {
    m.put_at(DATA, &0u64);
    let mut filter = MsrFilter::default();
    filter.ranges[0] = MsrFilterRange { flags, nmsrs: 1, base: index, pad: 0, bitmap: DATA };
    assert_eq!(m.vm_with(KVM_X86_SET_MSR_FILTER, &filter), Ok(0));
}

#[test]
fn known_ones_stay_in_the_kernel() {
    let m = machine();
    m.wrmsr(0, PAT, 0x0007_0406_0007_0400);
    m.rdmsr(0, PAT);
    m.run_out(0);
    let r = m.regs(0);
    assert_eq!((r.rdx, r.rax), (0x0007_0406, 0x0007_0400));
    assert_eq!(m.msr(0, PAT), 0x0007_0406_0007_0400);
    assert_eq!(injected(&m), []);
}

#[test]
fn unknown_or_invalid_is_gp() {
    let m = machine();
    m.rdmsr(0, NOBODYS);
    m.wrmsr(0, NOBODYS, 1);
    m.wrmsr(0, PAT, 2); // a memory type that does not exist
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(injected(&m), [GP; 3]);
    assert_eq!(m.msr(0, PAT), 0x0007_0406_0007_0406);
}

#[test]
fn user_space_reads_for_the_guest() {
    let m = machine();
    assert_eq!(m.enable(KVM_CAP_X86_USER_SPACE_MSR, 2), Ok(0));
    m.rdmsr(0, NOBODYS);
    assert_eq!(m.run(0), Ok(Left::Rdmsr { reason: 2, index: NOBODYS }));
    let at = m.regs(0).rip;
    m.page(0).set_u64(MSR_DATA, 0x1111_2222_3333_4444);
    m.run_out(0);
    let r = m.regs(0);
    assert_eq!((r.rdx, r.rax, r.rip), (0x1111_2222, 0x3333_4444, at + 2));
    // Invalid values were not asked for.
    m.wrmsr(0, PAT, 2);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(injected(&m), [GP]);
}

#[test]
fn user_space_refuses_for_the_guest() {
    let m = machine();
    assert_eq!(m.enable(KVM_CAP_X86_USER_SPACE_MSR, 3), Ok(0));
    m.wrmsr(0, PAT, 2);
    assert_eq!(m.run(0), Ok(Left::Wrmsr { reason: 1, index: PAT, data: 2 }));
    let at = m.regs(0).rip;
    m.page(0).set_u8(MSR_ERROR, 1);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((injected(&m), m.regs(0).rip), (vec![GP], at));
    // And lets another one pass.
    m.wrmsr(0, NOBODYS, 0xabcd);
    assert_eq!(m.run(0), Ok(Left::Wrmsr { reason: 2, index: NOBODYS, data: 0xabcd }));
    m.run_out(0);
    assert_eq!((injected(&m), m.regs(0).rip), (vec![GP], at + 2));
}

#[test]
fn the_filter_denies() {
    let m = machine();
    deny(&m, 1, PAT);
    m.rdmsr(0, PAT);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(injected(&m), [GP]);
    assert_eq!(m.enable(KVM_CAP_X86_USER_SPACE_MSR, 4), Ok(0));
    m.rdmsr(0, PAT);
    assert_eq!(m.run(0), Ok(Left::Rdmsr { reason: 4, index: PAT }));
    m.run_out(0);
    // Writes are not covered, user space's own access neither.
    m.wrmsr(0, PAT, 0x0606_0606_0606_0606);
    m.run_out(0);
    assert_eq!(m.msr(0, PAT), 0x0606_0606_0606_0606);
    // No filter again.
    assert_eq!(m.vm_with(KVM_X86_SET_MSR_FILTER, &MsrFilter::default()), Ok(0));
    m.rdmsr(0, PAT);
    m.run_out(0);
    assert_eq!(m.regs(0).rax, 0x0606_0606);
    m.end();
}

#[test]
fn a_filtered_msr_does_not_pass_through() {
    const KERNEL_GS_BASE: u32 = 0xc000_0102;
    let m = machine();
    m.does(0, |c| assert_eq!(c.msr_intercepts[&KERNEL_GS_BASE], (false, false)));
    m.run_out(0);
    deny(&m, 2, KERNEL_GS_BASE);
    m.does(0, |c| assert_eq!(c.msr_intercepts[&KERNEL_GS_BASE], (false, true)));
    m.run_out(0);
}

/// What describes the processor is fixed once the vCPU has run, as its CPUID is.
#[test]
fn feature_msrs_are_fixed_by_the_first_run() {
    const DE_CFG: u32 = 0xc001_1029;
    const UCODE_REV: u32 = 0x8b;
    for index in [DE_CFG, 0x10a, UCODE_REV] {
        let m = Machine::new();
        m.long(0, &[]);
        let first = m.msr(0, index);
        let other = if index == DE_CFG { 0 } else { first ^ 2 };
        assert_eq!((m.set_msr(0, index, other), m.msr(0, index)), (Ok(1), other));
        m.does(0, |_| ());
        m.run_out(0);
        let third = if index == DE_CFG { 2 } else { other ^ 4 };
        let taken = i64::from(index == UCODE_REV);
        assert_eq!(m.set_msr(0, index, third), Ok(taken), "{index:x}");
        assert_eq!(m.set_msr(0, index, m.msr(0, index)), Ok(1), "the same again is no change");
    }
}

/// From Linux 6.13 on PLATFORM_INFO is among them.
#[test]
fn the_platform_is_fixed_by_the_first_run() {
    const PLATFORM_INFO: u32 = 0xce;
    for (minor, taken) in [(12, 1), (13, 0)] {
        let m = Machine::new();
        m.sim.set_linux_version(6, minor);
        m.long(0, &[]);
        assert_eq!((m.set_msr(0, PLATFORM_INFO, 0x1234), m.msr(0, PLATFORM_INFO)), (Ok(1), 0x1234));
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!(m.set_msr(0, PLATFORM_INFO, 0x1235), Ok(taken));
        assert_eq!(m.set_msr(0, PLATFORM_INFO, 0x1234), Ok(1), "6.{minor}");
        m.end();
    }
}

#[test]
fn a_filter_holds_for_a_vcpu_that_is_made_after_it_and_has_no_cpuid() {
    const LSTAR: u32 = 0xc000_0082;
    let m = Machine::bare(PLAIN).unwrap();
    assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
    deny(&m, 3, LSTAR);
    m.add_vcpu_without_cpuid(0).unwrap();
    m.long(0, &[]);
    m.does(0, |c| assert_eq!(c.msr_intercepts[&LSTAR], (true, true)));
    m.rdmsr(0, LSTAR);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(injected(&m), [GP]);
    m.end();
}
