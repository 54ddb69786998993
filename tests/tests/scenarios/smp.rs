//! Several vCPUs: INIT and SIPI, interrupts between them, sleeping and waking across threads.

use kvm::abi::ioctl::*;
use kvm_bindings::*;
use sim::host::{Cpu, Errno};
use std::thread;
use tests::scenario::{Left, Machine};

const ICR: u32 = 0x830;
const INIT: u64 = 0x4500;
const SIPI: u64 = 0x4600;

fn to(apic: u64, command: u64) -> u64 {
    apic << 32 | command
}

fn machine() -> Machine {
    let m = Machine::new();
    m.add_vcpu(1).expect("a second vCPU");
    m.long(0, &[]);
    m.x2apic(0);
    m
}

fn mp_state(m: &Machine, vcpu: usize) -> u32 {
    m.vcpu_get::<kvm_mp_state>(vcpu, KVM_GET_MP_STATE).mp_state
}

#[test]
fn init_and_sipi_start_the_second_processor() {
    let m = machine();
    assert_eq!(mp_state(&m, 1), KVM_MP_STATE_UNINITIALIZED);
    assert_eq!(m.run(1).unwrap_err().0, Errno::EINTR, "nothing to do yet");
    m.wrmsr(0, ICR, to(1, INIT));
    m.run_out(0);
    assert_eq!(m.run(1).unwrap_err().0, Errno::EAGAIN, "INIT alone starts nothing");
    assert_eq!(mp_state(&m, 1), KVM_MP_STATE_INIT_RECEIVED);
    m.wrmsr(0, ICR, to(1, SIPI | 0x9f));
    m.wrmsr(0, ICR, to(1, SIPI | 0x9f)); // they come in pairs
    m.run_out(0);
    m.does(1, |c| assert_eq!((c.guest().cs.selector, c.guest().cs.base, c.guest().rip), (0x9f00, 0x9_f000, 0)));
    m.run_out(1);
    assert_eq!(mp_state(&m, 1), KVM_MP_STATE_RUNNABLE);
    // It runs: another SIPI is ignored.
    m.wrmsr(0, ICR, to(1, SIPI | 0x12));
    m.run_out(0);
    m.does(1, |c| assert_eq!(c.guest().cs.selector, 0x9f00));
    m.run_out(1);
    m.end();
}

#[test]
fn interrupts_between_processors() {
    let m = machine();
    m.long(1, &[]);
    let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
    assert_eq!(m.vcpu_with(1, KVM_SET_MP_STATE, &runnable), Ok(0));
    m.x2apic(1);
    m.with_regs(1, |r| r.rflags |= 0x200);
    m.wrmsr(0, ICR, to(1, 0x4000 | 0x33));
    m.wrmsr(0, ICR, 0xc_4000 | 0x35); // all but self
    m.run_out(0);
    m.does(1, |c| c.guest().rflags &= !0x200);
    m.run_out(1);
    assert_eq!(m.injected(1).iter().map(|e| e.vector()).collect::<Vec<_>>(), [0x35]);
    m.wrmsr(1, 0x80b, 0);
    m.interrupt_flag(1, true);
    m.run_out(1);
    assert_eq!(m.taken(1), [0x33]);
    assert_eq!(m.injected(0), [], "not to itself");
}

#[test]
fn init_of_a_running_processor_starts_it_over() {
    let m = machine();
    m.wrmsr(0, ICR, to(1, INIT));
    m.wrmsr(0, ICR, to(1, SIPI | 0x9f));
    m.run_out(0);
    assert_eq!(m.run(1).unwrap_err().0, Errno::EAGAIN);
    m.does(1, |c| c.guest().rip = 0x77);
    m.run_out(1);
    m.wrmsr(0, ICR, to(1, INIT));
    m.run_out(0);
    m.does(1, |_| panic!("runs without SIPI"));
    assert!(m.run(1).is_err());
    assert_eq!((mp_state(&m, 1), m.regs(1).rip), (KVM_MP_STATE_INIT_RECEIVED, 0xfff0));
}

#[test]
fn a_sleeping_processor_is_woken_by_another_thread() {
    let m = machine();
    m.sim.set_patience(10_000);
    m.hlt(0);
    m.does(0, |_| ());
    thread::scope(|s| {
        let sleeper = s.spawn(|| m.run_out(0));
        let msi = kvm_msi { address_lo: 0xfee0_0000, data: 0x31, ..Default::default() };
        assert_eq!(m.vm_with(KVM_SIGNAL_MSI, &msi), Ok(1));
        sleeper.join().expect("the vCPU's thread");
    });
    let taken = [m.injected(0).iter().map(|e| e.vector()).collect(), m.taken(0)].concat();
    assert_eq!(taken, [0x31]);
}

#[test]
fn a_signal_ends_sleep() {
    let m = machine();
    m.sim.set_patience(10_000);
    m.hlt(0);
    thread::scope(|s| {
        let sleeper = s.spawn(|| m.run(0));
        while m.sim.steps_left(0) != 0 {
            thread::yield_now();
        }
        m.sim.signal();
        assert_eq!(sleeper.join().expect("the vCPU's thread"), Err((Errno::EINTR, Left::Intr)));
    });
}

#[test]
fn a_paravirtual_kick_ends_hlt() {
    let m = machine();
    m.long(1, &[]);
    assert_eq!(m.vcpu_with(1, KVM_SET_MP_STATE, &kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }), Ok(0));
    m.hlt(1);
    m.does(1, |_| panic!("woke up by itself"));
    assert_eq!(m.run(1).unwrap_err().0, Errno::EINTR);
    m.write_ram(tests::scenario::CODE, &[0x0f, 0x01, 0xd9]);
    m.with_regs(0, |r| (r.rip, r.rax, r.rbx, r.rcx) = (tests::scenario::CODE, 5, 0, 1));
    m.exit(0, sim::arch::exit::code::VMMCALL);
    m.run_out(0);
    assert_eq!(m.regs(0).rax, 0);
    m.sim.drop_script(1);
    m.does(1, |_| ());
    m.run_out(1);
    assert_eq!(mp_state(&m, 1), KVM_MP_STATE_RUNNABLE);
}

#[test]
fn vcpu_ids_and_limits() {
    let m = Machine::without_vcpu(true);
    assert_eq!(m.add_vcpu(7), Ok(0));
    assert_eq!(m.add_vcpu(7), Err(Errno::EEXIST));
    assert_eq!(m.add_vcpu(4096), Err(Errno::EINVAL));
    assert_eq!(m.add_vcpu(u64::MAX), Err(Errno::EINVAL));
    assert_eq!(m.add_vcpu(4095), Ok(1));
    let _ = m.inside(1, |c| c.core.cpu.gpr(0));
    m.end();
}
