//! Execution: the state of one instruction under way, access to its operands, and the dispatch to the families.

mod alu;
mod bits;
mod branch;
mod far;
mod io;
mod mov;
mod muldiv;
mod segment;
mod shift;
mod sse;
mod stack;
mod string;
mod system;

use crate::address;
use crate::flags::{FIXED, RF, TF, mask};
use crate::insn::{Insn, Op, Operand, Seg};
use crate::machine::{Access, Exception, Machine, Stop};

pub use string::MAX_ITERATIONS;

/// How events are held off after an instruction (APM vol. 2, 15.21.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shadow {
    /// STI that set IF.
    Sti,
    /// MOV or POP to SS; holds off debug traps as well.
    MovSs,
}

/// What the caller has to do after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Done {
    /// Not finished, RIP unchanged: a repeated string instruction has iterations left, or a locked one lost a race.
    /// Emulate again or let the guest execute it again.
    pub more: bool,
    /// Nothing was done at all: another CPU changed the memory operand of a locked instruction.
    pub lost_race: bool,
    /// The interrupt shadow that the instruction leaves.
    pub shadow: Option<Shadow>,
    /// RFLAGS.TF was set: #DB with DR6.BS is due.
    pub single_step: bool,
}

/// Why an executor stops early.
pub(crate) enum Halt {
    Stop(Stop),
    /// Another CPU changed the memory operand of a locked instruction.
    LostRace,
}

impl From<Stop> for Halt {
    fn from(s: Stop) -> Halt {
        Halt::Stop(s)
    }
}

impl From<Exception> for Halt {
    fn from(e: Exception) -> Halt {
        Halt::Stop(Stop::Fault(e))
    }
}

pub(crate) type Res<T = ()> = Result<T, Halt>;

/// One instruction under way. `next` and `flags` become RIP and RFLAGS when it completes.
pub(crate) struct Step<'a, M> {
    pub(crate) m: &'a mut M,
    pub(crate) insn: &'a Insn,
    pub(crate) next: u64,
    pub(crate) flags: u64,
    pub(crate) done: Done,
}

/// Executes `insn`, which was decoded at the machine's CS:RIP in its current mode.
///
/// On `Err` the state is that before the instruction (or before the current iteration of a repeated one). Operations
/// that are decoded for their length only are [`Stop::Unhandleable`].
pub fn emulate<M: Machine>(m: &mut M, insn: &Insn) -> Result<Done, Stop> {
    let flags = m.rflags();
    let next = insn.next_rip(m.rip());
    let done = Done { single_step: flags & TF != 0, ..Done::default() };
    let mut step = Step { m, insn, next, flags, done };
    match step.run() {
        Ok(()) => {}
        Err(Halt::LostRace) => return Ok(Done { more: true, lost_race: true, ..Done::default() }),
        Err(Halt::Stop(stop)) => return Err(stop),
    }
    if !step.done.more {
        step.m.set_rip(step.next);
        // IRET and POPF have put the new RF where it belongs; any other instruction clears it.
        if insn.op != Op::Iret {
            step.flags &= !RF;
        }
    }
    step.m.set_rflags(step.flags | FIXED);
    step.m.commit();
    Ok(step.done)
}

impl<M: Machine> Step<'_, M> {
    fn run(&mut self) -> Res {
        match self.insn.op {
            Op::Mov | Op::Movzx | Op::Movnti => self.mov(),
            Op::Movsx => self.movsx(),
            Op::Movbe => self.movbe(),
            Op::Lea => self.lea(),
            Op::Xchg => self.xchg(),
            Op::Bswap => self.bswap(),
            Op::Cmov => self.cmov(),
            Op::Set => self.setcc(),
            Op::Xlat => self.xlat(),
            Op::MovSeg => self.mov_seg(),
            Op::Les => self.load_far_pointer(),
            Op::Add | Op::Or | Op::Adc | Op::Sbb | Op::And | Op::Sub | Op::Xor => self.alu(),
            Op::Cmp | Op::Test => self.compare(),
            Op::Inc | Op::Dec => self.inc_dec(),
            Op::Not | Op::Neg => self.not_neg(),
            Op::Cmpxchg => self.cmpxchg(),
            Op::Cmpxchg8b => self.cmpxchg_wide(),
            Op::Xadd => self.xadd(),
            Op::Cbw => self.cbw(),
            Op::Cwd => self.cwd(),
            Op::Mul | Op::Imul => self.mul(),
            Op::Imul2 => self.imul2(),
            Op::Div | Op::Idiv => self.div(),
            Op::Rol | Op::Ror | Op::Rcl | Op::Rcr | Op::Shl | Op::Shr | Op::Sar => self.shift(),
            Op::Shld | Op::Shrd => self.shift_double(),
            Op::Bt | Op::Bts | Op::Btr | Op::Btc => self.bit_test(),
            Op::Bsf | Op::Bsr => self.bit_scan(),
            Op::Tzcnt | Op::Lzcnt | Op::Popcnt => self.bit_count(),
            Op::Push => self.push_op(),
            Op::Pop => self.pop_op(),
            Op::Pushf => self.pushf(),
            Op::Popf => self.popf(),
            Op::Pusha => self.pusha(),
            Op::Popa => self.popa(),
            Op::Enter => self.enter(),
            Op::Leave => self.leave(),
            Op::Call => self.call(),
            Op::Jmp => self.jmp(),
            Op::Jcc => self.jcc(),
            Op::Loop | Op::Loope | Op::Loopne | Op::Jcxz => self.loop_cc(),
            Op::Ret => self.ret(),
            Op::CallFar | Op::JmpFar => self.jump_far(),
            Op::RetFar => self.ret_far(),
            Op::Iret => self.iret(),
            Op::Lahf | Op::Sahf | Op::Clc | Op::Stc | Op::Cmc | Op::Cld | Op::Std => self.flag_op(),
            Op::Cli | Op::Sti => self.interrupt_flag(),
            Op::Movs | Op::Cmps | Op::Stos | Op::Lods | Op::Scas | Op::Ins | Op::Outs => self.string(),
            Op::In => self.port_in(),
            Op::Out => self.port_out(),
            Op::MovFromCr | Op::MovToCr => self.mov_cr(),
            Op::MovFromDr | Op::MovToDr => self.mov_dr(),
            Op::Clts | Op::Lmsw => self.change_msw(),
            Op::Smsw => self.smsw(),
            Op::Invlpg => self.invlpg(),
            Op::Sgdt | Op::Sidt => self.store_table(),
            Op::Lgdt | Op::Lidt => self.load_table(),
            Op::Sldt | Op::Str => self.store_system_segment(),
            Op::Lldt | Op::Ltr => self.load_system_segment(),
            Op::VecMov | Op::VecMovAligned | Op::VecMovZx | Op::VecMovLow | Op::VecMovHigh => self.vector_move(),
            Op::MmxMov => self.mmx_move(),
            Op::Fnstcw | Op::Fnstsw => self.store_x87_word(),
            Op::Nop | Op::Pause => Ok(()),
            Op::Cpuid | Op::Rdmsr | Op::Wrmsr | Op::Rdtsc | Op::Rdtscp | Op::Rdpmc | Op::Hlt | Op::Vmmcall => {
                unhandled()
            }
            Op::Vmcall | Op::Invd | Op::Wbinvd | Op::Xgetbv | Op::Xsetbv | Op::Monitor | Op::Mwait => unhandled(),
            Op::Int3 | Op::Into | Op::Int | Op::Icebp | Op::Vmrun | Op::Vmload | Op::Vmsave | Op::Stgi => unhandled(),
            Op::Clgi | Op::Skinit | Op::Invlpga | Op::Rsm => unhandled(),
        }
    }

    /// Operand `n`.
    fn operand(&self, n: usize) -> Operand {
        self.insn.operands.get(n).copied().unwrap_or(Operand::None)
    }

    /// The low `size` bytes of a general register.
    fn reg(&self, index: u8, size: u8) -> u64 {
        self.m.gpr(index) & mask(size)
    }

    /// Sets the low `size` bytes of a general register; 4 bytes clear the upper half, 1 and 2 keep the rest.
    fn set_reg(&mut self, index: u8, size: u8, value: u64) {
        let value = if size >= 4 { value & mask(size) } else { self.m.gpr(index) & !mask(size) | value & mask(size) };
        self.m.set_gpr(index, value);
    }

    /// Linear address of the memory operand, `extra` bytes on, for an access of `size` bytes.
    fn address(&self, extra: u64, size: u8, write: bool) -> Res<u64> {
        let offset = address::effective(self.m, self.insn, extra);
        Ok(address::linear(self.m, self.insn.mode, self.insn.mem.seg, offset, size.into(), write)?)
    }

    /// Linear address of `size` bytes at `offset` in `seg`.
    fn linear(&self, seg: Seg, offset: u64, size: u64, write: bool) -> Res<u64> {
        Ok(address::linear(self.m, self.insn.mode, seg, offset, size, write)?)
    }

    /// Reads `size` (at most 8) bytes as a little-endian number.
    fn load(&mut self, linear: u64, size: u8, access: Access) -> Res<u64> {
        let mut bytes = [0; 8];
        if let Some(part) = bytes.get_mut(..size.into()) {
            self.m.read(linear, part, access)?;
        }
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes the low `size` (at most 8) bytes of `value`.
    fn store(&mut self, linear: u64, size: u8, value: u64) -> Res {
        if let Some(part) = value.to_le_bytes().get(..size.into()) {
            self.m.write(linear, part, Access::Data)?;
        }
        Ok(())
    }

    /// The value of operand `n`, zero-extended.
    fn read(&mut self, n: usize) -> Res<u64> {
        Ok(match self.operand(n) {
            Operand::Gpr { index, size } => self.reg(index, size),
            Operand::HighByte { index } => (self.m.gpr(index) >> 8) & 0xff,
            Operand::Mem { size } => {
                let linear = self.address(0, size, false)?;
                self.load(linear, size, Access::Data)?
            }
            Operand::Imm => self.insn.imm,
            Operand::Seg(seg) => self.m.segment(seg).selector.into(),
            Operand::Mmx { index, size } => self.m.mmx(index) & mask(size),
            Operand::None | Operand::Cr(_) | Operand::Dr(_) | Operand::Vec { .. } => return unhandled(),
        })
    }

    /// Sets operand `n`, a general register or memory, without reading it.
    fn write(&mut self, n: usize, value: u64) -> Res {
        match self.operand(n) {
            Operand::Mem { size } => {
                let linear = self.address(0, size, true)?;
                self.store(linear, size, value)
            }
            register => self.set_register(register, value),
        }
    }

    /// Sets a register operand.
    fn set_register(&mut self, operand: Operand, value: u64) -> Res {
        match operand {
            Operand::Gpr { index, size } => self.set_reg(index, size, value),
            Operand::HighByte { index } => {
                let rest = self.m.gpr(index) & !0xff00;
                self.m.set_gpr(index, rest | (value & 0xff) << 8);
            }
            Operand::Mmx { index, .. } => self.m.set_mmx(index, value),
            _ => return unhandled(),
        }
        Ok(())
    }

    /// Replaces the first operand by `f(old)`; returns the second result of `f`. Memory is changed atomically if the
    /// instruction has LOCK or `atomic` is set.
    fn modify<R>(&mut self, atomic: bool, f: impl FnOnce(u64) -> (u64, R)) -> Res<R> {
        let Operand::Mem { size } = self.operand(0) else {
            let (new, result) = f(self.read(0)?);
            self.set_register(self.operand(0), new)?;
            return Ok(result);
        };
        let linear = self.address(0, size, true)?;
        self.modify_at(linear, size, atomic, f)
    }

    /// The same for `size` bytes of memory at `linear`.
    fn modify_at<R>(&mut self, linear: u64, size: u8, atomic: bool, f: impl FnOnce(u64) -> (u64, R)) -> Res<R> {
        let old = self.load(linear, size, Access::Modify)?;
        let (new, result) = f(old);
        if atomic || self.insn.lock {
            let seen = self.m.cmpxchg(linear, size, old.into(), (new & mask(size)).into(), Access::Data)?;
            if seen != u128::from(old) {
                return Err(Halt::LostRace);
            }
        } else {
            self.store(linear, size, new)?;
        }
        Ok(result)
    }

    /// Size of operand `n` in bytes.
    fn size(&self, n: usize) -> u8 {
        match self.operand(n) {
            Operand::Gpr { size, .. } | Operand::Mem { size } | Operand::Vec { size, .. } => size,
            Operand::HighByte { .. } => 1,
            _ => self.insn.opsize,
        }
    }
}

/// A case that is not implemented.
fn unhandled<T>() -> Res<T> {
    Err(Halt::Stop(Stop::Unhandleable))
}
