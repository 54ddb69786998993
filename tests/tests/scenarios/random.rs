//! Anything in any order: ioctls with random arguments, guests that do random things. Nothing panics, no invariant
//! between the hypervisor's view and the processor breaks, nothing is left when the VM ends.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use proptest::prelude::*;
use sim::Page;
use sim::arch::vmcb::int_ctl;
use sim::arch::{EventInj, Exit, exit::code};
use sim::host::{Cpu, CpuFeatures};
use tests::scenario::{CODE, DATA, Left, Machine, PLAIN, RAM, RAM_HVA};
use vm::fast::Armed;

/// What user space or the machine around it does.
#[derive(Clone, Debug)]
enum Op {
    Vm {
        cmd: u32,
        arg: u64,
    },
    Vcpu {
        cmd: u32,
        arg: u64,
    },
    /// Fills the memory that arguments point to.
    Argument {
        at: u64,
        words: [u64; 8],
    },
    /// Takes a part of the vCPU's state, changes some bytes, and puts it back.
    State {
        which: usize,
        changes: [(u16, u8); 3],
    },
    Region {
        slot: u32,
        flags: u32,
        page: u64,
        pages: u64,
        hva: u64,
    },
    Host {
        page: u64,
        pages: u64,
        how: Page,
    },
    Msi {
        low: u32,
        data: u32,
    },
    Msr {
        index: u32,
        value: u64,
    },
    Cap {
        cap: u32,
        arg: u64,
    },
    Advance(u64),
    /// Bytes of code, and in which mode they are run.
    Code {
        mode: u8,
        bytes: [u8; 16],
    },
    Guest(Guest),
    GuestMsr {
        write: bool,
        index: u32,
        value: u64,
    },
    /// VMMCALL with these in RCX, RDX and R8.
    Hypercall {
        value: u64,
        input: u64,
        output: u64,
    },
    Touch {
        gpa: u64,
        write: bool,
    },
    /// KVM_RUN with these first bytes of `kvm_run` and this answer to the last exit.
    Run {
        head: [u8; 2],
        answer: [u64; 4],
    },
}

/// A change of state and an exit.
#[derive(Clone, Copy, Debug)]
struct Guest {
    rip: u64,
    flags: u64,
    gprs: [u64; 3],
    tpr: u8,
    shadow: bool,
    code: u64,
    info: [u64; 2],
    cut_short: bool,
}

/// Pairs of numbers that read and write the same struct.
const STATES: [(u32, u32); 10] = [
    (KVM_GET_REGS, KVM_SET_REGS),
    (KVM_GET_SREGS, KVM_SET_SREGS),
    (KVM_GET_SREGS2, KVM_SET_SREGS2),
    (KVM_GET_FPU, KVM_SET_FPU),
    (KVM_GET_XSAVE, KVM_SET_XSAVE),
    (KVM_GET_XCRS, KVM_SET_XCRS),
    (KVM_GET_LAPIC, KVM_SET_LAPIC),
    (KVM_GET_MP_STATE, KVM_SET_MP_STATE),
    (KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS),
    (KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS),
];

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
    let how = prop::sample::select(vec![Page::Absent, Page::ReadOnly, Page::Writable, Page::Poisoned]);
    prop_oneof![
        2 => (cmd(), number()).prop_map(|(cmd, arg)| Op::Vm { cmd, arg }),
        2 => (cmd(), number()).prop_map(|(cmd, arg)| Op::Vcpu { cmd, arg }),
        2 => (0..8u64, any::<[u64; 8]>()).prop_map(|(n, words)| Op::Argument { at: DATA + 64 * n, words }),
        4 => (0..STATES.len(), any::<[(u16, u8); 3]>()).prop_map(|(which, changes)| Op::State { which, changes }),
        2 => (prop_oneof![3 => 0..3u32, 1 => 0x1_0000..0x1_0002u32], 0..4u32, page(), 0..600u64, 0..16u64)
            .prop_map(|(slot, flags, page, pages, hva)| Op::Region { slot, flags, page, pages, hva }),
        2 => (0..1024u64, 1..8u64, how).prop_map(|(page, pages, how)| Op::Host { page, pages, how }),
        2 => (prop_oneof![Just(0xfee0_0000u32), any::<u32>()], any::<u32>()).prop_map(|(low, data)| Op::Msi { low, data }),
        2 => (msr(), number()).prop_map(|(index, value)| Op::Msr { index, value }),
        2 => (any::<bool>(), msr(), hyperv_value()).prop_map(|(write, index, value)| Op::GuestMsr { write, index, value }),
        2 => hypercall(),
        1 => (0..240u32, 0..32u64).prop_map(|(cap, arg)| Op::Cap { cap, arg }),
        1 => (0..10_000_000u64).prop_map(Op::Advance),
        2 => (0..3u8, any::<[u8; 16]>()).prop_map(|(mode, bytes)| Op::Code { mode, bytes }),
        8 => guest().prop_map(Op::Guest),
        3 => (prop_oneof![0..2 * RAM, any::<u64>()], any::<bool>())
            .prop_map(|(gpa, write)| Op::Touch { gpa: gpa & 0xf_ffff_ffff_fff8 & ((1 << 48) - 1), write }),
        6 => (any::<[u8; 2]>(), any::<[u64; 4]>()).prop_map(|(head, answer)| Op::Run { head, answer }),
    ]
}

/// Registers that a guest can have at any exit.
fn play(m: &Machine, g: Guest) {
    m.sim.step(0, move |c| {
        c.guest().rip = g.rip;
        c.guest().rflags = g.flags & 0x3f_7fd5 & !(1 << 17) | 2;
        for (n, v) in [0, 1, 3].into_iter().zip(g.gprs) {
            c.set_gpr(n, v);
        }
        let v = c.vmcb();
        v.int_ctl = v.int_ctl & !int_ctl::V_TPR | u32::from(g.tpr);
        v.int_state = g.shadow.into();
        if g.cut_short {
            c.cut_delivery_short();
        }
        (g.code, g.info[0], g.info[1])
    });
}

fn perform(m: &Machine, op: Op) {
    // What an ioctl answers is not the point here.
    let _ = match op {
        Op::Vm { cmd: KVM_IRQFD | KVM_CREATE_VCPU, .. } => Ok(0),
        Op::Vm { cmd, arg } => m.vm(cmd, arg),
        Op::Vcpu { cmd, arg } => m.vcpu(0, cmd, arg),
        Op::Argument { at, words } => {
            m.put_at(at, &words);
            Ok(0)
        }
        Op::State { which, changes } => {
            let (get, set) = STATES[which];
            let size = u64::from(get >> 16 & 0x3fff);
            m.vcpu(0, get, DATA).and_then(|_| {
                for (at, byte) in changes {
                    m.put_at(DATA + u64::from(at) % size, &byte);
                }
                m.vcpu(0, set, DATA)
            })
        }
        Op::Region { slot, flags, page, pages, hva } => {
            m.region(slot, flags, page << 12, pages << 12, RAM_HVA + (hva << 16))
        }
        Op::Host { page, pages, how } => {
            m.host_changes(page << 12, pages, how);
            Ok(0)
        }
        Op::Msi { low, data } => m.vm_with(KVM_SIGNAL_MSI, &kvm_msi { address_lo: low, data, ..Default::default() }),
        Op::Msr { index, value } => m.set_msr(0, index, value),
        Op::Cap { cap, arg } => m.enable(cap, arg),
        Op::Advance(ns) => {
            m.sim.advance(ns);
            Ok(0)
        }
        Op::Code { mode, bytes } => {
            // The VMM's memory may not be there any more; then the vCPU stays as it is.
            m.host_changes(0, 16, Page::Writable);
            let start = [Machine::try_real, Machine::try_protected, Machine::try_long];
            start[usize::from(mode)](m, 0, &bytes)
        }
        Op::Guest(g) => {
            play(m, g);
            Ok(0)
        }
        Op::GuestMsr { write, index, value } => {
            if write {
                m.wrmsr(0, index, value);
            } else {
                m.rdmsr(0, index);
            }
            Ok(0)
        }
        Op::Hypercall { value, input, output } => {
            m.host_changes(CODE, 1, Page::Writable);
            m.hypercall(0, value, input, output);
            Ok(0)
        }
        Op::Touch { gpa, write } => {
            m.tries(0, gpa, write);
            Ok(0)
        }
        Op::Run { head, answer } => {
            m.page(0).set_u8(0, head[0] & 1);
            m.page(0).set_u8(1, u8::from(head[1] > 200));
            for (n, word) in answer.into_iter().enumerate() {
                m.page(0).set_u64(32 + 8 * n, word);
            }
            let left = m.run(0);
            match left {
                Ok(Left::Other(KVM_EXIT_DIRTY_RING_FULL | KVM_EXIT_TPR_ACCESS)) => {}
                Ok(Left::Other(reason)) => panic!("exit reason {reason}"),
                _ => {}
            }
            Ok(0)
        }
    };
}

/// What holds between ioctls.
fn check(m: &Machine) {
    m.inside(0, |c| {
        let core = &*c.core;
        let control = core.cpu.control();
        let armed = core.fast.armed;
        assert!(!core.fpu.loaded, "the guest's FPU stays loaded");
        assert_eq!(control.event_inj, EventInj::NONE, "an event that nobody will look at again");
        assert_eq!(u32::from(core.vtpr), control.int_ctl & 15, "V_TPR");
        assert_eq!(armed.is_some(), control.int_ctl & int_ctl::V_IRQ != 0, "{armed:?} and V_IRQ");
        assert_eq!(armed == Some(Armed::Window), control.intercept_3 & 1 << 4 != 0, "{armed:?} and the intercept");
        assert!(core.inject.nmi_pending <= 2);
        assert_eq!(core.cpu.nested_root(), c.vm.mmu.root(core.smm.space()).pa(), "the other address space's tables");
        assert!(core.cpu.save().efer & 1 << 12 != 0, "EFER.SVME");
        assert!(core.cpu.save().cr0 & (1 << 29 | 1 << 30) == 0, "caches are the host's");
    });
    assert_eq!(m.sim.page_references(), 0, "a page is held");
    let stale = m.sim.0.warnings.lock().iter().any(|(what, _)| what.contains("another page"));
    assert!(!stale, "a mapping that outlived its page");
}

/// With `more` there are SMRAM, as large as the memory outside, and dirty rings.
fn machine(newer: bool, irqchip: bool, hyperv: bool, more: bool) -> Machine {
    let features = CpuFeatures { nrips: newer, decode_assists: newer, page_1g: newer, ..PLAIN };
    let m = Machine::bare(features).expect("a VM");
    if irqchip {
        assert_eq!(m.enable(KVM_CAP_SPLIT_IRQCHIP, 24), Ok(0));
    }
    assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
    if more {
        assert_eq!(m.region(0x1_0000, 0, 0, RAM, RAM_HVA), Ok(0));
        assert_eq!(m.enable(KVM_CAP_DIRTY_LOG_RING_ACQ_REL, 4096), Ok(0));
    }
    if hyperv {
        m.add_hyperv_vcpu(0, |_| ());
        let synic = m.enable_vcpu(0, KVM_CAP_HYPERV_SYNIC, 0);
        assert_eq!(synic.is_ok(), irqchip);
        assert_eq!(m.set_msr(0, 0x4000_0000, 1), Ok(1));
    } else {
        m.add_vcpu(0).expect("a vCPU");
    }
    m.long(0, &[]);
    if irqchip {
        m.x2apic(0);
    }
    m
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 2000, ..Default::default() })]

    #[test]
    fn anything_in_any_order(
        newer: bool,
        irqchip: bool,
        hyperv: bool,
        more: bool,
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let m = machine(newer, irqchip, hyperv, more);
        for op in ops {
            perform(&m, op);
            check(&m);
        }
        m.sim.drop_script(0);
        m.end();
    }

    /// Any three words are an exit, and any exit has a handler that decides.
    #[test]
    fn any_exit_is_decoded(code: u64, info1: u64, info2: u64, assists: bool) {
        let info = sim::arch::ExitInfo { code, info1, info2, int_info: EventInj::NONE };
        prop_assert!(Exit::decode(&info, assists) != Exit::None);
    }
}
