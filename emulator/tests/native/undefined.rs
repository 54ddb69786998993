//! What the manuals leave open: flags after some instructions, and results of a few.

use emulator::{Insn, Op, Operand};

/// Arithmetic flags and DF: what user mode can see changing.
pub const CF: u64 = 1;
pub const PF: u64 = 4;
pub const AF: u64 = 0x10;
pub const ZF: u64 = 0x40;
pub const SF: u64 = 0x80;
pub const OF: u64 = 0x800;
pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;

/// Flags that the manuals leave undefined after `insn` with the given count operand.
pub fn undefined_flags(insn: &Insn, count: u64) -> u64 {
    let bits = 8 * u64::from(insn.opsize);
    let shifted_out = if count >= bits { CF } else { 0 };
    let overflow = if count == 1 { 0 } else { OF };
    match insn.op {
        _ if count == 0 => 0,
        Op::And | Op::Or | Op::Xor | Op::Test => AF,
        Op::Shl | Op::Shr => AF | overflow | shifted_out,
        Op::Sar | Op::Shld | Op::Shrd => AF | overflow,
        Op::Rol | Op::Ror | Op::Rcl | Op::Rcr => overflow,
        Op::Mul | Op::Imul | Op::Imul2 => SF | ZF | AF | PF,
        Op::Div | Op::Idiv => ARITH,
        Op::Bt | Op::Bts | Op::Btr | Op::Btc => OF | SF | AF | PF,
        Op::Bsf | Op::Bsr => ARITH & !ZF,
        Op::Tzcnt | Op::Lzcnt => OF | SF | PF | AF,
        _ => 0,
    }
}

/// By how much a shift or rotate does it (`rcx`: the register), 1 for the rest.
pub fn shift_count(insn: &Insn, rcx: u64) -> u64 {
    let count = if insn.operands[2] == Operand::None { &insn.operands[1] } else { &insn.operands[2] };
    match insn.op {
        Op::Rol | Op::Ror | Op::Rcl | Op::Rcr | Op::Shl | Op::Shr | Op::Sar | Op::Shld | Op::Shrd => {
            let count = if matches!(count, Operand::Imm) { insn.imm } else { rcx };
            count & if insn.opsize == 8 { 63 } else { 31 }
        }
        _ => 1,
    }
}
