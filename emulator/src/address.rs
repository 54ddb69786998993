//! From the mode and the segment registers to linear addresses, with the checks of segmentation (APM vol. 2, chapter 4)
//! and canonical form; and the fetch of instruction bytes, which starts there.

use crate::decode::decode;
use crate::flags::{AC, VM, mask};
use crate::insn::{DecodeError, Insn, Mode, Seg};
use crate::machine::{Exception, Machine, Segment, Stop};
use crate::prefix::MAX_LEN;

const CR0_PE: u64 = 1;
const CR0_AM: u64 = 1 << 18;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const PAGE: u64 = 4096;

/// The mode in which the machine decodes its next instruction.
pub fn mode_of<M: Machine>(m: &M) -> Mode {
    let cs = m.segment(Seg::Cs);
    if m.cr(0) & CR0_PE == 0 {
        Mode::Real
    } else if m.efer() & EFER_LMA != 0 && cs.long() {
        Mode::Long64
    } else if m.efer() & EFER_LMA == 0 && m.rflags() & VM != 0 {
        Mode::V86
    } else if cs.big() {
        Mode::Prot32
    } else {
        Mode::Prot16
    }
}

/// Decodes the instruction at CS:RIP. `prefetched` are bytes that the processor reported for it (APM vol. 2, 15.8.4),
/// perhaps none; what is missing is fetched, never beyond the instruction's end unless on the same page.
pub fn fetch<M: Machine>(m: &mut M, prefetched: &[u8]) -> Result<Insn, Stop> {
    let mode = mode_of(m);
    let rip = m.rip();
    let mut bytes = [0_u8; MAX_LEN];
    let mut have = 0;
    for (to, from) in bytes.iter_mut().zip(prefetched) {
        *to = *from;
        have += 1;
    }
    // Each round but the last ends at a page boundary or the segment limit, so there are few of them.
    loop {
        match decode(bytes.get(..have).unwrap_or(&[]), mode) {
            Ok(insn) => return Ok(insn),
            Err(DecodeError::Unknown) => return Err(Stop::Unhandleable),
            Err(DecodeError::Invalid) => return Err(Exception::UD.into()),
            Err(DecodeError::TooLong) => return Err(Exception::gp(0).into()),
            Err(DecodeError::NeedMoreBytes) => {}
        }
        let offset = rip.wrapping_add(have as u64);
        let (linear, within_segment) = code_address(m, mode, offset)?;
        let within_page = PAGE - linear % PAGE;
        let room = within_segment.min(within_page);
        let wanted = bytes.get_mut(have..).unwrap_or(&mut []);
        let n = wanted.len().min(usize::try_from(room).unwrap_or(MAX_LEN));
        match wanted.get_mut(..n) {
            Some(part) if n > 0 => m.fetch(linear, part)?,
            _ => return Err(Stop::Unhandleable),
        }
        have += n;
    }
}

/// The linear address of `offset` in the code segment and the number of bytes (at least 1) up to its limit.
fn code_address<M: Machine>(m: &M, mode: Mode, offset: u64) -> Result<(u64, u64), Stop> {
    if mode.is_long() {
        return if canonical(m, offset) { Ok((offset, PAGE)) } else { Err(Exception::gp(0).into()) };
    }
    let cs = m.segment(Seg::Cs);
    let left = u64::from(cs.limit).checked_sub(offset).ok_or(Exception::gp(0))?;
    Ok((cs.base.wrapping_add(offset) & mask(4), left.saturating_add(1)))
}

/// Is `linear` a canonical address with the current number of paging levels?
pub(crate) fn canonical<M: Machine>(m: &M, linear: u64) -> bool {
    is_canonical(linear, m.cr(4) & CR4_LA57 != 0)
}

/// Is `linear` canonical where the processor looks at what it has, not at CR4.LA57: the bases of descriptor tables and
/// of system segments, and the operand of INVLPG?
pub(crate) fn canonical_base<M: Machine>(m: &M, linear: u64) -> bool {
    is_canonical(linear, m.has_la57())
}

/// Are the bits above those that page tables of four levels, or with `la57` of five, translate all like the highest of these?
fn is_canonical(linear: u64, la57: bool) -> bool {
    let shift = if la57 { 7 } else { 16 };
    ((linear << shift) as i64 >> shift) as u64 == linear
}

/// The offset of the instruction's memory operand, plus `extra`, truncated to the address size.
#[inline]
pub(crate) fn effective<M: Machine>(m: &M, insn: &Insn, extra: u64) -> u64 {
    let mem = &insn.mem;
    let base = match mem.base {
        Some(index) => m.gpr(index),
        None if mem.rip_relative => insn.next_rip(m.rip()),
        None => 0,
    };
    let index = mem.index.map_or(0, |index| m.gpr(index) << (mem.scale & 3));
    base.wrapping_add(index).wrapping_add(mem.disp).wrapping_add(extra) & mask(insn.addrsize)
}

/// The linear address of the instruction's memory operand in 64-bit mode, for an access that the processor has checked
/// already.
pub fn checked_address<M: Machine>(m: &M, insn: &Insn) -> u64 {
    let offset = effective(m, insn, 0);
    match insn.mem.seg {
        seg @ (Seg::Fs | Seg::Gs) => m.segment(seg).base.wrapping_add(offset),
        _ => offset,
    }
}

/// The linear address of `size` bytes at `offset` in `seg`, checked for the access.
///
/// Faults: #GP(0) or for SS #SS(0) on limit, presence or canonical form, #GP(0) on the segment type, #AC(0).
pub(crate) fn linear<M: Machine>(
    m: &M,
    mode: Mode,
    seg: Seg,
    offset: u64,
    size: u64,
    write: bool,
) -> Result<u64, Exception> {
    let fault = if seg == Seg::Ss { Exception::ss(0) } else { Exception::gp(0) };
    let more = size.saturating_sub(1);
    let linear = if mode.is_long() {
        let base = if matches!(seg, Seg::Fs | Seg::Gs) { m.segment(seg).base } else { 0 };
        let first = base.wrapping_add(offset);
        if !canonical(m, first) || !canonical(m, first.wrapping_add(more)) {
            return Err(fault);
        }
        first
    } else {
        let s = m.segment(seg);
        if !mode.is_realish() {
            if !s.present() {
                return Err(fault);
            }
            if write && !s.writable() || !write && !s.readable() {
                return Err(Exception::gp(0));
            }
        }
        if !within_limit(&s, mode, offset, offset.saturating_add(more)) {
            return Err(fault);
        }
        s.base.wrapping_add(offset) & mask(4)
    };
    if size.is_power_of_two() && size <= 8 && linear & more != 0 && alignment_checked(m) {
        return Err(Exception::AC);
    }
    Ok(linear)
}

/// Do the offsets `first..=last` lie within the segment?
fn within_limit(s: &Segment, mode: Mode, first: u64, last: u64) -> bool {
    let limit = u64::from(s.limit);
    if !mode.is_realish() && s.expand_down() {
        first > limit && last <= if s.big() { mask(4) } else { mask(2) }
    } else {
        last <= limit
    }
}

/// #AC is armed.
fn alignment_checked<M: Machine>(m: &M) -> bool {
    m.cpl() == 3 && m.rflags() & AC != 0 && m.cr(0) & CR0_AM != 0
}
