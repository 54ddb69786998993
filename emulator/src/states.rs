//! How an instruction that waits for user space is written into the state of a VM.

use crate::{Insn, Mem, Mode, Op, Operand, Rep, Seg};

::state::state! {
    value Insn { len, mode, op, cond, opsize, addrsize, rep, lock, vex, segment, operands, mem, imm }
    value Mem { seg, base, index, scale, disp, rip_relative }
}

::state::tagged! {
    Operand {
        0 = None,
        1 = Gpr { index, size },
        2 = HighByte { index },
        3 = Mem { size },
        4 = Imm,
        5 = Seg(register),
        6 = Cr(n),
        7 = Dr(n),
        8 = Vec { index, size },
        9 = Mmx { index, size },
    }
}

::state::units! { Mode { Real, V86, Prot16, Prot32, Long64 } }
::state::units! { Seg { Es, Cs, Ss, Ds, Fs, Gs, Ldtr, Tr } }
::state::units! { Rep { None, Repne, Rep } }
// The order is that of the format's first version; what comes later goes to the end.
#[rustfmt::skip]
::state::units! {
    Op {
        Mov, Movzx, Movsx, Movbe, Movnti, Lea, Xchg, Bswap, Cmov, Set, Xlat, MovSeg, Les, Add, Or, Adc, Sbb, And, Sub,
        Xor, Cmp, Test, Inc, Dec, Not, Neg, Cmpxchg, Cmpxchg8b, Xadd, Mul, Imul, Imul2, Div, Idiv, Cbw, Cwd, Rol, Ror,
        Rcl, Rcr, Shl, Shr, Sar, Shld, Shrd, Bt, Bts, Btr, Btc, Bsf, Bsr, Tzcnt, Lzcnt, Popcnt, Push, Pop, Pushf, Popf,
        Pusha, Popa, Enter, Leave, Call, Jmp, Jcc, Loop, Loope, Loopne, Jcxz, Ret, CallFar, JmpFar, RetFar, Iret, Lahf,
        Sahf, Clc, Stc, Cmc, Cld, Std, Cli, Sti, Movs, Cmps, Stos, Lods, Scas, Ins, Outs, In, Out, MovFromCr, MovToCr,
        MovFromDr, MovToDr, Clts, Lmsw, Smsw, Invlpg, Sgdt, Sidt, Lgdt, Lidt, Sldt, Str, Lldt, Ltr, VecMov,
        VecMovAligned, VecMovZx, VecMovLow, VecMovHigh, MmxMov, Fnstcw, Fnstsw, Nop, Pause, Cpuid, Rdmsr, Wrmsr, Rdtsc,
        Rdtscp, Rdpmc, Hlt, Vmmcall, Vmcall, Invd, Wbinvd, Xgetbv, Xsetbv, Monitor, Mwait, Int3, Into, Int, Icebp,
        Vmrun, Vmload, Vmsave, Stgi, Clgi, Skinit, Invlpga, Rsm,
    }
}

/// Makes `[Operand; 3]` a value.
impl Default for Operand {
    fn default() -> Self {
        Self::None
    }
}
