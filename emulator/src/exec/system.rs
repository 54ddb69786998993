//! Control and debug registers, the machine status word, descriptor-table registers, INVLPG.

use super::{Res, Step, unhandled};
use crate::address::{self, canonical_base};
use crate::flags::mask;
use crate::insn::{Mode, Op, Operand, Seg};
use crate::machine::{Access, Exception, Machine, Table, TableReg};

const CR0_TS: u64 = 8;
const CR4_DE: u64 = 8;
const CR4_UMIP: u64 = 1 << 11;
const DR7_GD: u64 = 1 << 13;

impl<M: Machine> Step<'_, M> {
    /// #GP(0) unless CPL is 0.
    fn require_cpl0(&self) -> Res {
        if self.m.cpl() == 0 && self.insn.mode != Mode::V86 { Ok(()) } else { Err(Exception::gp(0).into()) }
    }

    /// MOV to and from control registers.
    pub(super) fn mov_cr(&mut self) -> Res {
        self.require_cpl0()?;
        match (self.operand(0), self.operand(1)) {
            (register, Operand::Cr(n)) => {
                let value = self.m.cr(n);
                self.set_register(register, value)
            }
            (Operand::Cr(n), _) => {
                let value = self.read(1)?;
                Ok(self.m.set_cr(n, value)?)
            }
            _ => unhandled(),
        }
    }

    /// MOV to and from debug registers (APM vol. 2, 13.1.1).
    pub(super) fn mov_dr(&mut self) -> Res {
        let ((Operand::Dr(n), _) | (_, Operand::Dr(n))) = (self.operand(0), self.operand(1)) else {
            return unhandled();
        };
        // DR4 and DR5 are names of DR6 and DR7 unless CR4.DE says that they do not exist.
        let n = match n {
            4 | 5 if self.m.cr(4) & CR4_DE != 0 => return Err(Exception::UD.into()),
            4 | 5 => n + 2,
            _ => n,
        };
        self.require_cpl0()?;
        if self.m.dr(7) & DR7_GD != 0 {
            return Err(Exception::DB_ACCESS.into());
        }
        if self.insn.op == Op::MovFromDr {
            let value = self.m.dr(n);
            self.set_register(self.operand(0), value)
        } else {
            let value = self.read(1)?;
            Ok(self.m.set_dr(n, value)?)
        }
    }

    /// CLTS, and LMSW, which writes CR0[3:0] and cannot clear PE.
    pub(super) fn change_msw(&mut self) -> Res {
        self.require_cpl0()?;
        let old = self.m.cr(0);
        let new = if self.insn.op == Op::Clts { old & !CR0_TS } else { old & !0xe | self.read(0)? & 0xf };
        Ok(self.m.set_cr(0, new)?)
    }

    /// #GP(0) where user-mode instruction prevention (CR4.UMIP) forbids looking at system registers.
    fn require_no_umip(&self) -> Res {
        let prevented = self.m.cpl() > 0 && self.m.cr(4) & CR4_UMIP != 0;
        if prevented { Err(Exception::gp(0).into()) } else { Ok(()) }
    }

    pub(super) fn smsw(&mut self) -> Res {
        self.require_no_umip()?;
        let value = self.m.cr(0);
        self.write(0, value)
    }

    /// SLDT, STR: the selector. #UD in real and virtual-8086 mode.
    pub(super) fn store_system_segment(&mut self) -> Res {
        self.require_protected()?;
        self.require_no_umip()?;
        let value = self.m.segment(self.system_segment()).selector;
        self.write(0, value.into())
    }

    /// LLDT, LTR. #UD in real and virtual-8086 mode.
    pub(super) fn load_system_segment(&mut self) -> Res {
        self.require_protected()?;
        self.require_cpl0()?;
        let selector = self.read(0)? as u16;
        let seg = self.system_segment();
        let value = self.described_system_segment(seg, selector)?;
        self.m.set_segment(seg, value);
        Ok(())
    }

    fn system_segment(&self) -> Seg {
        if matches!(self.insn.op, Op::Sldt | Op::Lldt) { Seg::Ldtr } else { Seg::Tr }
    }

    /// #UD in real and virtual-8086 mode.
    fn require_protected(&self) -> Res {
        if self.insn.mode.is_realish() { Err(Exception::UD.into()) } else { Ok(()) }
    }

    /// INVLPG: no checks of the segment; an address that is not canonical has no translation to drop.
    pub(super) fn invlpg(&mut self) -> Res {
        self.require_cpl0()?;
        let offset = address::effective(self.m, self.insn, 0);
        let seg = self.insn.mem.seg;
        let linear = if !self.insn.mode.is_long() {
            self.m.segment(seg).base.wrapping_add(offset) & mask(4)
        } else if matches!(seg, Seg::Fs | Seg::Gs) {
            self.m.segment(seg).base.wrapping_add(offset)
        } else {
            offset
        };
        if canonical_base(self.m, linear) {
            self.m.invlpg(linear);
        }
        Ok(())
    }

    /// Bytes of the base address in a descriptor-table operand.
    fn table_base_size(&self) -> u8 {
        if self.insn.mode.is_long() { 8 } else { 4 }
    }

    /// SGDT, SIDT: the limit, then the base.
    pub(super) fn store_table(&mut self) -> Res {
        self.require_no_umip()?;
        let which = if self.insn.op == Op::Sgdt { Table::Gdt } else { Table::Idt };
        let value = self.m.table(which);
        let len = self.table_base_size().wrapping_add(2);
        let linear = self.address(0, len, true)?;
        let whole = u128::from(value.base) << 16 | u128::from(value.limit);
        if let Some(part) = whole.to_le_bytes().get(..len.into()) {
            self.m.write(linear, part, Access::Data)?;
        }
        Ok(())
    }

    /// LGDT, LIDT. With 16-bit operand size the base has 24 bits.
    pub(super) fn load_table(&mut self) -> Res {
        self.require_cpl0()?;
        let which = if self.insn.op == Op::Lgdt { Table::Gdt } else { Table::Idt };
        let len = self.table_base_size().wrapping_add(2);
        let linear = self.address(0, len, false)?;
        let mut bytes = [0; 16];
        if let Some(part) = bytes.get_mut(..len.into()) {
            self.m.read(linear, part, Access::Data)?;
        }
        let whole = u128::from_le_bytes(bytes);
        let mut base = (whole >> 16) as u64;
        if !self.insn.mode.is_long() && self.insn.opsize == 2 {
            base &= mask(3);
        }
        if self.insn.mode.is_long() && !canonical_base(self.m, base) {
            return Err(Exception::gp(0).into());
        }
        self.m.set_table(which, TableReg { base, limit: whole as u16 });
        Ok(())
    }
}
