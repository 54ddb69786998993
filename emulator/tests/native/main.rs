//! The executor against the processor that runs the tests: random instructions on random registers and memory are run
//! natively and emulated, and all registers, the defined flags, memory and faults are compared.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

#[path = "../fake/mod.rs"]
mod fake;
mod generate;
#[path = "../make/mod.rs"]
mod make;
mod processor;
mod undefined;

use emulator::{DecodeError, Insn, Mode, Op, Operand, Seg, Stop, decode, emulate};
use fake::{Fake, Rng};
use generate::{generate, registers, safe};
use make::{Compared, announce};
use processor::{CODE, Context, DATA, DATA_LEN, MIDDLE, native, prepare};
use undefined::{ARITH, ZF, shift_count, undefined_flags};

fn describe(insn: &Insn, bytes: &[u8], before: &Context) -> String {
    format!("{:02x?} {insn:x?}\nbefore {:x?} flags {:x}", &bytes[..insn.len.into()], before.gpr, before.flags)
}

#[test]
fn emulated_like_the_processor() {
    if !std::is_x86_feature_detected!("avx") || !std::is_x86_feature_detected!("movbe") {
        println!("skipped: this processor lacks AVX or MOVBE");
        return;
    }
    let make = announce();
    prepare();
    let mut rng = Rng(0x0dd_ba11);
    let mut seen = std::collections::BTreeMap::new();
    let mut faults = 0;
    let mut data = vec![0_u8; DATA_LEN];
    let mut wrong = std::collections::BTreeMap::new();
    for round in 0..600_000 {
        let bytes = generate(&mut rng);
        let insn = match decode(&bytes, Mode::Long64) {
            // FS is the thread's own data: it must not change, and its base is not known here.
            Ok(insn) if safe(insn.op) && !matches!(insn.operands[0], Operand::Seg(_)) && insn.segment == Seg::Ds => {
                insn
            }
            Ok(_) | Err(DecodeError::Unknown | DecodeError::Invalid | DecodeError::TooLong) => continue,
            Err(DecodeError::NeedMoreBytes) => panic!("15 bytes are enough: {bytes:02x?}"),
        };
        let mut bytes = bytes;
        let moffs = matches!(insn.op, Op::Mov)
            && insn.operands.contains(&Operand::Mem { size: insn.opsize })
            && insn.mem.base.is_none();
        if moffs {
            let n = usize::from(insn.len);
            let size = usize::from(insn.addrsize);
            bytes[n - size..n].copy_from_slice(&(MIDDLE + rng.below(512)).to_le_bytes()[..size]);
        }
        if insn.op == Op::Enter {
            // Little space to reserve: the processor checks that it can be written.
            let n = usize::from(insn.len);
            bytes[n - 2] &= 1;
        }
        let insn = decode(&bytes, Mode::Long64).expect("decoded before");
        if make.differs(Compared::Everything, &insn, &bytes).is_some() {
            continue;
        }
        let gpr = registers(&mut rng, &insn);
        let count = shift_count(&insn, gpr[1]);
        if matches!(insn.op, Op::Shld | Op::Shrd) && insn.opsize == 2 && count > 16 {
            continue; // undefined
        }
        if insn.op == Op::Bswap && insn.opsize == 2 {
            continue; // undefined
        }
        if round % 32 == 0 {
            for chunk in data.chunks_mut(8) {
                chunk.copy_from_slice(&rng.value().to_le_bytes());
            }
        }
        if insn.op == Op::Popf {
            // Without TF, NT and AC.
            let at = (gpr[4] - DATA) as usize;
            let flags = rng.next() & (ARITH | 0x400) | 0x202;
            data[at..at + 8].copy_from_slice(&flags.to_le_bytes());
        }
        let mut ctx = Context {
            gpr,
            flags: rng.next() & (ARITH | 0x400) | 0x202,
            saved_rsp: 0,
            exit: 0,
            code: 0,
            signal: 0,
            unused: [0; 3],
            ymm: [[0; 32]; 16],
            mmx: std::array::from_fn(|_| rng.next()),
        };
        if insn.op == Op::Cmpxchg8b && rng.below(2) == 0 {
            // Let it find what it expects.
            let base = gpr[usize::from(insn.mem.base.unwrap_or(3))];
            let index = insn.mem.index.map_or(0, |i| gpr[usize::from(i)] << insn.mem.scale);
            let at = base.wrapping_add(index).wrapping_add(insn.mem.disp).wrapping_sub(DATA) as usize;
            let half = usize::from(if insn.operands[0] == (Operand::Mem { size: 16 }) { 8_u8 } else { 4 });
            if let Some(place) = data.get_mut(at..at.saturating_add(2 * half)) {
                place[..half].copy_from_slice(&gpr[0].to_le_bytes()[..half]);
                place[half..].copy_from_slice(&gpr[2].to_le_bytes()[..half]);
            }
        }
        for ymm in &mut ctx.ymm {
            for chunk in ymm.chunks_mut(8) {
                chunk.copy_from_slice(&rng.next().to_le_bytes());
            }
        }
        let before = ctx;

        let mut m = Fake::long();
        for (n, page) in (DATA / 4096..).zip(data.chunks(4096)) {
            m.pages.insert(n, page.to_vec());
        }
        m.cpl = 3;
        // The selectors that Linux gives its processes.
        for (seg, selector) in
            [(Seg::Es, 0), (Seg::Cs, 0x33), (Seg::Ss, 0x2b), (Seg::Ds, 0), (Seg::Fs, 0), (Seg::Gs, 0)]
        {
            m.seg(seg).selector = selector;
        }
        (m.gpr, m.rflags, m.ymm, m.mmx, m.rip) = (ctx.gpr, ctx.flags, ctx.ymm, ctx.mmx, CODE);
        m.begin();
        let result = emulate(&mut m, &insn);

        let mut report = |what: &str| {
            let text = format!("{what}: {}", describe(&insn, &bytes, &before));
            wrong.entry(format!("{:?} {what}", insn.op)).or_insert(text);
        };
        // Run natively only what stays within the data area.
        if matches!(result, Err(Stop::Fault(e)) if e.vector == 14 || e.vector == 12) {
            continue;
        }
        native(&bytes[..insn.len.into()], &mut ctx, &mut data);
        *seen.entry(format!("{:?}", insn.op)).or_insert(0_u32) += 1;

        let expected_signal = match result {
            Ok(_) => 0,
            Err(Stop::Fault(e)) if e.vector == 0 => libc::SIGFPE,
            Err(Stop::Fault(e)) if e.vector == 13 => libc::SIGSEGV,
            Err(e) => {
                report(&format!("{e:?}"));
                continue;
            }
        };
        if ctx.signal != expected_signal as u64 {
            report(&format!("signal {} instead of {expected_signal}", ctx.signal));
            continue;
        }
        if expected_signal != 0 {
            faults += 1;
        } else if m.rip != CODE + u64::from(insn.len) {
            report("rip");
        }
        let left_open = m.rflags & ZF != 0 && make.differs(Compared::RegistersWithZf, &insn, &bytes).is_some();
        if m.gpr != ctx.gpr && !left_open {
            report("registers");
            if let Some(t) = wrong.get_mut(&format!("{:?} registers", insn.op)) {
                if !t.contains("native") {
                    *t += &format!("\nnative {:x?}\nours   {:x?}", ctx.gpr, m.gpr);
                }
            }
            continue;
        }
        let defined = (ARITH | 0x400) & !undefined_flags(&insn, count);
        if (m.rflags ^ ctx.flags) & defined != 0 {
            report(&format!("flags {:x}", (m.rflags ^ ctx.flags) & defined));
        }
        if !m.pages.values().eq(data.chunks(4096)) {
            report("memory");
        }
        if m.mmx != ctx.mmx {
            report("MMX registers");
        }
        if m.ymm != ctx.ymm {
            report("vector registers");
        }
    }
    println!("{seen:?}, {faults} faults");
    for text in wrong.values() {
        println!("{text}\n");
    }
    assert!(wrong.is_empty(), "{} kinds of difference", wrong.len());
    for op in [
        "Mov",
        "Cmpxchg",
        "Idiv",
        "Movs",
        "Pop",
        "Enter",
        "Bts",
        "Rcr",
        "VecMov",
        "VecMovHigh",
        "MmxMov",
        "Movbe",
        "Xlat",
    ] {
        assert!(seen.get(op).copied().unwrap_or(0) > 20, "{op} came up");
    }
    assert!(faults > 100);
}
