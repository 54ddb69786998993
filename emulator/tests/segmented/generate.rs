//! Random instructions and registers for segments that confine whatever they do.

use crate::fake::Rng;
use crate::processor::{DATA_LEN, entry, selector};
use emulator::Op;

/// May the instruction run natively at CPL 3? Whatever it touches is in its segments. Not those whose result depends on the
/// system around: system calls, ports, what CR4.UMIP hides, FS and GS.
pub fn safe(op: Op) -> bool {
    use Op::*;
    matches!(op, Mov | Movzx | Movsx | Movbe | Movnti | Lea | Xchg | Bswap | Cmov | Set | Xlat | MovSeg | Les)
        || matches!(op, Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test | Inc | Dec | Not | Neg)
        || matches!(op, Cmpxchg | Cmpxchg8b | Xadd | Mul | Imul | Imul2 | Div | Idiv | Cbw | Cwd)
        || matches!(op, Rol | Ror | Rcl | Rcr | Shl | Shr | Sar | Shld | Shrd | Bt | Bts | Btr | Btc)
        || matches!(op, Bsf | Bsr | Tzcnt | Lzcnt | Popcnt | Push | Pop | Pushf | Popf | Pusha | Popa | Enter | Leave)
        || matches!(op, Call | Jmp | Jcc | Loop | Loope | Loopne | Jcxz | Ret | CallFar | JmpFar | RetFar)
        || matches!(op, Lahf | Sahf | Clc | Stc | Cmc | Cld | Std | Cli | Sti | Movs | Cmps | Stos | Lods | Scas)
        || matches!(op, MovFromCr | MovToCr | MovFromDr | MovToDr | Clts | Lmsw | Invlpg | Lgdt | Lidt | Pause)
}

/// A selector: mostly one of ours.
pub fn any_selector(rng: &mut Rng) -> u16 {
    match rng.below(16) {
        0 => 0,
        1 => rng.next() as u16 | 4,
        2 => selector(rng.below(entry::COUNT.into()) as u16) & !3 | rng.below(4) as u16,
        _ => selector(rng.below(entry::COUNT.into()) as u16),
    }
}

/// An offset that is in the data more often than not, near its ends often.
pub fn offset(rng: &mut Rng) -> u64 {
    let len = DATA_LEN as u64;
    match rng.below(8) {
        0 => rng.value() & 0xffff_ffff,
        1 => (len - 8 + rng.below(10)) & 0xffff,
        2 | 3 => 0x1_0000 - len + rng.below(len),
        4 => (0x1_0000 - len).wrapping_sub(4) + rng.below(8),
        5 => rng.below(0x20) + 0xff0,
        _ => rng.below(len),
    }
}

/// Bytes of a random instruction.
pub fn generate(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (prefix, one_in) in
        [(0x66, 3), (0x67, 4), (0xf2, 10), (0xf3, 6), (0xf0, 16), (0x26, 12), (0x2e, 12), (0x36, 12), (0x3e, 12)]
    {
        if rng.below(one_in) == 0 {
            bytes.push(prefix);
        }
    }
    let opcode = rng.next() as u8;
    let pick = |rng: &mut Rng, rich: &[u8]| {
        if rng.below(3) == 0 { rich[rng.below(rich.len() as u64) as usize] } else { opcode }
    };
    match rng.below(8) {
        0..=4 => bytes.push(pick(
            rng,
            &[0x8e, 0x8f, 0x9a, 0xc4, 0xc5, 0xc8, 0xca, 0xcb, 0xea, 0xf6, 0xf7, 0xfe, 0xff, 0xd3, 0x83, 0x60, 0x61],
        )),
        5 | 6 => bytes.extend([
            0x0f,
            pick(
                rng,
                &[0xa3, 0xa4, 0xa5, 0xab, 0xac, 0xb0, 0xb1, 0xb2, 0xb3, 0xb8, 0xba, 0xbb, 0xbc, 0xc0, 0xc1, 0xc7],
            ),
        ]),
        _ => bytes.extend([0x0f, 0x38, 0xf0 | opcode & 1]),
    }
    bytes.push(rng.next() as u8); // ModRM, or whatever it is
    if rng.below(2) == 0 {
        bytes.push(rng.next() as u8); // SIB, perhaps
    }
    while bytes.len() < 15 {
        match rng.below(3) {
            0 => bytes.extend(rng.next().to_le_bytes()),
            1 => bytes.extend((rng.below(0x2100) as u32).to_le_bytes()),
            _ => bytes.extend((rng.below(0x100) as u16).to_le_bytes()),
        }
    }
    bytes.truncate(15);
    bytes
}

/// Memory: offsets, selectors and anything.
pub fn fill(rng: &mut Rng, data: &mut [u8]) {
    for chunk in data.chunks_mut(4) {
        let word = match rng.below(4) {
            0 => offset(rng) as u32,
            1 => u32::from(any_selector(rng)) | (rng.below(0x1000) as u32) << 16,
            2 => rng.below(0x1000) as u32 | u32::from(any_selector(rng)) << 16,
            _ => rng.value() as u32,
        };
        chunk.copy_from_slice(&word.to_le_bytes());
    }
}
