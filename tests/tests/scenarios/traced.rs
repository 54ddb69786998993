//! Trace events: what is told of a guest while somebody listens, and that nothing is when nobody does.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::arch::exit::code;
use sim::host::{CpuFeatures, Trace, TraceEvent, TraceSet};
use tests::scenario::{CODE, Left, Machine, PLAIN, RAM, RAM_HVA, is_handed_over_everywhere, is_through_the_assembly};

const PAT: u64 = 0x277;

fn machine() -> Machine {
    let m = Machine::on(CpuFeatures { nrips: true, ..PLAIN });
    m.long(0, &[]);
    m.with_regs(0, |r| r.rip = CODE);
    m
}

/// One intercepted instruction of two bytes.
fn exits(m: &Machine, exit: u64, write: bool, registers: [u64; 3]) {
    m.intercepts(0, exit, write, registers);
    m.run_out(0);
}

/// What was told since the last call, without entries and what ends the script.
fn told(m: &Machine) -> Vec<Trace> {
    let all = m.sim.take_told();
    let of_script = |t: &Trace| match t {
        Trace::Entry { .. } | Trace::UserspaceExit { .. } => true,
        Trace::Exit { code: c, .. } => *c == code::INTR,
        _ => false,
    };
    all.into_iter().filter(|t| !of_script(t)).collect()
}

#[test]
fn what_exits_did_is_told_while_somebody_listens() {
    if is_handed_over_everywhere() {
        return; // What an exit did is told behind its handler, by the engine that it came to.
    }
    let m = machine();
    exits(&m, code::CPUID, false, [0x8000_0000, 0, 0]);
    assert_eq!(m.sim.take_told(), [], "nobody listens");
    m.sim.trace(TraceSet::ALL);
    exits(&m, code::CPUID, false, [0x8000_0000, 0, 0]);
    let all = told(&m);
    let [
        Trace::Exit { rip, code: c, vcpu: 0, .. },
        Trace::Cpuid { function: 0x8000_0000, index: 0, regs, found: true, .. },
    ] = all[..]
    else {
        panic!("{all:?}")
    };
    assert_eq!((rip, c, u64::from(regs[0])), (CODE + 2, code::CPUID, m.regs(0).rax));
    exits(&m, code::MSR, true, [0x0007_0406, PAT, 0x0007_0406]);
    exits(&m, code::MSR, false, [0, PAT, 0]);
    exits(&m, code::MSR, false, [0, 0xdead, 0]);
    let value = 0x0007_0406_0007_0406;
    let msrs: Vec<Trace> = told(&m).into_iter().filter(|t| matches!(t, Trace::Msr { .. })).collect();
    assert_eq!(
        msrs,
        [
            Trace::Msr { write: true, index: PAT as u32, value, fault: false },
            Trace::Msr { write: false, index: PAT as u32, value, fault: false },
            Trace::Msr { write: false, index: 0xdead, value: 0, fault: true },
        ]
    );
    m.sim.trace(TraceSet::default());
    exits(&m, code::CPUID, false, [0x8000_0000, 0, 0]);
    assert_eq!(m.sim.take_told(), [], "nobody listens any more");
    m.end();
}

#[test]
fn only_what_is_wanted_is_told() {
    if is_handed_over_everywhere() {
        return; // What an exit did is told behind its handler, by the engine that it came to.
    }
    let m = machine();
    m.sim.trace(TraceSet(1 << TraceEvent::Msr as u8));
    exits(&m, code::CPUID, false, [0, 0, 0]);
    assert_eq!(m.sim.take_told(), []);
    exits(&m, code::MSR, false, [0, PAT, 0]);
    let all = m.sim.take_told();
    assert!(matches!(all[..], [Trace::Msr { write: false, fault: false, .. }]), "{all:?}");
    m.end();
}

#[test]
fn no_exit_is_handled_beside_who_listens() {
    if is_handed_over_everywhere() {
        return; // What is remembered of answers is asked again.
    }
    let m = machine();
    let handled = |m: &Machine| m.inside(0, |c| c.core.cpu.handled_fast);
    (0..2).for_each(|_| exits(&m, code::CPUID, false, [0, 0, 0]));
    let before = handled(&m);
    assert_ne!(before, 0);
    m.sim.trace(TraceSet(1 << TraceEvent::Exit as u8));
    exits(&m, code::CPUID, false, [0, 0, 0]);
    assert_eq!(handled(&m), before);
    m.sim.trace(TraceSet::default());
    (0..2).for_each(|_| exits(&m, code::CPUID, false, [0, 0, 0]));
    assert_ne!(handled(&m), before);
    m.end();
}

#[test]
fn each_exit_follows_its_entry() {
    if is_through_the_assembly() {
        return; // The processor's model tells nobody of entries.
    }
    let m = machine();
    m.sim.trace(TraceSet(1 << TraceEvent::Entry as u8 | 1 << TraceEvent::Exit as u8));
    exits(&m, code::CPUID, false, [0, 0, 0]);
    let all = m.sim.take_told();
    assert!(all.len() >= 2);
    for pair in all.chunks(2) {
        assert!(matches!(pair, [Trace::Entry { .. }, Trace::Exit { .. }] | [Trace::Entry { .. }]), "{all:?}");
    }
    m.end();
}

/// Those of events that are told where they happen that `wanted` takes, since the last call.
fn told_elsewhere(m: &Machine, wanted: fn(&Trace) -> bool) -> Vec<Trace> {
    m.sim.take_told().into_iter().filter(wanted).collect()
}

#[test]
fn dirty_rings_tell_what_they_take_and_lose() {
    const HIGH: u64 = 0x1000_0000;
    let m = Machine::without_vcpu(true);
    assert_eq!(m.enable(KVM_CAP_DIRTY_LOG_RING_ACQ_REL, 4096), Ok(0));
    assert_eq!((m.add_vcpu(0), m.add_vcpu(1)), (Ok(0), Ok(1)));
    assert_eq!(m.region(5, KVM_MEM_LOG_DIRTY_PAGES, HIGH, 512 << 12, RAM_HVA + RAM), Ok(0));
    assert_eq!(m.vcpu_with(1, KVM_SET_MP_STATE, &kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }), Ok(0));
    m.long(1, &[]);
    (0..192).for_each(|page| m.store(1, HIGH + (page << 12), 1));
    m.does(1, |_| ());
    assert_eq!(m.run(1), Ok(Left::Other(KVM_EXIT_DIRTY_RING_FULL)));
    let rings = |t: &Trace| {
        matches!(t, Trace::DirtyRingPush { .. } | Trace::DirtyRingReset { .. } | Trace::DirtyRingExit { .. })
    };
    let all = told_elsewhere(&m, rings);
    assert_eq!(all.len(), 193);
    assert_eq!(all[0], Trace::DirtyRingPush { index: 1, dirty: 1, reset: 0, slot: 5, offset: 0 });
    assert_eq!(all[191], Trace::DirtyRingPush { index: 1, dirty: 192, reset: 0, slot: 5, offset: 191 });
    assert_eq!(all[192], Trace::DirtyRingExit { vcpu: 1 });
    assert_eq!(m.vm(KVM_RESET_DIRTY_RINGS, 0), Ok(0), "nothing was harvested");
    let told = told_elsewhere(&m, rings);
    assert!(told.contains(&Trace::DirtyRingReset { index: 1, dirty: 192, reset: 0 }), "{told:?}");
}

#[test]
fn system_management_mode_is_told_where_it_begins_and_ends() {
    const SMBASE: u64 = 0x3_0000;
    let m = Machine::new();
    m.long(0, &[]);
    assert_eq!(m.region(1 << 16, 0, 0, RAM, RAM_HVA), Ok(0));
    assert_eq!(m.vcpu(0, KVM_SMI, 0), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    m.exit(0, code::RSM);
    m.does(0, |_| ());
    m.run_out(0);
    let all = told_elsewhere(&m, |t| matches!(t, Trace::SmmTransition { .. }));
    let transition = |entering| Trace::SmmTransition { vcpu: 0, smbase: SMBASE, entering };
    assert_eq!(all, [true, false].map(transition));
}

#[test]
fn clocks_tell_what_they_become() {
    const PAGE: u64 = 0xb000;
    let m = Machine::new();
    m.long(0, &[]);
    m.wrmsr(0, 0x4b56_4d01, PAGE | 1);
    m.does(0, |_| ());
    m.run_out(0);
    let all = told_elsewhere(&m, |t| matches!(t, Trace::PvclockUpdate { .. }));
    let Some(Trace::PvclockUpdate { vcpu: 0, version, tsc_timestamp, system_time, mul, .. }) = all.last() else {
        panic!("{all:?}")
    };
    let words = (m.read_ram::<u32>(PAGE), m.read_ram::<u64>(PAGE + 8), m.read_ram::<u64>(PAGE + 16));
    assert_eq!((*version, *tsc_timestamp, *system_time), words, "what the guest reads");
    assert_eq!(*mul, m.read_ram::<u32>(PAGE + 24));
    let before = m.cpu(0).stats.exits.get();
    assert_eq!(m.set_msr(0, 0x10, 1 << 40), Ok(1));
    let all = told_elsewhere(&m, |t| matches!(t, Trace::WriteTscOffset { .. }));
    assert!(matches!(all[..], [Trace::WriteTscOffset { vcpu: 0, previous, next }] if previous != next), "{all:?}");
    assert_eq!(m.cpu(0).stats.exits.get(), before);
}
