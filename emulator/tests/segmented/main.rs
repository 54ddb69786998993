//! The executor against the processor that runs the tests, in 16 and 32-bit protected mode: random instructions with all
//! addressing forms and segments, whose limits and types confine them. Registers, flags, memory, selectors, where the
//! instruction leads and how it faults are compared.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

#[path = "../fake/mod.rs"]
mod fake;
mod generate;
#[path = "../make/mod.rs"]
mod make;
mod processor;
#[path = "../native/undefined.rs"]
mod undefined;

use emulator::{DecodeError, Insn, Mode, Op, Operand, Seg, Segment, Stop, decode, emulate};
use fake::{Fake, Rng};
use generate::{any_selector, fill, generate, offset, safe};
use make::{Compared, announce};
use processor::{CODE, CODE_LEN, Context, DATA, DATA_LEN, START, entry, native, prepare, selector, text};
use std::collections::BTreeMap;
use undefined::{ARITH, ZF, shift_count, undefined_flags};

const DF: u64 = 0x400;
/// Where the fake has the LDT.
const LDT: u64 = 0x4000_0000;
/// TF, NT, AC, ID and VIF: not to be set natively.
const STRANGE: u64 = 1 << 8 | 1 << 14 | 1 << 18 | 1 << 19 | 1 << 21;

/// The segment that a descriptor makes.
fn segment(raw: [u8; 8], selector: u16) -> Segment {
    let raw = u64::from_le_bytes(raw);
    let base = raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000;
    let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
    Segment { selector, base, limit, attr: (raw >> 40 & 0xff | raw >> 44 & 0xf00) as u16 }
}

/// What runs before the instruction, the same on both sides.
fn machine(ctx: &Context, table: &[[u8; 8]], data: &[u8], code: &[u8]) -> Fake {
    let mut m = Fake::prot32();
    m.map(LDT, 4096).map(CODE, CODE_LEN as u64);
    for (n, raw) in table.iter().enumerate() {
        m.poke(LDT + 8 * n as u64, raw);
    }
    m.poke(CODE, code);
    for (n, page) in (DATA / 4096..).zip(data.chunks(4096)) {
        m.pages.insert(n, page.to_vec());
    }
    (m.cpl, m.efer, m.rip, m.rflags) = (3, 0xd00, START as u64, ctx.flags);
    m.gpr[..8].copy_from_slice(&ctx.gpr);
    for (seg, selector) in [(Seg::Cs, ctx.cs), (Seg::Ss, ctx.ss), (Seg::Ds, ctx.ds), (Seg::Es, ctx.es)] {
        *m.seg(seg) = segment(table[selector as usize >> 3], selector as u16);
    }
    for seg in [Seg::Fs, Seg::Gs] {
        *m.seg(seg) = Segment::default();
    }
    *m.seg(Seg::Ldtr) = Segment { selector: 0x50, base: LDT, limit: 8 * u32::from(entry::COUNT) - 1, attr: 0x82 };
    m
}

/// Does it use FS or GS, whose contents belong to the process?
fn uses_thread_segments(insn: &Insn) -> bool {
    let thread = |s| matches!(s, Seg::Fs | Seg::Gs);
    thread(insn.segment) || insn.operands.iter().any(|o| matches!(o, Operand::Seg(s) if thread(*s)))
}

/// Emulates to the end of the instruction, as KVM_RUN does.
fn emulated(m: &mut Fake, insn: &Insn) -> Result<(), Stop> {
    loop {
        m.begin();
        if !emulate(m, insn)?.more {
            return Ok(());
        }
    }
}

/// The signal that Linux makes of an exception.
fn signal_of(vector: u8) -> Option<i32> {
    Some(match vector {
        0 => libc::SIGFPE,
        6 => libc::SIGILL,
        10 | 13 => libc::SIGSEGV,
        11 | 12 | 17 => libc::SIGBUS,
        _ => return None,
    })
}

#[test]
fn emulated_like_the_processor_in_16_and_32_bit_segments() {
    let Some(table) = prepare() else {
        println!("skipped: this kernel has no LDT for processes");
        return;
    };
    let make = announce();
    let mut rng = Rng(0x5e9_3e27);
    let mut seen = BTreeMap::new();
    let mut signals = BTreeMap::new();
    let mut wrong: BTreeMap<String, String> = BTreeMap::new();
    let mut data = vec![0; DATA_LEN];
    for round in 0..60_000 {
        if round % 32 == 0 {
            fill(&mut rng, &mut data);
        }
        let mode = if round % 2 == 0 { Mode::Prot16 } else { Mode::Prot32 };
        let mut bytes = generate(&mut rng);
        let mut decoded = decode(&bytes, mode);
        if let Ok(Insn { op: Op::CallFar | Op::JmpFar, operands: [Operand::Imm, ..], len, .. }) = decoded {
            bytes[usize::from(len) - 2..][..2].copy_from_slice(&any_selector(&mut rng).to_le_bytes());
            decoded = decode(&bytes, mode);
        }
        if let Ok(Insn { op: Op::Enter, len, .. }) = decoded {
            // Little space to reserve: whether that is looked at differs.
            bytes[usize::from(len) - 2] = 0;
            decoded = decode(&bytes, mode);
        }
        let insn = match decoded {
            Ok(insn) if safe(insn.op) && !uses_thread_segments(&insn) => Some(insn),
            Err(DecodeError::Invalid) => None,
            Ok(_) | Err(DecodeError::Unknown | DecodeError::TooLong) => continue,
            Err(DecodeError::NeedMoreBytes) => panic!("15 bytes are enough: {bytes:02x?}"),
        };
        let len = insn.map_or(15, |i| usize::from(i.len));
        let text = text(&bytes[..len]);
        let mut gpr = [0; 8];
        for r in &mut gpr {
            *r = match rng.below(4) {
                0 => rng.value() & 0xffff_ffff,
                1 => u64::from(any_selector(&mut rng)),
                _ => offset(&mut rng),
            };
        }
        if insn.is_some_and(|i| i.op == Op::Enter) {
            gpr[5] = gpr[4] + 0x200; // The frames that it copies are not those that it writes.
        }
        let pick = |rng: &mut Rng, of: &[u16]| selector(of[rng.below(of.len() as u64) as usize]);
        let any_data = [entry::DATA32, entry::DATA16, entry::READ_ONLY, entry::EXPAND_DOWN];
        let ss = pick(&mut rng, &[entry::DATA32, entry::DATA16, entry::EXPAND_DOWN]);
        let cs = selector(if mode == Mode::Prot16 { entry::CODE16 } else { entry::CODE32 });
        let selectors = [cs, ss, pick(&mut rng, &any_data), pick(&mut rng, &any_data)];
        let mut ctx = Context::new(gpr, rng.next() & (ARITH | DF) | 0x202, selectors);
        let before = ctx;

        let mut m = machine(&ctx, &table, &data, &text);
        let result = match &insn {
            Some(insn) => emulated(&mut m, insn),
            None => Err(Stop::Fault(emulator::Exception::UD)),
        };
        let name = insn.map_or("#UD".into(), |i| format!("{:?}", i.op));
        let mut report = |what: String, more: String| {
            let text = format!("{mode:?} {what}: {:02x?} {insn:x?}\nbefore {before:x?}\n{more}", &bytes[..len]);
            wrong.entry(format!("{name} {what}")).or_insert(text);
        };
        let expected = match result {
            Ok(()) => libc::SIGTRAP,
            Err(Stop::Fault(e)) => {
                // A selector of the GDT means something else natively.
                if e.error_code.is_some_and(|c| c & 0xffff != 0 && c & 4 == 0) {
                    continue;
                }
                match signal_of(e.vector) {
                    Some(s) => s,
                    None => {
                        report(format!("{e:?}"), String::new());
                        continue;
                    }
                }
            }
            // Gates and returns to outer levels.
            Err(Stop::Unhandleable) if matches!(name.as_str(), "CallFar" | "JmpFar" | "RetFar") => continue,
            Err(e) => {
                report(format!("{e:?}"), String::new());
                continue;
            }
        };
        // Not into its own middle, and with no flags that outlast the instruction.
        let inside = m.rip > START as u64 && m.rip < (START + len) as u64;
        let again = m.rip == START as u64 && expected == libc::SIGTRAP;
        if inside || again || m.rflags & STRANGE != 0 {
            continue;
        }
        if let Some(i) = insn {
            let twice = matches!(i.op, Op::Shld | Op::Shrd) && i.opsize == 2 && shift_count(&i, gpr[1]) > 16;
            if twice || i.op == Op::Bswap && i.opsize == 2 {
                continue; // undefined
            }
            if make.differs(Compared::Everything, &i, &bytes).is_some() {
                continue;
            }
        }
        native(&text, &mut ctx, &mut data);
        *seen.entry(name.clone()).or_insert(0_u32) += 1;
        *signals.entry(ctx.signal).or_insert(0_u32) += 1;

        // It may look whether the room that it reserves can be written.
        if name == "Enter" && expected == libc::SIGTRAP && ctx.signal == libc::SIGBUS as u64 {
            continue;
        }
        // Which of two faults is found first is the processor's business where there are two accesses, or one and a target.
        let found = |s: u64| [libc::SIGSEGV, libc::SIGBUS].contains(&(s as i32));
        let two =
            matches!(name.as_str(), "Call" | "CallFar" | "RetFar" | "Ret" | "Cmps" | "Movs" | "Push" | "Pop" | "Les");
        let same_signal = ctx.signal == expected as u64 || two && found(ctx.signal) && found(expected as u64);
        if !same_signal {
            report(format!("signal {} instead of {expected}", ctx.signal), format!("{ctx:x?} {result:?}"));
        } else if ctx.rip != m.rip {
            report("rip".into(), format!("native {:x} ours {:x}", ctx.rip, m.rip));
        }
        let ours = [Seg::Cs, Seg::Ss, Seg::Ds, Seg::Es].map(|s| u64::from(m.seg(s).selector));
        // The kernel's IRET makes all null selectors 0.
        let null = |s: u64| if s & !3 == 0 { 0 } else { s };
        if ours.map(null) != [ctx.cs, ctx.ss, ctx.ds, ctx.es] {
            report("selectors".into(), format!("{ctx:x?} ours {ours:x?}"));
        }
        let low = |r: &[u64]| r.iter().take(8).map(|r| *r as u32).collect::<Vec<_>>();
        let left_open =
            m.rflags & ZF != 0 && insn.is_some_and(|i| make.differs(Compared::RegistersWithZf, &i, &bytes).is_some());
        let halfway = expected != libc::SIGTRAP;
        if low(&m.gpr) != low(&ctx.gpr) && !left_open && !(halfway && name == "Popa") {
            report("registers".into(), format!("native {:x?}\nours   {:x?}", low(&ctx.gpr), low(&m.gpr)));
        }
        let undefined = insn.map_or(0, |i| undefined_flags(&i, shift_count(&i, gpr[1])));
        let differ = (m.rflags ^ ctx.flags) & (ARITH | DF) & !undefined;
        // A processor may keep the flags of a repeated comparison to itself until it ends.
        let cut_short = expected != libc::SIGTRAP && matches!(name.as_str(), "Scas" | "Cmps");
        if differ != 0 && !cut_short {
            report("flags".into(), format!("{differ:x}"));
        }
        // What these have pushed before they fault is left open.
        let halfway = halfway && matches!(name.as_str(), "Pusha" | "Enter" | "Call" | "CallFar");
        let memory: Vec<u8> = (DATA / 4096..).take(DATA_LEN / 4096).flat_map(|n| m.pages[&n].clone()).collect();
        if memory != data && !halfway {
            let at = memory.iter().zip(&data).position(|(a, b)| a != b);
            report("memory".into(), format!("first at {at:x?}"));
        }
    }
    println!("{seen:?}\nsignals {signals:?}");
    for text in wrong.values() {
        println!("{text}\n");
    }
    assert!(wrong.is_empty(), "{} kinds of difference", wrong.len());
    for op in
        ["Mov", "Push", "Pop", "Pusha", "Popa", "Enter", "Leave", "Les", "MovSeg", "Movs", "Bts", "CallFar", "JmpFar"]
            .iter()
            .chain(&["RetFar", "Call", "Ret", "Jcc", "Loop", "Xlat", "Movbe", "Cmpxchg8b", "#UD"])
    {
        assert!(seen.get(*op).copied().unwrap_or(0) > 20, "{op} came up");
    }
    for signal in [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE] {
        assert!(signals.get(&(signal as u64)).copied().unwrap_or(0) > 20, "signal {signal} came up");
    }
}
