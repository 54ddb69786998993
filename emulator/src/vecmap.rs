//! The vector moves: opcodes that mean different things with 66, F3, F2 and VEX.

use crate::arg::{self, Arg, Lookup};
use crate::insn::{Op, Rep};
use crate::modrm::ModRm;
use crate::prefix::{Map, Prefixes};

/// The mandatory prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pp {
    None,
    P66,
    F3,
    F2,
}

const fn row(op: Op, a: Arg, b: Arg) -> Lookup {
    row3(op, a, b, Arg::None)
}

const fn row3(op: Op, a: Arg, b: Arg, c: Arg) -> Lookup {
    arg::row3(op, a, b, c, 0)
}

/// Is this opcode of map 0F one that `lookup` decides?
pub(crate) const fn is_vector(opcode: u8) -> bool {
    matches!(opcode, 0x10..=0x17 | 0x28 | 0x29 | 0x2b | 0x6e | 0x6f | 0x7e | 0x7f | 0xd6 | 0xe7 | 0xf0)
}

/// The row of a vector move.
pub(crate) fn lookup(p: &Prefixes, modrm: ModRm) -> Lookup {
    use Arg::{Ey, H, P, Q, U, V, Vx, W, Wx};
    use Op::{MmxMov, VecMov, VecMovAligned, VecMovHigh, VecMovLow, VecMovZx};
    let pp = match (p.rep, p.opsize) {
        (Rep::Rep, _) => Pp::F3,
        (Rep::Repne, _) => Pp::F2,
        (Rep::None, true) => Pp::P66,
        (Rep::None, false) => Pp::None,
    };
    let reg = modrm.is_reg();
    // 256-bit forms exist for the full moves only; for scalar ones VEX.L is ignored.
    let wide = matches!(p.opcode, 0x10 | 0x11 | 0x28 | 0x29 | 0x2a | 0x2b | 0x6f | 0x7f | 0xe7 | 0xf0);
    if p.l && !wide {
        return None;
    }
    if p.map == Map::Three38 {
        // MOVNTDQA.
        return if p.opcode == 0x2a && pp == Pp::P66 && !reg { row(VecMovAligned, Vx, Wx) } else { None };
    }
    match (p.opcode, pp) {
        (0x10, Pp::None | Pp::P66) => row(VecMov, Vx, Wx),
        (0x11, Pp::None | Pp::P66) => row(VecMov, Wx, Vx),
        (0x10 | 0x11, Pp::F3 | Pp::F2) => {
            let size = if pp == Pp::F3 { 4 } else { 8 };
            match (p.opcode, reg) {
                (0x10, true) if p.vex => row3(VecMovLow, V(size), H(16), U(size)),
                (_, true) if p.vex => row3(VecMovLow, U(size), H(16), V(size)),
                (0x10, true) => row(VecMovLow, V(size), U(size)),
                (_, true) => row(VecMovLow, U(size), V(size)),
                (0x10, false) => row(VecMovZx, V(size), W(size)),
                _ => row(VecMovZx, W(size), V(size)),
            }
        }
        (0x12, Pp::None | Pp::P66) if !reg && p.vex => row3(VecMovLow, V(8), H(16), W(8)),
        (0x12, Pp::None | Pp::P66) if !reg => row(VecMovLow, V(8), W(8)),
        (0x16, Pp::None | Pp::P66) if !reg && p.vex => row3(VecMovHigh, V(8), H(16), W(8)),
        (0x16, Pp::None | Pp::P66) if !reg => row(VecMovHigh, V(8), W(8)),
        (0x13, Pp::None | Pp::P66) if !reg => row(VecMovLow, W(8), V(8)),
        (0x17, Pp::None | Pp::P66) if !reg => row(VecMovHigh, W(8), V(8)),
        (0x28, Pp::None | Pp::P66) => row(VecMovAligned, Vx, Wx),
        (0x29, Pp::None | Pp::P66) => row(VecMovAligned, Wx, Vx),
        (0x2b, Pp::None | Pp::P66) if !reg => row(VecMovAligned, Wx, Vx),
        (0x6e, Pp::None) if !p.vex => row(MmxMov, P(if p.w { 8 } else { 4 }), Ey),
        (0x7e, Pp::None) if !p.vex => row(MmxMov, Ey, P(if p.w { 8 } else { 4 })),
        (0x6f, Pp::None) if !p.vex => row(MmxMov, P(8), Q(8)),
        (0x7f, Pp::None) if !p.vex => row(MmxMov, Q(8), P(8)),
        (0xe7, Pp::None) if !p.vex && !reg => row(MmxMov, Q(8), P(8)),
        (0x6e, Pp::P66) => row(VecMovZx, V(if p.w { 8 } else { 4 }), Ey),
        (0x7e, Pp::P66) => row(VecMovZx, Ey, V(if p.w { 8 } else { 4 })),
        (0x7e, Pp::F3) => row(VecMovZx, V(8), W(8)),
        (0xd6, Pp::P66) => row(VecMovZx, W(8), V(8)),
        (0x6f, Pp::P66) => row(VecMovAligned, Vx, Wx),
        (0x6f, Pp::F3) => row(VecMov, Vx, Wx),
        (0x7f, Pp::P66) => row(VecMovAligned, Wx, Vx),
        (0x7f, Pp::F3) => row(VecMov, Wx, Vx),
        (0xe7, Pp::P66) if !reg => row(VecMovAligned, Wx, Vx),
        // LDDQU.
        (0xf0, Pp::F2) if !reg => row(VecMov, Vx, Wx),
        _ => None,
    }
}
