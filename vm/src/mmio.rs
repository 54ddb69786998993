//! Accesses of the instruction that is being emulated which go to user space: the log of reads that it answered, the
//! access it is asked for, and the queue of posted writes (the contract is in the documentation of `emulator`).

use crate::Regs;
use crate::moves::Load;
use arch::{Gpa, NpfCode};
use emulator::Insn;

/// Largest number of fragments in flight: a write of 256 bytes in fragments of 8, misaligned.
const QUEUE: usize = 34;
/// Largest number of answered reads in one step.
const LOG: usize = 16;

/// One access to user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A guest physical address.
    Mmio(u64),
    /// A port.
    Port(u16),
}

/// Up to 8 bytes to or from a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioFragment {
    /// Where.
    pub target: Target,
    /// Number of bytes, 1 to 8.
    pub len: u8,
    /// The bytes.
    pub data: [u8; 8],
}

/// A read that only user space can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// KVM_EXIT_MMIO.
    Mmio { gpa: u64, len: u8 },
    /// KVM_EXIT_IO; the answer is `size * count` bytes in the PIO page.
    Port { port: u16, size: u8, count: u32 },
}

/// Bytes of the PIO page, which are user space's answer to REP INS, on their way to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerRest {
    gpa: u64,
    at: u16,
    end: u16,
}

/// Up to 8 of them, from `at` on.
pub struct AnswerPart {
    pub gpa: u64,
    pub at: u16,
    pub len: u8,
}

/// The data access that faulted in the nested tables. The processor has walked the guest's tables for it already, and they
/// allowed it; only what came of it was not mapped.
#[derive(Clone, Copy, Debug)]
pub struct Faulted {
    gpa: Gpa,
    write: bool,
    /// The linear address that it was, once it is known.
    linear: Option<u64>,
}

::state::state! {
    value MmioFragment { target, len, data }
    value AnswerRest { gpa, at, end }
    value Faulted { gpa, write, linear }
    place MmioFragments { insn, begun, wanted, load, port_answered, faulted, step_ends, log, cursor, queue, sent, rest since 2 = None }
    place [const N: usize] List<N> { items, len }
}

::state::tagged! {
    Target { 0 = Mmio(gpa), 1 = Port(port) }
    Wanted { 0 = Mmio { gpa, len }, 1 = Port { port, size, count } }
}

impl Faulted {
    /// From EXITINFO2 and EXITINFO1. None: the fault came while the guest's tables were walked, or is a fetch.
    pub fn new(gpa: Gpa, code: NpfCode) -> Option<Self> {
        (code.final_access() && !code.fetch()).then_some(Self { gpa, write: code.write(), linear: None })
    }

    /// Where the access led.
    pub fn gpa(&self) -> u64 {
        self.gpa.0
    }

    /// It was a write.
    pub fn is_write(&self) -> bool {
        self.write
    }

    /// The same, known to be at a linear address.
    pub fn at(self, linear: u64) -> Self {
        Self { linear: Some(linear), ..self }
    }
}

/// Everything on its way to user space and back.
#[derive(Default)]
pub struct MmioFragments {
    /// The instruction that is carried out: it waits for an answer, or has ended without being complete.
    pub insn: Option<Insn>,
    /// The registers that it began with, if user space has set others.
    pub(crate) begun: Option<Regs>,
    /// The read that user space is to answer.
    pub wanted: Option<Wanted>,
    /// That is a plain load, and this is it.
    pub load: Option<Load>,
    /// The PIO page holds the answer to the port read in `wanted`.
    pub port_answered: Option<Wanted>,
    /// Why the instruction is emulated.
    pub faulted: Option<Faulted>,
    /// With the last of the queued writes a debugger's single step ends.
    pub step_ends: bool,
    log: List<LOG>,
    cursor: usize,
    queue: List<QUEUE>,
    sent: usize,
    /// Posted behind the queue.
    rest: Option<AnswerRest>,
}

/// A short list without heap.
struct List<const N: usize> {
    items: [Option<MmioFragment>; N],
    len: usize,
}

impl<const N: usize> Default for List<N> {
    fn default() -> Self {
        Self { items: [None; N], len: 0 }
    }
}

impl<const N: usize> List<N> {
    fn push(&mut self, p: MmioFragment) -> bool {
        let Some(slot) = self.items.get_mut(self.len) else { return false };
        *slot = Some(p);
        self.len += 1;
        true
    }
    fn get(&self, n: usize) -> Option<MmioFragment> {
        if n < self.len { self.items.get(n).copied().flatten() } else { None }
    }
}

impl MmioFragments {
    /// A new call of the emulator begins: reads are answered from the start of the log, and what a call before has posted that did not
    /// come to its end is posted again.
    pub fn rewind(&mut self) {
        (self.cursor, self.queue.len, self.sent) = (0, 0, 0);
        self.rest = None;
    }

    /// The step is complete, or will not be: forgets the answers.
    pub fn forget(&mut self) {
        self.log.len = 0;
        self.cursor = 0;
        self.wanted = None;
        self.load = None;
        self.port_answered = None;
        self.faulted = None;
    }

    /// Where a linear address is in physical memory, if it is the one of the access that faulted, and that was a write if
    /// this is one. An instruction that touches memory once is at that address wherever the page offset is the same.
    pub fn faulted_at(&mut self, linear: u64, write: bool) -> Option<Gpa> {
        let faulted = self.faulted.as_mut()?;
        let same = match faulted.linear {
            Some(known) => known == linear,
            None => (faulted.gpa.0 ^ linear) & 0xfff == 0,
        };
        if !same || write && !faulted.write {
            return None;
        }
        faulted.linear = Some(linear);
        Some(faulted.gpa)
    }

    /// Forgets all, the queue of writes too.
    pub fn clear(&mut self) {
        self.forget();
        (self.insn, self.begun) = (None, None);
        self.step_ends = false;
        self.queue.len = 0;
        self.sent = 0;
        self.rest = None;
    }

    /// The instruction ends without being complete: forgets all but that.
    pub fn give_up(&mut self) {
        let insn = self.insn;
        self.clear();
        self.insn = insn;
    }

    /// User space's answer to the next read, if that is one of `len` bytes at `gpa`.
    #[inline]
    pub fn answer_to(&self, gpa: u64, len: usize) -> Option<[u8; 8]> {
        let p = self.log.get(self.cursor)?;
        (p.target == Target::Mmio(gpa) && usize::from(p.len) == len).then_some(p.data)
    }

    /// Answers a read of up to 8 bytes from the log. True if it is the next one.
    pub fn take_answer(&mut self, gpa: u64, buf: &mut [u8]) -> bool {
        let Some(data) = self.answer_to(gpa, buf.len()) else { return false };
        buf.copy_from_slice(data.get(..buf.len()).unwrap_or(&[0; 8]));
        self.cursor += 1;
        true
    }

    /// Notes that user space has to answer a read of up to 8 bytes.
    pub fn want(&mut self, gpa: u64, len: usize) {
        // If there is an answer, user space has changed the guest's registers meanwhile: this is another access.
        self.log.len = self.log.len.min(self.cursor);
        self.wanted = Some(Wanted::Mmio { gpa, len: len.min(8) as u8 });
    }

    /// User space's answer to the MMIO read in `wanted`. False if the log is full (no instruction reads that much).
    pub fn answer(&mut self, data: [u8; 8]) -> bool {
        match self.wanted.take() {
            Some(Wanted::Mmio { gpa, len }) => self.log.push(MmioFragment { target: Target::Mmio(gpa), len, data }),
            _ => false,
        }
    }

    /// Has user space answered a read of the instruction? It cannot be asked again.
    pub fn answered(&self) -> bool {
        self.log.len != 0 || self.port_answered.is_some()
    }

    /// Posts a write in fragments of at most 8 bytes, wherever they begin. False if the queue is full.
    pub fn post(&mut self, gpa: u64, data: &[u8]) -> bool {
        let (mut at, mut rest) = (gpa, data);
        while !rest.is_empty() {
            let len = rest.len().min(8);
            let (now, later) = rest.split_at(len);
            if !self.push(Target::Mmio(at), now) {
                return false;
            }
            at = at.wrapping_add(len as u64);
            rest = later;
        }
        true
    }

    /// Posts the whole answer to a port read, of `len` bytes, if it is that and the queue is not made for so much.
    pub fn post_answer(&mut self, gpa: u64, len: usize) -> bool {
        let whole = match self.port_answered {
            Some(Wanted::Port { size, count, .. }) => u64::from(size) * u64::from(count) == len as u64,
            _ => false,
        };
        let posted = whole && len > 8 && len <= 4096;
        if posted {
            self.rest = Some(AnswerRest { gpa, at: 0, end: len as u16 });
        }
        posted
    }

    /// The next part of it.
    pub fn next_part(&mut self) -> Option<AnswerPart> {
        let rest = self.rest.as_mut()?;
        let AnswerRest { gpa, at, end } = *rest;
        let len = end.saturating_sub(at).min(8);
        (rest.gpa, rest.at) = (gpa.wrapping_add(len.into()), at.saturating_add(len));
        if rest.at >= end {
            self.rest = None;
        }
        // Sections that another version has written may say anything.
        (len != 0).then_some(AnswerPart { gpa, at, len: len as u8 })
    }

    /// Posts a port write of 1, 2 or 4 bytes.
    pub fn post_port(&mut self, port: u16, data: &[u8]) -> bool {
        self.push(Target::Port(port), data)
    }

    fn push(&mut self, target: Target, bytes: &[u8]) -> bool {
        let mut data = [0; 8];
        for (d, b) in data.iter_mut().zip(bytes) {
            *d = *b;
        }
        self.queue.push(MmioFragment { target, len: bytes.len().min(8) as u8, data })
    }

    /// The next posted write, in order; None when all are out.
    pub fn next_write(&mut self) -> Option<MmioFragment> {
        let p = self.queue.get(self.sent);
        match p {
            Some(_) => self.sent += 1,
            None => (self.queue.len, self.sent) = (0, 0),
        }
        p
    }

    /// Are there posted writes?
    pub fn has_writes(&self) -> bool {
        self.queue.len != 0 || self.rest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As an access is made. True if it is answered.
    fn read(t: &mut MmioFragments, gpa: u64, buf: &mut [u8]) -> bool {
        let answered = t.take_answer(gpa, buf);
        if !answered {
            t.want(gpa, buf.len());
        }
        answered
    }

    #[test]
    fn reads_are_answered_in_order_and_replayed() {
        let mut t = MmioFragments::default();
        let mut b = [0; 4];
        assert!(!read(&mut t, 0x1000, &mut b));
        assert_eq!(t.wanted, Some(Wanted::Mmio { gpa: 0x1000, len: 4 }));
        assert!(t.answer([1, 2, 3, 4, 0, 0, 0, 0]));
        t.rewind();
        assert!(read(&mut t, 0x1000, &mut b));
        assert_eq!(b, [1, 2, 3, 4]);
        assert!(!read(&mut t, 0x1004, &mut b));
        assert!(t.answer([5; 8]));
        t.rewind();
        assert!(read(&mut t, 0x1000, &mut b) && read(&mut t, 0x1004, &mut b));
        assert_eq!(b, [5; 4]);
    }

    #[test]
    fn another_access_is_a_new_one() {
        let mut t = MmioFragments::default();
        let mut b = [0; 2];
        assert!(!read(&mut t, 0x1000, &mut b));
        assert!(t.answer([1; 8]));
        t.rewind();
        assert!(!read(&mut t, 0x2000, &mut b));
        assert_eq!(t.wanted, Some(Wanted::Mmio { gpa: 0x2000, len: 2 }));
        assert!(t.answer([2; 8]));
        t.rewind();
        assert!(read(&mut t, 0x2000, &mut b), "the answer to the first is forgotten");
        assert_eq!(b, [2; 2]);
    }

    #[test]
    fn writes_are_cut_into_eight_bytes() {
        let mut t = MmioFragments::default();
        assert!(t.post(0x1006, &[9; 252]));
        let mut at = 0x1006;
        while let Some(p) = t.next_write() {
            assert_eq!(p.target, Target::Mmio(at));
            assert_eq!(u64::from(p.len), (0x1102 - at).min(8), "from where the write begins");
            at += u64::from(p.len);
        }
        assert_eq!(at, 0x1102);
        assert!(!t.has_writes());
    }

    #[test]
    fn a_full_queue_refuses() {
        let mut t = MmioFragments::default();
        assert!(t.post(0, &[0; 272]));
        assert!(!t.post(0, &[0; 8]));
    }
}
