//! Task switches that cannot be carried out, and those with a debugger or an NMI about.

use crate::tasks::*;
use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::Page;
use sim::arch::exit::code;
use sim::arch::{EventInj, EventType};
use tests::scenario::{CODE, Left, MMIO, Machine};

const TF: u64 = 1 << 8;
const HAS_ERROR_CODE: u64 = 1 << 44;
const CALL: [u8; 7] = [0x9a, 0, 0, 0, 0, 0x20, 0];
const FAILED: Left = Left::Internal { suberror: KVM_INTERNAL_ERROR_EMULATION, data: Vec::new() };

fn fault() -> Option<EventInj> {
    Some(EventInj::new(EventType::Exception, 13, Some(0x18)))
}

fn in_user_mode(m: &Machine) {
    m.inside(0, |c| {
        let g = c.core.cpu.guest();
        (g.cpl, g.ss.attrib.0, g.cs.attrib.0) = (3, 0xcf3, 0xcfb);
    });
}

/// The new task is current, and its stack cannot be written: it must not run like that.
#[test]
fn a_task_that_cannot_be_loaded_whole() {
    let m = machine(&[0x90]);
    put32(&m, &task32());
    m.host_changes(0x7000, 1, Page::Absent);
    switch(&m, NEW_TSS, HAS_ERROR_CODE | 0x18, fault());
    assert_eq!(m.run(0), Ok(FAILED));
    assert_eq!((m.regs(0).rip, events(&m)), (0x9000, vec![]), "nothing becomes of it");
}

/// A TSS in a device: the event that led to it is not lost, and user code does not get #UD for it.
#[test]
fn a_task_in_a_device() {
    for user in [false, true] {
        let m = machine(&[0x90]);
        m.write_ram(GDT + u64::from(NEW_TSS), &descriptor(MMIO, 0x67, 0x89, 0).to_le_bytes());
        if user {
            in_user_mode(&m);
        }
        switch(&m, NEW_TSS, HAS_ERROR_CODE | 0x18, fault());
        assert_eq!((m.run(0), m.regs(0).rip), (Ok(FAILED), CODE));
        let e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
        assert_eq!((e.exception.injected, e.exception.nr), (1, 13));
    }
}

/// The trap flag is the debugger's: the old task is put away without it, and the step ends where the new one begins.
#[test]
fn a_debuggers_step_over_a_switch() {
    let steps = |m: &Machine| {
        let debug = kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, ..Default::default() };
        assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &debug), Ok(0));
    };
    let m = machine(&CALL);
    put32(&m, &task32());
    m.with_regs(0, |r| r.rflags = 0x246);
    steps(&m);
    switch(&m, NEW_TSS, 0, None);
    assert_eq!(m.run(0), Ok(Left::Debug { exception: 1, pc: 0x9000, dr6: 0xffff_4ff0 }));
    assert_eq!((word(&m, OLD + 0x24), m.regs(0).rflags), (0x246, 0x4202));
    then(&m, |c| assert_eq!((c.guest().rip, c.guest().rflags), (0x9000, 0x4202 | TF)));
    // Without a switch there is no end of the step.
    let m = machine(&CALL);
    steps(&m);
    switch(&m, 0x30, 0, None);
    m.sim.step(0, |c| {
        c.cut_delivery_short();
        assert_eq!((c.guest().rip, c.guest().rflags & TF), (CODE, TF), "what the fault pushes");
        (code::INTR, 0, 0)
    });
    then(&m, |_| ());
    assert_eq!(events(&m), [(10, Some(EventType::Exception), Some(0x30)); 2]);
}

/// The IRET that ends an NMI handler returns to another task, and is carried out by the hypervisor.
#[test]
fn an_nmi_that_waits_for_a_handler_that_is_a_task() {
    let nmi = EventInj::new(EventType::Nmi, 2, None);
    let m = machine(&[0x90]);
    put32(&m, &task32());
    m.write_ram(0x9000, &[0xcf]);
    assert_eq!((m.vcpu(0, KVM_NMI, 0), m.vcpu(0, KVM_NMI, 0)), (Ok(0), Ok(0)));
    switch(&m, NEW_TSS, 0, Some(nmi));
    m.exit(0, code::IRET);
    switch(&m, OLD_TSS, BY_IRET, None);
    m.does(0, |c| assert_eq!((c.guest().rip, c.guest().rflags & TF, c.injected.len()), (CODE, 0, 2)));
    then(&m, |c| assert_eq!(c.guest().rflags & TF, 0));
    assert_eq!(events(&m).iter().map(|e| e.0).collect::<Vec<_>>(), [2, 2]);
}
