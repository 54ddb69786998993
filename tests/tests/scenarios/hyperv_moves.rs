//! A guest of Hyper-V's that moves from one machine to another.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use tests::scenario::{DATA, Left, Machine};

const GUEST_OS_ID: u32 = 0x4000_0000;
const HYPERCALL: u32 = 0x4000_0001;
const TIME_REF_COUNT: u32 = 0x4000_0020;
const REFERENCE_TSC: u32 = 0x4000_0021;
const ASSIST_PAGE: u32 = 0x4000_0073;
const PV_EOI_EN: u32 = 0x4b56_4d04;
const CRASH_P0: u32 = 0x4000_0100;
const PAGE: u64 = 0xb000;

/// What QEMU saves of a guest of Hyper-V's, and one of KVM's that these have to do with: those of KVM_GET_MSR_INDEX_LIST and those
/// that come with them, in its order.
fn saved(m: &Machine) -> Vec<u32> {
    m.put_at(DATA, &256u32);
    assert_eq!(m.system(KVM_GET_MSR_INDEX_LIST, DATA), Ok(0));
    let listed = (0..m.get_at::<u32>(DATA).into()).map(|n: u64| m.get_at::<u32>(DATA + 4 + 4 * n));
    let mut all: Vec<u32> = listed.filter(|index| index >> 16 == 0x4000 || *index == PV_EOI_EN).collect();
    all.extend((0x4000_0080..=0x4000_0083).chain(0x4000_0090..=0x4000_009f).chain(0x4000_00b0..=0x4000_00b7));
    all
}

#[test]
fn it_moves_by_its_registers() {
    let a = Machine::hyperv();
    for (index, value) in [
        (GUEST_OS_ID, 0x8100 << 48),
        (HYPERCALL, 0xc001),
        (REFERENCE_TSC, PAGE | 1),
        (ASSIST_PAGE, 0xd001),
        (CRASH_P0 + 2, 7),
        (0x4000_0092, 0x2_0051),
        (0x4000_00b3, 50_000),
        (0x4000_00b2, 0x1613),
    ] {
        a.wrmsr(0, index, value);
    }
    a.wrmsr(0, 0x4000_0083, 0xe001);
    a.does(0, |_| ());
    assert!(matches!(a.run(0), Ok(Left::Hyperv { kind: KVM_EXIT_HYPERV_SYNIC, .. })));
    a.run_out(0);
    a.sim.advance(7_000_000);
    let seen = a.guest_msr(0, TIME_REF_COUNT);
    assert_eq!(a.vm(KVM_GET_CLOCK, DATA), Ok(0));
    let clock: kvm_clock_data = a.get_at(DATA);
    // The VMM takes its time, between and afterwards.
    a.sim.advance(300_000);
    let state: Vec<(u32, u64)> = saved(&a).into_iter().chain([0x10]).map(|index| (index, a.msr(0, index))).collect();
    let ram: [u64; 4 * 512] = a.read_ram(PAGE);

    let b = Machine::hyperv();
    b.sim.advance(987_654_321);
    for (n, word) in ram.iter().enumerate() {
        b.write_ram(PAGE + 8 * n as u64, &word.to_le_bytes());
    }
    for (index, value) in &state {
        assert_eq!(b.set_msr(0, *index, *value), Ok(1), "{index:x}");
        let moving = matches!(*index, 0x10 | TIME_REF_COUNT);
        assert!(moving || b.msr(0, *index) == *value, "{index:x}");
    }
    assert_eq!(b.vm_with(KVM_SET_CLOCK, &kvm_clock_data { clock: clock.clock, ..Default::default() }), Ok(0));
    b.does(0, |_| ());
    b.run_out(0);
    let now = b.guest_msr(0, TIME_REF_COUNT);
    assert!(now >= seen && now - seen < 10_000, "{seen}, then {now}");
    let by_page = ((u128::from(b.msr(0, 0x10)) * u128::from(b.read_ram::<u64>(PAGE + 8))) >> 64) as u64;
    assert_eq!(by_page.wrapping_add(b.read_ram(PAGE + 16)), now);
    // Its timer goes on, and its interrupts end by the assist page.
    b.interrupt_flag(0, true);
    b.hlt(0);
    b.does(0, |_| ());
    b.run_out(0);
    assert_eq!((b.taken(0), b.guest_msr(0, 0x4000_00b2) & 3), (vec![0x61], 3));
    b.end();
}

/// A VMM saves and restores them of any guest: it keeps its local APIC's timer, which shares the host's from then on, and ends
/// interrupts without an exit.
#[test]
fn registers_of_a_guest_that_is_none_of_hyper_vs() {
    let m = Machine::new();
    m.long(0, &[]);
    m.x2apic(0);
    // One-shot, vector 40, a nanosecond for each tick, a million of them.
    for (index, value) in [(0x832, 0x40), (0x83e, 0xb), (0x838, 1_000_000)] {
        m.wrmsr(0, index, value);
    }
    m.wrmsr(0, PV_EOI_EN, PAGE | 1);
    m.does(0, |_| ());
    m.run_out(0);
    let state: Vec<(u32, u64)> = saved(&m).into_iter().map(|index| (index, m.msr(0, index))).collect();
    for (index, value) in state {
        // Of the interrupt controller, which is not there, only zero is taken, as on stock.
        let written = i64::from(value == 0 || !(0x4000_0080..=0x4000_009f).contains(&index));
        assert_eq!(m.set_msr(0, index, value), Ok(written), "{index:x}");
    }
    assert_eq!(m.msr(0, PV_EOI_EN), PAGE | 1);
    m.interrupt_flag(0, true);
    m.hlt(0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.taken(0), [0x40]);
    m.end();
}
