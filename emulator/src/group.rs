//! Opcodes whose operation depends on the ModRM byte (APM vol. 3, appendix A, "ModRM extensions").

use crate::arg::flag::{D64, GROUP, LOCK, MODRM};
use crate::arg::{Arg, Lookup, Row, row};
use crate::insn::{Op, Rep};
use crate::modrm::ModRm;
use crate::opmap::{alu, alu_lock, plain};
use crate::prefix::{Map, Prefixes};

/// Completes a row whose operation depends on ModRM.
pub(crate) fn group(base: Row, p: &Prefixes, modrm: ModRm) -> Lookup {
    use Arg::{Eb, Ev, EvMw, Ew, Ib, Iz, M, Mp, Mq2};
    let [a, b, _] = base.args;
    let n = modrm.byte >> 3 & 7;
    let f = base.flags & !GROUP;
    let two = p.map == Map::Two;
    if two {
        return match p.opcode {
            0x00 => match n {
                0 => row(Op::Sldt, EvMw, Arg::None, 0),
                1 => row(Op::Str, EvMw, Arg::None, 0),
                2 => row(Op::Lldt, Ew, Arg::None, 0),
                3 => row(Op::Ltr, Ew, Arg::None, 0),
                _ => None,
            },
            0x01 if modrm.is_reg() => secondary(modrm.byte),
            0x01 => match n {
                0 => row(Op::Sgdt, M, Arg::None, 0),
                1 => row(Op::Sidt, M, Arg::None, 0),
                2 => row(Op::Lgdt, M, Arg::None, 0),
                3 => row(Op::Lidt, M, Arg::None, 0),
                4 => row(Op::Smsw, EvMw, Arg::None, 0),
                6 => row(Op::Lmsw, Ew, Arg::None, 0),
                7 => row(Op::Invlpg, M, Arg::None, 0),
                _ => None,
            },
            // Fences; CLFLUSH, CLFLUSHOPT and CLWB. The other forms move state that lives elsewhere.
            0xae if p.rep == Rep::None
                && if modrm.is_reg() { n >= 5 && !p.opsize } else { n == 7 || n == 6 && p.opsize } =>
            {
                row(Op::Nop, Arg::None, Arg::None, MODRM)
            }
            0xba => match n {
                4 => row(Op::Bt, a, b, 0),
                5 => row(Op::Bts, a, b, LOCK),
                6 => row(Op::Btr, a, b, LOCK),
                7 => row(Op::Btc, a, b, LOCK),
                _ => None,
            },
            0xc7 if n == 1 && !modrm.is_reg() => row(Op::Cmpxchg8b, Mq2, Arg::None, LOCK),
            _ => None,
        };
    }
    match p.opcode {
        0x80..=0x83 => row(alu(n), a, b, f | alu_lock(n)),
        0x8f if n == 0 => row(Op::Pop, a, b, f),
        0xc0 | 0xc1 | 0xd0..=0xd3 => {
            let op = match n {
                0 => Op::Rol,
                1 => Op::Ror,
                2 => Op::Rcl,
                3 => Op::Rcr,
                4 | 6 => Op::Shl,
                5 => Op::Shr,
                _ => Op::Sar,
            };
            row(op, a, b, f)
        }
        0xc6 | 0xc7 if n == 0 => row(Op::Mov, a, b, f),
        0xd9 if n == 7 && !modrm.is_reg() => row(Op::Fnstcw, EvMw, Arg::None, 0),
        0xdd if n == 7 && !modrm.is_reg() => row(Op::Fnstsw, EvMw, Arg::None, 0),
        0xf6 | 0xf7 => match n {
            0 | 1 if a == Eb => row(Op::Test, a, Ib, f),
            0 | 1 => row(Op::Test, a, Iz, f),
            2 => row(Op::Not, a, b, f | LOCK),
            3 => row(Op::Neg, a, b, f | LOCK),
            4 => row(Op::Mul, a, b, f),
            5 => row(Op::Imul, a, b, f),
            6 => row(Op::Div, a, b, f),
            _ => row(Op::Idiv, a, b, f),
        },
        0xfe | 0xff => match n {
            0 => row(Op::Inc, a, b, f | LOCK),
            1 => row(Op::Dec, a, b, f | LOCK),
            2 if a == Ev => row(Op::Call, a, b, D64),
            // REX.W widens the offset, as in LSS, LFS and LGS. AMD's processors ignore it here; guests built for others
            // get to this through a device, and stock's emulator reads all ten bytes.
            3 if a == Ev => row(Op::CallFar, Mp, b, 0),
            4 if a == Ev => row(Op::Jmp, a, b, D64),
            5 if a == Ev => row(Op::JmpFar, Mp, b, 0),
            6 if a == Ev => row(Op::Push, a, b, D64),
            _ => None,
        },
        _ => None,
    }
}

/// 0F 01 with a register form: instructions without operands (APM vol. 3, appendix A, "secondary opcode"). Prefixes
/// are ignored: outside SEV-ES guests VMGEXIT (F3 VMMCALL) is VMMCALL, and the others are decoded for their length.
fn secondary(byte: u8) -> Lookup {
    let op = match byte {
        0xc1 => Op::Vmcall,
        0xc8 | 0xfa => Op::Monitor,
        0xc9 | 0xfb => Op::Mwait,
        0xd0 => Op::Xgetbv,
        0xd1 => Op::Xsetbv,
        0xd8 => Op::Vmrun,
        0xd9 => Op::Vmmcall,
        0xda => Op::Vmload,
        0xdb => Op::Vmsave,
        0xdc => Op::Stgi,
        0xdd => Op::Clgi,
        0xde => Op::Skinit,
        0xdf => Op::Invlpga,
        0xf9 => Op::Rdtscp,
        0xe0..=0xe7 => return row(Op::Smsw, Arg::EvMw, Arg::None, 0),
        0xf0..=0xf7 => return row(Op::Lmsw, Arg::Ew, Arg::None, 0),
        _ => return None,
    };
    plain(op)
}
