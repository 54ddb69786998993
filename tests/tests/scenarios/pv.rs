//! What a guest that knows KVM shares with it: the end of interrupts, steal time, hypercalls for other vCPUs.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::arch::exit::code;
use sim::host::{Command, Errno, Request, VcpuThread};
use std::sync::atomic::Ordering::SeqCst;
use tests::scenario::{CODE, Machine, RAM_HVA, flushed};

const STEAL_TIME: u32 = 0x4b56_4d03;
const PV_EOI: u32 = 0x4b56_4d04;
const PAGE: u64 = 0xb000;
const PREEMPTED: u64 = PAGE + 16;

/// 64-bit mode, the local APIC on, interrupts allowed.
fn machine() -> Machine {
    let m = Machine::new();
    m.long(0, &[]);
    m.x2apic(0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    m
}

fn msi(m: &Machine, data: u32) {
    let msi = kvm_msi { address_lo: 0xfee0_0000, data, ..Default::default() };
    assert_eq!(m.vm_with(KVM_SIGNAL_MSI, &msi), Ok(1));
}

/// A vector's bit in ISR (0x100) or IRR (0x200).
fn apic_bit(m: &Machine, vcpu: usize, register: usize, vector: u8) -> bool {
    let state: kvm_lapic_state = m.vcpu_get(vcpu, KVM_GET_LAPIC);
    let at = register + 0x10 * usize::from(vector / 32) + usize::from(vector % 32 / 8);
    state.regs[at] as u8 >> (vector % 8) & 1 != 0
}

fn in_service(m: &Machine, vector: u8) -> bool {
    apic_bit(m, 0, 0x100, vector)
}

#[test]
fn an_interrupt_ends_by_clearing_a_bit() {
    let m = machine();
    m.wrmsr(0, PV_EOI, PAGE | 1);
    m.run_out(0);
    msi(&m, 0x41);
    m.load(0, PAGE, 1);
    m.run_out(0);
    assert_eq!((m.read_ram::<u64>(PAGE), in_service(&m, 0x41)), (0, true), "taken back: it has not ended");
    m.load(0, PAGE, 1);
    m.store(0, PAGE, 0);
    m.does(0, |_| ());
    m.run_out(0);
    assert!(!in_service(&m, 0x41));
    // Nothing is in service: nothing is offered.
    m.load(0, PAGE, 0);
    m.run_out(0);
    m.end();
}

#[test]
fn an_interrupt_that_is_about_to_be_taken_can_end_so_as_well() {
    let m = machine();
    m.wrmsr(0, PV_EOI, PAGE | 1);
    m.run_out(0);
    msi(&m, 0x41);
    m.load(0, PAGE, 1);
    m.store(0, PAGE, 0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((m.taken(0), in_service(&m, 0x41), apic_bit(&m, 0, 0x200, 0x41)), (vec![0x41], false, false));
    // Not where it interrupts the handler of another: whose end that would be could not be told.
    m.with_regs(0, |r| r.rflags |= 0x200);
    msi(&m, 0x51);
    m.does(0, |_| ());
    m.run_out(0);
    assert!(in_service(&m, 0x51));
    msi(&m, 0x61);
    m.load(0, PAGE, 0);
    m.run_out(0);
    m.end();
}

#[test]
fn it_is_not_offered_where_somebody_waits_for_the_end() {
    let m = machine();
    m.wrmsr(0, PV_EOI, PAGE | 1);
    m.run_out(0);
    msi(&m, 0xc041);
    m.load(0, PAGE, 0);
    m.run_out(0);
    assert!(in_service(&m, 0x41), "level-triggered");
    m.wrmsr(0, 0x80b, 0);
    m.run_out(0);
    // Another one waits: its turn comes with the end of the first.
    m.interrupt_flag(0, false);
    m.run_out(0);
    msi(&m, 0x51);
    msi(&m, 0x52);
    m.interrupt_flag(0, true);
    m.load(0, PAGE, 0);
    m.run_out(0);
    // Memory that goes away takes the offer with it.
    let m = machine();
    m.wrmsr(0, PV_EOI, PAGE | 1);
    m.run_out(0);
    msi(&m, 0x41);
    assert_eq!(m.region(0, 0, 0, 0, RAM_HVA), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    assert!(in_service(&m, 0x41));
    assert_eq!(m.set_msr(0, PV_EOI, PAGE | 1), Ok(0), "no memory there");
}

fn steal(m: &Machine) -> u64 {
    let version: u32 = m.read_ram(PAGE + 8);
    assert!(version != 0 && version % 2 == 0, "version {version}");
    m.read_ram(PAGE)
}

#[test]
fn steal_time_is_what_the_thread_waited() {
    let m = machine();
    m.sim.0.run_delay.store(70_000, SeqCst);
    m.wrmsr(0, STEAL_TIME, PAGE | 1);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(steal(&m), 70_000);
    m.sim.0.run_delay.store(75_000, SeqCst);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(steal(&m), 75_000);
    // Another thread, which has waited less.
    m.sim.0.run_delay.store(1_000, SeqCst);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(steal(&m), 75_000);
    m.sim.0.run_delay.store(1_500, SeqCst);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(steal(&m), 75_500);
    m.end();
}

#[test]
fn a_vcpu_that_lost_its_cpu_flushes_when_asked_to() {
    let m = machine();
    m.wrmsr(0, STEAL_TIME, PAGE | 1);
    m.does(0, |_| ());
    m.run_out(0);
    let thread = || m.cpu(0).thread.clone();
    assert_eq!(thread().note(), RAM_HVA + PREEMPTED);
    for (byte, flushes) in [(1, 0), (3, 1)] {
        let before = m.inside(0, |c| c.core.cpu.flushes);
        m.write_ram(PREEMPTED, &[byte]);
        thread().requests().make_request(Request::StealUpdate);
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!(m.read_ram::<u8>(PREEMPTED), 0, "it runs again");
        assert!(flushed(&m, 0, before, flushes));
    }
    // Nobody writes to memory that the guest has no more.
    assert_eq!(m.region(0, 0, 0, 0, RAM_HVA), Ok(0));
    assert_eq!(thread().note(), 0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(thread().note(), 0);
    assert_eq!(m.region(0, 0, 0, tests::scenario::RAM, RAM_HVA), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(thread().note(), RAM_HVA + PREEMPTED);
    m.wrmsr(0, STEAL_TIME, 0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(thread().note(), 0);
    m.end();
}

/// VMMCALL with these arguments; what RAX holds afterwards.
fn vmmcall(m: &Machine, nr: u64, args: [u64; 4]) -> i64 {
    m.write_ram(CODE, &[0x0f, 0x01, 0xd9]);
    let [a, b, c, d] = args;
    m.with_regs(0, |r| (r.rip, r.rax, r.rbx, r.rcx, r.rdx, r.rsi) = (CODE, nr, a, b, c, d));
    m.exit(0, code::VMMCALL);
    m.run_out(0);
    assert_eq!(m.regs(0).rip, CODE + 3);
    m.regs(0).rax as i64
}

#[test]
fn time_of_day_and_tsc_of_one_moment() {
    let m = machine();
    assert_eq!(vmmcall(&m, 9, [PAGE, 1, 0, 0]), -95, "a clock that does not exist");
    assert_eq!(vmmcall(&m, 9, [0xd000_0000, 0, 0, 0]), -14, "no memory");
    assert_eq!(vmmcall(&m, 9, [PAGE, 0, 0, 0]), 0);
    assert_eq!(m.read_ram::<u64>(PAGE), 1_700_000_000);
    assert!(m.read_ram::<u64>(PAGE + 16) <= m.msr(0, 0x10), "the guest's TSC");
    assert_eq!(vmmcall(&m, 99, [0; 4]), -1000);
    // Once user space wants it enforced, only what the guest was shown.
    let enforce = kvm_enable_cap { cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID, args: [1, 0, 0, 0], ..Default::default() };
    assert_eq!(m.vcpu_with(0, KVM_ENABLE_CAP, &enforce), Ok(0));
    let n = m.add_vcpu(5).unwrap();
    assert_eq!(m.vcpu_with(n, KVM_ENABLE_CAP, &enforce), Ok(0));
    m.put_at(tests::scenario::DATA, &[0u32, 0]);
    assert_eq!(m.vcpu(n, KVM_SET_CPUID2, tests::scenario::DATA), Ok(0));
    assert_eq!(m.set_msr(n, STEAL_TIME, PAGE | 1), Ok(0), "not shown");
}

#[test]
fn barriers_reach_the_processor() {
    let m = machine();
    assert_eq!(m.set_msr(0, 0x49, 0), Ok(1), "nothing asked for");
    assert_eq!(m.sim.0.commands.lock().len(), 0);
    assert_eq!(m.set_msr(0, 0x49, 1), Ok(1));
    m.wrmsr(0, 0x49, 1);
    m.run_out(0);
    assert_eq!(*m.sim.0.commands.lock(), [Command::Prediction(1); 2]);
}

/// A guest that raises TPR in its word, which is no exit, does not take what waited under the one of before.
#[test]
fn what_waits_is_held_back_by_the_word() {
    const WORD: u64 = 0x9100;
    let m = Machine::new();
    m.long(0, &[]);
    m.x2apic(0);
    m.store(0, WORD, 0);
    m.run_out(0);
    assert_eq!(m.vcpu_with(0, KVM_SET_VAPIC_ADDR, &WORD), Ok(0));
    let msi = kvm_msi { address_lo: 0xfee0_0000, data: 0x91, ..Default::default() };
    assert_eq!(m.vm_with(KVM_SIGNAL_MSI, &msi), Ok(1));
    m.store(0, WORD, 0xff);
    m.interrupt_flag(0, true);
    m.does(0, |c| assert_eq!(c.taken, []));
    m.run_out(0);
    // Lowered again, it comes with the next exit.
    m.store(0, WORD, 0);
    m.exit(0, sim::arch::exit::code::INTR);
    m.does(0, |c| assert_eq!(c.taken, [0x91]));
    m.run_out(0);
    assert_eq!((m.taken(0), m.injected(0).len()), (vec![0x91], 0));
}

/// The word in which an old guest finds its TPR, and the exits that tell user space where it does not yet.
#[test]
fn the_task_priority_in_a_word() {
    const WORD: u64 = 0x9100;
    let m = Machine::new();
    m.long(0, &[0x89, 0x03]); // mov [rbx], eax
    let at = |address: u64| m.vcpu_with(0, KVM_SET_VAPIC_ADDR, &address);
    assert_eq!((at(1 << 40), at(WORD)), (Err(Errno::EINVAL), Ok(0)));
    m.with_regs(0, |r| (r.rax, r.rbx) = (0x50, 0xfee0_0080));
    // `enabled`, `flags`, and what is 0.
    let report = |flags| m.vcpu_with(0, KVM_TPR_ACCESS_REPORTING, &[1, flags, 0, 0, 0, 0, 0, 0, 0, 0u32]);
    assert_eq!((report(1), report(0)), (Err(Errno::EINVAL), Ok(0)));
    m.tries(0, 0xfee0_0080, true);
    assert_eq!(m.run(0), Ok(tests::scenario::Left::Other(KVM_EXIT_TPR_ACCESS)));
    assert_eq!(
        (m.page(0).u64(32), m.page(0).u32(40), m.regs(0).rip),
        (tests::scenario::CODE, 1, tests::scenario::CODE + 2)
    );
    // From here on by the word: it shows what was written, and what the guest writes there counts.
    m.load(0, WORD, 0x50);
    m.store(0, WORD, 0x20);
    m.run_out(0);
    let lapic: kvm_lapic_state = m.vcpu_get(0, KVM_GET_LAPIC);
    assert_eq!(lapic.regs[0x80] as u8, 0x20);
    // An interrupt that waits for it.
    let mut lapic = lapic;
    (lapic.regs[0xf0], lapic.regs[0xf1]) = (0xffu8 as _, 1);
    assert_eq!(m.vcpu_with(0, KVM_SET_LAPIC, &lapic), Ok(0));
    let msi = kvm_msi { address_lo: 0xfee0_0000, data: 0x31, ..Default::default() };
    assert_eq!(m.vm_with(KVM_SIGNAL_MSI, &msi), Ok(1));
    m.load(0, WORD, 0x3100_0020);
    m.run_out(0);
    assert_eq!(at(0), Ok(0));
    m.store(0, WORD, 0);
    m.run_out(0);
    m.load(0, WORD, 0);
    m.run_out(0);
}
