//! The VM goes to another engine in the middle of something: what was counted or told halfway is told and counted once.

use abi::uapi::ioctl::KVM_SET_CPUID2;
use abi::uapi::run::exit::MMIO_DATA;
use sim::arch::cr::Cr4;
use sim::host::{MmioKind, Request, Trace, TraceSet, VcpuThread};
use tests::scenario::{DATA, Left, MMIO, Machine, is_handed_over_everywhere};

/// HLT with a timer so many nanoseconds ahead.
fn nap(m: &Machine, ns: u64) {
    m.wrmsr(0, 0x838, ns);
    m.hlt(0);
    m.does(0, |_| ());
    m.run_out(0);
    m.wrmsr(0, 0x80b, 0);
    m.run_out(0);
}

/// How often the vCPU has looked around, with success, and slept; and for how long.
fn halts(m: &Machine) -> [u64; 4] {
    let cpu = m.cpu(0);
    let stats = &cpu.stats;
    let all = [&stats.halt_attempted_poll, &stats.halt_successful_poll, &stats.halt_wakeup, &stats.halt_wait_ns];
    all.map(|counter| counter.get())
}

#[test]
fn a_halt_in_two_engines_is_one() {
    if is_handed_over_everywhere() {
        return; // Each sleep ends before it has begun.
    }
    let m = Machine::new();
    m.long(0, &[]);
    m.x2apic(0);
    m.wrmsr(0, 0x83e, 0xb); // divide by 1
    m.wrmsr(0, 0x832, 0x31);
    m.sim.set_halt_poll(200_000);
    // It is known to help from here on.
    nap(&m, 50_000);
    let before = halts(&m);
    let leaves = |m: &Machine| {
        let thread = m.cpu(0).thread.clone();
        move || thread.requests().make_request(Request::HandOver)
    };
    m.sim.during_poll(leaves(&m));
    nap(&m, 5_000);
    let after = halts(&m);
    let more = |n: usize| after[n] - before[n];
    assert_eq!([more(0), more(1), more(2)], [1, 1, 0], "looked around twice, for one HLT");
    m.end();
}

#[test]
fn flushes_after_the_state_was_written_are_counted() {
    let m = Machine::new();
    m.long(0, &[]);
    m.load(0, 0x9000, 0);
    m.run_out(0);
    let flushes = || m.engine().stats.remote_tlb_flush_requests.get();
    let (before, state) = (flushes(), m.state());
    m.host_changes(0x9000, 1, sim::Page::Writable);
    let after = flushes();
    assert!(after > before);
    m.become_state(&state).unwrap();
    assert_eq!(flushes(), after);
    m.end();
}

#[test]
fn what_user_space_answers_is_told_in_the_next_engine() {
    let m = Machine::new();
    m.sim.trace(TraceSet::ALL);
    // MOV EAX,[RSI]
    m.long(0, &[0x8b, 0x06]);
    m.with_regs(0, |r| r.rsi = MMIO);
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO, write: false, data: vec![0; 4] }));
    m.hand_over().unwrap();
    m.page(0).write(MMIO_DATA, &0x1234_5678u32.to_le_bytes());
    m.sim.take_told();
    m.run_out(0);
    let read = Trace::Mmio { kind: MmioKind::Read, len: 4, gpa: MMIO, value: 0x1234_5678 };
    let told = m.sim.take_told();
    assert_eq!(told.iter().filter(|what| **what == read).count(), 1, "{told:?}");
    m.end();
}

/// Before Linux 6.14 CR4 may be whatever some guest could have, as long as nothing was said.
#[test]
fn cpuid_that_was_set_to_nothing_is_not_taken_for_none() {
    for nothing_was_said in [true, false] {
        let m = Machine::without_vcpu(true);
        assert_eq!(m.add_vcpu_without_cpuid(0), Ok(0));
        if !nothing_was_said {
            m.put_at(DATA, &[0u32, 0]);
            assert_eq!(m.vcpu(0, KVM_SET_CPUID2, DATA), Ok(0));
        }
        let takes = || m.inside(0, |c| c.core.cpuid.cr4_valid(Cr4::SMEP.bits()));
        assert_eq!(takes(), nothing_was_said);
        m.hand_over().unwrap();
        assert_eq!(takes(), nothing_was_said);
        m.end();
    }
}
