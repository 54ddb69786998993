//! Loading of segment registers (APM vol. 2, 4.10 and 4.12): descriptors, their checks and their accessed bit.

use super::{Halt, Res, Step};
use crate::address::canonical_base;
use crate::insn::{Mode, Seg};
use crate::machine::{Access, Exception, Machine, Segment, Table};

/// Attributes of every segment in virtual-8086 mode: present, DPL 3, writable, accessed data.
const V86_ATTR: u16 = 0xf3;
const EFER_LMA: u64 = 1 << 10;

/// A descriptor read from a table, and where it is.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) raw: u64,
    pub(super) linear: u64,
}

impl Descriptor {
    /// The segment register that this descriptor makes.
    pub(super) const fn segment(&self, selector: u16) -> Segment {
        let raw = self.raw;
        let base = (raw >> 16 & 0xff_ffff) | (raw >> 56 & 0xff) << 24;
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        let attr = (raw >> 40 & 0xff | raw >> 44 & 0xf00) as u16;
        let limit = if attr & 0x800 != 0 { limit << 12 | 0xfff } else { limit };
        Segment { selector, base, limit, attr }
    }

    /// A code or data (not a system) descriptor.
    pub(super) const fn is_user(&self) -> bool {
        self.raw >> 44 & 1 != 0
    }
}

impl<M: Machine> Step<'_, M> {
    /// Loads a data or stack segment register as MOV, POP and LDS do, and notes the shadow of SS.
    pub(super) fn load_segment(&mut self, seg: Seg, selector: u16) -> Res {
        let value = match self.insn.mode {
            Mode::Real => self.real_segment(seg, selector),
            Mode::V86 => Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, attr: V86_ATTR },
            _ if selector & !3 == 0 => self.null_segment(seg, selector)?,
            _ => self.described_segment(seg, selector)?,
        };
        self.m.set_segment(seg, value);
        self.shadow_after(seg);
        Ok(())
    }

    /// Real mode changes selector and base only: limits set in protected mode stay ("big real mode").
    pub(super) fn real_segment(&self, seg: Seg, selector: u16) -> Segment {
        Segment { selector, base: u64::from(selector) << 4, ..self.m.segment(seg) }
    }

    /// A null selector makes the segment unusable; in SS it is allowed in 64-bit mode below CPL 3 only.
    fn null_segment(&self, seg: Seg, selector: u16) -> Res<Segment> {
        let cpl = self.m.cpl();
        if seg == Seg::Ss && !(self.insn.mode.is_long() && cpl < 3 && selector & 3 == u16::from(cpl)) {
            return Err(Exception::gp(0).into());
        }
        // SS keeps the privilege level, as the VMCB wants it.
        let attr = if seg == Seg::Ss { u16::from(cpl) << 5 } else { 0 };
        Ok(Segment { selector, base: 0, limit: 0, attr })
    }

    fn described_segment(&mut self, seg: Seg, selector: u16) -> Res<Segment> {
        let descriptor = self.read_descriptor(selector)?;
        let s = descriptor.segment(selector);
        let (cpl, rpl) = (self.m.cpl(), (selector & 3) as u8);
        let conforming = s.code() && s.attr & 4 != 0;
        let allowed = descriptor.is_user()
            && if seg == Seg::Ss {
                s.writable() && rpl == cpl && s.dpl() == cpl
            } else {
                s.readable() && (conforming || s.dpl() >= cpl.max(rpl))
            };
        let code = u32::from(selector & !3);
        if !allowed {
            return Err(Exception::gp(code).into());
        }
        if !s.present() {
            return Err(if seg == Seg::Ss { Exception::ss(code) } else { Exception::np(code) }.into());
        }
        self.mark_accessed(descriptor)?;
        Ok(Segment { attr: s.attr | 1, ..s })
    }

    /// What LLDT and LTR load (APM vol. 2, 4.8.3 and 12.2.2): descriptors in the GDT, of 16 bytes in long mode. LTR makes
    /// the TSS busy, which it must not be before.
    pub(super) fn described_system_segment(&mut self, seg: Seg, selector: u16) -> Res<Segment> {
        const LDT: u16 = 2;
        const TSS_16: u16 = 1;
        const TSS: u16 = 9;
        const BUSY: u64 = 2 << 40;
        let fault = Exception::gp((selector & !3).into());
        if selector & !3 == 0 {
            // No LDT is a state like another; there is no such thing as no TSS.
            let none = Segment { selector, base: 0, limit: 0, attr: 0 };
            return if seg == Seg::Ldtr { Ok(none) } else { Err(Exception::gp(0).into()) };
        }
        if selector & 4 != 0 {
            return Err(fault.into());
        }
        let long = self.m.efer() & EFER_LMA != 0;
        let high = if long { self.read_system_half(selector, fault)? } else { 0 };
        let descriptor = self.read_descriptor(selector)?;
        let s = descriptor.segment(selector);
        let base = s.base | high << 32;
        let fits = match s.attr & 0x1f {
            LDT => seg == Seg::Ldtr,
            TSS => seg == Seg::Tr,
            TSS_16 => seg == Seg::Tr && !long,
            _ => false,
        };
        if !fits || high >> 40 & 0x1f != 0 || long && !canonical_base(self.m, base) {
            return Err(fault.into());
        }
        if !s.present() {
            return Err(Exception::np((selector & !3).into()).into());
        }
        if seg == Seg::Ldtr {
            return Ok(Segment { base, ..s });
        }
        let (old, new) = (descriptor.raw, descriptor.raw | BUSY);
        if self.m.cmpxchg(descriptor.linear, 8, old.into(), new.into(), Access::System)? != u128::from(old) {
            return Err(Halt::LostRace);
        }
        Ok(Segment { base, attr: s.attr | 2, ..s })
    }

    /// The upper eight bytes of a system descriptor in long mode.
    fn read_system_half(&mut self, selector: u16, fault: Exception) -> Res<u64> {
        let gdtr = self.m.table(Table::Gdt);
        let offset = u64::from(selector & !7);
        if offset + 15 > gdtr.limit.into() {
            return Err(fault.into());
        }
        self.load(gdtr.base.wrapping_add(offset + 8), 8, Access::System)
    }

    /// The descriptor of `selector`, from the GDT or LDT; #GP(selector) outside the table.
    pub(super) fn read_descriptor(&mut self, selector: u16) -> Res<Descriptor> {
        let fault = Exception::gp((selector & !3).into());
        let offset = u64::from(selector & !7);
        let (base, limit) = if selector & 4 == 0 {
            let gdtr = self.m.table(Table::Gdt);
            (gdtr.base, u64::from(gdtr.limit))
        } else {
            let ldt = self.m.segment(Seg::Ldtr);
            if !ldt.present() {
                return Err(fault.into());
            }
            (ldt.base, u64::from(ldt.limit))
        };
        if offset + 7 > limit {
            return Err(fault.into());
        }
        let linear = base.wrapping_add(offset);
        let raw = self.load(linear, 8, Access::System)?;
        Ok(Descriptor { raw, linear })
    }

    /// Sets the accessed bit in the table if it is clear. Doing it twice, or for an instruction that then stops, is
    /// harmless: a processor may do so too.
    pub(super) fn mark_accessed(&mut self, d: Descriptor) -> Res {
        const ACCESSED: u64 = 1 << 40;
        if d.raw & ACCESSED != 0 {
            return Ok(());
        }
        let seen = self.m.cmpxchg(d.linear, 8, d.raw.into(), (d.raw | ACCESSED).into(), Access::System)?;
        if seen == u128::from(d.raw) { Ok(()) } else { Err(Halt::LostRace) }
    }
}
