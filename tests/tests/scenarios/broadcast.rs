//! Interrupts that a guest has come for all of its vCPUs: interrupts of the host are not off until the last one has it.

use crate::chips::{entry_of, line, out, redirect};
use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::host::{Host, Hrtimer, Request, VcpuThread};
use tests::scenario::{DATA, Machine, PLAIN, RAM, RAM_HVA};
use vm::{Context, Later};

/// More than any context allows.
const MANY: usize = 20;
const FEW: usize = 16;
const EVERYBODY: u64 = 0xff << 56;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;

/// A VM with all controllers, and vCPUs whose local APICs are on, in xAPIC mode.
fn machine(vcpus: usize) -> Machine {
    let m = Machine::bare(PLAIN).expect("a VM");
    assert_eq!(m.vm(KVM_CREATE_IRQCHIP, 0), Ok(0));
    assert_eq!(m.vm_with(KVM_CREATE_PIT2, &kvm_pit_config::default()), Ok(0));
    assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
    for n in 0..vcpus {
        m.add_vcpu(n as u64).expect("a vCPU");
        set_register(&m, n, 0xf0, 0x1ff);
    }
    m
}

fn set_register(m: &Machine, vcpu: usize, at: usize, value: u32) {
    let mut state: kvm_lapic_state = m.vcpu_get(vcpu, KVM_GET_LAPIC);
    for (to, from) in state.regs[at..].iter_mut().zip(value.to_le_bytes()) {
        *to = from as _;
    }
    assert_eq!(m.vcpu_with(vcpu, KVM_SET_LAPIC, &state), Ok(0));
}

/// How many vCPUs have the vector waiting; and none has it any more.
fn waiting(m: &Machine, vector: u8) -> usize {
    let at = 0x200 + 0x10 * usize::from(vector / 32);
    let (bit, all) = (1 << (vector % 32), m.engine().vcpus().count());
    let had = |n: &usize| {
        let state: kvm_lapic_state = m.vcpu_get(*n, KVM_GET_LAPIC);
        let irr = u32::from_le_bytes(std::array::from_fn(|byte| state.regs[at + byte] as u8));
        set_register(m, *n, at, irr & !bit);
        irr & bit != 0
    };
    (0..all).filter(had).count()
}

fn route_msi(m: &Machine, gsi: u32, address: u32, data: u32) {
    let mut route = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    route.u.msi = kvm_irq_routing_msi { address_lo: address, data, ..Default::default() };
    m.put_at(DATA, &[1u32, 0]);
    m.put_at(DATA + 8, &route);
    assert_eq!(m.vm(KVM_SET_GSI_ROUTING, DATA), Ok(0));
}

#[test]
fn a_message_for_many_waits_for_a_task() {
    let m = machine(MANY);
    route_msi(&m, 3, 0xfeef_f000, 0x41);
    for _ in 0..2 {
        assert_eq!(m.engine().pulse_gsi(Context::Any, 3), Err(Later));
        assert_eq!(m.engine().raise_until_eoi(Context::Any, 3), Err(Later));
    }
    assert_eq!(waiting(&m, 0x41), 0);
    assert_eq!(m.engine().pulse_gsi(Context::Task, 3), Ok(()));
    assert_eq!(waiting(&m, 0x41), MANY);
    assert_eq!(m.engine().raise_until_eoi(Context::Task, 3), Ok(()));
    assert_eq!(waiting(&m, 0x41), MANY);
    route_msi(&m, 3, 0xfee1_3000, 0x42);
    assert_eq!(m.engine().pulse_gsi(Context::Any, 3), Ok(()));
    assert_eq!(waiting(&m, 0x42), 1, "one is few");
    m.end();
}

#[test]
fn where_local_apics_are_of_several_kinds_any_message_may_be_for_many() {
    let m = machine(MANY);
    // The flat model with one bit each, and one of the cluster model.
    for n in 0..4 {
        set_register(&m, n, 0xd0, 1 << (24 + n));
    }
    route_msi(&m, 3, 0xfee0_6004, 0x41);
    assert_eq!(m.engine().pulse_gsi(Context::Any, 3), Ok(()));
    assert_eq!(waiting(&m, 0x41), 2);
    set_register(&m, 7, 0xd0, 0x1100_0000);
    set_register(&m, 7, 0xe0, 0x0fff_ffff);
    assert_eq!(m.engine().pulse_gsi(Context::Any, 3), Err(Later));
    assert_eq!((waiting(&m, 0x41), m.engine().pulse_gsi(Context::Task, 3), waiting(&m, 0x41)), (0, Ok(()), 2));
    m.end();
}

#[test]
fn a_vm_that_is_small_has_few() {
    let m = machine(FEW);
    route_msi(&m, 3, 0xfeef_f000, 0x41);
    assert_eq!(m.engine().pulse_gsi(Context::Any, 3), Ok(()));
    assert_eq!(waiting(&m, 0x41), FEW);
    m.add_vcpu(FEW as u64).unwrap();
    assert_eq!(m.engine().pulse_gsi(Context::Any, 3), Err(Later));
    m.end();
}

#[test]
fn a_pin_for_many_waits_for_a_task() {
    let m = machine(MANY);
    redirect(&m, 5, EVERYBODY | 0x45);
    redirect(&m, 6, EVERYBODY | LEVEL | 0x46);
    assert_eq!(m.engine().pulse_gsi(Context::Any, 5), Err(Later));
    assert_eq!(m.engine().raise_until_eoi(Context::Any, 6), Err(Later));
    assert_eq!((waiting(&m, 0x45), waiting(&m, 0x46), entry_of(&m, 6) & REMOTE_IRR), (0, 0, 0));
    assert_eq!(m.engine().pulse_gsi(Context::Task, 5), Ok(()));
    assert_eq!(m.engine().raise_until_eoi(Context::Task, 6), Ok(()));
    assert_eq!((waiting(&m, 0x45), waiting(&m, 0x46), entry_of(&m, 6) & REMOTE_IRR), (MANY, MANY, REMOTE_IRR));
    // Raised already, it is the same: the guest chooses the entry.
    assert_eq!(m.engine().raise_until_eoi(Context::Any, 6), Err(Later));
    redirect(&m, 5, 3 << 56 | 0x47);
    assert_eq!((m.engine().pulse_gsi(Context::Any, 5), waiting(&m, 0x47)), (Ok(()), 1));
    m.end();
}

/// Whether it is for one of many or for all: the lock, with which interrupts are off, is let go of on the way (the simulator looks).
#[test]
fn user_space_raises_a_line_for_many() {
    let m = machine(MANY);
    redirect(&m, 17, EVERYBODY | 0x45);
    assert_eq!((line(&m, 17, 1), waiting(&m, 0x45)), (MANY as i32, MANY));
    redirect(&m, 18, EVERYBODY | LEVEL | 0x46);
    assert_eq!((line(&m, 18, 1), waiting(&m, 0x46)), (MANY as i32, MANY));
    // Lowest priority is for one of them, unless the destination is physical.
    redirect(&m, 19, EVERYBODY | 0x947);
    (0..MANY).for_each(|n| set_register(&m, n, 0xd0, 0x0100_0000));
    assert_eq!((line(&m, 19, 1), waiting(&m, 0x47)), (1, 1));
    // The clock's, which is an 8259's as well.
    redirect(&m, 8, EVERYBODY | 0x48);
    assert_eq!((line(&m, 8, 1), waiting(&m, 0x48)), (MANY as i32 + 1, MANY));
    m.end();
}

/// Channel 0, rate generator, with this count.
fn start_pit(m: &Machine, count: u16) {
    m.long(0, &[]);
    let [low, high] = count.to_le_bytes();
    for (port, value) in [(0x43, 0x34), (0x40, low), (0x40, high)] {
        out(m, port, value);
    }
    m.run_out(0);
}

#[test]
fn the_pits_tick_for_many_waits_for_a_task_whatever_engine_it_is_in() {
    for reinject in [1, 0] {
        let m = machine(MANY);
        let control = kvm_reinject_control { pit_reinject: reinject, ..Default::default() };
        assert_eq!(m.vm_with(KVM_REINJECT_CONTROL, &control), Ok(0));
        redirect(&m, 0, EVERYBODY | 0x40);
        start_pit(&m, 11932);
        let expires = |ns: u64| {
            m.sim.advance(ns);
            let due = m.engine().hrtimers.due(m.sim.now_ns());
            assert_eq!(due, Some(Hrtimer::Pit));
            m.engine().hrtimer_expired(Hrtimer::Pit)
        };
        assert_eq!((expires(10_001_000), waiting(&m, 0x40)), (Err(Later), 0));
        // It is owed, by whoever has the VM, and once.
        m.hand_over().unwrap();
        assert_eq!((expires(10_001_000), waiting(&m, 0x40)), (Err(Later), 0));
        m.hand_over().unwrap();
        m.engine().hrtimer_late(Hrtimer::Pit);
        assert_eq!(waiting(&m, 0x40), MANY);
        m.engine().hrtimer_late(Hrtimer::Pit);
        assert_eq!(waiting(&m, 0x40), 0);
        // Nothing is left, and a tick for few is raised at once.
        redirect(&m, 0, 3 << 56 | 0x41);
        if reinject == 0 {
            assert_eq!((expires(10_001_000), waiting(&m, 0x41)), (Ok(()), 1));
        }
        m.end();
    }
}

#[test]
fn a_tick_that_is_an_nmi_looks_at_all() {
    for vcpus in [FEW, MANY] {
        let m = machine(vcpus);
        start_pit(&m, 11932);
        // LVT LINT0 of the last: delivery mode NMI.
        set_register(&m, vcpus - 1, 0x350, 0x400);
        m.sim.advance(10_001_000);
        let done = m.engine().hrtimer_expired(Hrtimer::Pit);
        assert_eq!(done, if vcpus > FEW { Err(Later) } else { Ok(()) });
        let nmis = || m.vcpu_get::<kvm_vcpu_events>(vcpus - 1, KVM_GET_VCPU_EVENTS).nmi.pending;
        assert_eq!(nmis(), u8::from(vcpus == FEW));
        m.engine().hrtimer_late(Hrtimer::Pit);
        assert_eq!(nmis(), 1);
        m.end();
    }
}

#[test]
fn interrupts_that_were_put_off_are_for_a_task() {
    let m = machine(1);
    assert_eq!(m.engine().hrtimer_expired(Hrtimer::Ioapic), Err(Later));
    m.engine().hrtimer_late(Hrtimer::Ioapic);
    m.end();
}

/// Nobody looks at all vCPUs for the one that takes the 8259s' interrupts, and it is found all the same.
#[test]
fn the_8259s_interrupt_finds_its_vcpu() {
    const EXTINT: u32 = 0x700;
    const MASKED: u32 = 0x1_0000;
    let m = machine(MANY);
    m.long(0, &[]);
    let told = || {
        // No interrupt waits in them any more.
        crate::chips::set_up_pics(&m, 1 << 4);
        let requests = |n: usize| m.cpu(n).thread.requests().take_all();
        (0..MANY).for_each(|n| assert!(!requests(n).has(Request::VmDead)));
        line(&m, 4, 0);
        line(&m, 4, 1);
        (0..MANY).filter(|n| requests(*n).has(Request::Event)).collect::<Vec<_>>()
    };
    for lint0 in [vec![], vec![7, 19], vec![19], vec![0, 3, 19], vec![3], vec![]] {
        (0..MANY).for_each(|n| set_register(&m, n, 0x350, if lint0.contains(&n) { EXTINT } else { MASKED }));
        let first: Vec<_> = lint0.into_iter().take(1).collect();
        assert_eq!(told(), first);
        m.hand_over().unwrap();
        assert_eq!(told(), first);
    }
    m.end();
}

#[test]
fn sources_of_renumbered_vcpus_are_looked_for_in_a_task() {
    const VP_INDEX: u32 = 0x4000_0002;
    const SINT2: u32 = 0x4000_0092;
    for vcpus in [FEW, MANY] {
        let m = Machine::without_vcpu(true);
        for n in 0..vcpus {
            m.add_hyperv_vcpu(n as u64, |_| ());
            assert_eq!(m.enable_vcpu(n, KVM_CAP_HYPERV_SYNIC2, 0), Ok(0));
            set_register(&m, n, 0xf0, 0x1ff);
            assert_eq!(m.set_msr(n, SINT2, 0x52), Ok(1));
        }
        let route = |vcpu| {
            let mut entry = kvm_irq_routing_entry { gsi: 3, type_: KVM_IRQ_ROUTING_HV_SINT, ..Default::default() };
            entry.u.hv_sint = kvm_irq_routing_hv_sint { vcpu, sint: 2 };
            m.put_at(DATA, &[1u32, 0]);
            m.put_at(DATA + 8, &entry);
            assert_eq!(m.vm(KVM_SET_GSI_ROUTING, DATA), Ok(0));
        };
        route(100);
        assert_eq!((m.engine().pulse_gsi(Context::Any, 3), waiting(&m, 0x52)), (Ok(()), 0), "it is known to be nobody");
        assert_eq!(m.set_msr(5, VP_INDEX, 100), Ok(1));
        let at_once = m.engine().pulse_gsi(Context::Any, 3);
        assert_eq!(at_once, if vcpus > FEW { Err(Later) } else { Ok(()) });
        assert_eq!(m.engine().pulse_gsi(Context::Task, 3), Ok(()));
        assert_eq!(waiting(&m, 0x52), 1);
        route(3);
        assert_eq!((m.engine().pulse_gsi(Context::Any, 3), waiting(&m, 0x52)), (Ok(()), 1));
        m.end();
    }
}
