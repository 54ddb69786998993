//! Every combination of what decides the path through the assembly: variant, flag, SPEC_CTRL of guest and host and
//! what the guest leaves there, and which of the SVM instructions fault. For each, everything that has to hold.
//!
//! The features of a processor reach the assembly as these same inputs: where SPEC_CTRL is virtualised, or does not
//! exist, the guest's value is made equal to the host's and the flag is 0 (`spec_ctrl.rs`); the mitigations are pieces that
//! are passed in any case, which clobber here whatever a piece may, and do what the kernel's do: VERW, also where it faults,
//! filling of the return stack, untraining, IBPB.

use super::{
    encrypted::Encrypted,
    entry::{World, guest_in, guest_out, preserved},
};
use crate::{
    SPEC_CTRL_NOT_INTERCEPTED, hsave_vcpu_run,
    model::{hardware::*, kernel::*, system::System},
};
use arch::msr::SPEC_CTRL;
use std::{boxed::Box, vec::Vec};

/// The MSR of the indirect branch prediction barrier.
const PRED_CMD: u32 = 0x49;
const VALUES: [u64; 4] = [0, 1, 0xffff_ffff, 0x7_0000_0004];

#[derive(Clone, Copy, Debug)]
struct Case {
    encrypted: bool,
    flags: u32,
    host: u64,
    guest: u64,
    /// What the guest writes, where it may.
    leaves: u64,
    /// Bit n: the n-th SVM instruction faults.
    fail: u32,
    /// What the processor needs: see [`set_mitigations`].
    mitigations: u8,
}

/// Every combination of them.
const MITIGATIONS: core::ops::Range<u8> = 0..32;

/// Every flag that a guest can set (APM 3.1.6).
const GUEST_FLAGS: u64 = 0x3f_7fd7;
/// TF, IF, DF, NT, AC: no arithmetic changes them.
const KEPT_FLAGS: u64 = 1 << 8 | 1 << 9 | 1 << 10 | 1 << 14 | 1 << 18;

impl Case {
    fn instructions(encrypted: bool) -> u32 {
        if encrypted { 1 } else { 4 }
    }

    fn failed(&self, n: u32) -> bool {
        self.fail >> n & 1 != 0
    }

    fn ran(&self) -> bool {
        !self.failed(if self.encrypted { 0 } else { 1 })
    }

    /// The whole trace, from what the design says.
    fn expected(&self, vmcb: u64, area: u64) -> Vec<Op> {
        let mut t = Vec::new();
        let svm = |t: &mut Vec<Op>, n, op| t.push(if self.failed(n) { Op::Fixup } else { op });
        if self.guest != self.host {
            t.push(Op::Wrmsr(SPEC_CTRL, self.guest));
        }
        if !self.encrypted {
            svm(&mut t, 0, Op::Vmload(vmcb));
        }
        t.push(Op::Piece("entry"));
        if self.mitigations & 2 != 0 {
            t.push(Op::Verw);
        }
        svm(&mut t, if self.encrypted { 0 } else { 1 }, Op::Vmrun(vmcb));
        if !self.encrypted {
            svm(&mut t, 2, Op::Vmsave(vmcb));
            svm(&mut t, 3, Op::Vmload(area));
        }
        t.push(Op::Piece("rsb"));
        if self.flags != 0 {
            t.push(Op::Rdmsr(SPEC_CTRL));
        }
        if self.after() != self.host {
            t.push(Op::Wrmsr(SPEC_CTRL, self.host));
        }
        t.push(Op::Piece("untrain"));
        if self.mitigations & 16 != 0 {
            t.push(Op::Wrmsr(PRED_CMD, 1));
        }
        t
    }

    /// The guest's SPEC_CTRL after the run.
    fn after(&self) -> u64 {
        match self.flags {
            0 => self.guest,
            _ if self.ran() => self.leaves,
            _ => self.guest,
        }
    }
}

fn check(case: Case) {
    let mut e = if case.encrypted { Encrypted::new() } else { Encrypted { world: World::new(), vmsa: None } };
    let w = &mut e.world;
    set_host_spec_ctrl(0, case.host);
    hw().msrs.insert(SPEC_CTRL, case.host);
    w.vcpu.spec_ctrl = case.guest;
    w.vmcb.save.rax = guest_in(0);
    let (host, guest_system) = (hw().system, System::pattern(0x1de));
    if !case.encrypted {
        guest_system.save(&mut w.vmcb.save);
    }
    set_rebooting(case.fail != 0);
    set_mitigations(case.mitigations);
    hw().fail = case.fail;
    hw().guest = Box::new(move |regs, vmcb| {
        for n in (0..16).filter(|n| *n != 4) {
            assert_eq!(regs[n], guest_in(n), "{case:x?}: register {n} in the guest");
        }
        *regs = core::array::from_fn(guest_out);
        vmcb.save.rflags = GUEST_FLAGS;
        if !case.encrypted && !case.failed(0) {
            assert_eq!(hw().system, guest_system, "{case:x?}");
        }
        assert_eq!(hw().msrs[&SPEC_CTRL], case.guest, "{case:x?}: SPEC_CTRL in the guest");
        if case.flags != 0 {
            hw().msrs.insert(SPEC_CTRL, case.leaves);
        }
        hw().system = System::pattern(0xeee);
        vmcb.control.exit_code = arch::exit::code::HLT;
    });
    let entry = if case.encrypted { crate::entry::hsave_es_vcpu_run } else { hsave_vcpu_run };
    let trace = e.world.run_with(entry, case.flags);
    let w = &e.world;
    let (ret, before) = trace.split_last().expect("a trace");
    assert_eq!(before, case.expected(w.pa(), w.host()), "{case:x?}");
    let Op::Return(regs) = ret else { panic!("{case:x?}: no return") };
    for n in [0, 1, 2, 6, 7, 8, 9, 10, 11] {
        assert_eq!(regs[n], 0, "{case:x?}: register {n} at the first return");
    }
    assert_eq!([3, 5, 12, 13, 14, 15].map(|n: usize| regs[n]), preserved(), "{case:x?}");
    if case.ran() {
        assert_eq!(w.vmcb.save.rflags, GUEST_FLAGS, "{case:x?}");
        let [at_vmrun, at_return] = hw().flags.map(|flags| flags & KEPT_FLAGS);
        assert_eq!(at_return, at_vmrun, "{case:x?}: flags at the first return");
    }
    assert_eq!(hw().msrs[&SPEC_CTRL], case.host, "{case:x?}: the host's SPEC_CTRL");
    assert_eq!(w.vcpu.spec_ctrl, case.after(), "{case:x?}: the guest's SPEC_CTRL");
    assert_eq!(w.vcpu.faulted, (case.fail != 0) as u32, "{case:x?}");
    let gprs = if let Some(vmsa) = &e.vmsa { vmsa.gprs() } else { w.vcpu.regs };
    for n in [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] {
        assert_eq!(gprs[n], if case.ran() { guest_out(n) } else { guest_in(n) }, "{case:x?}: register {n} after");
    }
    if !case.failed(3) && case.ran() {
        assert_eq!(hw().system, host, "{case:x?}: FS to SYSENTER of the host");
    }
    if case.fail == 0 && !case.encrypted {
        assert_eq!(System::load(&w.vmcb.save), System::pattern(0xeee), "{case:x?}: and of the guest");
        assert_eq!(w.vmcb.save.rax, guest_out(0));
    }
}

#[test]
fn every_combination_of_flag_values_and_faults() {
    let mut cases = 0;
    for encrypted in [false, true] {
        for flags in [0, SPEC_CTRL_NOT_INTERCEPTED] {
            for host in VALUES {
                for guest in VALUES {
                    for leaves in if flags == 0 { &VALUES[..1] } else { &VALUES[..] } {
                        for fail in 0..1 << Case::instructions(encrypted) {
                            // A failed VMLOAD of the host leaves GS where the guest's VMLOAD put it; only if that
                            // failed, too, is there a host to go on with.
                            if !encrypted && fail & 0b1001 == 0b1000 {
                                continue;
                            }
                            for mitigations in MITIGATIONS {
                                check(Case { encrypted, flags, host, guest, leaves: *leaves, fail, mitigations });
                                cases += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    assert_eq!(cases, 32 * (16 * (12 + 4 * 12) + 16 * (2 + 4 * 2)));
}
