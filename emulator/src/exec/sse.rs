//! Moves between vector registers, general registers and memory, in legacy SSE and VEX encoding.

use super::{Res, Step, unhandled};
use crate::insn::{Op, Operand};
use crate::machine::{Access, Exception, Machine};

const CR0_EM: u64 = 4;
const CR0_TS: u64 = 8;
/// An x87 exception waits for the next instruction that looks.
const FSW_ES: u16 = 0x80;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;
/// XCR0: SSE and AVX state.
const XCR0_AVX: u64 = 6;

impl<M: Machine> Step<'_, M> {
    pub(super) fn vector_move(&mut self) -> Res {
        self.check_vector_enabled()?;
        let value = self.vector_source()?;
        self.vector_destination(value)
    }

    /// #UD and #NM as the operating system has it (APM vol. 2, 11.3).
    fn check_vector_enabled(&self) -> Res {
        let (cr0, cr4) = (self.m.cr(0), self.m.cr(4));
        let enabled = if self.insn.vex {
            cr4 & CR4_OSXSAVE != 0 && self.m.xcr0() & XCR0_AVX == XCR0_AVX
        } else {
            cr0 & CR0_EM == 0 && cr4 & CR4_OSFXSR != 0
        };
        if !enabled {
            return Err(Exception::UD.into());
        }
        if cr0 & CR0_TS != 0 { Err(Exception::NM.into()) } else { Ok(()) }
    }

    /// MOVD, MOVQ and MOVNTQ of MMX registers; 4 bytes clear those above. #UD, #NM, and #MF for an x87 exception that waits.
    pub(super) fn mmx_move(&mut self) -> Res {
        let cr0 = self.m.cr(0);
        if cr0 & CR0_EM != 0 {
            return Err(Exception::UD.into());
        }
        if cr0 & CR0_TS != 0 {
            return Err(Exception::NM.into());
        }
        if self.m.x87_status() & FSW_ES != 0 {
            return Err(Exception::MF.into());
        }
        let value = self.read(1)?;
        self.write(0, value)
    }

    /// FNSTCW and FNSTSW to memory. #NM where the x87 is emulated or not at hand; an exception that waits goes on waiting.
    pub(super) fn store_x87_word(&mut self) -> Res {
        if self.m.cr(0) & (CR0_EM | CR0_TS) != 0 {
            return Err(Exception::NM.into());
        }
        let value = if self.insn.op == Op::Fnstcw { self.m.x87_control() } else { self.m.x87_status() };
        self.write(0, value.into())
    }

    /// The bytes to move, at the start of the result, zeros after them.
    fn vector_source(&mut self) -> Res<[u8; 32]> {
        let mut bytes = [0; 32];
        let source = if self.operand(2) == Operand::None { 1 } else { 2 };
        match self.operand(source) {
            Operand::Vec { index, size } => {
                let from = self.m.ymm(index);
                // MOVHPS stores the upper half of the low 128 bits.
                let skip = if self.insn.op == Op::VecMovHigh { 8 } else { 0 };
                copy(&mut bytes, from.get(skip..).unwrap_or(&[]), size);
            }
            Operand::Gpr { index, size } => copy(&mut bytes, &self.m.gpr(index).to_le_bytes(), size),
            Operand::Mem { size } => {
                let linear = self.vector_address(size, false)?;
                if let Some(part) = bytes.get_mut(..size.into()) {
                    self.m.read(linear, part, Access::Data)?;
                }
            }
            _ => return unhandled(),
        }
        Ok(bytes)
    }

    /// Address of the memory operand; #GP(0) if an aligned move finds it unaligned.
    fn vector_address(&self, size: u8, write: bool) -> Res<u64> {
        let linear = self.address(0, size, write)?;
        let unaligned = linear & u64::from(size).saturating_sub(1) != 0;
        if self.insn.op == Op::VecMovAligned && unaligned {
            return Err(Exception::gp(0).into());
        }
        Ok(linear)
    }

    fn vector_destination(&mut self, value: [u8; 32]) -> Res {
        match self.operand(0) {
            Operand::Mem { size } => {
                let linear = self.vector_address(size, true)?;
                if let Some(part) = value.get(..size.into()) {
                    self.m.write(linear, part, Access::Data)?;
                }
            }
            Operand::Gpr { index, size } => {
                let low = value.iter().take(8).rev().fold(0, |v, b| v << 8 | u64::from(*b));
                self.set_reg(index, size, low);
            }
            Operand::Vec { index, size } => {
                let merged = self.merged(index, size, value);
                if self.insn.vex {
                    self.m.set_ymm(index, &merged);
                } else {
                    let mut low = [0; 16];
                    copy(&mut low, &merged, 16);
                    self.m.set_xmm(index, &low);
                }
            }
            _ => return unhandled(),
        }
        Ok(())
    }

    /// What register `index` becomes: `value`, or for the partial moves 128 bits of which `value` replaces `size`
    /// bytes. The rest of those comes from VEX.vvvv, in legacy encoding from the register itself.
    fn merged(&mut self, index: u8, size: u8, value: [u8; 32]) -> [u8; 32] {
        let skip = match self.insn.op {
            Op::VecMovLow => 0,
            Op::VecMovHigh => 8,
            _ => return value,
        };
        let other = match (self.operand(1), self.operand(2)) {
            (_, Operand::None) => index,
            (Operand::Vec { index, .. }, _) => index,
            _ => index,
        };
        let mut merged = [0; 32];
        copy(&mut merged, &self.m.ymm(other), 16);
        copy(merged.get_mut(skip..).unwrap_or(&mut []), &value, size);
        merged
    }
}

/// Copies the first `size` bytes.
fn copy(to: &mut [u8], from: &[u8], size: u8) {
    for (to, from) in to.iter_mut().zip(from).take(size.into()) {
        *to = *from;
    }
}
