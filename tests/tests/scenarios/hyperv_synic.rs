//! The synthetic interrupt controller and its timers.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use tests::scenario::{DATA, Left, MMIO, Machine};

const TIME_REF_COUNT: u32 = 0x4000_0020;
const SCONTROL: u32 = 0x4000_0080;
const SVERSION: u32 = 0x4000_0081;
const SIEFP: u32 = 0x4000_0082;
const SIMP: u32 = 0x4000_0083;
const EOM: u32 = 0x4000_0084;
const SINT0: u32 = 0x4000_0090;
const STIMER0: u32 = 0x4000_00b0;
const AUTO_EOI: u64 = 1 << 17;
const MASKED: u64 = 1 << 16;
const PAGE: u64 = 0xb000;

const ENABLE: u64 = 1;
const PERIODIC: u64 = 2;
const AUTO_ENABLE: u64 = 8;
const DIRECT: u64 = 1 << 12;

/// The guest's WRMSR that user space is told of.
fn told(m: &Machine, index: u32, value: u64) -> [u64; 6] {
    m.wrmsr(0, index, value);
    m.does(0, |_| ());
    match m.run(0) {
        Ok(Left::Hyperv { kind: KVM_EXIT_HYPERV_SYNIC, words }) => {
            m.run_out(0);
            words
        }
        other => panic!("{other:?}"),
    }
}

fn writes(m: &Machine, index: u32, value: u64) {
    m.wrmsr(0, index, value);
    m.run_out(0);
}

fn route(m: &Machine, gsi: u32, vcpu: u32, sint: u32) {
    routes(m, &[(gsi, vcpu, sint)]);
}

/// GSIs, each with the source of the vCPU that it leads to.
fn routes(m: &Machine, routes: &[(u32, u32, u32)]) {
    m.put_at(DATA, &[routes.len() as u32, 0]);
    for (n, &(gsi, vcpu, sint)) in (0..).zip(routes) {
        let entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_HV_SINT,
            u: kvm_irq_routing_entry__bindgen_ty_1 { hv_sint: kvm_irq_routing_hv_sint { vcpu, sint } },
            ..Default::default()
        };
        m.put_at(DATA + 8 + n * size_of::<kvm_irq_routing_entry>() as u64, &entry);
    }
    assert_eq!(m.vm(KVM_SET_GSI_ROUTING, DATA), Ok(0));
}

fn raise(m: &Machine, gsi: u32) -> i32 {
    let mut line = kvm_irq_level::default();
    (line.__bindgen_anon_1.irq, line.level) = (gsi, 1);
    m.put_at(DATA, &line);
    assert_eq!(m.vm(KVM_IRQ_LINE_STATUS, DATA), Ok(0));
    m.get_at(DATA)
}

#[test]
fn registers() {
    let m = Machine::hyperv();
    assert_eq!((m.guest_msr(0, SCONTROL), m.guest_msr(0, SVERSION), m.guest_msr(0, EOM)), (1, 1, 0));
    assert!((0..16).all(|n| m.guest_msr(0, SINT0 + n) == MASKED));
    m.write_ram(PAGE, &[0xff; 8]);
    assert_eq!(told(&m, SIEFP, PAGE | 1)[..4], [SIEFP.into(), 1, PAGE | 1, 0]);
    assert_eq!(m.read_ram::<u64>(PAGE), !0, "_SYNIC2 leaves it to user space");
    assert_eq!(told(&m, SIMP, 0x5000)[..4], [SIMP.into(), 1, PAGE | 1, 0x5000]);
    assert_eq!(told(&m, SCONTROL, 0)[..4], [SCONTROL.into(), 0, PAGE | 1, 0x5000]);
    assert!(m.write_faults(0, SVERSION, 1));
    assert!(m.write_faults(0, SINT0, 15) && !m.write_faults(0, SINT0, MASKED | 15));
    // User space may set what it likes, and is told of nothing.
    for (index, value) in [(SVERSION, 2), (SIMP, !0), (SINT0, 3), (SCONTROL, 7)] {
        assert_eq!((m.set_msr(0, index, value), m.msr(0, index)), (Ok(1), value));
    }
    m.run_out(0);
    m.end();
}

#[test]
fn pages_begin_empty_with_the_first_version() {
    let m = Machine::hyperv();
    assert_eq!(m.enable_vcpu(0, KVM_CAP_HYPERV_SYNIC, 0), Ok(0));
    m.write_ram(PAGE, &[0xff; 4096]);
    m.write_ram(PAGE + 4096, &[0xee; 8]);
    told(&m, SIMP, PAGE | 1);
    assert!(m.read_ram::<[u64; 512]>(PAGE).iter().all(|w| *w == 0));
    assert_eq!(m.read_ram::<u64>(PAGE + 4096), 0xeeee_eeee_eeee_eeee);
    // Not where there is no memory; over one another; over the local APIC's page.
    assert!(m.write_faults(0, SIEFP, MMIO | 1) && m.write_faults(0, SIEFP, 0xfee0_0001));
    assert_eq!(m.guest_msr(0, SIEFP), 0);
    told(&m, SIEFP, PAGE | 1);
    told(&m, SIMP, 0xfee0_0000);
}

#[test]
fn nothing_without_the_capability() {
    let m = Machine::without_vcpu(true);
    m.add_hyperv_vcpu(0, |_| ());
    m.long(0, &[]);
    assert!(m.read_faults(0, SCONTROL) && m.write_faults(0, SINT0, 0x51) && m.write_faults(0, STIMER0, 0));
    assert_eq!((m.set_msr(0, SCONTROL, 0), m.set_msr(0, SCONTROL, 1)), (Ok(1), Ok(0)));
    assert_eq!((m.set_msr(0, STIMER0, 0), m.set_msr(0, STIMER0 + 1, 1)), (Ok(1), Ok(0)));
    route(&m, 30, 0, 2);
    assert_eq!(raise(&m, 30), -1);
}

#[test]
fn a_gsi_raises_a_source_and_hears_of_its_end() {
    let m = Machine::hyperv();
    route(&m, 30, 0, 2);
    assert_eq!(raise(&m, 30), -1, "masked");
    writes(&m, SINT0 + 2, 0x51);
    m.engine().add_resampler(30, sim::host::Host::eventfd(&m.sim, 3).expect("an eventfd")).expect("room");
    assert_eq!(raise(&m, 30), 1);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((m.taken(0), m.sim.event_count(3)), (vec![0x51], 0));
    // The end of it leaves the guest, though nobody else would wait for it.
    m.wrmsr(0, 0x80b, 0);
    m.run_out(0);
    assert_eq!(m.sim.event_count(3), 1);
    // So does the end of a message.
    writes(&m, EOM, 0);
    assert_eq!(m.sim.event_count(3), 2);
    // Sources and vCPUs that do not exist.
    for (vcpu, sint) in [(0, 16), (0, !0), (1, 2), (!0, 2)] {
        route(&m, 31, vcpu, sint);
        assert_eq!(raise(&m, 31), -1, "{vcpu} {sint}");
    }
    m.end();
}

/// In whatever order user space names them.
#[test]
fn of_several_gsis_the_last_hears_of_the_end() {
    for order in [[30, 24], [24, 30]] {
        let m = Machine::hyperv();
        routes(&m, &order.map(|gsi| (gsi, 0, 2)));
        writes(&m, SINT0 + 2, 0x51);
        for (gsi, event) in [(24, 3), (30, 4)] {
            m.engine().add_resampler(gsi, sim::host::Host::eventfd(&m.sim, event).expect("an eventfd")).expect("room");
        }
        writes(&m, EOM, 0);
        assert_eq!((m.sim.event_count(3), m.sim.event_count(4)), (0, 1));
        m.end();
    }
}

#[test]
fn the_end_of_a_source_is_no_business_of_user_spaces_ioapic() {
    let m = Machine::hyperv();
    writes(&m, SINT0 + 2, 0x51);
    route(&m, 30, 0, 2);
    assert_eq!(raise(&m, 30), 1);
    m.does(0, |_| ());
    m.wrmsr(0, 0x80b, 0);
    m.run_out(0);
    assert_eq!(m.taken(0), [0x51]);
}

#[test]
fn interrupts_without_end_do_not_keep_others_out() {
    let m = Machine::hyperv();
    writes(&m, SINT0 + 2, 0x51 | AUTO_EOI);
    writes(&m, SINT0 + 3, 0x52 | AUTO_EOI);
    route(&m, 30, 0, 2);
    assert_eq!(raise(&m, 30), 1);
    route(&m, 30, 0, 3);
    assert_eq!(raise(&m, 30), 1);
    let msi = kvm_msi { address_lo: 0xfee0_0000, data: 0x41, ..Default::default() };
    assert_eq!(m.vm_with(KVM_SIGNAL_MSI, &msi), Ok(1));
    // Each handler allows interrupts again, and ends nothing; the last has none below it that would wait.
    for _ in 0..4 {
        m.interrupt_flag(0, true);
        m.exit(0, sim::arch::exit::code::INTR);
    }
    m.run_out(0);
    let injected: Vec<u8> = m.injected(0).iter().map(|e| e.vector()).collect();
    assert_eq!((injected, m.taken(0)), (vec![0x52, 0x51], vec![0x41]));
    assert_eq!((m.guest_msr(0, 0x812), m.guest_msr(0, 0x822)), (1 << 1, 0), "only the other one is in service");
    // While the guest takes none, it waits for the window.
    m.interrupt_flag(0, false);
    m.run_out(0);
    assert_eq!(raise(&m, 30), 1);
    m.does(0, |_| ());
    m.interrupt_flag(0, true);
    m.does(0, |_| ());
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).len(), 3);
    m.end();
}

#[test]
fn a_direct_timer() {
    let m = Machine::hyperv();
    let now = m.guest_msr(0, TIME_REF_COUNT);
    writes(&m, STIMER0 + 1, now + 1_000);
    writes(&m, STIMER0, ENABLE | DIRECT | 0x61 << 4);
    m.does(0, |c| assert!(c.taken.is_empty()));
    m.hlt(0);
    m.does(0, |c| assert_eq!(c.taken, [0x61]));
    m.run_out(0);
    assert!(m.guest_msr(0, TIME_REF_COUNT) >= now + 1_000);
    assert_eq!(m.guest_msr(0, STIMER0) & ENABLE, 0, "once");
    // In the past: at once.
    m.wrmsr(0, 0x80b, 0);
    writes(&m, STIMER0, ENABLE | DIRECT | 0x61 << 4);
    m.interrupt_flag(0, true);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.taken(0), [0x61, 0x61]);
    m.end();
}

#[test]
fn timers_and_the_local_apics_share_a_timer_of_the_hosts() {
    let m = Machine::hyperv();
    writes(&m, 0x832, 0x2_0040); // periodic
    writes(&m, 0x83e, 0xb);
    let now = m.guest_msr(0, TIME_REF_COUNT);
    writes(&m, STIMER0 + 1, now + 15_000); // 1.5 ms
    writes(&m, STIMER0, ENABLE | DIRECT | 0x61 << 4);
    writes(&m, STIMER0 + 3, 100_000); // 10 ms
    writes(&m, STIMER0 + 2, ENABLE | PERIODIC | DIRECT | 0x62 << 4);
    writes(&m, 0x838, 1_000_000); // 1 ms
    for _ in 0..14 {
        m.hlt(0);
        m.does(0, |_| ());
        m.wrmsr(0, 0x80b, 0);
    }
    m.run_out(0);
    let taken = m.taken(0);
    let count = |v| taken.iter().filter(|t| **t == v).count();
    assert_eq!((count(0x61), taken[..3].to_vec()), (1, vec![0x40, 0x61, 0x40]), "{taken:x?}");
    assert_eq!(count(0x62), 1, "{taken:x?}");
    // The local APIC's goes away; the other one stays.
    writes(&m, 0x838, 0);
    let before = m.taken(0).len();
    for _ in 0..2 {
        m.hlt(0);
        m.does(0, |_| ());
        m.wrmsr(0, 0x80b, 0);
    }
    m.run_out(0);
    assert_eq!(m.taken(0)[before..], [0x62, 0x62]);
    m.end();
}

#[test]
fn a_timer_sends_messages_when_there_is_room() {
    let m = Machine::hyperv();
    told(&m, SIMP, PAGE | 1);
    writes(&m, SINT0 + 5, 0x51);
    let slot = PAGE + 5 * 256;
    let now = m.guest_msr(0, TIME_REF_COUNT);
    writes(&m, STIMER0 + 2, AUTO_ENABLE | 5 << 16);
    writes(&m, STIMER0 + 3, now + 100);
    m.hlt(0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.taken(0), [0x51]);
    let [kind, who, timer, expired, delivered]: [u64; 5] = m.read_ram(slot);
    assert_eq!((kind, who, timer, expired), (24 << 32 | 0x8000_0010, 0, 1, now + 100));
    assert!(delivered >= expired);
    // The slot is still occupied: the next one waits, and says so.
    m.wrmsr(0, 0x80b, 0);
    writes(&m, STIMER0 + 3, now + 200);
    m.sim.advance(1_000_000);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((m.read_ram::<u64>(slot), m.taken(0).len()), (1 << 40 | 24 << 32 | 0x8000_0010, 1));
    m.write_ram(slot, &[0; 4]);
    m.wrmsr(0, EOM, 0);
    m.interrupt_flag(0, true);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((m.read_ram::<u64>(slot), m.taken(0).len()), (24 << 32 | 0x8000_0010, 2));
    assert_eq!(m.read_ram::<u64>(slot + 24), now + 200);
    m.end();
}

#[test]
fn ticks_that_nobody_takes_are_lost() {
    let m = Machine::hyperv();
    told(&m, SIMP, PAGE | 1);
    writes(&m, SINT0 + 5, 0x51);
    writes(&m, STIMER0 + 1, 10_000);
    writes(&m, STIMER0, ENABLE | PERIODIC | 5 << 16);
    for _ in 0..5 {
        m.sim.advance(1_000_000);
        m.exit(0, sim::arch::exit::code::INTR);
    }
    m.run_out(0);
    let slot = PAGE + 5 * 256;
    let first: u64 = m.read_ram(slot + 24);
    assert_eq!((m.taken(0).len(), m.read_ram::<u8>(slot + 5)), (1, 0));
    m.write_ram(slot, &[0; 4]);
    m.wrmsr(0, 0x80b, 0);
    m.interrupt_flag(0, true);
    m.hlt(0);
    m.does(0, |_| ());
    m.run_out(0);
    let next: u64 = m.read_ram(slot + 24);
    assert!(next > first + 40_000 && (next - first) % 10_000 == 0, "{first} {next}");
    assert_eq!(m.taken(0).len(), 2);
    m.end();
}

#[test]
fn timers_of_one_tick_and_messages_for_nobody() {
    let m = Machine::hyperv();
    // No page, then one that is nowhere, a source that is masked, no local APIC: nothing happens, and it ends.
    for page in [0, MMIO | 1, PAGE | 1] {
        told(&m, SIMP, page);
        for n in 0..4 {
            writes(&m, STIMER0 + 2 * n + 1, 1);
            writes(&m, STIMER0 + 2 * n, ENABLE | PERIODIC | u64::from(n + 1) << 16);
        }
        for _ in 0..3 {
            m.sim.advance(1_000);
            m.exit(0, sim::arch::exit::code::INTR);
        }
        m.run_out(0);
    }
    assert_eq!(m.taken(0), []);
    for count in [u64::MAX, 1 << 63] {
        writes(&m, STIMER0 + 1, count);
        writes(&m, STIMER0, ENABLE | PERIODIC | DIRECT | 0x61 << 4);
        writes(&m, STIMER0 + 1, 0);
        assert_eq!(m.guest_msr(0, STIMER0) & ENABLE, 0);
    }
    writes(&m, STIMER0 + 1, 1);
    writes(&m, STIMER0, ENABLE | PERIODIC | DIRECT | 3 << 4);
    m.sim.advance(1_000);
    m.exit(0, sim::arch::exit::code::INTR);
    m.run_out(0);
    assert_eq!(m.taken(0), [], "vector 3 is no interrupt's");
    m.end();
}

#[test]
fn timers_are_restored() {
    let m = Machine::hyperv();
    let now = m.msr(0, TIME_REF_COUNT);
    assert_eq!(m.set_msr(0, STIMER0, ENABLE | DIRECT | 0x61 << 4), Ok(1));
    assert_eq!(m.set_msr(0, STIMER0 + 1, now + 500), Ok(1));
    m.hlt(0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.taken(0), [0x61]);
    m.end();
}
