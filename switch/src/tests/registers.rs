//! Registers that VMRUN does not switch.

use super::run::{ROOT, machine};
use crate::Svm;
use crate::model::{
    hardware::{Bench, Op, hw},
    kernel::{Handler, Kernel, script},
};
use arch::{CleanBits, msr};
use host::{Cpu, VcpuRequests};
use std::vec::Vec;

/// What was done where no NMI finds it: perf's handler writes DEBUGCTL and reads user memory.
fn with_gif_clear(trace: &[Op]) -> &[Op] {
    let at = |op| trace.iter().position(|o| *o == op).expect("once per run");
    &trace[at(Op::Clgi)..at(Op::Stgi)]
}

#[test]
fn registers_outside_of_the_vmcb_are_switched_only_where_they_differ() {
    let b = Bench::new();
    hw().msrs.insert(msr::DEBUGCTL, 0x40);
    script(|s| s.cpuid.entry((0x8000_0001, 0)).or_default()[3] |= 1 << 27); // RDTSCP
    let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
    let requests = VcpuRequests::new();
    cpu.begin();
    cpu.save_mut(CleanBits::LBR).dbgctl = 0x40;
    cpu.enter(&requests, &mut Handler::none());
    assert!(!b.trace().iter().any(|o| matches!(o, Op::Wrmsr(..))));
    cpu.save_mut(CleanBits::LBR).dbgctl = 2;
    cpu.extra_mut().tsc_aux = 9;
    cpu.enter(&requests, &mut Handler::none());
    let trace = b.trace();
    let writes: Vec<_> = with_gif_clear(&trace).iter().filter(|o| matches!(o, Op::Wrmsr(..))).collect();
    assert_eq!(writes, [&Op::Wrmsr(msr::DEBUGCTL, 2), &Op::Wrmsr(msr::DEBUGCTL, 0x40)]);
    assert!(trace.contains(&Op::Call("set_user_return_tsc_aux")));
    cpu.enter(&requests, &mut Handler::none());
    assert!(!b.trace().contains(&Op::Call("set_user_return_tsc_aux")), "it is there already");
}

#[test]
fn xcr0_is_switched_where_it_differs_and_the_guest_uses_it() {
    if !std::is_x86_feature_detected!("xsave") {
        return std::eprintln!("this processor has no XSAVE: not tested");
    }
    let b = Bench::new();
    script(|s| s.cpuid.insert((1, 0), [0, 0, 1 << 27, 0]));
    let m = machine(&b, 0);
    let mut cpu = Svm::new(m, &ROOT).unwrap();
    let requests = VcpuRequests::new();
    let writes = |cpu: &mut Svm<Kernel>| {
        cpu.enter(&requests, &mut Handler::none());
        let trace = b.trace();
        with_gif_clear(&trace).iter().copied().filter(|o| matches!(o, Op::Xsetbv(_) | Op::Vmrun(_))).collect::<Vec<_>>()
    };
    assert_eq!(writes(&mut cpu).len(), 1, "the guest has no OSXSAVE");
    cpu.save_mut(CleanBits::CRX).cr4 = arch::cr::Cr4::OSXSAVE.bits();
    let [first, _, last] = writes(&mut cpu)[..] else { panic!("not one write each way") };
    assert_eq!((first, last), (Op::Xsetbv(1), Op::Xsetbv(m.host_xcr0)));
    cpu.extra_mut().xcr0 = m.host_xcr0;
    assert_eq!(writes(&mut cpu).len(), 1, "equal");
}
