//! The life of a machine and of a vCPU: what it takes, what it sets, what it gives back.

use super::run::{ROOT, last_entry, machine};
use crate::model::{
    hardware::{Bench, Op, hw},
    kernel::{Handler, Kernel, cpu_data, host_area, script},
};
use crate::{MANDATORY, Machine, Svm, Unsupported};
use arch::{
    CleanBits, Intercepts, msr, msrpm,
    vmcb::tlb_control::{DO_NOTHING, FLUSH_ALL_ASID},
};
use core::ptr::NonNull;
use host::{Cpu, Errno, VcpuRequests};
use std::{boxed::Box, vec::Vec};

#[test]
fn mandatory_intercepts_stay() {
    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
    cpu.set_intercept(Intercepts::all(), false);
    cpu.set_exception_intercepts(0);
    cpu.set_cr_intercepts(0, 0);
    let c = cpu.control();
    assert_eq!(c.intercept_3 as u64 | (c.intercept_4 as u64) << 32, MANDATORY.bits());
    assert_eq!(c.intercept_exceptions, 1 << 18 | 1 << 17 | 1 << 1);
    assert_eq!((c.intercept_cr_read, c.intercept_cr_write), (0, 1 << 4));
    cpu.set_intercept(Intercepts::HLT, true);
    assert!(cpu.control().intercept_3 as u64 & Intercepts::HLT.bits() != 0);
}

/// The permission bits of an MSR in the map that the VMCB names.
fn permission(cpu: &Svm<Kernel>, msr: u32) -> u8 {
    let (byte, bit) = msrpm::position(msr).unwrap();
    let map = cpu.control().msrpm_base_pa as *const u8;
    // SAFETY: the vCPU's own map; physical addresses are addresses here.
    unsafe { *map.add(byte) >> bit & 3 }
}

#[test]
fn the_permission_maps_let_nothing_through_before_somebody_says_so() {
    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
    let passed = |cpu: &Svm<Kernel>| {
        let ranges = (0..0x2000).chain(0xc000_0000..0xc000_2000).chain(0xc001_0000..0xc001_2000);
        ranges.filter(|msr| permission(cpu, *msr) != 3).collect::<Vec<u32>>()
    };
    assert_eq!(passed(&cpu), [0; 0], "before there is a policy");
    cpu.set_msr_intercept(msr::TSC_AUX, false, true);
    assert_eq!(permission(&cpu, msr::TSC_AUX), 2);
    cpu.set_msr_intercept(msr::TSC_AUX, true, true);
    cpu.set_msr_intercept(0xdead_beef, false, false);
    assert_eq!(passed(&cpu), [0; 0]);
    // SAFETY: the shared map.
    let io = unsafe { core::slice::from_raw_parts(cpu.control().iopm_base_pa as *const u8, arch::iopm::IOPM_SIZE) };
    assert!(io.iter().all(|b| *b == 0xff));
}

#[test]
fn no_memory_is_enomem_and_nothing_leaks() {
    let b = Bench::new();
    let m = machine(&b, 0);
    let before = script(|s| s.held);
    for pages in 0..3 {
        script(|s| s.pages = pages);
        assert_eq!(Svm::new(m, &ROOT).err(), Some(Errno::ENOMEM), "{pages} pages");
        assert_eq!(script(|s| s.held), before);
    }
    script(|s| s.pages = 3);
    drop(Svm::new(m, &ROOT).unwrap());
    assert_eq!(script(|s| s.held), before);
    script(|s| s.pages = 0);
    assert_eq!(Machine::<Kernel>::new().err(), Some(Unsupported::NoMemory));
    drop(b);
}

#[test]
fn a_machine_that_cannot_says_why() {
    let _b = Bench::new();
    let why = || Machine::<Kernel>::new().err().map(|e| (e, e.errno()));
    script(|s| s.cpuid.insert((0x8000_000a, 0), [1, 1, 0, 1]));
    assert_eq!(why(), Some((Unsupported::NoAsids, Errno::EOPNOTSUPP)));
    script(|s| s.cpuid.insert((0x8000_000a, 0), [1, 4, 0, 0]));
    assert_eq!(why(), Some((Unsupported::NoNestedPaging, Errno::EOPNOTSUPP)));
    hw().msrs.insert(msr::VM_CR, msr::VM_CR_SVM_DISABLE);
    assert_eq!(why(), Some((Unsupported::Disabled, Errno::EOPNOTSUPP)));
    script(|s| s.cpuid.insert((0x8000_0001, 0), [0; 4]));
    assert_eq!(why(), Some((Unsupported::NoSvm, Errno::EOPNOTSUPP)));
}

#[test]
fn svm_is_switched_on_once_and_busy_is_busy() {
    let b = Bench::new();
    let m = machine(&b, 0);
    let area = host_area(0);
    m.disable();
    let ratio = Op::Wrmsr(msr::TSC_RATIO, 1 << 32);
    assert_eq!(b.trace(), [ratio, Op::Wrmsr(msr::VM_HSAVE_PA, 0), Op::Stgi, Op::Call("svme_off")]);
    m.disable();
    assert_eq!(b.trace(), []);
    script(|s| s.svme = Err(Errno::EBUSY));
    assert_eq!(m.enable(), Err(Errno::EBUSY));
    assert_eq!(b.trace(), []);
    script(|s| s.svme = Ok(()));
    m.enable().unwrap();
    m.enable().unwrap();
    assert_eq!(b.trace(), [Op::Wrmsr(msr::VM_HSAVE_PA, area), ratio]);
    let held = script(|s| s.held);
    m.disable();
    // SAFETY: SVM is off on this CPU.
    unsafe { Machine::<Kernel>::release_cpu(NonNull::new(cpu_data(0)).unwrap()) };
    assert_eq!(script(|s| s.held), held - 1);
    assert_eq!(m.enable(), Err(Errno::ENODEV));
}

#[test]
fn a_processor_that_was_off_has_forgotten_the_guest() {
    for by_asid in [0, 1 << 6] {
        let b = Bench::new();
        let m = machine(&b, 1 << 5 | by_asid);
        let mut cpu = Svm::new(m, &ROOT).unwrap();
        let mut enter = || {
            cpu.begin();
            cpu.enter(&VcpuRequests::new(), &mut Handler::none());
            last_entry()
        };
        enter();
        assert_eq!(enter(), (CleanBits::all(), DO_NOTHING, 1));
        // Hotplug, or suspend: the same processor, after a reset.
        m.disable();
        m.enable().unwrap();
        assert_eq!(enter(), (CleanBits::empty(), FLUSH_ALL_ASID, 1));
        assert_eq!(enter(), (CleanBits::all(), DO_NOTHING, 1));
    }
}

#[test]
fn ssbd_is_switched_where_guest_and_task_differ() {
    for (task, guest, expected) in [
        (None, 4, None),
        (Some(false), 0, None),
        (Some(true), 4, None),
        (Some(false), 4, Some("virt_spec_ctrl ssbd in")),
        (Some(true), 0, Some("virt_spec_ctrl 0 in")),
    ] {
        let b = Bench::new();
        script(|s| s.virt_ssbd = task);
        let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
        cpu.begin();
        cpu.extra_mut().virt_spec_ctrl = guest;
        cpu.enter(&VcpuRequests::new(), &mut Handler::none());
        let trace = b.trace();
        let at = |op: Op| trace.iter().position(|o| *o == op);
        let out = at(Op::Call("virt_spec_ctrl out"));
        match expected {
            None => {
                assert!(out.is_none() && !trace.iter().any(|o| matches!(o, Op::Call(c) if c.contains("virt_spec"))))
            }
            Some(call) => assert!(at(Op::Call(call)) < at(Op::Clgi) && at(Op::Stgi) < out, "{trace:?}"),
        }
    }
}

#[test]
fn a_guest_without_scaling_does_not_run_at_the_ratio_of_one_with_it() {
    const SCALING: u32 = 1 << 4;
    let b = Bench::new();
    let scales = machine(&b, SCALING);
    script(|s| s.cpuid.get_mut(&(0x8000_000a, 0)).unwrap()[3] &= !SCALING);
    let plain: &'static Machine<Kernel> = Box::leak(Box::new(Machine::new().unwrap()));
    let (mut fast, mut other) = (Svm::new(scales, &ROOT).unwrap(), Svm::new(plain, &ROOT).unwrap());
    let ratio = |cpu: &mut Svm<Kernel>| {
        cpu.enter(&VcpuRequests::new(), &mut Handler::none());
        hw().msr(msr::TSC_RATIO)
    };
    fast.extra_mut().tsc_ratio = 2 << 32;
    other.extra_mut().tsc_ratio = 3 << 32;
    assert_eq!([ratio(&mut fast), ratio(&mut other), ratio(&mut fast)], [2 << 32, 1 << 32, 2 << 32]);
    plain.disable();
    assert_eq!(hw().msr(msr::TSC_RATIO), 1 << 32, "nobody is left who knows");
    // A processor without the MSR, as the base found it.
    plain.enable().unwrap();
    // SAFETY: this CPU's data.
    unsafe { &*cpu_data(0) }.tsc_ratio.set(0);
    b.trace();
    ratio(&mut other);
    assert!(!b.trace().iter().any(|op| matches!(op, Op::Wrmsr(msr::TSC_RATIO, _))));
}
