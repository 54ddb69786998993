//! Hardware task switches (APM vol. 2, 12.3 and 12.4), which SVM leaves to the hypervisor (15.14.1): far jumps and calls
//! to a TSS or a task gate, IRET from a nested task, and interrupts and exceptions through a task gate. 16 and 32-bit
//! TSS, in legacy protected and virtual-8086 mode.
//!
//! Unlike an instruction, a switch writes several places. Everything that can be checked is checked first: a fault up
//! to there belongs to the old task, and nothing has changed. What goes wrong with the segments of the new task is its
//! own fault, raised when the switch is complete. Between the two memory is written, from registers that are still the
//! old task's: whoever cannot go on there can do it all again.

mod tss;

use crate::flags::{NT, VM};
use crate::insn::Seg;
use crate::machine::{Access, Exception, Machine, Segment, Stop, Table};
use tss::{IN_ORDER, Image, Layout, current, load, read, save, write};

/// What causes the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Far CALL.
    Call,
    /// Far JMP.
    Jump,
    /// IRET with RFLAGS.NT set.
    Return,
    /// An interrupt or exception through a task gate.
    Gate,
}

/// One switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSwitch {
    /// Selector of the TSS to switch to.
    pub selector: u16,
    /// Why.
    pub cause: Cause,
    /// RIP that the old task goes on with.
    pub return_rip: u64,
    /// INTn, INT3 or INTO: its vector, whose gate has to be open to the caller.
    pub software: Option<u8>,
    /// What the exception pushes onto the new task's stack.
    pub error_code: Option<u32>,
}

impl TaskSwitch {
    /// Does the new task return to the old one?
    const fn nests(&self) -> bool {
        matches!(self.cause, Cause::Call | Cause::Gate)
    }
}

const BUSY: u64 = 1 << 41;
const CR0_TS: u64 = 8;
const CR0_PG: u64 = 1 << 31;
const EFER_LMA: u64 = 1 << 10;
/// DR7: local breakpoints, and LE.
const DR7_LOCAL: u64 = 0x155;
/// DR6.BT.
const SWITCHED: u64 = 1 << 15;
/// Segment attributes of virtual-8086 mode.
const V86_ATTR: u16 = 0xf3;
/// Flags that exist.
const FLAGS: u64 = 0x3f_7fd7;

/// What came of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switched {
    /// RIP and everything else is the new task's. `traps`: its T bit is set, and so #DB with this DR6 is due, as a trap of
    /// the new task's, before its first instruction.
    Done {
        /// DR6.BT.
        traps: Option<u64>,
    },
    /// The new task is current and does not have all of its state. [`Stop::Fault`] is its own.
    Partly(Stop),
    /// The old task is current, and the switch can begin anew. [`Stop::Fault`] is the old task's, and nothing has
    /// changed. [`Stop::Unhandleable`]: long mode.
    Not(Stop),
}

/// Switches tasks. [`Stop::NeedUser`] is not for user space to answer: the machine has a reason of its own, or the TSS
/// is not in memory.
pub fn task_switch<M: Machine>(m: &mut M, t: &TaskSwitch) -> Switched {
    let (image, layout) = match leave(m, t) {
        Ok(new) => new,
        Err(stop) => return Switched::Not(stop),
    };
    match arrive(m, t, &image, &layout) {
        Ok(()) => Switched::Done { traps: image.trap.then_some(SWITCHED) },
        Err(stop) => Switched::Partly(stop),
    }
}

/// Puts the old task away. The last thing that it does is to make the new one's TSS current, whose content it returns.
fn leave<M: Machine>(m: &mut M, t: &TaskSwitch) -> Result<(Image, Layout), Stop> {
    if m.efer() & EFER_LMA != 0 {
        return Err(Stop::Unhandleable);
    }
    if let Some(vector) = t.software.filter(|_| t.cause == Cause::Gate) {
        let gate = read(m, m.table(Table::Idt).base.wrapping_add(u64::from(vector) * 8), 8)?;
        if (gate >> 45 & 3) < m.cpl().into() {
            return Err(Exception::gp(u32::from(vector) << 3 | 2).into());
        }
    }
    let (at, descriptor) = tss_descriptor(m, t)?;
    let new = unpack(t.selector, descriptor);
    let old = m.segment(Seg::Tr);
    let (from, to) = (Layout::of(old.attr), Layout::of(new.attr));
    if new.limit < to.limit {
        return Err(invalid_tss(t.selector));
    }
    let image = load(m, new.base, &to)?;
    let nests = t.nests();
    // The old task's state, in the order of its TSS: all of it must be writable before any of it is written.
    let mut flags = m.rflags();
    if t.cause == Cause::Return {
        flags &= !NT;
    }
    let state = current(m, t.return_rip, flags);
    for n in 0..10 + from.segments as u64 {
        m.check_write(old.base.wrapping_add(from.ip + n * from.size), from.size as usize, false, Access::System)?;
    }
    if nests {
        m.check_write(new.base, 2, false, Access::System)?;
    }

    if matches!(t.cause, Cause::Jump | Cause::Return) {
        let busy = m.table(Table::Gdt).base.wrapping_add(u64::from(old.selector & !7));
        let word = read(m, busy, 8)?;
        write(m, busy.wrapping_add(4), word >> 32 & !(BUSY >> 32), 4)?;
    }
    save(m, old.base, &from, &state)?;
    if nests {
        write(m, new.base, old.selector.into(), 2)?;
    }
    if t.cause != Cause::Return {
        write(m, at.wrapping_add(4), (descriptor | BUSY) >> 32, 4)?;
    }
    m.set_segment(Seg::Tr, Segment { attr: new.attr | 2, ..new });
    Ok((image, to))
}

/// Gives the new task its state.
fn arrive<M: Machine>(m: &mut M, t: &TaskSwitch, image: &Image, l: &Layout) -> Result<(), Stop> {
    m.set_cr(0, m.cr(0) | CR0_TS)?;
    m.set_dr(7, m.dr(7) & !DR7_LOCAL)?;
    enter(m, image, l, t.nests())?;
    match t.error_code {
        Some(code) => push(m, code.into(), l.size),
        None => Ok(()),
    }
}

/// Address and value of the new TSS's descriptor, which is in the GDT, present, and busy for IRET alone.
fn tss_descriptor<M: Machine>(m: &mut M, t: &TaskSwitch) -> Result<(u64, u64), Stop> {
    let gdt = m.table(Table::Gdt);
    let offset = u64::from(t.selector & !7);
    let back = t.cause == Cause::Return;
    let refused = || if back { invalid_tss(t.selector) } else { Exception::gp(error(t.selector)).into() };
    if t.selector & 4 != 0 || offset + 7 > gdt.limit.into() {
        return Err(refused());
    }
    let at = gdt.base.wrapping_add(offset);
    let raw = read(m, at, 8)?;
    // Type and S: 16 or 32-bit TSS.
    let kind = raw >> 40 & 0x1f;
    if kind & !8 != if back { 3 } else { 1 } {
        return Err(refused());
    }
    if raw >> 47 & 1 == 0 {
        return Err(Exception::np(error(t.selector)).into());
    }
    Ok((at, raw))
}

/// Selector as an error code.
const fn error(selector: u16) -> u32 {
    (selector & !3) as u32
}

/// #TS.
fn invalid_tss(selector: u16) -> Stop {
    Exception { vector: 10, error_code: Some(error(selector)), payload: 0 }.into()
}

const fn unpack(selector: u16, raw: u64) -> Segment {
    let base = (raw >> 16 & 0xff_ffff) | (raw >> 56 & 0xff) << 24;
    let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
    let attr = (raw >> 40 & 0xff | raw >> 44 & 0xf00) as u16;
    Segment { selector, base, limit: if attr & 0x800 != 0 { limit << 12 | 0xfff } else { limit }, attr }
}

/// Loads the new task. First what cannot fail, with selectors alone, so that a fault finds the new task's state; then
/// the descriptors.
fn enter<M: Machine>(m: &mut M, i: &Image, l: &Layout, nests: bool) -> Result<(), Stop> {
    if let Some(cr3) = i.cr3.filter(|_| m.cr(0) & CR0_PG != 0) {
        m.set_cr(3, cr3)?;
    }
    // The 16-bit TSS keeps the upper halves out: they are undefined, and zero here but for the flags.
    let mut flags = i.flags | 2;
    if nests {
        flags |= NT;
    }
    m.set_rip(i.ip);
    m.set_rflags(flags & FLAGS);
    for (n, r) in i.registers.iter().enumerate() {
        m.set_gpr(n as u8, *r);
    }
    let v86 = l.size == 4 && flags & VM != 0;
    let cpl = (i.of(Seg::Cs) & 3) as u8;
    for (seg, selector) in IN_ORDER.into_iter().zip(i.segments) {
        let empty = Segment { selector, base: 0, limit: 0, attr: 0 };
        let real = Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, attr: V86_ATTR };
        // SS carries the privilege level.
        let level = if seg == Seg::Ss { u16::from(cpl) << 5 } else { 0 };
        m.set_segment(seg, if v86 { real } else { Segment { attr: level, ..empty } });
    }
    m.set_segment(Seg::Ldtr, Segment { selector: i.ldt, base: 0, limit: 0, attr: 0 });
    if i.ldt & !3 != 0 {
        if i.ldt & 4 != 0 {
            return Err(invalid_tss(i.ldt));
        }
        let (_, s) = descriptor(m, i.ldt)?;
        if s.attr & 0x1f != 2 || !s.present() {
            return Err(invalid_tss(i.ldt));
        }
        m.set_segment(Seg::Ldtr, s);
    }
    if v86 {
        return Ok(());
    }
    for (seg, selector) in [Seg::Ss, Seg::Cs, Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs].into_iter().map(|s| (s, i.of(s))) {
        segment(m, seg, selector, cpl)?;
    }
    if i.ip > m.segment(Seg::Cs).limit.into() {
        return Err(Exception::gp(0).into());
    }
    Ok(())
}

/// Address and value of a descriptor; #TS outside of its table.
fn descriptor<M: Machine>(m: &mut M, selector: u16) -> Result<(u64, Segment), Stop> {
    let (base, limit) = if selector & 4 == 0 {
        let gdt = m.table(Table::Gdt);
        (gdt.base, u64::from(gdt.limit))
    } else {
        let ldt = m.segment(Seg::Ldtr);
        if !ldt.present() {
            return Err(invalid_tss(selector));
        }
        (ldt.base, ldt.limit.into())
    };
    let offset = u64::from(selector & !7);
    if offset + 7 > limit {
        return Err(invalid_tss(selector));
    }
    let at = base.wrapping_add(offset);
    Ok((at, unpack(selector, read(m, at, 8)?)))
}

/// Loads one segment of the new task (APM vol. 2, 12.3.3: #TS where a far transfer would raise #GP).
fn segment<M: Machine>(m: &mut M, seg: Seg, selector: u16, cpl: u8) -> Result<(), Stop> {
    if selector & !3 == 0 {
        return if matches!(seg, Seg::Cs | Seg::Ss) { Err(invalid_tss(selector)) } else { Ok(()) };
    }
    let (at, s) = descriptor(m, selector)?;
    let rpl = (selector & 3) as u8;
    let conforming = s.code() && s.attr & 4 != 0;
    let fits = s.attr & 0x10 != 0
        && match seg {
            Seg::Cs => s.code() && if conforming { s.dpl() <= rpl } else { s.dpl() == rpl },
            Seg::Ss => s.writable() && rpl == cpl && s.dpl() == cpl,
            _ => s.readable() && (conforming || s.dpl() >= cpl.max(rpl)),
        };
    if !fits {
        return Err(invalid_tss(selector));
    }
    if !s.present() {
        let code = error(selector);
        return Err(if seg == Seg::Ss { Exception::ss(code) } else { Exception::np(code) }.into());
    }
    if s.attr & 1 == 0 {
        write(m, at.wrapping_add(5), (s.attr | 1).into(), 1)?;
    }
    m.set_segment(seg, Segment { attr: s.attr | 1, ..s });
    Ok(())
}

/// Pushes the error code onto the new task's stack.
fn push<M: Machine>(m: &mut M, code: u64, size: u64) -> Result<(), Stop> {
    let ss = m.segment(Seg::Ss);
    let width = if ss.big() { 0xffff_ffff } else { 0xffff };
    let sp = m.gpr(4).wrapping_sub(size) & width;
    let last = sp.wrapping_add(size - 1);
    let inside = if ss.expand_down() { sp > ss.limit.into() && last <= width } else { last <= ss.limit.into() };
    if !inside {
        return Err(Exception::ss(0).into());
    }
    let linear = ss.base.wrapping_add(sp) & 0xffff_ffff;
    m.write(linear, code.to_le_bytes().get(..size as usize).unwrap_or(&[]), Access::Final)?;
    m.set_gpr(4, m.gpr(4) & !width & 0xffff_ffff | sp);
    Ok(())
}
