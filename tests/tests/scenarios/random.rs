//! Anything in any order: ioctls with random arguments, guests that do random things. Nothing panics, no invariant
//! between the hypervisor's view and the processor breaks, nothing is left when the VM ends.

use abi::uapi::ioctl::*;
use proptest::prelude::*;
use sim::Page;
use sim::arch::{EventInj, Exit, exit::code};
use tests::scenario::anything::{Anything, Guest, Irqchip, Kind, Op, STATES, VM_STATES};
use tests::scenario::{CODE, DATA, RAM};

/// Numbers that are interesting more often than others.
fn number() -> impl Strategy<Value = u64> {
    let edges = [0, 1, 2, 0xfff, 0x1000, DATA, CODE, 0xfee0_0000, 0xfee0_00b0, 0xd000_0000, u64::MAX, 1 << 63];
    prop_oneof![prop::sample::select(edges.to_vec()), 0..256u64, any::<u64>(), any::<u32>().prop_map(u64::from)]
}

fn cmd() -> impl Strategy<Value = u32> {
    let known: Vec<u32> = ALL.iter().map(|(_, n)| *n).filter(|n| *n != KVM_RUN).collect();
    prop_oneof![9 => prop::sample::select(known), 1 => any::<u32>()]
}

fn msr() -> impl Strategy<Value = u32> {
    let known = [0x10, 0x1b, 0x9e, 0x277, 0x6e0, 0x80b, 0x80f, 0x830, 0x832, 0x838, 0x83e, 0xc000_0080, 0xc000_0102];
    let hyperv = || 0x4000_0000..0x4000_0120u32;
    prop_oneof![4 => prop::sample::select(known.to_vec()), 1 => any::<u32>(), 1 => 0x800..0x840u32, 1 => 0x4b56_4d00..0x4b56_4d08u32, 2 => hyperv()]
}

/// What MSRs of Hyper-V's hold: pages of memory, of nobody, of the local APIC; timers; sources.
fn hyperv_value() -> impl Strategy<Value = u64> {
    let pages = [0xb001, 0xd001, 0xd000_0001, 0xfee0_0001, 0x3f_f001, 0xffff_ffff_ffff_f001];
    let timers = [0x1003, 0x5_0003, 0x5_0009, 0x1611, 0x3611_0003, 1, 1 << 63];
    let sources = [0x41, 0x2_0041, 0x1_0000, 0x2_0042, 0x10];
    prop_oneof![prop::sample::select([&pages[..], &timers, &sources].concat()), number()]
}

fn hypercall() -> impl Strategy<Value = Op> {
    let codes = prop::sample::select(vec![2, 3, 8, 0xb, 0x13, 0x14, 0x15, 0x5c, 0x5d, 0x6b, 0x8001]);
    let code = prop_oneof![8 => codes, 1 => 0..0x1_0000u64];
    let shape = prop_oneof![4 => Just((0, 0)), 2 => (0..66u64, 0..18u64), 1 => (0..0x400u64, 0..0x1000u64)];
    let input = || prop_oneof![2 => (0..8u64).prop_map(|n| 0xb000 + 8 * n), 1 => number(), 1 => 0x30..0x60u64];
    (code, any::<bool>(), shape, input(), input()).prop_map(|(code, fast, (var, reps), input, output)| {
        let value = code | u64::from(fast) << 16 | var << 17 | reps << 32;
        Op::Hypercall { value, input, output }
    })
}

fn guest() -> impl Strategy<Value = Guest> {
    let codes = prop_oneof![4 => 0..0x100u64, 2 => Just(code::NPF), 2 => Just(code::IOIO), 2 => Just(code::MSR), 1 => Just(code::HLT), 1 => Just(code::RSM), 1 => any::<u64>()];
    let rip = prop_oneof![3 => CODE..CODE + 16, 1 => number()];
    (
        rip,
        any::<u64>(),
        [number(), number(), number()],
        0..16u8,
        any::<bool>(),
        codes,
        [number(), number()],
        any::<bool>(),
    )
        .prop_map(|(rip, flags, gprs, tpr, shadow, code, info, cut_short)| Guest {
            rip,
            flags,
            gprs,
            tpr,
            shadow,
            code,
            info,
            cut_short,
        })
}

fn op() -> impl Strategy<Value = Op> {
    let page = || prop_oneof![0..16u64, (RAM >> 12) - 4..(RAM >> 12) + 8, any::<u64>()];
    let how = prop::sample::select(vec![
        Page::Absent,
        Page::ReadOnly,
        Page::Writable,
        Page::Poisoned,
        Page::Late,
        Page::Missing,
    ]);
    prop_oneof![
        2 => (cmd(), number()).prop_map(|(cmd, arg)| Op::Vm { cmd, arg }),
        2 => (cmd(), number()).prop_map(|(cmd, arg)| Op::Vcpu { cmd, arg }),
        2 => (0..8u64, any::<[u64; 8]>()).prop_map(|(n, words)| Op::Argument { at: DATA + 64 * n, words }),
        4 => (0..STATES.len(), any::<[(u16, u8); 3]>()).prop_map(|(which, changes)| Op::State { which, changes }),
        2 => (0..VM_STATES.len(), any::<[(u16, u8); 3]>()).prop_map(|(which, changes)| Op::VmState { which, changes }),
        1 => (0..3usize).prop_map(Op::Select),
        1 => Just(Op::HandOver),
        1 => any::<[(u32, u8); 3]>().prop_map(Op::Become),
        2 => (prop_oneof![3 => 0..3u32, 1 => 0x1_0000..0x1_0002u32], 0..4u32, page(), 0..600u64, 0..16u64)
            .prop_map(|(slot, flags, page, pages, hva)| Op::Region { slot, flags, page, pages, hva }),
        2 => (0..1024u64, 1..8u64, how.clone()).prop_map(|(page, pages, how)| Op::Host { page, pages, how }),
        1 => (0..1024u64, 1..8u64, how).prop_map(|(page, pages, how)| Op::DuringFault { page, pages, how }),
        2 => (prop_oneof![Just(0xfee0_0000u32), any::<u32>()], any::<u32>()).prop_map(|(low, data)| Op::Msi { low, data }),
        2 => (msr(), number()).prop_map(|(index, value)| Op::Msr { index, value }),
        2 => (any::<bool>(), msr(), hyperv_value()).prop_map(|(write, index, value)| Op::GuestMsr { write, index, value }),
        2 => hypercall(),
        1 => (0..240u32, 0..32u64).prop_map(|(cap, arg)| Op::Cap { cap, arg }),
        1 => (0..10_000_000u64).prop_map(Op::Advance),
        1 => (0..10_000_000_000u64).prop_map(Op::Suspend),
        2 => (0..3u8, any::<[u8; 16]>()).prop_map(|(mode, bytes)| Op::Code { mode, bytes }),
        8 => guest().prop_map(Op::Guest),
        3 => (prop_oneof![0..2 * RAM, any::<u64>()], any::<bool>())
            .prop_map(|(gpa, write)| Op::Touch { gpa: gpa & 0xf_ffff_ffff_fff8 & ((1 << 48) - 1), write }),
        6 => (any::<[u8; 2]>(), any::<[u64; 4]>()).prop_map(|(head, answer)| Op::Run { head, answer }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 2000, ..Default::default() })]

    #[test]
    fn anything_in_any_order(
        newer: bool,
        irqchip in prop::sample::select(vec![Irqchip::None, Irqchip::Split, Irqchip::Full]),
        hyperv: bool,
        more: bool,
        two: bool,
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut all = Anything::new(Kind { newer, irqchip, hyperv, more, two });
        ops.into_iter().for_each(|op| all.perform(op));
        all.end();
    }

    /// Any three words are an exit, and any exit has a handler that decides.
    #[test]
    fn any_exit_is_decoded(code: u64, info1: u64, info2: u64, assists: bool) {
        let info = sim::arch::ExitInfo { code, info1, info2, int_info: EventInj::NONE };
        prop_assert!(Exit::decode(&info, assists) != Exit::None);
    }
}
