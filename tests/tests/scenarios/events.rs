//! Exceptions and NMIs: injection, delivery that is cut short, double and triple faults.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::arch::exit::code;
use sim::arch::{EventInj, EventType};
use sim::host::{Cpu, Errno};
use tests::scenario::{CODE, Left, Machine};

const GP: u64 = code::EXCP0 + 13;
const TF: u64 = 0x100;
const NOBODYS: u32 = 0x1234_5678;
const EXC: Option<EventType> = Some(EventType::Exception);
const NMI: Option<EventType> = Some(EventType::Nmi);

fn machine() -> Machine {
    let m = Machine::new();
    m.long(0, &[]);
    m.inside(0, |c| c.core.cpu.single_steps = true);
    m
}

fn events(m: &Machine) -> Vec<(u8, Option<EventType>, Option<u32>)> {
    m.injected(0).iter().map(|e| (e.vector(), e.kind(), e.error_code())).collect()
}

/// An exit that has nothing to do with the event that was being delivered.
fn cut_short(m: &Machine) {
    m.sim.step(0, |c| {
        c.cut_delivery_short();
        (code::NPF, 1 << 32 | 4, 0x1_0000)
    });
}

#[test]
fn exceptions_are_delivered_again() {
    let m = machine();
    m.rdmsr(0, NOBODYS);
    cut_short(&m);
    cut_short(&m);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m), [(13, EXC, Some(0)); 3]);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m).len(), 3, "delivered, so no more");
}

#[test]
fn interrupts_are_delivered_again_and_acknowledged_once() {
    let m = machine();
    m.x2apic(0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    let msi = kvm_msi { address_lo: 0xfee0_0000, data: 0x31, ..Default::default() };
    assert_eq!(m.vm_with(KVM_SIGNAL_MSI, &msi), Ok(1));
    cut_short(&m);
    m.does(0, |_| ());
    m.run_out(0);
    // First by the processor itself, then because its delivery was cut short.
    assert_eq!((m.taken(0), events(&m)), (vec![0x31], vec![(0x31, Some(EventType::Intr), None)]));
    m.wrmsr(0, 0x80b, 0);
    m.interrupt_flag(0, true);
    m.run_out(0);
    assert_eq!((events(&m).len(), m.taken(0).len()), (1, 1));
}

#[test]
fn software_interrupts_run_again_instead() {
    for e in [EventInj::new(EventType::Soft, 0x80, None), EventInj::new(EventType::Exception, 3, None)] {
        let m = machine();
        m.sim.step(0, move |c| {
            c.vmcb().exit_int_info = e;
            (code::NPF, 1 << 32 | 4, 0x1_0000)
        });
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!(events(&m), [], "INT is executed by the guest again");
    }
}

#[test]
fn a_fault_in_the_delivery_of_a_fault_is_double_then_shutdown() {
    let m = machine();
    let fault_again = |m: &Machine| {
        m.sim.step(0, |c| {
            c.cut_delivery_short();
            (GP, 0x10, 0)
        });
    };
    m.rdmsr(0, NOBODYS);
    fault_again(&m);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m), [(13, EXC, Some(0)), (8, EXC, Some(0))]);

    m.rdmsr(0, NOBODYS);
    fault_again(&m);
    fault_again(&m);
    m.does(0, |_| panic!("goes on after a triple fault"));
    assert_eq!(m.run(0), Ok(Left::Shutdown));
}

#[test]
fn a_contributory_after_a_benign_one_is_delivered_itself() {
    let m = machine();
    m.sim.step(0, |c| {
        c.vmcb().exit_int_info = EventInj::new(EventType::Exception, 6, None);
        (GP, 0x10, 0)
    });
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m), [(13, EXC, Some(0x10))]);
}

#[test]
fn no_error_code_in_real_mode() {
    let m = Machine::new();
    m.real(0, &[]);
    m.rdmsr(0, NOBODYS);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m), [(13, EXC, None)]);
}

#[test]
fn nmis_are_masked_until_iret() {
    let m = machine();
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m), [(2, NMI, None)]);
    // Two more while the handler runs: one is latched, one is lost.
    assert_eq!((m.vcpu(0, KVM_NMI, 0), m.vcpu(0, KVM_NMI, 0)), (Ok(0), Ok(0)));
    m.does(0, |c| assert!(c.vmcb().intercept_3 & 1 << 20 != 0, "IRET is intercepted"));
    m.exit(0, code::IRET);
    m.sim.step(0, |c| {
        assert!(c.guest().rflags & TF != 0, "steps over IRET");
        (code::INTR, 0, 0) // it has not been executed yet: RIP is the same
    });
    m.does(0, |c| {
        assert_eq!(c.injected.len(), 1);
        c.guest().rip = CODE + 0x40;
        c.guest().rflags = 2; // what was on its stack
    });
    m.does(0, |c| assert_eq!((c.guest().rflags & TF, c.guest().dr6), (0, 0xffff_0ff0)));
    m.run_out(0);
    assert_eq!(events(&m), [(2, NMI, None); 2]);
    // The second handler ends as well.
    m.exit(0, code::IRET);
    m.does(0, |c| c.guest().rip = CODE);
    m.exit(0, code::INTR);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m).len(), 2);
    let e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    assert_eq!((e.nmi.masked, e.nmi.pending, e.nmi.injected), (0, 0, 0));
}

#[test]
fn an_nmi_is_delivered_again() {
    let m = machine();
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    cut_short(&m);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m), [(2, NMI, None); 2]);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m).len(), 2);
}

/// One that is found here, not by the processor, leaves the guest as it was.
#[test]
fn a_triple_fault_leaves_the_registers() {
    let m = machine();
    m.with_regs(0, |r| r.rbx = 0x1234);
    m.sim.step(0, |c| {
        c.vmcb().exit_int_info = EventInj::new(EventType::Exception, 8, Some(0));
        (GP, 0x10, 0)
    });
    m.does(0, |_| panic!("the guest runs"));
    assert_eq!(m.run(0), Ok(Left::Shutdown));
    let s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    assert_eq!((m.regs(0).rip, m.regs(0).rbx, s.cr3), (CODE, 0x1234, tests::scenario::PML4));
}

/// One that comes of an answer of user space's is an event that waits, until it is told.
#[test]
fn a_triple_fault_is_an_event() {
    let m = machine();
    for cap in [KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_CAP_X86_USER_SPACE_MSR] {
        assert_eq!(m.enable(cap, 2), Ok(0));
    }
    m.rdmsr(0, NOBODYS);
    assert_eq!(m.run(0), Ok(Left::Rdmsr { reason: 2, index: NOBODYS }));
    let mut e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    (e.exception.injected, e.exception.nr, e.exception.has_error_code) = (1, 8, 1);
    assert_eq!(m.vcpu_with(0, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    m.page(0).set_u8(abi::uapi::run::exit::MSR_ERROR, 1);
    m.settle(0);
    let seen: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    assert_eq!((seen.triple_fault.pending, seen.exception.injected), (1, 0));
    m.does(0, |_| panic!("the guest runs"));
    assert_eq!(m.run(0), Ok(Left::Shutdown));
    let seen: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    assert_eq!(seen.triple_fault.pending, 0);
}

#[test]
fn a_triple_fault_that_user_space_restores() {
    let m = machine();
    assert_eq!(m.enable(KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1), Ok(0));
    let mut e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    e.flags = KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    e.triple_fault.pending = 1;
    assert_eq!(m.vcpu_with(0, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    let seen: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    assert_eq!(seen.triple_fault.pending, 1);
    m.does(0, |_| panic!("the guest runs"));
    assert_eq!(m.run(0), Ok(Left::Shutdown));
}

#[test]
fn an_nmi_wakes_a_halted_guest() {
    let m = machine();
    m.hlt(0);
    assert_eq!(m.run(0), Err((Errno::EINTR, Left::Intr)));
    let state: kvm_mp_state = m.vcpu_get(0, KVM_GET_MP_STATE);
    assert_eq!(state.mp_state, KVM_MP_STATE_HALTED);
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m), [(2, NMI, None)]);
    let state: kvm_mp_state = m.vcpu_get(0, KVM_GET_MP_STATE);
    assert_eq!(state.mp_state, KVM_MP_STATE_RUNNABLE);
}

#[test]
fn an_nmi_in_the_shadow_waits_for_one_instruction() {
    for flags in [0, 0x200] {
        let m = machine();
        m.does(0, move |c| {
            c.guest().rflags |= flags;
            c.vmcb().int_state = 1;
        });
        // The shadow is that of the last instruction before the NMI.
        m.sim.step(0, |c| {
            c.vmcb().int_state = 1;
            (code::INTR, 0, 0)
        });
        m.run_out(0);
        assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
        m.does(0, |c| assert_eq!((c.injected.len(), c.guest().rflags & TF), (0, TF)));
        m.does(0, move |c| assert_eq!((c.injected.len(), c.guest().rflags), (1, 2)));
        m.run_out(0);
        assert_eq!(events(&m), [(2, NMI, None)]);
        assert_eq!(m.vcpu_get::<kvm_debugregs>(0, KVM_GET_DEBUGREGS).dr6, 0xffff_0ff0, "the step is not the guest's");
        assert_eq!(m.regs(0).rflags & TF, 0);
    }
}

#[test]
fn a_step_that_is_the_guests_own_is_its_own() {
    let m = machine();
    m.sim.step(0, |c| {
        c.vmcb().int_state = 1;
        c.guest().rflags |= TF;
        (code::INTR, 0, 0)
    });
    m.run_out(0);
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.does(0, |_| ());
    m.does(0, |c| assert_eq!(c.injected.len(), 2));
    m.run_out(0);
    assert_eq!(events(&m), [(1, EXC, None), (2, NMI, None)]);
}

#[test]
fn an_nmi_behind_another_event_needs_no_exit_of_the_guests() {
    let m = machine();
    m.rdmsr(0, NOBODYS);
    m.run(0).expect_err("the end of the script");
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.does(0, |c| assert_eq!(c.injected.len(), 2, "both before the next instruction"));
    m.run_out(0);
    assert_eq!(events(&m), [(13, EXC, Some(0)), (2, NMI, None)]);
}

#[test]
fn an_event_is_kept_when_the_processor_refuses_the_guest() {
    let m = machine();
    m.rdmsr(0, NOBODYS);
    m.run(0).expect_err("the end of the script");
    m.does(0, |_| panic!("runs"));
    m.inside(0, |c| c.core.cpu.guest().cr0 |= 1 << 40);
    assert!(matches!(m.run(0), Ok(Left::FailEntry { .. })));
    m.inside(0, |c| c.core.cpu.guest().cr0 &= !(1 << 40));
    m.sim.drop_script(0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m), [(13, EXC, Some(0))]);
}

#[test]
fn user_space_injects_and_sees_what_waits() {
    let m = machine();
    let mut e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    e.exception = kvm_vcpu_events__bindgen_ty_1 { injected: 1, nr: 14, has_error_code: 1, pending: 0, error_code: 6 };
    assert_eq!(m.vcpu_with(0, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    let seen: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    assert_eq!((seen.exception.injected, seen.exception.nr, seen.exception.error_code), (1, 14, 6));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m), [(14, EXC, Some(6))]);
}

#[test]
fn debug_exceptions_go_to_the_debugger_or_the_guest() {
    let m = machine();
    m.inside(0, |c| c.core.cpu.single_steps = false);
    let set = |control| {
        let debug = kvm_guest_debug { control, ..Default::default() };
        assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &debug), Ok(0));
    };
    set(1 | 2); // enable, single step
    m.does(0, |c| assert!(c.guest().rflags & 0x100 != 0, "TF is set"));
    m.sim.step(0, |c| {
        c.guest().dr6 |= 1 << 14;
        (code::EXCP0 + 1, 0, 0)
    });
    assert_eq!(m.run(0), Ok(Left::Debug { exception: 1, pc: CODE, dr6: 0xffff_4ff0 }));
    assert_eq!(m.regs(0).rflags & 0x100, 0, "the guest's flags do not show it");
    set(0);
    m.exit(0, code::EXCP0 + 1);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m), [(1, EXC, None)]);
    assert_eq!(m.inside(0, |c| c.core.cpu.save().rflags) & 0x100, 0);
}

/// HLT under a single step: a debugger sees that it is over, and the guest sleeps all the same. The guest's own trap wakes it.
#[test]
fn a_step_over_hlt_halts() {
    let m = machine();
    m.x2apic(0);
    let set = |control| {
        let debug = kvm_guest_debug { control, ..Default::default() };
        assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &debug), Ok(0));
    };
    set(1 | 2);
    m.hlt(0);
    assert!(matches!(m.run(0), Ok(Left::Debug { exception: 1, dr6: 0xffff_4ff0, .. })));
    set(0);
    let state: kvm_mp_state = m.vcpu_get(0, KVM_GET_MP_STATE);
    assert_eq!(state.mp_state, KVM_MP_STATE_HALTED);
    assert_eq!(
        m.vm_with(KVM_SIGNAL_MSI, &kvm_msi { address_lo: 0xfee0_0000, data: 0x31, ..Default::default() }),
        Ok(1)
    );
    m.does(0, |c| c.guest().rflags |= TF);
    m.hlt(0);
    m.does(0, |c| assert_eq!(c.injected.len(), 1));
    m.run_out(0);
    assert_eq!((m.taken(0), events(&m)), (vec![0x31], vec![(1, EXC, None)]));
}

/// RF stands for one instruction only: with it a breakpoint at the next would be missed (APM 3.1.6).
#[test]
fn an_instruction_that_is_carried_out_here_ends_rf() {
    const RF: u64 = 1 << 16;
    let m = machine();
    let each: [fn(&Machine); 4] =
        [|m| m.cpuid(0, 0), |m| m.cpuid(0, 0), |m| m.rdmsr(0, 0x277), |m| m.wrmsr(0, 0x1d9, 0)];
    for instruction in each {
        m.does(0, |c| c.guest().rflags |= RF);
        instruction(&m);
        m.does(0, |c| assert_eq!(c.guest().rflags & RF, 0));
        m.run_out(0);
    }
    // One that faults, on the other hand, has it set in what its handler returns to.
    m.rdmsr(0, NOBODYS);
    m.does(0, |c| assert_eq!(c.guest().rflags & RF, RF));
    m.run_out(0);
}
