//! Several vCPUs: INIT and SIPI, interrupts between them, sleeping and waking across threads.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::host::{Cpu, CpuFeatures, Errno, Request, VcpuThread};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use tests::scenario::{Left, Machine, PLAIN, is_handed_over_everywhere};

const ICR: u32 = 0x830;
const INIT: u64 = 0x4500;
const SIPI: u64 = 0x4600;

fn to(apic: u64, command: u64) -> u64 {
    apic << 32 | command
}

pub(crate) fn machine() -> Machine {
    let m = Machine::new();
    m.add_vcpu(1).expect("a second vCPU");
    m.long(0, &[]);
    m.x2apic(0);
    m
}

pub(crate) fn mp_state(m: &Machine, vcpu: usize) -> u32 {
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
    assert_eq!(m.taken(1), [0x35]);
    m.wrmsr(1, 0x80b, 0);
    m.interrupt_flag(1, true);
    m.run_out(1);
    assert_eq!(m.taken(1), [0x35, 0x33]);
    assert_eq!((m.injected(0), m.taken(0)), (vec![], vec![]), "not to itself");
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
    assert_eq!(m.add_vcpu(16384), Err(Errno::EINVAL));
    assert_eq!(m.add_vcpu(u64::MAX), Err(Errno::EINVAL));
    assert_eq!(m.add_vcpu(16383), Ok(1));
    let _ = m.inside(1, |c| c.core.cpu.gpr(0));
    m.end();
}

fn set_mp_state(m: &Machine, vcpu: usize, mp_state: u32) -> Result<i64, Errno> {
    m.vcpu_with(vcpu, KVM_SET_MP_STATE, &kvm_mp_state { mp_state })
}

#[test]
fn run_states_from_user_space() {
    let m = machine();
    for state in [0, 1, 2, 3, 9] {
        assert_eq!((set_mp_state(&m, 1, state), mp_state(&m, 1)), (Ok(0), state));
    }
    for state in [5, 6, 7, 8, 10, u32::MAX] {
        assert_eq!(set_mp_state(&m, 1, state), Err(Errno::EINVAL));
    }
    let plain = Machine::without_irqchip();
    assert_eq!(set_mp_state(&plain, 0, KVM_MP_STATE_RUNNABLE), Ok(0));
    for state in [1, 2, 3, 4, 9] {
        assert_eq!(set_mp_state(&plain, 0, state), Err(Errno::EINVAL));
    }
}

#[test]
fn a_sipi_that_user_space_restores() {
    let m = machine();
    let e = kvm_vcpu_events { flags: KVM_VCPUEVENT_VALID_SIPI_VECTOR, sipi_vector: 0x42, ..Default::default() };
    assert_eq!(m.vcpu_with(1, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    assert_eq!(set_mp_state(&m, 1, KVM_MP_STATE_SIPI_RECEIVED), Ok(0));
    m.does(1, |c| assert_eq!((c.guest().cs.selector, c.guest().cs.base, c.guest().rip), (0x4200, 0x4_2000, 0)));
    m.run_out(1);
}

#[test]
fn a_processor_held_in_reset_wakes_like_a_halted_one() {
    let m = machine();
    assert_eq!(set_mp_state(&m, 0, 9), Ok(0));
    m.does(0, |_| panic!("runs"));
    assert_eq!(m.run(0).unwrap_err().0, Errno::EINTR);
    m.sim.drop_script(0);
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(mp_state(&m, 0), KVM_MP_STATE_RUNNABLE);
}

#[test]
fn init_and_sipi_at_once_start_the_processor() {
    let m = machine();
    // Both arrive before the other thread looks, and again with another vector.
    m.wrmsr(0, ICR, to(1, SIPI | 0x11));
    m.wrmsr(0, ICR, to(1, INIT));
    m.wrmsr(0, ICR, to(1, SIPI | 0x22));
    m.run_out(0);
    assert_eq!(m.run(1).unwrap_err().0, Errno::EAGAIN);
    m.does(1, |c| assert_eq!(c.guest().cs.selector, 0x2200));
    m.run_out(1);
}

/// `n` vCPUs with the ids 0, 3, 6, ..., all running in x2APIC mode.
fn many(n: u64) -> Machine {
    let m = Machine::without_vcpu(true);
    for id in 0..n {
        let vcpu = m.add_vcpu(id * 3).expect("a vCPU");
        m.long(vcpu, &[]);
        assert_eq!(set_mp_state(&m, vcpu, KVM_MP_STATE_RUNNABLE), Ok(0));
        m.x2apic(vcpu);
    }
    m
}

/// Who got `vector` of what vCPU 0 wrote to its ICR.
fn receivers(m: &Machine, n: usize, icr: u64, vector: u8) -> Vec<usize> {
    m.wrmsr(0, ICR, icr | u64::from(vector));
    m.run_out(0);
    let got = |v: &usize| {
        m.inside(*v, |c| c.get_lapic(&mut [0; 1024]).map(|()| c.core.fast.lapic.as_ref().unwrap().irr_max()))
    };
    (0..n).filter(|v| got(v) == Ok(vector)).collect()
}

#[test]
fn destinations_reach_exactly_those_they_name() {
    let m = many(40);
    let kicks = || (0..40).map(|v| m.cpu(v).thread.kicks()).collect::<Vec<_>>();
    let before = kicks();
    assert_eq!(receivers(&m, 40, to(3 * 7, 0x4000), 0x41), [7]);
    let touched: Vec<_> =
        kicks().iter().zip(before).enumerate().filter(|(_, (a, b))| **a != *b).map(|(n, _)| n).collect();
    assert_eq!(touched, [7], "nobody else is woken");
    assert_eq!(receivers(&m, 40, to(3 * 7 + 1, 0x4000), 0x42), [], "no such id");
    // Logical x2APIC IDs: cluster 1 has the ids 18, 21, 24, 27, 30.
    assert_eq!(receivers(&m, 40, to(0x1_0000 | 1 << 5 | 1 << 8 | 1, 0x4800), 0x43), [7, 8]);
    assert_eq!(receivers(&m, 40, to(0x1_ffff, 0x4800), 0x44), [6, 7, 8, 9, 10]);
    assert_eq!(receivers(&m, 40, to(0x1_ffff, 0x4900), 0x45).len(), 1, "lowest priority");
    assert_eq!(receivers(&m, 40, 0x4_4000, 0x46), [0], "self");
    assert_eq!(receivers(&m, 40, 0x8_4000, 0x47).len(), 40, "all");
    assert_eq!(receivers(&m, 40, 0xc_4000, 0x48).len(), 39, "all but self");
    assert_eq!(receivers(&m, 40, to(0xffff_ffff, 0x4000), 0x49).len(), 40, "broadcast");
    assert_eq!(receivers(&m, 40, to(0x5_0000, 0x4800), 0x4a), [], "an empty mask");
}

#[test]
fn ipis_of_all_kinds() {
    let m = machine();
    m.long(1, &[]);
    assert_eq!(set_mp_state(&m, 1, KVM_MP_STATE_RUNNABLE), Ok(0));
    m.wrmsr(0, ICR, to(1, 0x4400)); // NMI
    m.wrmsr(0, ICR, to(1, 0x8500)); // INIT level de-assert: nothing
    m.run_out(0);
    m.does(1, |_| ());
    m.run_out(1);
    assert_eq!(m.injected(1).iter().map(|e| e.vector()).collect::<Vec<_>>(), [2]);
    assert_eq!(mp_state(&m, 1), KVM_MP_STATE_RUNNABLE);
}

#[test]
fn a_spinning_guest_gives_its_processor_away() {
    let plain = Machine::new();
    assert!(!plain.inside(0, |c| c.core.cpu.control().intercept_3 & 1 << 23 != 0), "no counter, no exits");
    let features = CpuFeatures { pause_filter: true, pause_filter_threshold: true, ..PLAIN };
    let m = Machine::bare(features).expect("a VM");
    assert_eq!(m.enable(KVM_CAP_SPLIT_IRQCHIP, 24), Ok(0));
    assert_eq!(m.region(0, 0, 0, tests::scenario::RAM, tests::scenario::RAM_HVA), Ok(0));
    for id in 0..3 {
        assert_eq!(m.add_vcpu(id), Ok(id as usize));
    }
    m.long(0, &[0xf3, 0x90]);
    let filter =
        || m.inside(0, |c| (c.core.cpu.control().intercept_3 >> 23 & 1, c.core.cpu.control().pause_filter_count));
    assert_eq!(filter(), (1, 3000));
    let yields = || [1, 2].map(|v| m.cpu(v).thread.yields());
    let spin = || {
        m.with_regs(0, |r| r.rip = tests::scenario::CODE);
        m.exit(0, sim::arch::exit::code::PAUSE);
        m.run_out(0);
        assert_eq!(m.regs(0).rip, tests::scenario::CODE + 2);
    };
    spin();
    spin();
    assert_eq!(yields(), [1, 1], "in turn");
    m.cpu(1).thread.set_blocked(true);
    spin();
    spin();
    assert_eq!(yields(), [1, 3], "who sleeps needs no processor");
    assert_eq!(filter(), (1, 6000), "and spins longer before the next exit");
    // One that is about to wake up can use it.
    m.cpu(1).thread.requests().make_request(Request::Kick);
    spin();
    assert_eq!(yields(), [2, 3]);
}

#[test]
fn a_halted_guest_is_looked_out_for() {
    if is_handed_over_everywhere() {
        return; // It looks out again after each handover.
    }
    let m = machine();
    m.sim.set_halt_poll(200_000);
    let nap = |ns: u32| {
        m.wrmsr(0, 0x83e, 0xb); // divide by 1
        m.wrmsr(0, 0x832, 0x31);
        m.wrmsr(0, 0x838, ns.into());
        m.hlt(0);
        m.does(0, |_| ());
        m.run_out(0);
        m.wrmsr(0, 0x80b, 0);
        m.run_out(0);
    };
    nap(50_000);
    assert_eq!(m.sim.0.polls.load(Relaxed), 0, "not before it is known to help");
    nap(5_000);
    assert_eq!(m.sim.0.polls.load(Relaxed), 5, "found by looking, for 10 us at most");
    m.sim.0.polls.store(0, Relaxed);
    nap(50_000);
    assert_eq!(m.sim.0.polls.load(Relaxed), 10, "in vain: longer next time");
    nap(15_000);
    assert_eq!(m.sim.0.polls.load(Relaxed), 10 + 15);
    // The VM's own limit, and the guest's wish.
    assert_eq!(m.enable(KVM_CAP_HALT_POLL, 0), Ok(0));
    nap(5_000);
    assert_eq!(m.sim.0.polls.load(Relaxed), 25);
}

#[test]
fn paravirtual_ipis() {
    let m = many(40);
    let call = |low: u64, high: u64, min: u64, icr: u64| {
        m.write_ram(tests::scenario::CODE, &[0x0f, 0x01, 0xd9]);
        let regs = (tests::scenario::CODE, 10, low, high, min, icr);
        m.with_regs(0, |r| (r.rip, r.rax, r.rbx, r.rcx, r.rdx, r.rsi) = regs);
        m.exit(0, sim::arch::exit::code::VMMCALL);
        m.run_out(0);
        m.regs(0).rax as i64
    };
    let pending =
        |v: usize| m.inside(v, |c| c.get_lapic(&mut [0; 1024]).map(|()| c.core.fast.lapic.as_ref().unwrap().irr_max()));
    // The ids are 0, 3, ..., 117.
    assert_eq!(call(1 << 3 | 1 << 4 | 1 << 6, 1 << (66 - 64), 0, 0x51), 3);
    let got: Vec<_> = (0..40).filter(|v| pending(*v) == Ok(0x51)).collect();
    assert_eq!(got, [1, 2, 22]);
    assert_eq!(call(u64::MAX, u64::MAX, 3, 0x52), 39, "ids 3 to 130");
    assert_eq!(call(u64::MAX, u64::MAX, u64::MAX, 0x53), 0);
    assert_eq!(call(u64::MAX, u64::MAX, 16384 - 3, 0x53), 0);
    assert_eq!(call(1, 0, 0, 0x800 | 0x54), -22, "logical");
    assert_eq!(call(1, 0, 0, 0x4_0054), -22, "shorthand");
    assert_eq!(call(1 << 3, 0, 0, 0x400), 1, "an NMI");
    m.does(1, |_| ());
    m.run_out(1);
    assert_eq!(m.injected(1).iter().map(|e| e.vector()).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_guest_names_whom_it_yields_to() {
    let m = machine();
    m.write_ram(tests::scenario::CODE, &[0x0f, 0x01, 0xd9]);
    for (id, yields) in [(0, 0), (1, 1), (2, 1), (u64::MAX, 1)] {
        m.with_regs(0, |r| (r.rip, r.rax, r.rbx) = (tests::scenario::CODE, 11, id));
        m.exit(0, sim::arch::exit::code::VMMCALL);
        m.run_out(0);
        assert_eq!((m.regs(0).rax, m.cpu(1).thread.yields()), (0, yields));
    }
}

#[test]
fn who_is_killed_does_not_wait_for_a_busy_vcpu() {
    let m = machine();
    let killed = || {
        let mut got = vec![];
        sim::as_dying_thread(|| {
            got.push(m.vcpu_with(0, KVM_SET_MP_STATE, &kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }));
            got.push(m.vcpu(0, KVM_RUN, 0));
            got.push(m.vcpu_with(1, KVM_SET_MP_STATE, &kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }));
        });
        got
    };
    let got = m.inside(0, |_| thread::scope(|s| s.spawn(killed).join().expect("no panic")));
    assert_eq!(got, [Err(Errno::EINTR), Err(Errno::EINTR), Ok(0)], "the second vCPU is free");
}
