//! The vocabulary of the opcode tables: where operands come from, properties of opcodes, rows.
//!
//! Argument letters are those of the opcode tables in APM vol. 3, appendix A: E is the ModRM register or memory, G the
//! ModRM register, I an immediate, J a displacement, M memory only, O an absolute address, and so on; b, w, d, q are
//! sizes 1 to 8, v the operand size, z the same but at most 4, y 4 or 8.

use crate::insn::{Op, Seg};

/// Where an operand comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arg {
    None,
    Eb,
    Ew,
    /// Operand size but at most 4.
    Ez,
    Ev,
    /// Register of the operand size, or 2 bytes of memory.
    EvMw,
    /// At most 4 bytes, 8 with REX.W, whatever the operand-size prefix says.
    Ey,
    Gb,
    Gv,
    Gy,
    /// Immediates: byte, byte sign-extended to the operand size, word, z, v.
    Ib,
    Ibs,
    Iw,
    Iz,
    Iv,
    /// Word and byte: ENTER.
    IwIb,
    /// The constant 1.
    One,
    Jb,
    Jz,
    /// Memory of no particular size.
    M,
    Mv,
    My,
    /// 8 bytes, or 16 with REX.W.
    Mq2,
    /// Far pointer in memory: offset of the operand size, then selector.
    Mp,
    /// Far pointer in the instruction.
    Ap,
    Ob,
    Ov,
    Sw,
    Cd,
    Dd,
    /// General register in ModRM.rm, mod ignored: the other side of a control or debug register.
    Rd,
    Al,
    Ax,
    /// eAX: like `Ax` but at most 4 bytes.
    Eax,
    Cl,
    Dx,
    /// Register in the low bits of the opcode.
    Zb,
    Zv,
    S(Seg),
    /// Vector register in ModRM.reg, of this many bytes (`Vx`: 16 or 32 by VEX.L).
    V(u8),
    Vx,
    /// Vector register or memory.
    W(u8),
    Wx,
    /// MMX register in ModRM.reg, of this many bytes.
    P(u8),
    /// MMX register or memory.
    Q(u8),
    /// Vector register in ModRM.rm or VEX.vvvv.
    U(u8),
    H(u8),
}

impl Arg {
    /// What an argument says about the whole row.
    const fn flags(self) -> u16 {
        use Arg::*;
        match self {
            Rd => flag::MODRM | flag::NO_MEM,
            H(_) => flag::VVVV,
            Eb | Ew | Ez | Ev | EvMw | Ey | Gb | Gv | Gy | M | Mv | My | Mq2 | Mp | Sw | Cd | Dd => flag::MODRM,
            V(_) | Vx | W(_) | Wx | U(_) | P(_) | Q(_) => flag::MODRM,
            None | Ib | Ibs | Iw | Iz | Iv | IwIb | One | Jb | Jz | Ap | Ob | Ov => 0,
            Al | Ax | Eax | Cl | Dx | Zb | Zv | S(_) => 0,
        }
    }
}

/// Properties of an opcode, as bits.
pub(crate) mod flag {
    /// LOCK is allowed with a memory destination.
    pub(crate) const LOCK: u16 = 1;
    /// Operand size 1.
    pub(crate) const BYTE: u16 = 2;
    /// Operand size 8 is the default in 64-bit mode.
    pub(crate) const D64: u16 = 4;
    /// Operand size at most 4.
    pub(crate) const MAX32: u16 = 8;
    /// Undefined in 64-bit mode.
    pub(crate) const NO64: u16 = 16;
    /// Exists in 64-bit mode only.
    pub(crate) const ONLY64: u16 = 32;
    /// `Insn::cond` is the low nibble of the opcode.
    pub(crate) const COND: u16 = 64;
    /// Look further: `group` with the ModRM byte.
    pub(crate) const GROUP: u16 = 128;
    /// There is a ModRM byte. Set for rows with an argument that needs it, or by the row itself.
    pub(crate) const MODRM: u16 = 256;
    /// ModRM.rm is a register whatever ModRM.mod says. Set for rows with `Rd`.
    pub(crate) const NO_MEM: u16 = 512;
    /// VEX.vvvv is an operand. Set for rows with `H`.
    pub(crate) const VVVV: u16 = 1024;
}

/// What the tables say about one opcode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) op: Op,
    pub(crate) args: [Arg; 3],
    pub(crate) flags: u16,
}

/// The row of an opcode, or `None` for one that is not ours.
pub(crate) type Lookup = Option<Row>;

pub(crate) const fn row(op: Op, a: Arg, b: Arg, flags: u16) -> Lookup {
    row3(op, a, b, Arg::None, flags)
}

pub(crate) const fn row3(op: Op, a: Arg, b: Arg, c: Arg, flags: u16) -> Lookup {
    let flags = flags | a.flags() | b.flags() | c.flags();
    Some(Row { op, args: [a, b, c], flags })
}
