//! A VM by its ABI: what user space, the guest and the host around them do in any order, some of it without memory.

use crate::input::Input;
use abi::uapi::ioctl::*;
use sim::alloc::{Plan, plan};
use sim::arch::exit::code;
use sim::{Page, arch};
use tests::scenario::anything::{Anything, Guest, Irqchip, Kind, Op, STATES, VM_STATES};
use tests::scenario::{CODE, DATA, MMIO, RAM};

/// Most ops of a program: what comes after is not looked at.
const MOST_OPS: usize = 200;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (kind, memory) = (input.u8(), input.u8());
    let irqchip = [Irqchip::None, Irqchip::Split, Irqchip::Full, Irqchip::Full][usize::from(kind >> 3 & 3)];
    let mut all = Anything::new(Kind {
        newer: kind & 1 != 0,
        irqchip,
        hyperv: kind & 2 != 0,
        more: kind & 4 != 0,
        two: kind & 32 != 0,
    });
    if memory != 0 {
        plan(Some(Plan::Once(u64::from(memory) - 1)));
    }
    let show = std::env::var_os("HSAVE_FUZZ_SHOW").is_some();
    let mut left = MOST_OPS;
    while input.more() && left > 0 {
        let op = op(&mut input);
        if show {
            println!("{op:x?}");
        }
        all.perform(op);
        left -= 1;
    }
    plan(None);
    all.end();
}

/// Numbers that mean something to the hypervisor more often than others.
const PLACES: [u64; 24] = [
    DATA,
    DATA + 8,
    DATA + 0xfff,
    CODE,
    0x1000,
    0xb000,
    0xfee0_0000,
    0xfee0_0020,
    0xfee0_0080,
    0xfee0_00b0,
    0xfee0_00f0,
    0xfee0_0300,
    0xfee0_0310,
    0xfee0_0350,
    0xfee0_0380,
    0xfec0_0000,
    0xfec0_0010,
    MMIO,
    RAM - 8,
    RAM,
    1 << 39,
    1 << 47,
    0xffff_8000_0000_0000,
    u64::MAX,
];

fn place(input: &mut Input<'_>) -> u64 {
    let n = input.number();
    PLACES.get(n as usize).copied().unwrap_or(n)
}

fn value(input: &mut Input<'_>) -> u64 {
    if input.bool() { place(input) } else { input.number() }
}

const MSRS: [u32; 30] = [
    0x10,
    0x1b,
    0x3a,
    0x3b,
    0x48,
    0x49,
    0x8b,
    0x9e,
    0x174,
    0x179,
    0x17a,
    0x1d9,
    0x200,
    0x250,
    0x277,
    0x2ff,
    0x400,
    0x6e0,
    0x80b,
    0x80f,
    0x830,
    0x832,
    0x838,
    0x83e,
    0x83f,
    0xda0,
    0xc000_0080,
    0xc000_0102,
    0xc000_0104,
    0xc001_0015,
];

fn msr(input: &mut Input<'_>) -> u32 {
    match input.below(8) {
        0..3 => input.of(&MSRS),
        3 => 0x800 + u32::from(input.u8() & 0x3f),
        4 => 0x4b56_4d00 + u32::from(input.u8() & 15),
        5 | 6 => 0x4000_0000 + u32::from(input.u16() & 0x1ff),
        _ => input.u32(),
    }
}

fn page(input: &mut Input<'_>) -> u64 {
    match input.below(4) {
        0 | 1 => u64::from(input.u8()),
        2 => (RAM >> 12).wrapping_sub(4).wrapping_add(input.below(16) as u64),
        _ => input.number() & 0xf_ffff_ffff_ffff,
    }
}

const HOWS: [Page; 6] = [Page::Absent, Page::ReadOnly, Page::Writable, Page::Poisoned, Page::Late, Page::Missing];

/// Pages that are memory of the VMM's.
fn mapped(input: &mut Input<'_>) -> (u64, u64, Page) {
    (u64::from(input.u16() & 1023), 1 + input.below(8) as u64, input.of(&HOWS))
}

/// Exits that the hypervisor asks for more often than others.
const EXITS: [u64; 22] = [
    code::NPF,
    code::NPF,
    code::IOIO,
    code::IOIO,
    code::MSR,
    code::HLT,
    code::RSM,
    code::CPUID,
    code::VMMCALL,
    code::VINTR,
    code::INTR,
    code::NMI,
    code::SMI,
    code::INVD,
    code::WBINVD,
    code::SHUTDOWN,
    code::PAUSE,
    code::TASK_SWITCH,
    code::XSETBV,
    code::IRET,
    code::EXCP0 + 1,
    code::EXCP0 + 14,
];

fn guest(input: &mut Input<'_>) -> Guest {
    let head = input.u8();
    let rip = if head & 3 == 0 { place(input) } else { CODE + u64::from(head >> 2 & 15) };
    let code = match input.u8() {
        n @ 0..160 => EXITS[usize::from(n) % EXITS.len()],
        n @ 160..250 => u64::from(n) - 160,
        250..253 => u64::from(input.u16()),
        _ => input.u64(),
    };
    Guest {
        rip,
        flags: u64::from(input.u32()),
        gprs: [value(input), value(input), value(input)],
        tpr: head >> 4,
        shadow: head & 0x40 != 0,
        cut_short: head & 0x80 != 0,
        code,
        info: [value(input), value(input)],
    }
}

/// `mov [rbx], eax`, `mov eax, [rbx]`, and others that reach memory or ports.
const CODES: [[u8; 4]; 12] = [
    [0x89, 0x03, 0, 0],
    [0x8b, 0x03, 0, 0],
    [0x48, 0x89, 0x03, 0],
    [0x66, 0x0f, 0x7f, 0x03], // movdqa [rbx], xmm0
    [0xf3, 0xa4, 0, 0],       // rep movsb
    [0xf3, 0x6e, 0, 0],       // rep outsb
    [0xf3, 0x6c, 0, 0],       // rep insb
    [0xf0, 0x0f, 0xb1, 0x0b], // lock cmpxchg [rbx], ecx
    [0x0f, 0xc7, 0x0b, 0],    // cmpxchg8b [rbx]
    [0x0f, 0x22, 0xc0, 0],    // mov cr0, rax
    [0xcf, 0, 0, 0],          // iret
    [0x0f, 0xaa, 0, 0],       // rsm
];

fn op(input: &mut Input<'_>) -> Op {
    match input.u8() % 48 {
        0..2 => Op::Vm { cmd: cmd(input), arg: value(input) },
        2..4 => Op::Vcpu { cmd: cmd(input), arg: value(input) },
        4 => Op::System { cmd: cmd(input), arg: value(input) },
        // Most ioctls have a struct at DATA.
        5 => Op::Argument { at: DATA, words: std::array::from_fn(|_| value(input)) },
        6 => Op::Argument { at: DATA + 64 * input.below(8) as u64, words: std::array::from_fn(|_| input.number()) },
        7 => Op::Vm { cmd: cmd(input), arg: DATA },
        8 => Op::Vcpu { cmd: cmd(input), arg: DATA },
        9..12 => Op::State { which: input.below(STATES.len()), changes: changes(input) },
        12 => Op::VmState { which: input.below(VM_STATES.len()), changes: changes(input) },
        13..15 => Op::Region {
            slot: u32::from(input.u8() & 3) | if input.below(4) == 0 { 1 << 16 } else { 0 },
            flags: u32::from(input.u8() & 7),
            page: page(input),
            pages: input.number() & 0xfff_ffff,
            hva: input.number() & 0xffff_ffff,
        },
        15 => {
            let (page, pages, how) = mapped(input);
            Op::Host { page, pages, how }
        }
        16 => {
            let (page, pages, how) = mapped(input);
            Op::DuringFault { page, pages, how }
        }
        17 => Op::Msi { low: 0xfee0_0000 | input.u32() & 0xf_fffc, data: input.u32() },
        18..20 => Op::Msr { index: msr(input), value: value(input) },
        20 => Op::Cap { cap: input.u8().into(), arg: input.number() },
        21 => Op::Advance(input.number()),
        22 => Op::Advance(u64::from(input.u16()) << 10),
        23 => Op::Suspend(u64::from(input.u32())),
        24 => Op::Code { mode: input.below(3) as u8, bytes: input.bytes() },
        25..27 => {
            let mut bytes = [0x90; 16];
            bytes[..4].copy_from_slice(&input.of(&CODES));
            Op::Code { mode: 2, bytes }
        }
        27..34 => Op::Guest(guest(input)),
        34..36 => Op::GuestMsr { write: true, index: msr(input), value: value(input) },
        36 => Op::GuestMsr { write: false, index: msr(input), value: 0 },
        37 => Op::Hypercall { value: input.u64(), input: value(input), output: value(input) },
        38 => hypercall(input),
        39..41 => Op::Touch { gpa: gpa(input), write: input.bool() },
        41..45 => Op::Run { head: input.bytes(), answer: [input.number(), input.number(), input.number(), 0] },
        45 => Op::Select(input.below(3)),
        46 => Op::HandOver,
        _ => Op::Become(std::array::from_fn(|_| (input.u32(), input.u8()))),
    }
}

fn cmd(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        255 => input.u32(),
        n => ALL[usize::from(n) % ALL.len()].1,
    }
}

fn changes(input: &mut Input<'_>) -> [(u16, u8); 3] {
    std::array::from_fn(|_| (input.u16(), input.u8()))
}

fn gpa(input: &mut Input<'_>) -> u64 {
    let gpa = match input.below(3) {
        0 => u64::from(input.u16()) << 4,
        1 => page(input) << 12,
        _ => place(input),
    };
    gpa & arch::npt::ADDR & ((1 << 48) - 1)
}

const CALLS: [u64; 14] = [2, 3, 8, 0xb, 0x13, 0x14, 0x15, 0x50, 0x5c, 0x5d, 0x69, 0x6a, 0x6b, 0x8001];

fn hypercall(input: &mut Input<'_>) -> Op {
    let code = input.of(&CALLS);
    let (fast, var, reps, start) =
        (input.bool(), input.number() & 0x3ff, input.number() & 0xfff, input.number() & 0xfff);
    let value = code | u64::from(fast) << 16 | var << 17 | reps << 32 | start << 48;
    let mut place = || 0xb000u64.wrapping_add(input.number().wrapping_mul(8));
    let (from, to) = (place(), place());
    Op::Hypercall { value, input: from, output: to }
}
