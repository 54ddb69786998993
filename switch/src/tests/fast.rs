//! Exits that are handled without leaving the guest: what is done in between, and what is not.

use super::run::{ROOT, machine};
use crate::Svm;
use crate::model::hardware::{Bench, Op, hw};
use crate::model::kernel::{Handler, Kernel, script, set_host_spec_ctrl, set_rebooting};
use arch::vmcb::{INT_SHADOW, tlb_control::DO_NOTHING};
use arch::{CleanBits, EventInj, EventType, Exit, cr::Rflags, exit::code, msr};
use host::{Cpu, Errno, FastExits, VcpuRequests};
use std::boxed::Box;
use std::vec::Vec;

/// CPUID Fn8000_000A_EDX: next RIP is saved; clean bits.
const NRIPS: u32 = 1 << 3;
const CLEAN: u32 = 1 << 5;

/// CPUID is answered: EAX plus one, and a fixed value in R9.
const ANSWERS: Handler = Handler::new(|guest| {
    let cpuid = guest.control.exit_code == code::CPUID;
    if cpuid {
        guest.save.rax = u64::from(guest.eax()) + 1;
        guest.regs[9] = 0x99;
    }
    cpuid
});

/// A guest that executes CPUID `times` times and then HLT, each time two bytes further on.
fn script_guest(mut times: u64, then: fn(&mut arch::Vmcb)) {
    hw().guest = Box::new(move |regs, vmcb| {
        vmcb.control.next_rip = vmcb.save.rip + 2;
        vmcb.control.exit_code = code::HLT;
        vmcb.control.exit_int_info = EventInj::NONE;
        if times > 0 {
            times -= 1;
            regs[9] += 1;
            vmcb.control.exit_code = code::CPUID;
            then(vmcb);
        }
    });
}

fn ops(b: &Bench) -> Vec<Op> {
    let kept = |op: &Op| {
        let switch = matches!(op, Op::Vmload(_) | Op::Vmsave(_) | Op::Vmrun(_));
        switch || matches!(op, Op::Wrmsr(..) | Op::Rdmsr(_) | Op::Clgi | Op::Stgi)
    };
    b.trace().into_iter().filter(kept).collect()
}

#[test]
fn nothing_of_the_host_is_loaded_between_two_entries() {
    let b = Bench::new();
    script(|s| s.cpuid.insert((0x8000_0008, 0), [48, 1 << 14, 0, 0]));
    let mut cpu = Svm::new(machine(&b, NRIPS), &ROOT).unwrap();
    set_host_spec_ctrl(0, 1);
    cpu.extra_mut().spec_ctrl = 5;
    cpu.enter(&VcpuRequests::new(), &mut Handler::none());
    ops(&b);
    script_guest(3, |_| ());
    cpu.save_mut(CleanBits::empty()).rip = 0x1000;
    cpu.set_gpr(0, 7);
    let mut fast = ANSWERS;
    assert_eq!(cpu.enter(&VcpuRequests::new(), &mut fast), Exit::Hlt);
    assert_eq!((fast.handled, cpu.gpr(0), cpu.save().rip), (3, 10, 0x1006));
    // Once the guest's own +1 after the last answer's 0x99 was overwritten by HLT's run: which adds nothing.
    assert_eq!(cpu.gpr(9), 0x99);
    let ops = ops(&b);
    let [guest, run] =
        [ops.iter().find(|o| matches!(o, Op::Vmload(_))), ops.iter().find(|o| matches!(o, Op::Vmrun(_)))];
    let (Some(&Op::Vmload(guest)), Some(&run)) = (guest, run) else { panic!("not entered") };
    let Some(&Op::Vmload(host)) = ops.iter().rev().find(|o| matches!(o, Op::Vmload(_))) else { panic!("not left") };
    let spec_ctrl = |v| Op::Wrmsr(msr::SPEC_CTRL, v);
    let load = [Op::Clgi, spec_ctrl(5), Op::Vmload(guest)];
    let leave = [Op::Vmsave(guest), Op::Vmload(host), spec_ctrl(1), Op::Stgi];
    assert_eq!(ops, [&load[..], &[run; 4], &leave].concat());
}

#[test]
fn an_exit_that_is_cut_short_or_steps_or_has_no_length_is_not_handled() {
    let cases: [fn(&mut arch::Vmcb); 4] = [
        |vmcb| vmcb.control.exit_int_info = EventInj::new(EventType::Intr, 0x30, None),
        |vmcb| vmcb.save.rflags |= Rflags::TF.bits(),
        |vmcb| vmcb.save.rflags |= Rflags::RF.bits(),
        |vmcb| vmcb.control.next_rip = 0,
    ];
    for case in cases {
        let b = Bench::new();
        let mut cpu = Svm::new(machine(&b, NRIPS), &ROOT).unwrap();
        script_guest(1, case);
        cpu.save_mut(CleanBits::empty()).rip = 0x1000;
        let mut fast = ANSWERS;
        assert_eq!(cpu.enter(&VcpuRequests::new(), &mut fast), Exit::Cpuid);
        assert_eq!((fast.handled, cpu.save().rip), (0, 0x1000));
    }
}

#[test]
fn the_next_entry_injects_and_flushes_nothing_and_knows_the_vmcb() {
    for (svm, clean) in [(NRIPS, CleanBits::empty()), (NRIPS | CLEAN, CleanBits::all())] {
        let b = Bench::new();
        let mut cpu = Svm::new(machine(&b, svm), &ROOT).unwrap();
        script_guest(1, |vmcb| vmcb.control.int_state |= INT_SHADOW);
        cpu.set_event_inj(EventInj::new(EventType::Intr, 0x30, None));
        cpu.flush_tlb();
        assert_eq!(cpu.enter(&VcpuRequests::new(), &mut { ANSWERS }), Exit::Hlt);
        let (clean_then, tlb, _) = *hw().entries.last().unwrap();
        assert_eq!((clean_then, tlb), (clean, DO_NOTHING));
        assert_eq!(cpu.control().int_state & INT_SHADOW, 0);
        assert!(!cpu.control().event_inj.valid());
    }
}

#[test]
fn a_fault_of_vmrun_is_no_exit_to_be_handled() {
    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, NRIPS), &ROOT).unwrap();
    script_guest(1, |_| ());
    // The VMCB still shows the exit before.
    cpu.enter(&VcpuRequests::new(), &mut Handler::none());
    set_rebooting(true);
    hw().svm_off = true;
    let mut fast = ANSWERS;
    assert_eq!((cpu.enter(&VcpuRequests::new(), &mut fast), fast.handled), (Exit::None, 0));
    assert_eq!(cpu.broken(), Some(Errno::EIO));
    set_rebooting(false);
}

#[test]
fn handlers_of_another_program_are_not_asked() {
    struct Other;
    impl FastExits for Other {
        fn handle(&mut self, _: &mut host::FastExit<'_>) -> bool {
            true
        }
    }
    let b = Bench::new();
    let mut cpu = Svm::<Kernel>::new(machine(&b, NRIPS), &ROOT).unwrap();
    script_guest(1, |_| ());
    assert_eq!(cpu.enter(&VcpuRequests::new(), &mut Other), Exit::Cpuid);
}

/// Branch Type Confusion.
#[test]
fn where_any_branch_may_be_led_astray_no_exit_is_handled() {
    for retbleed in [false, true] {
        let b = Bench::new();
        script(|s| s.retbleed = retbleed);
        let mut cpu = Svm::new(machine(&b, NRIPS), &ROOT).unwrap();
        script_guest(1, |_| ());
        let mut fast = ANSWERS;
        let exit = cpu.enter(&VcpuRequests::new(), &mut fast);
        assert_eq!((exit, fast.handled), if retbleed { (Exit::Cpuid, 0) } else { (Exit::Hlt, 1) });
    }
}
