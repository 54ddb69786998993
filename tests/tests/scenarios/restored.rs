//! Events that user space restores, with other things on their way to the vCPU.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::arch::exit::code;
use tests::scenario::{CODE, Machine};

fn events(m: &Machine, vcpu: usize) -> kvm_vcpu_events {
    m.vcpu_get(vcpu, KVM_GET_VCPU_EVENTS)
}

fn mp_state(m: &Machine, vcpu: usize) -> u32 {
    m.vcpu_get::<kvm_mp_state>(vcpu, KVM_GET_MP_STATE).mp_state
}

/// Two processors that run, and INIT of the first for the second on its way.
fn init_on_its_way() -> Machine {
    let m = Machine::new();
    m.add_vcpu(1).expect("a second vCPU");
    assert_eq!(m.vcpu_with(1, KVM_SET_MP_STATE, &kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }), Ok(0));
    for vcpu in 0..2 {
        m.long(vcpu, &[]);
        m.x2apic(vcpu);
    }
    m.wrmsr(0, 0x830, 1 << 32 | 0x4500);
    m.run_out(0);
    m
}

#[test]
fn init_waits_until_the_state_is_complete() {
    let m = init_on_its_way();
    m.with_regs(1, |r| r.rip = CODE + 0x40);
    let e = events(&m, 1);
    assert_eq!(e.smi.latched_init, 1);
    let _: kvm_lapic_state = m.vcpu_get(1, KVM_GET_LAPIC);
    assert_eq!(m.vcpu_with(1, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    assert_eq!((events(&m, 1).smi.latched_init, m.regs(1).rip), (1, CODE + 0x40), "not yet");
    // It has its effect where user space asks for the outcome, or runs the guest.
    assert_eq!((mp_state(&m, 1), m.regs(1).rip), (KVM_MP_STATE_INIT_RECEIVED, 0xfff0));
    assert_eq!(events(&m, 1).smi.latched_init, 0);
}

#[test]
fn init_that_the_restored_state_does_not_have() {
    let m = init_on_its_way();
    let mut e = events(&m, 1);
    e.smi.latched_init = 0;
    // It counts only if user space says so.
    e.flags &= !KVM_VCPUEVENT_VALID_SMM;
    assert_eq!(m.vcpu_with(1, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    assert_eq!(events(&m, 1).smi.latched_init, 1);
    e.flags |= KVM_VCPUEVENT_VALID_SMM;
    assert_eq!(m.vcpu_with(1, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    assert_eq!(events(&m, 1).smi.latched_init, 0);
    m.with_regs(1, |r| r.rip = CODE + 0x40);
    m.does(1, |c| assert_eq!(c.guest().rip, CODE + 0x40));
    m.run_out(1);
    assert_eq!(mp_state(&m, 1), KVM_MP_STATE_RUNNABLE);
}

#[test]
fn a_sipi_behind_the_restored_init() {
    let m = init_on_its_way();
    m.wrmsr(0, 0x830, 1 << 32 | 0x4622);
    m.run_out(0);
    let e = events(&m, 1);
    assert_eq!(m.vcpu_with(1, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    m.does(1, |c| assert_eq!((c.guest().cs.selector, c.guest().rip), (0x2200, 0)));
    m.run_out(1);
}

#[test]
fn an_nmi_handler_is_not_ended_by_the_iret_of_another() {
    let m = Machine::new();
    m.long(0, &[]);
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.does(0, |_| ());
    m.exit(0, code::IRET);
    m.run_out(0);
    // The vCPU goes on elsewhere, in a handler as well.
    m.with_regs(0, |r| r.rip = CODE + 0x40);
    let e = events(&m, 0);
    assert_eq!((e.nmi.masked, m.vcpu_with(0, KVM_SET_VCPU_EVENTS, &e)), (1, Ok(0)));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m, 0).nmi.masked, 1);
    m.exit(0, code::IRET);
    m.does(0, |c| c.guest().rip = CODE + 0x80);
    m.run_out(0);
    assert_eq!(events(&m, 0).nmi.masked, 0, "its own IRET");
}

/// User space has taken the guest away from the IRET that was about to run.
#[test]
fn an_nmi_that_waits_for_an_iret_that_is_not_met() {
    let m = Machine::new();
    m.long(0, &[]);
    assert_eq!((m.vcpu(0, KVM_NMI, 0), m.vcpu(0, KVM_NMI, 0)), (Ok(0), Ok(0)));
    m.does(0, |_| ());
    m.exit(0, code::IRET);
    m.run_out(0);
    m.with_regs(0, |r| r.rip = CODE + 0x40);
    for _ in 0..2 {
        m.does(0, |c| assert_eq!((c.injected.len(), c.guest().rflags & 1 << 8), (2, 0)));
    }
    m.run_out(0);
}
