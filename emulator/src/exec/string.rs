//! String instructions. Each iteration is committed by itself, so that a stop loses nothing and repeats nothing.

use super::{Res, Step};
use crate::flags::{self, DF, FIXED, TF, ZF, mask};
use crate::insn::{Op, Rep, Seg};
use crate::machine::{Access, Machine, Stop};

/// Iterations in one call of `emulate`.
pub const MAX_ITERATIONS: u64 = 1024;

/// Bytes that one port read of REP INS may bring.
const INS_BYTES: u64 = 1024;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RSI: u8 = 6;
const RDI: u8 = 7;

impl<M: Machine> Step<'_, M> {
    pub(super) fn string(&mut self) -> Res {
        if self.insn.rep == Rep::None {
            return self.iteration(1).map(|_| ());
        }
        let size = self.insn.addrsize;
        let mut left = self.reg(RCX, size);
        let mut budget = if self.flags & TF != 0 { 1 } else { MAX_ITERATIONS };
        while left != 0 {
            if budget == 0 {
                self.done.more = true;
                break;
            }
            let n = self.iteration(left)?;
            left = left.saturating_sub(n);
            self.set_reg(RCX, size, left);
            self.m.set_rflags(self.flags | FIXED);
            budget = budget.saturating_sub(n);
            if self.condition_ends() || left == 0 {
                break;
            }
            self.m.commit();
            if self.m.pause() {
                self.done.more = true;
                break;
            }
        }
        Ok(())
    }

    /// REPE and REPNE of the comparing instructions.
    fn condition_ends(&self) -> bool {
        let equal = self.flags & ZF != 0;
        match (self.insn.op, self.insn.rep) {
            (Op::Cmps | Op::Scas, Rep::Repne) => equal,
            (Op::Cmps | Op::Scas, _) => !equal,
            _ => false,
        }
    }

    /// One iteration, of INS up to `left` of them; returns how many.
    fn iteration(&mut self, left: u64) -> Res<u64> {
        let size = self.insn.opsize;
        let mut n = 1;
        match self.insn.op {
            Op::Movs => {
                let value = self.load_source(size)?;
                self.store_destination(size, value)?;
                self.advance(RSI, 1);
                self.advance(RDI, 1);
            }
            Op::Stos => {
                self.store_destination(size, self.reg(RAX, size))?;
                self.advance(RDI, 1);
            }
            Op::Lods => {
                let value = self.load_source(size)?;
                self.set_reg(RAX, size, value);
                self.advance(RSI, 1);
            }
            Op::Scas => {
                let value = self.load_destination(size)?;
                (_, self.flags) = flags::alu(Op::Cmp, self.reg(RAX, size), value, self.flags, size);
                self.advance(RDI, 1);
            }
            Op::Cmps => {
                let a = self.load_source(size)?;
                let b = self.load_destination(size)?;
                (_, self.flags) = flags::alu(Op::Cmp, a, b, self.flags, size);
                self.advance(RSI, 1);
                self.advance(RDI, 1);
            }
            Op::Ins => n = self.ins(size, left)?,
            _ => self.outs(size)?,
        }
        Ok(n)
    }

    /// rSI or rDI, of the address size.
    fn pointer(&self, index: u8) -> u64 {
        self.reg(index, self.insn.addrsize)
    }

    /// Moves rSI or rDI on by `n` elements.
    fn advance(&mut self, index: u8, n: u64) {
        let bytes = n.wrapping_mul(self.insn.opsize.into());
        let bytes = if self.flags & DF != 0 { bytes.wrapping_neg() } else { bytes };
        let value = self.pointer(index).wrapping_add(bytes);
        self.set_reg(index, self.insn.addrsize, value);
    }

    fn load_source(&mut self, size: u8) -> Res<u64> {
        let linear = self.linear(self.insn.segment, self.pointer(RSI), size.into(), false)?;
        self.load(linear, size, Access::Data)
    }

    fn load_destination(&mut self, size: u8) -> Res<u64> {
        let linear = self.linear(Seg::Es, self.pointer(RDI), size.into(), false)?;
        self.load(linear, size, Access::Data)
    }

    fn store_destination(&mut self, size: u8, value: u64) -> Res {
        let linear = self.linear(Seg::Es, self.pointer(RDI), size.into(), true)?;
        self.store(linear, size, value)
    }

    /// INS: as many elements in one go as the count, the page and the address size allow. A port read cannot be
    /// repeated, so everything that can fault is checked before it.
    #[inline(never)] // its buffer should not be in every string instruction's frame
    fn ins(&mut self, size: u8, left: u64) -> Res<u64> {
        let port = self.reg(RDX, 2) as u16;
        self.check_port(port, size)?;
        let (offset, element) = (self.pointer(RDI), u64::from(size));
        let mut linear = self.linear(Seg::Es, offset, element, true)?;
        let before_wrap = mask(self.insn.addrsize).wrapping_sub(offset).saturating_add(1);
        let before_page = 4096 - linear % 4096;
        // What userspace has answered is for so many, whatever has become of memory and of the trap flag meanwhile.
        let answered = self.m.port_answered(port, size).map(u64::from);
        let single = if answered.is_some() { DF } else { DF | TF };
        // Sizes are powers of two.
        let fitting = INS_BYTES.min(before_page).min(before_wrap) >> size.trailing_zeros();
        let mut n = answered.unwrap_or(left).min(left).min(fitting);
        if n < 2 || self.flags & single != 0 {
            n = 1;
        } else {
            match self.linear(Seg::Es, offset, n * element, true) {
                Ok(whole) => linear = whole,
                Err(_) => n = 1,
            }
        }
        let asks = answered.is_none();
        if asks
            && n > 1
            && self.m.check_write(linear, (n * element) as usize, true, Access::Data) == Err(Stop::Unhandleable)
        {
            // A device: it sees each element by itself.
            n = 1;
        }
        let len = (n * element) as usize;
        self.m.check_write(linear, len, asks && n > 1, Access::Data)?;
        let mut bytes = [0; INS_BYTES as usize];
        if let Some(part) = bytes.get_mut(..len) {
            self.m.pio_in(port, size, part)?;
            self.m.write(linear, part, Access::Data)?;
        }
        self.advance(RDI, n);
        Ok(n)
    }

    fn outs(&mut self, size: u8) -> Res {
        let port = self.reg(RDX, 2) as u16;
        self.check_port(port, size)?;
        let value = self.load_source(size)?;
        if let Some(part) = value.to_le_bytes().get(..size.into()) {
            self.m.pio_out(port, part)?;
        }
        self.advance(RSI, 1);
        Ok(())
    }
}
