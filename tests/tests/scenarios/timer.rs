//! HLT sleeps until the local APIC's timer fires, in virtual time.

use sim::arch::exit::code;
use sim::host::{Errno, Host, Request, VcpuThread};
use tests::scenario::{Left, Machine};

const SVR_TO_LVT: u32 = 0x832;
const INITIAL: u32 = 0x838;
const DIVIDE: u32 = 0x83e;
const EOI: u32 = 0x80b;
const TSC_DEADLINE: u32 = 0x6e0;
const VECTOR: u64 = 0x40;
const ONE_SHOT: u64 = 0;
const PERIODIC: u64 = 1 << 17;
const DEADLINE: u64 = 2 << 17;
const MASKED: u64 = 1 << 16;

fn machine(mode: u64) -> Machine {
    let m = Machine::new();
    m.long(0, &[]);
    m.x2apic(0);
    m.wrmsr(0, SVR_TO_LVT, mode | VECTOR);
    m.wrmsr(0, DIVIDE, 0xb); // by 1: a tick is a nanosecond
    m
}

fn ticks(m: &Machine) -> Vec<u8> {
    m.taken(0)
}

#[test]
fn one_shot() {
    let m = machine(ONE_SHOT);
    let start = m.sim.now_ns();
    m.wrmsr(0, INITIAL, 1_000_000);
    m.hlt(0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(ticks(&m), [0x40]);
    assert_eq!(m.sim.now_ns() - start, 1_000_000);
    // Once.
    m.wrmsr(0, EOI, 0);
    m.hlt(0);
    assert_eq!(m.run(0), Err((Errno::EINTR, Left::Intr)));
    assert_eq!((m.sim.now_ns() - start, ticks(&m).len()), (1_000_000, 1));
}

#[test]
fn periodic() {
    let m = machine(PERIODIC);
    let start = m.sim.now_ns();
    m.wrmsr(0, INITIAL, 2_000_000);
    for n in 1..=3 {
        m.hlt(0);
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!((ticks(&m).len(), m.sim.now_ns() - start), (n, n as u64 * 2_000_000));
        m.wrmsr(0, EOI, 0);
    }
    // Stopped by a count of 0.
    m.wrmsr(0, INITIAL, 0);
    m.hlt(0);
    assert_eq!(m.run(0), Err((Errno::EINTR, Left::Intr)));
    assert_eq!(ticks(&m).len(), 3);
}

#[test]
fn tsc_deadline() {
    let m = machine(DEADLINE);
    m.rdmsr(0, 0x10);
    m.run_out(0);
    let (r, start) = (m.regs(0), m.sim.now_ns());
    let tsc = r.rdx << 32 | r.rax;
    m.wrmsr(0, TSC_DEADLINE, tsc + 3_000_000); // 2 GHz
    m.hlt(0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(ticks(&m), [0x40]);
    let waited = m.sim.now_ns() - start;
    assert!((1_500_000..1_501_000).contains(&waited), "{waited}");
    assert_eq!(m.msr(0, TSC_DEADLINE), 0, "disarmed");
}

#[test]
fn a_deadline_that_has_passed_fires_at_once() {
    let m = machine(DEADLINE);
    m.sim.advance(1_000_000);
    m.wrmsr(0, TSC_DEADLINE, 1);
    let sim = m.sim.clone();
    m.sim.step(0, move |_| {
        sim.advance(10);
        (code::INTR, 0, 0)
    });
    m.interrupt_flag(0, true);
    m.run_out(0);
    assert_eq!(ticks(&m), [0x40]);
}

/// No instruction is executed and no time passes between WRMSR and the interrupt.
#[test]
fn what_is_due_when_it_is_set_does_not_wait_for_the_host() {
    let m = machine(DEADLINE);
    m.interrupt_flag(0, true);
    m.sim.advance(1_000_000);
    m.wrmsr(0, TSC_DEADLINE, 1);
    m.does(0, |c| assert_eq!(c.taken.len(), 1));
    m.rdmsr(0, TSC_DEADLINE);
    m.run_out(0);
    assert_eq!((ticks(&m), m.regs(0).rax), (vec![0x40], 0));
    // The later one that was set before does not come back.
    m.wrmsr(0, EOI, 0);
    m.wrmsr(0, TSC_DEADLINE, 1 << 40);
    m.interrupt_flag(0, true);
    m.wrmsr(0, TSC_DEADLINE, 1);
    m.does(0, |c| assert_eq!(c.taken.len(), 2));
    m.run_out(0);
    m.wrmsr(0, EOI, 0);
    let now = m.sim.now_ns();
    m.hlt(0);
    assert_eq!((m.run(0), m.sim.now_ns()), (Err((Errno::EINTR, Left::Intr)), now));
}

#[test]
fn fires_while_the_guest_runs() {
    let m = machine(ONE_SHOT);
    m.wrmsr(0, INITIAL, 1_000_000);
    m.interrupt_flag(0, true);
    let sim = m.sim.clone();
    m.does(0, move |_| sim.advance(999_999));
    m.exit(0, code::INTR);
    m.does(0, |c| assert_eq!(c.taken.len(), 0));
    let sim = m.sim.clone();
    m.does(0, move |_| sim.advance(1));
    m.exit(0, code::INTR);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(ticks(&m), [0x40]);
}

#[test]
fn masked_does_not_wake() {
    let m = machine(ONE_SHOT | MASKED);
    m.wrmsr(0, INITIAL, 1_000);
    m.hlt(0);
    m.does(0, |_| panic!("woke up"));
    assert_eq!(m.run(0), Err((Errno::EINTR, Left::Intr)));
    assert_eq!(ticks(&m), []);
}

#[test]
fn hlt_with_interrupts_off_sleeps_through_it() {
    let m = machine(ONE_SHOT);
    m.wrmsr(0, INITIAL, 1_000);
    m.hlt(0);
    m.sim.drop_script(0);
    m.wrmsr(0, INITIAL, 1_000);
    m.sim.step(0, |c| {
        c.guest().rip = 0x8820;
        c.guest().rflags &= !0x200;
        (code::HLT, 0, 0)
    });
    m.does(0, |_| panic!("woke up"));
    assert_eq!(m.run(0), Err((Errno::EINTR, Left::Intr)));
}

#[test]
fn a_new_deadline_replaces_the_old() {
    let m = machine(ONE_SHOT);
    let start = m.sim.now_ns();
    m.wrmsr(0, INITIAL, 1_000);
    m.wrmsr(0, INITIAL, 5_000);
    m.hlt(0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.sim.now_ns() - start, 5_000);
}

#[test]
fn follows_the_vcpu_to_another_cpu() {
    let m = machine(0);
    let before = m.cpu(0).thread.migrations();
    m.cpu(0).thread.requests().make_request(Request::StealUpdate);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.cpu(0).thread.migrations(), before + 1);
    m.end();
}
