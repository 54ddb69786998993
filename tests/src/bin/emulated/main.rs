//! What the emulator does with each opcode that works on memory where there is none, printed line by line. The same
//! program runs on stock kvm-amd and on ours, and every line is compared.
//!
//! A case is one instruction with its operand at an address of MMIO: every opcode of the three maps in which memory
//! operands are common, every value of ModRM.reg, under the prefixes that change a meaning, in 64-bit, 32-bit and real
//! mode. The program answers reads with a pattern and prints what was read and written, how it ended, and what changed
//! in the registers. What does not come to the emulator runs on the processor, and is not printed.

mod machine;

use anyhow::Result;
use machine::{Machine, Mode};

/// Prefixes, the ways to other maps, and far transfers to where the stack says, in which the emulator of the host gives up.
fn is_left_out(map: &[u8], opcode: u8) -> bool {
    map.is_empty()
        && matches!(
            opcode,
            0x0f | 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x62 | 0x64..=0x67 | 0xc4 | 0xc5 | 0xca..=0xcf | 0xf0..=0xf4
        )
        || map == [0x0f] && matches!(opcode, 0x38 | 0x3a)
}

/// Flags that the manual leaves undefined: which they become differs between processors.
fn undefined_flags(map: &[u8], opcode: u8) -> u64 {
    const OF: u64 = 1 << 11;
    const AF: u64 = 1 << 4;
    const CF_PF_SF: u64 = 0x85;
    match (map, opcode) {
        // Shifts by more than one.
        ([], 0xc0 | 0xc1 | 0xd2 | 0xd3) | ([0x0f], 0xa4 | 0xa5 | 0xac | 0xad) => OF | AF,
        // BSF, BSR.
        ([0x0f], 0xbc | 0xbd) => OF | AF | CF_PF_SF,
        _ => 0,
    }
}

/// SHLD and SHRD of 16 bits by more than 16: the result is undefined.
fn is_undefined(map: &[u8], opcode: u8, prefixes: &[u8], mode: Mode) -> bool {
    let word = prefixes.contains(&0x66) != (mode == Mode::Real);
    map == [0x0f] && matches!(opcode, 0xa4 | 0xac) && word
}

const MAPS: [&[u8]; 3] = [&[], &[0x0f], &[0x0f, 0x38]];
const PREFIXES: [&[u8]; 7] = [&[], &[0x66], &[0xf2], &[0xf3], &[0xf0], &[0x48], &[0xf3, 0x48]];

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() { "-".to_owned() } else { bytes.iter().map(|byte| format!("{byte:02x}")).collect() }
}

fn main() -> Result<()> {
    let only = std::env::args().nth(1);
    for mode in [Mode::Long, Mode::Protected, Mode::Real] {
        let mut machine = Machine::new(mode)?;
        for map in MAPS {
            for opcode in 0..=255 {
                if is_left_out(map, opcode) {
                    continue;
                }
                for prefixes in PREFIXES {
                    if prefixes.contains(&0x48) && mode != Mode::Long || is_undefined(map, opcode, prefixes, mode) {
                        continue;
                    }
                    for reg in 0..8 {
                        let modrm = reg << 3 | if mode == Mode::Real { 4 } else { 6 };
                        let code = [prefixes, map, &[opcode, modrm]].concat();
                        let name = format!("{} {} /{reg} {mode:?}", hex(&[map, &[opcode]].concat()), hex(prefixes));
                        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
                            continue;
                        }
                        if let Some(line) = machine.run(&code, undefined_flags(map, opcode))? {
                            println!("{name}: {line}");
                        }
                    }
                }
            }
        }
    }
    Ok(())
}
