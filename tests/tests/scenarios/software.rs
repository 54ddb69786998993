//! Events that come from an instruction (INT3, INTO, INTn): their handlers return behind it, in whichever way they come, with
//! and without a processor that saves the next RIP, and with one of which that is not known.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::Page;
use sim::arch::exit::code;
use sim::arch::{EventInj, EventType};
use sim::host::{CpuFeatures, Errno};
use tests::scenario::{CODE, Left, Machine, PLAIN};

const EXC: EventType = EventType::Exception;

fn machines(bytes: &'static [u8]) -> [Machine; 3] {
    [(false, false), (true, true), (false, true)].map(|(nrips, has)| {
        let m = Machine::on(CpuFeatures { nrips, ..PLAIN });
        m.inside(0, |c| c.core.cpu.has_nrips = has);
        m.long(0, bytes);
        m
    })
}

fn injected(m: &Machine) -> Vec<(EventType, u8, u64)> {
    m.injected(0).iter().zip(m.returns(0)).map(|(e, rip)| (e.kind().expect("a kind"), e.vector(), rip)).collect()
}

fn debug(m: &Machine, control: u32) {
    let debug = kvm_guest_debug { control, ..Default::default() };
    assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &debug), Ok(0));
}

fn set(m: &Machine, change: impl FnOnce(&mut kvm_vcpu_events)) {
    let mut e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    change(&mut e);
    assert_eq!(m.vcpu_with(0, KVM_SET_VCPU_EVENTS, &e), Ok(0));
}

/// The delivery meets an exit that has nothing to do with it.
fn cut_short(m: &Machine) {
    m.sim.step(0, |c| {
        c.cut_delivery_short();
        (code::NPF, 1 << 32 | 4, 0x1_0000)
    });
}

#[test]
fn a_breakpoint_that_the_debugger_gives_back() {
    for m in machines(&[0xcc, 0x90]) {
        debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_INJECT_BP);
        cut_short(&m);
        cut_short(&m);
        m.does(0, |_| ());
        m.run_out(0);
        // Each time again, however often the delivery is cut short; never back to the debugger.
        assert_eq!(injected(&m), [(EXC, 3, CODE + 1); 3]);
    }
}

#[test]
fn rip_is_at_the_instruction_while_its_event_waits() {
    for m in machines(&[0xcc, 0x90]) {
        debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP);
        m.sim.step(0, |c| {
            c.cut_delivery_short();
            (code::IOIO, 0x70 << 16 | 1 << 4, CODE)
        });
        assert!(matches!(m.run(0), Ok(Left::Io { .. })));
        assert_eq!(m.regs(0).rip, CODE);
        // Not shown: it comes again by itself where the vCPU goes on.
        let e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
        assert_eq!((e.exception.injected, e.exception.pending, e.exception.nr), (0, 0, 3));
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!(injected(&m), [(EXC, 3, CODE + 1); 2]);
        // A signal before the entry takes nothing away either.
        debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP);
        m.with_regs(0, |r| r.rip = CODE);
        debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP);
        assert!(m.run(0).is_err());
        assert_eq!(m.regs(0).rip, CODE);
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!(injected(&m)[2..], [(EXC, 3, CODE + 1)]);
    }
}

#[test]
fn what_user_space_restores() {
    type Set = fn(&mut kvm_vcpu_events);
    type Case = (&'static [u8], Set, &'static [(EventType, u8, u64)]);
    let exception: Set = |e| (e.exception.injected, e.exception.nr) = (1, 3);
    let interrupt: Set = |e| (e.interrupt.injected, e.interrupt.nr, e.interrupt.soft) = (1, 0x80, 1);
    let cases: [Case; 8] = [
        (&[0xcc], exception, &[(EXC, 3, CODE + 1)]),
        (&[0xcd, 3], exception, &[(EXC, 3, CODE + 2)]),
        (&[0xcd, 0x80], interrupt, &[(EventType::Soft, 0x80, CODE + 2)]),
        // With a prefix.
        (&[0x48, 0xcd, 0x80], interrupt, &[(EventType::Soft, 0x80, CODE + 3)]),
        // There is no such instruction: the guest does what is there.
        (&[0x90], exception, &[]),
        (&[0xcd, 0x81], interrupt, &[]),
        (&[0xcc], interrupt, &[]),
        (&[0xcd, 0x80], |e| (e.interrupt.injected, e.interrupt.nr) = (1, 0x80), &[(EventType::Intr, 0x80, CODE)]),
    ];
    for (bytes, change, expected) in cases {
        for m in machines(bytes) {
            set(&m, change);
            // The order in which a client restores is its own.
            m.with_regs(0, |r| r.rip = CODE);
            m.does(0, |_| ());
            m.run_out(0);
            assert_eq!(injected(&m), expected, "{bytes:x?}");
        }
    }
}

/// A signal, or broken memory, while the instruction is looked for: the event waits.
#[test]
fn an_instruction_that_cannot_be_read_now() {
    for how in [Page::Missing, Page::Poisoned, Page::Absent] {
        for m in machines(&[0xcc]) {
            set(&m, |e| (e.exception.injected, e.exception.nr) = (1, 3));
            m.with_regs(0, |r| r.rip = CODE);
            m.host_changes(CODE & !0xfff, 1, how);
            let errno = if how == Page::Absent { Errno::EFAULT } else { Errno::EINTR };
            assert_eq!((m.run(0).map_err(|e| e.0), injected(&m)), (Err(errno), vec![]), "{how:?}");
            m.host_changes(CODE & !0xfff, 1, Page::Writable);
            m.does(0, |_| ());
            m.run_out(0);
            assert_eq!(injected(&m), [(EXC, 3, CODE + 1)], "{how:?}");
        }
    }
}

#[test]
fn into_in_32_bits() {
    let m = Machine::new();
    m.protected(0, &[0xce]);
    set(&m, |e| (e.exception.injected, e.exception.nr) = (1, 4));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(injected(&m), [(EXC, 4, CODE + 1)]);
}

#[test]
fn another_exception_in_the_delivery_returns_to_the_instruction() {
    for m in machines(&[0xcd, 0x80]) {
        set(&m, |e| (e.interrupt.injected, e.interrupt.nr, e.interrupt.soft) = (1, 0x80, 1));
        m.sim.step(0, |c| {
            // The gate is not present: that is being delivered, and its delivery is cut short in turn.
            c.vmcb().exit_int_info = EventInj::new(EXC, 11, Some(0x802));
            (code::NPF, 1 << 32 | 4, 0x1_0000)
        });
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!(injected(&m), [(EventType::Soft, 0x80, CODE + 2), (EXC, 11, CODE)]);
    }
}

/// Its handler has run, and the guest does another INT of its own before it exits: that runs again by itself.
#[test]
fn an_event_of_the_guests_own_after_it() {
    for kind in [EventType::Soft, EXC] {
        for m in machines(&[0xcd, 0x80]) {
            set(&m, |e| (e.interrupt.injected, e.interrupt.nr, e.interrupt.soft) = (1, 0x80, 1));
            m.sim.step(0, move |c| {
                c.guest().rip = CODE + 0x40;
                c.vmcb().exit_int_info = EventInj::new(kind, 3, None);
                (code::NPF, 1 << 32 | 4, 0x1_0000)
            });
            m.does(0, |c| assert_eq!(c.guest().rip, CODE + 0x40));
            m.run_out(0);
            assert_eq!(injected(&m), [(EventType::Soft, 0x80, CODE + 2)]);
        }
    }
}

/// EXITINTINFO says that the interrupt was taken while V_IRQ still reads as set.
#[test]
fn an_interrupt_is_not_delivered_twice() {
    let m = Machine::new();
    m.long(0, &[]);
    m.x2apic(0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    let msi = kvm_msi { address_lo: 0xfee0_0000, data: 0x31, ..Default::default() };
    assert_eq!(m.vm_with(KVM_SIGNAL_MSI, &msi), Ok(1));
    m.sim.step(0, |c| {
        c.cut_delivery_short();
        c.vmcb().int_ctl |= sim::arch::vmcb::int_ctl::V_IRQ;
        (code::NPF, 1 << 32 | 4, 0x1_0000)
    });
    m.does(0, |c| assert_eq!(c.vmcb().int_ctl & sim::arch::vmcb::int_ctl::V_IRQ, 0));
    m.run_out(0);
    assert_eq!((m.taken(0), m.injected(0).len()), (vec![0x31], 1));
    m.wrmsr(0, 0x80b, 0);
    m.interrupt_flag(0, true);
    m.run_out(0);
    assert_eq!((m.taken(0).len(), m.injected(0).len()), (1, 1));
}

/// The debugger's exceptions do not show in the guest's DR6, nor do older ones in what the debugger is told.
#[test]
fn a_debugger_leaves_no_trace() {
    let dr6 = |m: &Machine| m.vcpu_get::<kvm_debugregs>(0, KVM_GET_DEBUGREGS).dr6;
    for own in [0xffff_0ff0, 0xffff_4ff1] {
        for (control, bits) in [(KVM_GUESTDBG_SINGLESTEP, 1 << 14), (KVM_GUESTDBG_USE_HW_BP, 2)] {
            let m = Machine::new();
            m.long(0, &[0x0f, 0x21, 0xf0]); // mov rax, dr6
            let mut d: kvm_debugregs = m.vcpu_get(0, KVM_GET_DEBUGREGS);
            d.dr6 = own;
            assert_eq!(m.vcpu_with(0, KVM_SET_DEBUGREGS, &d), Ok(0));
            debug(&m, KVM_GUESTDBG_ENABLE | control);
            for _ in 0..2 {
                m.sim.step(0, move |c| {
                    c.guest().dr6 |= bits;
                    (code::EXCP0 + 1, 0, 0)
                });
                let told = Left::Debug { exception: 1, pc: CODE, dr6: 0xffff_0ff0 | bits };
                assert_eq!((m.run(0), dr6(&m)), (Ok(told), own));
            }
            debug(&m, 0);
            m.exit(0, 0x26);
            m.run_out(0);
            assert_eq!((m.regs(0).rax, dr6(&m)), (own, own));
            // The guest's own #DB.
            m.sim.step(0, |c| {
                c.guest().dr6 |= 4;
                (code::EXCP0 + 1, 0, 0)
            });
            m.does(0, |_| ());
            m.run_out(0);
            assert_eq!((injected(&m).len(), dr6(&m)), (1, own & !15 | 4));
        }
    }
}

/// Without the capability for it user space cannot save what an exception brings along: it sees it in the registers.
#[test]
fn what_an_exception_brings_is_not_lost() {
    for capability in [0, 1] {
        let m = Machine::new();
        assert_eq!(m.enable(KVM_CAP_EXCEPTION_PAYLOAD, capability), Ok(0));
        m.real(0, &[0xe6, 0x70]);
        m.with_regs(0, |r| r.rflags |= 0x100);
        m.sim.step(0, |c| (code::IOIO, 0x70 << 16 | 1 << 4, c.guest().rip + 2));
        assert!(m.run(0).is_ok());
        m.settle(0);
        let e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
        let dr6 = m.vcpu_get::<kvm_debugregs>(0, KVM_GET_DEBUGREGS).dr6;
        assert_eq!((e.exception.pending, e.exception.nr, e.exception_has_payload), (1, 1, capability as u8));
        assert_eq!(dr6, if capability == 0 { 0xffff_4ff0 } else { 0xffff_0ff0 });
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!(m.vcpu_get::<kvm_debugregs>(0, KVM_GET_DEBUGREGS).dr6, 0xffff_4ff0);
    }
}

/// Where the handler returns is not where the next instruction that exits ends.
#[test]
fn the_return_address_is_not_left_behind() {
    for m in machines(&[0xcc]) {
        set(&m, |e| (e.exception.injected, e.exception.nr) = (1, 3));
        m.write_ram(CODE + 0x40, &[0x0f, 0xa2]);
        m.sim.step(0, |c| {
            c.guest().rip = CODE + 0x40;
            (code::CPUID, 0, 0)
        });
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!((injected(&m), m.regs(0).rip), (vec![(EXC, 3, CODE + 1)], CODE + 0x42));
    }
}

/// An NMI waits for the end of the shadow, but the guest is not entered. What was stepped before that is not what comes next.
#[test]
fn a_step_that_did_not_come_about() {
    let m = Machine::new();
    m.long(0, &[]);
    let trap = |shadow| {
        m.sim.step(0, move |c| {
            c.vmcb().int_state = shadow;
            c.guest().dr6 |= 1 << 14;
            (code::EXCP0 + 1, 0, 0)
        });
    };
    debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP);
    trap(1);
    assert!(matches!(m.run(0), Ok(Left::Debug { exception: 1, .. })));
    debug(&m, 0);
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    assert!(m.run(0).is_err(), "a signal");
    debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_BLOCKIRQ);
    trap(0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(injected(&m), [(EXC, 1, CODE)], "the guest's own");
    assert_eq!(m.vcpu_get::<kvm_debugregs>(0, KVM_GET_DEBUGREGS).dr6, 0xffff_4ff0);
}
