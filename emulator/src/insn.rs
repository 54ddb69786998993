//! What the decoder hands to the executor: operation, operands, sizes and prefixes of one instruction, as plain data.

/// The part of the processor mode that changes how bytes are decoded and addresses are formed.
///
/// Compatibility mode is `Prot16` or `Prot32`: apart from paging it is the protected mode it imitates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CR0.PE = 0. Default operand and address size 16 bits.
    Real,
    /// CR0.PE = 1 and RFLAGS.VM = 1.
    V86,
    /// Protected (or compatibility) mode with CS.D = 0.
    Prot16,
    /// Protected (or compatibility) mode with CS.D = 1.
    Prot32,
    /// EFER.LMA = 1 and CS.L = 1.
    Long64,
}

impl Mode {
    /// Segments are loaded by `selector << 4`, without descriptors.
    pub const fn is_realish(self) -> bool {
        matches!(self, Mode::Real | Mode::V86)
    }

    /// 64-bit mode.
    pub const fn is_long(self) -> bool {
        matches!(self, Mode::Long64)
    }
}

/// Why the bytes are not an instruction that can be executed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes given end inside the instruction (and there are fewer than 15 of them): fetch more and try again.
    NeedMoreBytes,
    /// Perhaps a valid instruction, but none that this crate knows.
    Unknown,
    /// Architecturally undefined: the guest gets #UD.
    Invalid,
    /// Longer than 15 bytes: the guest gets #GP(0).
    TooLong,
}

/// A segment register. The first six have the numbers that ModRM.reg uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Seg {
    /// ES.
    Es = 0,
    /// CS.
    Cs = 1,
    /// SS.
    Ss = 2,
    /// DS.
    Ds = 3,
    /// FS.
    Fs = 4,
    /// GS.
    Gs = 5,
    /// The local descriptor table register.
    Ldtr = 6,
    /// The task register.
    Tr = 7,
}

impl Seg {
    /// The segment register with number `n` in ModRM.reg, if there is one.
    pub const fn from_reg(n: u8) -> Option<Seg> {
        Some(match n {
            0 => Seg::Es,
            1 => Seg::Cs,
            2 => Seg::Ss,
            3 => Seg::Ds,
            4 => Seg::Fs,
            5 => Seg::Gs,
            _ => return None,
        })
    }
}

/// The F2/F3 prefix in force; of several the last one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rep {
    /// Neither F2 nor F3.
    None,
    /// F2.
    Repne,
    /// F3.
    Rep,
}

/// One operand. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// No operand at this place.
    None,
    /// The low `size` bytes of general purpose register `index` (0 = RAX .. 15 = R15).
    Gpr {
        /// Register number.
        index: u8,
        /// 1, 2, 4 or 8.
        size: u8,
    },
    /// Bits 15:8 of register `index` (AH, CH, DH, BH for 0 to 3).
    HighByte {
        /// Register number, 0 to 3.
        index: u8,
    },
    /// `size` bytes of memory at [`Insn::mem`]; size 0 where only the address matters (LEA, INVLPG).
    Mem {
        /// Number of bytes.
        size: u8,
    },
    /// [`Insn::imm`], already extended to the operand size (branches: the displacement, sign-extended).
    Imm,
    /// A segment register.
    Seg(Seg),
    /// Control register.
    Cr(u8),
    /// Debug register.
    Dr(u8),
    /// The low `size` bytes of vector register `index` (4, 8, 16 or 32).
    Vec {
        /// Register number.
        index: u8,
        /// Number of bytes.
        size: u8,
    },
    /// The low `size` bytes of MMX register `index` (4 or 8).
    Mmx {
        /// Register number, 0 to 7.
        index: u8,
        /// Number of bytes.
        size: u8,
    },
}

/// A memory operand as encoded, before registers are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mem {
    /// Segment after overrides and defaults.
    pub seg: Seg,
    /// Base register.
    pub base: Option<u8>,
    /// Index register.
    pub index: Option<u8>,
    /// Scale as a shift count: 0 to 3.
    pub scale: u8,
    /// Displacement (or absolute address), sign-extended.
    pub disp: u64,
    /// Relative to the next instruction's RIP.
    pub rip_relative: bool,
}

/// One decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// The mode it was decoded for.
    pub mode: Mode,
    /// The operation.
    pub op: Op,
    /// Condition code (low nibble of the opcode) of Jcc, SETcc and CMOVcc.
    pub cond: u8,
    /// Effective operand size in bytes: 1, 2, 4 or 8 (1 for the byte forms of string and I/O instructions).
    pub opsize: u8,
    /// Effective address size in bytes: 2, 4 or 8.
    pub addrsize: u8,
    /// The F2/F3 prefix.
    pub rep: Rep,
    /// LOCK prefix present (and legal).
    pub lock: bool,
    /// VEX-encoded: writes to vector registers clear the bits above.
    pub vex: bool,
    /// Segment of the source of string instructions; equal to `mem.seg` where there is a memory operand.
    pub segment: Seg,
    /// Destination first, as in the manuals.
    pub operands: [Operand; 3],
    /// The memory operand; meaningful if one of `operands` is `Mem`.
    pub mem: Mem,
    /// The immediate, extended as the operation wants it; far pointers: `selector << 32 | offset`;
    /// ENTER: `level << 16 | size`.
    pub imm: u64,
}

impl Insn {
    /// Has it a memory operand, and touches no memory beside it?
    pub fn touches_only_its_operand(&self) -> bool {
        let operand = self.operands.iter().any(|o| matches!(o, Operand::Mem { .. }));
        operand && !matches!(self.op, Op::Push | Op::Pop | Op::Call | Op::CallFar | Op::JmpFar)
    }

    /// Does it step through strings with RSI or RDI, and perhaps RCX?
    pub const fn is_string(&self) -> bool {
        matches!(self.op, Op::Movs | Op::Cmps | Op::Stos | Op::Lods | Op::Scas | Op::Ins | Op::Outs)
    }

    /// RIP of the next instruction for an instruction at `rip`, wrapped as the mode does.
    pub const fn next_rip(&self, rip: u64) -> u64 {
        let next = rip.wrapping_add(self.len as u64);
        if self.mode.is_long() { next } else { next & 0xffff_ffff }
    }
}

/// The operations this crate decodes. Those from `Cpuid` on are decoded for their
/// length only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the mnemonics
#[rustfmt::skip]
pub enum Op {
    // Moves.
    Mov, Movzx, Movsx, Movbe, Movnti, Lea, Xchg, Bswap, Cmov, Set, Xlat, MovSeg, Les,
    // Arithmetic and logic. The first eight in the order of the opcode map.
    Add, Or, Adc, Sbb, And, Sub, Xor, Cmp, Test, Inc, Dec, Not, Neg, Cmpxchg, Cmpxchg8b, Xadd,
    Mul, Imul, Imul2, Div, Idiv, Cbw, Cwd,
    // Shifts and bits.
    Rol, Ror, Rcl, Rcr, Shl, Shr, Sar, Shld, Shrd, Bt, Bts, Btr, Btc, Bsf, Bsr, Tzcnt, Lzcnt, Popcnt,
    // Stack and control flow.
    Push, Pop, Pushf, Popf, Pusha, Popa, Enter, Leave, Call, Jmp, Jcc, Loop, Loope, Loopne, Jcxz, Ret,
    CallFar, JmpFar, RetFar, Iret,
    // Flags.
    Lahf, Sahf, Clc, Stc, Cmc, Cld, Std, Cli, Sti,
    // Strings and ports.
    Movs, Cmps, Stos, Lods, Scas, Ins, Outs, In, Out,
    // System.
    MovFromCr, MovToCr, MovFromDr, MovToDr, Clts, Lmsw, Smsw, Invlpg, Sgdt, Sidt, Lgdt, Lidt, Sldt, Str,
    Lldt, Ltr,
    // Vector moves: MOVUPS and its like, MOVAPS and its like, low part with zero extension (MOVD, MOVQ, MOVSS load),
    // low part merged (MOVSS register form, MOVLPS), high half (MOVHPS).
    VecMov, VecMovAligned, VecMovZx, VecMovLow, VecMovHigh,
    // MOVD, MOVQ and MOVNTQ of the MMX registers; words of the x87 state.
    MmxMov, Fnstcw, Fnstsw,
    // NOP, hints, fences and cache-line flushes; PAUSE.
    Nop, Pause,
    // Length only.
    Cpuid, Rdmsr, Wrmsr, Rdtsc, Rdtscp, Rdpmc, Hlt, Vmmcall, Vmcall, Invd, Wbinvd, Xgetbv, Xsetbv, Monitor, Mwait,
    Int3, Into, Int, Icebp, Vmrun, Vmload, Vmsave, Stgi, Clgi, Skinit, Invlpga, Rsm,
}
