//! The decoder against iced-x86: length, operation and operands agree on every opcode with many prefixes and ModRM
//! bytes, in all three code sizes; and whatever iced knows of the operations that we claim, we decode.

#[path = "../fake/mod.rs"]
mod fake;
mod names;
mod operands;

use emulator::{DecodeError, Insn, Mode, Op, decode};
use fake::Rng;
use iced_x86::{Decoder, DecoderOptions};
use names::{claimed, same_name};
use operands::{forget_size, iced_is_no_reference, not_ours, operands_differ_by_design, ours, theirs};
use std::collections::{BTreeMap, HashMap};

const IP: u64 = 0x1000;

/// What was seen; disagreements are kept, one for each opcode, so that a run shows them all.
#[derive(Default)]
struct Tally {
    decoded: u64,
    invalid: u64,
    unknown: u64,
    disagreements: BTreeMap<String, String>,
    /// Answers of `names::claimed`, which is slow.
    claimed: HashMap<String, bool>,
}

impl Tally {
    fn check(&mut self, good: bool, key: &str, text: impl FnOnce() -> String) {
        if !good {
            self.disagreements.entry(key.to_string()).or_insert_with(text);
        }
    }

    fn claims(&mut self, name: &str) -> bool {
        *self.claimed.entry(name.to_string()).or_insert_with(|| claimed(name))
    }

    fn finish(self, at_least: u64) {
        println!("{} decoded, {} invalid, {} unknown", self.decoded, self.invalid, self.unknown);
        for text in self.disagreements.values().take(40) {
            println!("{text}");
        }
        assert!(self.disagreements.is_empty(), "{} kinds of disagreement", self.disagreements.len());
        assert!(self.decoded > at_least);
    }
}

fn compare(bytes: &[u8], mode: Mode, bits: u32, tally: &mut Tally) {
    let mut decoder = Decoder::with_ip(bits, bytes, IP, DecoderOptions::AMD);
    let i = decoder.decode();
    let valid = !i.is_invalid();
    let name = format!("{:?}", i.mnemonic()).to_lowercase();
    let at = |what: &str| format!("{mode:?} {bytes:02x?}: {what}; iced {i} ({:?})", i.code());
    match decode(bytes, mode) {
        Ok(insn) => {
            tally.decoded += 1;
            if iced_is_no_reference(&insn, &name) {
                return;
            }
            let key = format!("{:?} {name}", insn.op);
            let at = |what: &str| at(&format!("{what}, ours {insn:?}"));
            tally.check(valid, &key, || at("validity"));
            tally.check(usize::from(insn.len) == i.len() || !valid, &key, || at("length"));
            tally.check(same_name(insn.op, &name) || !valid, &key, || at("operation"));
            if operands_differ_by_design(insn.op) || !valid {
                return;
            }
            let (mut a, mut b) = (ours(&insn), theirs(&i, &insn));
            let sizeless = matches!(
                insn.op,
                Op::Lea
                    | Op::Invlpg
                    | Op::Sgdt
                    | Op::Sidt
                    | Op::Lgdt
                    | Op::Lidt
                    | Op::JmpFar
                    | Op::CallFar
                    | Op::MovSeg
                    | Op::Lmsw
                    | Op::Lldt
                    | Op::Ltr
            );
            if sizeless {
                a.iter_mut().for_each(forget_size);
                b.iter_mut().for_each(forget_size);
            }
            tally.check(a == b, &key, || at(&format!("operands {a:?} {b:?}")));
            tally.check(insn.lock == i.has_lock_prefix(), &key, || at("lock"));
        }
        Err(DecodeError::Invalid) => {
            tally.invalid += 1;
            tally.check(!valid, &name, || at("we say invalid"));
        }
        Err(DecodeError::Unknown) => {
            tally.unknown += 1;
            let ours = valid && !not_ours(&i) && tally.claims(&name);
            tally.check(!ours, &name, || at("unknown to us"));
        }
        Err(DecodeError::TooLong) => tally.check(!valid, &name, || at("we say too long")),
        Err(DecodeError::NeedMoreBytes) => tally.check(false, &name, || at("15 bytes and more wanted")),
    }
}

const MODES: [(Mode, u32); 3] = [(Mode::Prot16, 16), (Mode::Prot32, 32), (Mode::Long64, 64)];

/// Every opcode of the maps, every ModRM byte, under the prefixes that matter.
#[test]
fn every_opcode_agrees_with_iced() {
    #[rustfmt::skip]
    let prefixes: &[&[u8]] = &[
        &[], &[0x66], &[0x67], &[0xf2], &[0xf3], &[0xf0], &[0x66, 0x67], &[0x65], &[0x2e], &[0x66, 0xf3], &[0x48],
        &[0x41], &[0x45], &[0x4f], &[0x66, 0x48], &[0x67, 0x42], &[0xf3, 0x48], &[0xf2, 0x44], &[0x48, 0x66],
        &[0xf0, 0x48],
    ];
    let maps: &[&[u8]] = &[&[], &[0x0f], &[0x0f, 0x38]];
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    let mut tally = Tally::default();
    for (mode, bits) in MODES {
        for (n, prefix) in prefixes.iter().enumerate() {
            // Every ModRM byte without prefixes; with them every fifth, from another start each time.
            let step = if n == 0 { 1 } else { 5 };
            let first = (n % step) as u8;
            for map in maps {
                for opcode in 0..=255_u8 {
                    for modrm in (first..=255_u8).step_by(step) {
                        let mut bytes = [prefix, *map, &[opcode, modrm]].concat();
                        while bytes.len() < 15 {
                            bytes.extend(rng.next().to_le_bytes());
                        }
                        bytes.truncate(15);
                        compare(&bytes, mode, bits, &mut tally);
                    }
                }
            }
        }
    }
    tally.finish(500_000);
}

/// VEX: every combination of the prefix bytes that decide anything, over the opcodes with vector moves.
#[test]
fn every_vex_move_agrees_with_iced() {
    let mut rng = Rng(7);
    let mut tally = Tally::default();
    for (mode, bits) in MODES {
        for second in 0..=255_u8 {
            for opcode in 0..=255_u8 {
                for _ in 0..2 {
                    let mut bytes = [[0xc5, second, opcode].as_slice(), &rng.next().to_le_bytes()].concat();
                    bytes.extend(rng.next().to_le_bytes());
                    bytes.truncate(15);
                    compare(&bytes, mode, bits, &mut tally);
                    let third = rng.next() as u8 | if rng.next() & 1 == 0 { 0x78 } else { 0 };
                    let map = second & 0xe0 | (1 + (second & 1));
                    let mut bytes = [[0xc4, map, third, opcode].as_slice(), &rng.next().to_le_bytes()].concat();
                    bytes.extend(rng.next().to_le_bytes());
                    bytes.truncate(15);
                    compare(&bytes, mode, bits, &mut tally);
                }
            }
        }
    }
    tally.finish(10_000);
}

/// Bytes without any plan, with a bias to prefixes; too long instructions come up here.
#[test]
fn random_bytes_agree_with_iced() {
    let mut rng = Rng(42);
    let mut tally = Tally::default();
    let prefixes = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x64, 0x65, 0x48, 0x41];
    for _ in 0..120_000 {
        let mut bytes: Vec<u8> = Vec::new();
        let count = if rng.next() % 8 == 0 { rng.next() % 15 } else { rng.next() % 3 };
        for _ in 0..count {
            bytes.push(prefixes[(rng.next() % 10) as usize]);
        }
        while bytes.len() < 15 {
            bytes.extend(rng.next().to_le_bytes());
        }
        bytes.truncate(15);
        for (mode, bits) in MODES {
            compare(&bytes, mode, bits, &mut tally);
        }
    }
    tally.finish(100_000);
}

/// Real and virtual-8086 mode decode like 16-bit protected mode, except that VEX does not exist.
#[test]
fn real_mode_is_16_bit_without_vex() {
    let mut rng = Rng(99);
    for _ in 0..200_000 {
        let mut bytes = rng.next().to_le_bytes().to_vec();
        bytes.extend(rng.next().to_le_bytes());
        let (real, v86) = (decode(&bytes, Mode::Real), decode(&bytes, Mode::V86));
        let Ok(prot) = decode(&bytes, Mode::Prot16) else { continue };
        if prot.vex {
            assert_eq!(real, Err(DecodeError::Invalid));
            continue;
        }
        assert_eq!(real, Ok(Insn { mode: Mode::Real, ..prot }));
        assert_eq!(v86, Ok(Insn { mode: Mode::V86, ..prot }));
    }
}

/// Each proper prefix of an instruction's bytes asks for more; the instruction itself does not.
#[test]
fn truncated_instructions_ask_for_more() {
    let mut rng = Rng(5);
    for _ in 0..100_000 {
        let mut bytes = rng.next().to_le_bytes().to_vec();
        bytes.extend(rng.next().to_le_bytes());
        for (mode, _) in MODES {
            let Ok(insn) = decode(&bytes, mode) else { continue };
            let len = usize::from(insn.len);
            assert_eq!(decode(&bytes[..len], mode), Ok(insn));
            for n in 0..len {
                assert_eq!(decode(&bytes[..n], mode), Err(DecodeError::NeedMoreBytes), "{mode:?} {:02x?}", &bytes[..n]);
            }
        }
    }
}
