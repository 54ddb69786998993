//! SPEC_CTRL through a whole entry, on each kind of processor: without the MSR, with it, and where it is virtualised, with
//! every combination of mitigations; and faults of each SVM instruction of the assembly by itself.

use super::entry::{World, ends, is_a_bug};
use super::run::{ROOT, machine};
use crate::model::hardware::{Bench, FAULT, Op, hw};
use crate::model::kernel::{Handler, script, set_host_spec_ctrl, set_mitigations, set_rebooting};
use crate::{Svm, hsave_vcpu_run};
use arch::{exit::code, msr::SPEC_CTRL};
use host::{Cpu, VcpuRequests};
use std::{boxed::Box, vec, vec::Vec};

/// CPUID Fn8000_000A_EDX: SPEC_CTRL is virtualised.
const V_SPEC_CTRL: u32 = 1 << 20;
/// Fn8000_0008_EBX: IBRS.
const IBRS: u32 = 1 << 14;
const VALUES: [u64; 4] = [0, 1, 0xffff_ffff, 0x7_0000_0004];

/// A processor with the MSR or without, and what it needs.
#[derive(Clone, Copy, Debug)]
struct Processor {
    exists: bool,
    virtualised: bool,
    mitigations: u8,
}

/// One entry of a guest that leaves `leaves` in its SPEC_CTRL where it may; accesses to the MSR.
fn enter(processor: Processor, passed: bool, [host, guest, leaves]: [u64; 3]) -> (Vec<Op>, u64) {
    let Processor { exists, virtualised, mitigations } = processor;
    let b = Bench::new();
    set_mitigations(mitigations);
    script(|s| s.cpuid.insert((0x8000_0008, 0), [48, if exists { IBRS } else { 0 }, 0, 0]));
    let mut cpu = Svm::new(machine(&b, if virtualised { V_SPEC_CTRL } else { 0 }), &ROOT).unwrap();
    set_host_spec_ctrl(0, host);
    hw().msrs.insert(SPEC_CTRL, host);
    cpu.extra_mut().spec_ctrl = guest;
    cpu.set_msr_intercept(SPEC_CTRL, !passed, !passed);
    hw().guest = Box::new(move |_, vmcb| {
        vmcb.control.exit_code = code::HLT;
        let seen = if virtualised { vmcb.save.spec_ctrl } else { hw().msrs[&SPEC_CTRL] };
        assert_eq!(seen, if exists { guest } else { host }, "in the guest");
        match (passed, virtualised) {
            (false, _) => {}
            (true, true) => vmcb.save.spec_ctrl = leaves,
            (true, false) => drop(hw().msrs.insert(SPEC_CTRL, leaves)),
        }
    });
    cpu.enter(&VcpuRequests::new(), &mut Handler::none());
    assert_eq!(hw().msrs[&SPEC_CTRL], host, "the host's is back");
    let ops = b.trace().into_iter().filter(|op| matches!(op, Op::Rdmsr(SPEC_CTRL) | Op::Wrmsr(SPEC_CTRL, _)));
    (ops.collect(), cpu.extra().spec_ctrl)
}

#[test]
fn the_msr_is_touched_where_it_exists_and_is_not_virtualised_and_differs() {
    for mitigations in 0..32 {
        on_each_processor(mitigations);
    }
}

fn on_each_processor(mitigations: u8) {
    let plain = Processor { exists: true, virtualised: false, mitigations };
    let (without, virtualised) = (Processor { exists: false, ..plain }, Processor { virtualised: true, ..plain });
    assert_eq!(enter(without, false, [0, 0, 0]), (vec![], 0), "no such MSR");
    for passed in [false, true] {
        for host in VALUES {
            for guest in VALUES {
                for leaves in VALUES {
                    let values = [host, guest, leaves];
                    let after = if passed { leaves } else { guest };
                    let mut expected = Vec::new();
                    if guest != host {
                        expected.push(Op::Wrmsr(SPEC_CTRL, guest));
                    }
                    if passed {
                        expected.push(Op::Rdmsr(SPEC_CTRL));
                    }
                    if after != host {
                        expected.push(Op::Wrmsr(SPEC_CTRL, host));
                    }
                    assert_eq!(enter(plain, passed, values), (expected, after), "{plain:?} {passed} {values:x?}");
                    let none = (vec![], after);
                    assert_eq!(enter(virtualised, passed, values), none, "{virtualised:?} {passed} {values:x?}");
                }
            }
        }
    }
}

#[test]
fn a_fault_of_each_svm_instruction_is_a_bug_unless_the_machine_reboots() {
    for n in 0..4 {
        let mut w = World::new();
        hw().fail = 1 << n;
        assert!(is_a_bug(|| drop(w.run_with(hsave_vcpu_run, 0))), "SVM instruction {n}");
        set_rebooting(true);
        if n == 3 {
            // The host cannot be loaded over a guest, which cannot be if SVM is off for both: GS is not used as if it were.
            assert_eq!(ends(|| drop(w.run_with(hsave_vcpu_run, 0))), Some(FAULT));
        } else {
            let trace = w.run(0);
            assert_eq!(trace.iter().filter(|op| **op == Op::Fixup).count(), 1, "SVM instruction {n}");
            assert_eq!(w.vcpu.faulted, 1);
        }
    }
}
