//! What cannot go on: shutdown, a VMCB that is refused, exits that nobody knows, instructions that cannot be emulated.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::arch::exit::code;
use sim::arch::{EventInj, EventType};
use sim::host::{Cpu, Errno, LastExit};
use tests::scenario::{CODE, Left, MMIO, Machine};

fn machine(bytes: &[u8]) -> Machine {
    let m = Machine::new();
    m.long(0, bytes);
    m.with_regs(0, |r| r.rbx = MMIO);
    m
}

const NO_END: LastExit = LastExit { vcpu: 0, reason: 0, detail: 0, code: 0, info1: 0, info2: 0, int_info: 0, rip: 0 };

/// What ends in the ordinary way is not remembered.
#[test]
fn only_what_cannot_go_on_is_remembered() {
    let m = machine(&[]);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.sim.take_ends(), []);
}

#[test]
fn shutdown_leaves_a_defined_state() {
    let m = machine(&[]);
    m.sim.step(0, |c| {
        c.guest().rip = 0xdead;
        c.guest().efer = 0;
        (code::SHUTDOWN, 0, 0)
    });
    assert_eq!(m.run(0), Ok(Left::Shutdown));
    let end = LastExit { vcpu: 0, reason: KVM_EXIT_SHUTDOWN, detail: 0, code: code::SHUTDOWN, rip: 0xdead, ..NO_END };
    assert_eq!(m.sim.take_ends(), [end], "what is remembered is how it was before");
    let s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    assert_eq!((m.regs(0).rip, s.cs.base, s.efer), (0xfff0, 0xffff_0000, 0));
    // It can run again.
    m.does(0, |_| ());
    m.run_out(0);
}

#[test]
fn a_refused_vmcb_is_told_with_the_hardwares_reason() {
    let m = machine(&[]);
    let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    s.cs.db = 1; // with L: illegal, and user space may ask for it
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.does(0, |_| panic!("the guest runs"));
    assert_eq!(m.run(0), Ok(Left::FailEntry { reason: u32::MAX.into() }));
    let reason = u64::from(u32::MAX);
    let end = LastExit { reason: KVM_EXIT_FAIL_ENTRY, detail: reason, code: code::INVALID, rip: CODE, ..NO_END };
    assert_eq!(m.sim.take_ends(), [end]);
    assert!(!m.inside(0, |c| c.core.cpu.control().event_inj.valid()), "an event stays in the VMCB");
    s.cs.db = 0;
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    m.sim.drop_script(0);
    m.does(0, |_| ());
    m.run_out(0);
}

#[test]
fn unknown_exits_are_internal_errors() {
    // The last one is an NMI as an exception, which could not be injected either.
    for unknown in [code::EFER_WRITE_TRAP, code::VMGEXIT, 0x7777, code::EXCP0 + 2] {
        let m = machine(&[]);
        m.exit(0, unknown);
        let left = m.run(0);
        let detail = KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON.into();
        let end = LastExit { reason: KVM_EXIT_INTERNAL_ERROR, detail, code: unknown, rip: CODE, ..NO_END };
        assert_eq!(m.sim.take_ends(), [end]);
        let data = vec![unknown, m.inside(0, |c| c.core.cpu.last_cpu()).into()];
        assert_eq!(left, Ok(Left::Internal { suberror: KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, data }));
        m.does(0, |_| ());
        m.run_out(0);
    }
}

#[test]
fn an_instruction_that_cannot_be_emulated_is_shown() {
    let m = machine(&[0xd9, 0x03]); // fld dword [rbx]
    m.npf(0, MMIO, false);
    let Ok(Left::Internal { suberror: KVM_INTERNAL_ERROR_EMULATION, data }) = m.run(0) else {
        panic!("{:?}", tests::scenario::Left::read(&m.page(0)));
    };
    assert_eq!(data[0], KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES.into());
    let bytes: Vec<u8> = data[1..3].iter().flat_map(|w| w.to_le_bytes()).collect();
    assert_eq!(&bytes[..3], [15, 0xd9, 0x03], "the number of bytes, then the bytes");
    assert_eq!(data[3..6], [code::NPF, 1 << 32 | 4, MMIO], "and the exit");
    assert_eq!(m.regs(0).rip, CODE);
}

#[test]
fn user_code_of_the_guest_gets_ud_instead() {
    let m = machine(&[0xd9, 0x03]);
    let to_user = |s: &mut kvm_segment| (s.dpl, s.selector) = (3, s.selector | 3);
    let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    to_user(&mut s.cs);
    to_user(&mut s.ss);
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    m.npf(0, MMIO, false);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).iter().map(|e| e.vector()).collect::<Vec<_>>(), [6]);
    // Unless user space asked for the exit (KVM_CAP_EXIT_ON_EMULATION_FAILURE).
    assert_eq!(m.enable(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1), Ok(0));
    m.npf(0, MMIO, false);
    assert!(matches!(m.run(0), Ok(Left::Internal { suberror: KVM_INTERNAL_ERROR_EMULATION, .. })));
}

#[test]
fn code_outside_of_memory_cannot_be_emulated() {
    let m = machine(&[]);
    m.with_regs(0, |r| r.rip = MMIO);
    m.npf(0, MMIO, false);
    let Ok(Left::Internal { suberror: KVM_INTERNAL_ERROR_EMULATION, data }) = m.run(0) else { panic!("runs on") };
    assert_eq!(data[0], 0, "no bytes");
}

#[test]
fn what_is_not_offered_is_ud() {
    for svm in [code::VMRUN, code::VMLOAD, code::VMSAVE, code::STGI, code::CLGI, code::SKINIT, code::INVLPGA] {
        let m = machine(&[]);
        m.exit(0, svm);
        m.exit(0, code::RDPRU);
        m.exit(0, code::RSM);
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!(m.injected(0).iter().map(|e| e.vector()).collect::<Vec<_>>(), [6, 6, 6]);
    }
}

#[test]
fn a_lost_processor_is_eio() {
    let m = machine(&[]);
    m.does(0, |_| panic!("the guest runs"));
    m.inside(0, |c| c.core.cpu.lost = true);
    assert_eq!(m.run(0).unwrap_err().0, Errno::EIO);
}

#[test]
fn a_dead_vm_is_eio() {
    let m = machine(&[]);
    m.engine().kill();
    m.does(0, |_| panic!("the guest runs"));
    for _ in 0..2 {
        assert_eq!(m.run(0).unwrap_err().0, Errno::EIO);
    }
}

#[test]
fn signals_end_the_run() {
    let m = machine(&[]);
    m.does(0, |_| panic!("the guest runs"));
    m.sim.signal();
    assert_eq!(m.run(0), Err((Errno::EINTR, Left::Intr)));
    assert_eq!(m.vcpu(0, KVM_RUN, 1), Err(Errno::EINVAL), "KVM_RUN takes no argument");
}

#[test]
fn hypercalls() {
    let m = machine(&[0x0f, 0x01, 0xd9]);
    m.with_regs(0, |r| r.rax = 77);
    m.exit(0, code::VMMCALL);
    m.run_out(0);
    assert_eq!((m.regs(0).rax as i64, m.regs(0).rip), (-1000, CODE + 3));
    // KVM_HC_MAP_GPA_RANGE, once user space has asked for it.
    assert_eq!(m.enable(KVM_CAP_EXIT_HYPERCALL, 1 << 12), Ok(0));
    m.with_regs(0, |r| (r.rip, r.rax, r.rbx, r.rcx, r.rdx) = (CODE, 12, 0x1000, 1, 2));
    m.exit(0, code::VMMCALL);
    let Ok(Left::Hypercall { nr: 12, args }) = m.run(0) else { panic!("stays in the kernel") };
    assert_eq!(args[..3], [0x1000, 1, 2]);
    m.page(0).set_u64(abi::uapi::run::exit::HYPERCALL_RET, 5);
    m.run_out(0);
    assert_eq!((m.regs(0).rax, m.regs(0).rip), (5, CODE + 3));
    let _ = m.inside(0, |c| c.core.cpu.gpr(0));
    // What is no range never gets there.
    for (gpa, pages) in [(0x1001, 1), (0x1000, 0), (0x1000, !0), (!0xfff, !0 - (!0 >> 12) + 1)] {
        m.with_regs(0, |r| (r.rip, r.rax, r.rbx, r.rcx, r.rdx) = (CODE, 12, gpa, pages, 2));
        m.exit(0, code::VMMCALL);
        m.run_out(0);
        assert_eq!((m.regs(0).rax as i64, m.regs(0).rip), (-22, CODE + 3), "{gpa:#x} {pages:#x}");
    }
    // Nor do registers that are no arguments.
    m.with_regs(0, |r| (r.rip, r.rax, r.rbx, r.rcx, r.rsi, r.rdi) = (CODE, 12, !0xfff, 1, 7, 8));
    m.exit(0, code::VMMCALL);
    let Ok(Left::Hypercall { nr: 12, args }) = m.run(0) else { panic!("stays in the kernel") };
    assert_eq!((args[0], args[1], &args[3..]), (!0xfff, 1, &[0; 3][..]));
}

/// There is no instruction that could be emulated, and the one at RIP has nothing to do with it.
#[test]
fn a_device_met_by_the_delivery_of_an_event() {
    // mov rax, [rbx], which could be emulated.
    let m = machine(&[0x48, 0x8b, 0x03]);
    for write in [true, false] {
        m.sim.step(0, move |c| {
            c.vmcb().exit_int_info = EventInj::new(EventType::Exception, 13, Some(0));
            (code::NPF, 1 << 32 | 4 | u64::from(write) << 1, MMIO)
        });
        let left = m.run(0);
        let Ok(Left::Internal { suberror: KVM_INTERNAL_ERROR_DELIVERY_EV, data }) = left else { panic!("{left:?}") };
        assert_eq!(data[..4], [0x8000_0b0d, code::NPF, 1 << 32 | 4 | u64::from(write) << 1, MMIO]);
        assert_eq!((data.len(), m.regs(0).rip), (5, CODE));
    }
    // The event is not lost: user space may have put memory there.
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).iter().map(|e| e.vector()).collect::<Vec<_>>(), [13; 2]);
}

/// User space adds an exception to a double fault that is being delivered.
#[test]
fn a_triple_fault_of_user_spaces_making() {
    let delivers_double_fault = || {
        let m = machine(&[0x48, 0x8b, 0x03]);
        m.sim.step(0, move |c| {
            c.vmcb().exit_int_info = EventInj::new(EventType::Exception, 8, Some(0));
            (code::NPF, 1 << 32 | 4, MMIO)
        });
        assert!(matches!(m.run(0), Ok(Left::Internal { suberror: KVM_INTERNAL_ERROR_DELIVERY_EV, .. })));
        m
    };
    let m = delivers_double_fault();
    let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB;
    assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &kvm_guest_debug { control, ..Default::default() }), Ok(0));
    m.does(0, |_| panic!("the guest runs"));
    assert_eq!(m.run(0), Ok(Left::Shutdown));
    let m = delivers_double_fault();
    assert_eq!(m.vcpu_with(0, KVM_X86_SETUP_MCE, &(1u64 << 8 | 1)), Ok(0));
    let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    s.cr4 |= 1 << 6;
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    // The first bank: valid and not corrected; a machine check is under way.
    let error = [1u64 << 63 | 1 << 61, 0, 0, 1 << 2, 0, 0, 0, 0];
    assert_eq!(m.vcpu_with(0, KVM_X86_SET_MCE, &error), Ok(0));
    m.does(0, |_| panic!("the guest runs"));
    assert_eq!(m.run(0), Ok(Left::Shutdown));
}

/// MONITORX and MWAITX are like MONITOR and MWAIT, also where the processor does not tell their length.
#[test]
fn idle_hints_are_skipped() {
    for (last, exit) in [(0xc8, code::MONITOR), (0xc9, code::MWAIT), (0xfa, code::MONITOR), (0xfb, code::MWAIT)] {
        let m = machine(&[0x0f, 0x01, last]);
        m.exit(0, exit);
        m.run_out(0);
        assert_eq!(m.regs(0).rip, CODE + 3, "{last:#x}");
    }
}

#[test]
fn clocks_are_paired_in_every_mode() {
    let m = Machine::new();
    m.protected(0, &[0x0f, 0x01, 0xd9]);
    m.sim.advance(1_000_000);
    m.with_regs(0, |r| (r.rax, r.rbx, r.rcx) = (9, 0x3000, 0));
    m.exit(0, code::VMMCALL);
    m.run_out(0);
    assert_eq!((m.regs(0).rax, m.regs(0).rip), (0, CODE + 3));
    assert_ne!(m.read_ram::<[u64; 2]>(0x3000), [0; 2]);
}
