//! Random instructions that may run natively, and registers that suit them.

use crate::fake::Rng;
use crate::processor::MIDDLE;
use emulator::{Insn, Op, Operand};

/// May the instruction run natively? It has to fall through, need no privilege and keep to the data area.
pub fn safe(op: Op) -> bool {
    use Op::*;
    matches!(op, Mov | Movzx | Movsx | Movbe | Movnti | Lea | Xchg | Bswap | Cmov | Set | Xlat)
        || matches!(op, Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test | Inc | Dec | Not | Neg)
        || matches!(op, Cmpxchg | Cmpxchg8b | Xadd | Mul | Imul | Imul2 | Div | Idiv | Cbw | Cwd)
        || matches!(op, Rol | Ror | Rcl | Rcr | Shl | Shr | Sar | Shld | Shrd | Bt | Bts | Btr | Btc)
        || matches!(op, Bsf | Bsr | Tzcnt | Lzcnt | Popcnt | Push | Pop | Pushf | Popf | Enter | Leave)
        || matches!(op, Lahf | Sahf | Clc | Stc | Cmc | Cld | Std | Movs | Cmps | Stos | Lods | Scas)
        || matches!(op, VecMov | VecMovAligned | VecMovZx | VecMovLow | VecMovHigh | MmxMov | Pause)
}

/// Bytes of a random instruction whose memory operand, if any, is in the data area.
pub fn generate(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (prefix, one_in) in [(0x66, 4), (0x67, 12), (0xf2, 10), (0xf3, 6), (0xf0, 24)] {
        if rng.below(one_in) == 0 {
            bytes.push(prefix);
        }
    }
    let opcode = rng.next() as u8;
    // The opcodes that hold several operations come up more often.
    let pick = |rng: &mut Rng, rich: &[u8]| {
        if rng.below(3) == 0 { rich[rng.below(rich.len() as u64) as usize] } else { opcode }
    };
    let modrm_memory = rng.below(2) == 0;
    match rng.below(10) {
        0..=3 => {
            let opcode =
                pick(rng, &[0x69, 0x6b, 0x80, 0x81, 0x83, 0xc0, 0xc1, 0xd0, 0xd1, 0xd2, 0xd3, 0xf6, 0xf7, 0xfe, 0xff]);
            if rng.below(2) == 0 {
                bytes.push(0x40 | rng.below(16) as u8);
            }
            bytes.push(opcode);
        }
        4..=7 => {
            let opcode = pick(
                rng,
                &[
                    0x6e, 0x6f, 0x7e, 0x7f, 0xe7, 0xa3, 0xa4, 0xa5, 0xac, 0xad, 0xb0, 0xb1, 0xb8, 0xba, 0xbc, 0xbd,
                    0xc0, 0xc1, 0xc7,
                ],
            );
            if rng.below(2) == 0 {
                bytes.push(0x40 | rng.below(16) as u8);
            }
            bytes.extend([0x0f, opcode]);
        }
        8 => {
            bytes.retain(|b| *b != 0xf0);
            if rng.below(2) == 0 {
                bytes.push(0x40 | rng.below(16) as u8);
            }
            bytes.extend([0x0f, 0x38, if rng.below(4) == 0 { 0x2a } else { 0xf0 | opcode & 1 }]);
        }
        _ => {
            bytes.clear();
            let vvvv = if rng.below(2) == 0 { 0x78 } else { rng.next() as u8 & 0x78 };
            let last = vvvv | rng.next() as u8 & 0x87;
            if rng.below(2) == 0 {
                bytes.extend([0xc5, last]);
            } else {
                bytes.extend([0xc4, rng.next() as u8 & 0xe0 | 1, last]);
            }
            let moves =
                [0x10, 0x11, 0x12, 0x13, 0x16, 0x17, 0x28, 0x29, 0x2b, 0x6e, 0x6f, 0x7e, 0x7f, 0xd6, 0xe7, 0xf0];
            bytes.push(moves[rng.below(16) as usize]);
        }
    }
    let reg = (rng.next() as u8) & 0x38;
    match (modrm_memory, rng.below(2)) {
        (false, _) => bytes.push(0xc0 | reg | rng.next() as u8 & 7),
        // [rbx + disp8]
        (_, 0) => bytes.extend([0x43 | reg, if rng.below(2) == 0 { 0x20 } else { rng.next() as u8 }]),
        // [rbx + rsi * scale + disp32]
        _ => {
            bytes.extend([0x84 | reg, (rng.next() as u8) & 0xc0 | 0x33]);
            bytes.extend((rng.below(256) as u32).to_le_bytes());
        }
    }
    while bytes.len() < 15 {
        bytes.extend(rng.next().to_le_bytes());
    }
    bytes.truncate(15);
    bytes
}

/// Registers for `insn`: random, but pointers where pointers are wanted.
pub fn registers(rng: &mut Rng, insn: &Insn) -> [u64; 16] {
    let mut gpr = [0; 16];
    for r in &mut gpr {
        *r = rng.value();
    }
    let pointer = |rng: &mut Rng| MIDDLE + if rng.below(2) == 0 { rng.below(32) * 32 } else { rng.below(1024) };
    let memory = insn.operands.iter().any(|o| matches!(o, Operand::Mem { .. }));
    if memory || insn.op == Op::Xlat {
        (gpr[3], gpr[11]) = (pointer(rng), pointer(rng));
        (gpr[6], gpr[14]) = (rng.below(64), rng.below(64));
        // With REX.B and REX.X in 64-bit mode these are R11 and R14.
    }
    if insn.op == Op::Xlat {
        gpr[3] = MIDDLE;
    }
    if let (true, [_, Operand::Gpr { index, .. }, _]) =
        (matches!(insn.op, Op::Bt | Op::Bts | Op::Btr | Op::Btc), insn.operands)
    {
        if memory && !matches!(index, 3 | 6 | 11 | 14) {
            gpr[usize::from(index)] = rng.below(20000).wrapping_sub(10000);
        }
    }
    if matches!(insn.op, Op::Movs | Op::Cmps | Op::Stos | Op::Lods | Op::Scas) {
        (gpr[6], gpr[7]) = (pointer(rng), pointer(rng));
        gpr[1] = rng.below(20);
    }
    if matches!(insn.op, Op::Push | Op::Pop | Op::Pushf | Op::Popf | Op::Enter | Op::Leave) {
        (gpr[4], gpr[5]) = (pointer(rng), pointer(rng));
    }
    if insn.op == Op::Enter {
        // The frames that it copies are not those that it writes.
        gpr[5] = gpr[4] + 0x200;
    }
    if matches!(insn.op, Op::Div | Op::Idiv) && rng.below(4) != 0 {
        // Mostly quotients that fit.
        gpr[2] = [0, u64::MAX, rng.below(16)][rng.below(3) as usize];
    }
    gpr
}
