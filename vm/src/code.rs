//! The guest's instructions: how long the intercepted one is, and what is remembered of those that exit again and again
//! (docs/decisions/0013).

use crate::Ctx;
use crate::run::Next;
use emulator::{Insn, Known, Mode, Op, Stop};
use host::{Cpu, Host, SeenCode};

/// Every how many looks at an instruction its place is remembered.
const LOOKUPS_PER_SEEN: u8 = 4;
/// Instructions that stay decoded, a power of two.
const PLACES: usize = 8;

/// Instructions that the processor knows as well, decoded.
#[derive(Default)]
pub(crate) struct Decoded([Option<Place>; PLACES]);

#[derive(Clone, Copy)]
struct Place {
    rip: u64,
    cr3: u64,
    insn: Insn,
}

impl Decoded {
    /// Neighbours get different places; if that is another one's, it may be in the place beside it (`^ 1`).
    fn place(rip: u64) -> usize {
        (rip ^ rip >> 3) as usize & (PLACES - 1)
    }

    fn get(&self, rip: u64, cr3: u64) -> Option<&Insn> {
        let first = Self::place(rip);
        let at = |n: usize| self.0.get(n)?.as_ref().filter(|p| p.rip == rip);
        let place = at(first).or_else(|| at(first ^ 1))?;
        (place.cr3 == cr3).then_some(&place.insn)
    }

    fn put(&mut self, rip: u64, cr3: u64, insn: Insn) {
        let first = Self::place(rip);
        let taken = matches!(self.0.get(first), Some(Some(p)) if p.rip != rip);
        if let Some(place) = self.0.get_mut(first ^ usize::from(taken)) {
            *place = Some(Place { rip, cr3, insn });
        }
    }
}

impl<H: Host> Ctx<'_, H> {
    /// RIP of the instruction after the intercepted one: from the hardware, or by looking at the bytes.
    #[inline(always)]
    pub(crate) fn next_rip(&mut self, what: Known) -> Result<u64, Next> {
        match self.core.cpu.control().next_rip {
            0 => self.looked_up_next_rip(what),
            next => Ok(next),
        }
    }

    /// The same by looking at the bytes.
    #[inline(never)]
    fn looked_up_next_rip(&mut self, what: Known) -> Result<u64, Next> {
        let rip = self.core.cpu.save().rip;
        if self.in_64bit_mode() {
            let mut bytes = [0; 15];
            let got = self.fetch_code(rip, &mut bytes);
            if let Some(len) = emulator::len_of(bytes.get(..got).unwrap_or(&[]), Mode::Long64, what) {
                let seen = self.see_code(rip, len);
                // Another vCPU may have changed it meanwhile.
                if let Some(code) = seen.filter(|c| emulator::len_of(c.bytes(), Mode::Long64, what) == Some(len)) {
                    self.core.cpu.seen(&code);
                }
                return Ok(rip.wrapping_add(len.into()));
            }
        }
        self.decoded_next_rip()
    }

    /// What the processor does not know by itself is found once more, to be told to it: then it need not be looked for the
    /// next time. None: not now.
    fn see_code(&mut self, rip: u64, len: u8) -> Option<SeenCode> {
        // To find the places costs several times what the look did: worth it where an instruction comes back, not where
        // more of them take turns than can be remembered.
        self.core.lookups = self.core.lookups.wrapping_add(1);
        if self.core.lookups % LOOKUPS_PER_SEEN != 0 || self.core.features.nrips {
            return None;
        }
        let paging = self.paging();
        self.vm.mmu.seen(&paging, rip, len)
    }

    /// The same with the whole decoder: outside of 64-bit mode, and where the bytes are not those expected.
    #[cold]
    pub(crate) fn decoded_next_rip(&mut self) -> Result<u64, Next> {
        let rip = self.core.cpu.save().rip;
        match emulator::fetch(self, &[]) {
            Ok(insn) => Ok(insn.next_rip(rip)),
            Err(stop) => Err(self.stopped(stop)),
        }
    }

    /// The instruction at RIP, if the processor has seen to it that it is one that was decoded before.
    pub(crate) fn known_insn(&self) -> Option<&Insn> {
        let (save, next) = (self.core.cpu.save(), self.core.cpu.control().next_rip);
        if self.core.features.nrips || next == 0 {
            return None;
        }
        let insn = self.core.decoded.get(save.rip, save.cr3)?;
        (insn.next_rip(save.rip) == next).then_some(insn)
    }

    /// Decodes the instruction at RIP, from the bytes that the processor reported or from memory.
    pub(crate) fn decode(&mut self) -> Result<Insn, Stop> {
        let mut bytes = [0; 15];
        let reported = self.core.cpu.control().insn();
        let n = reported.len();
        if let Some(b) = bytes.get_mut(..n) {
            b.copy_from_slice(reported);
        }
        let insn = emulator::fetch(self, bytes.get(..n).unwrap_or(&[]))?;
        // String I/O is not among those that the processor looks for.
        if insn.mode == Mode::Long64 && !matches!(insn.op, Op::Ins | Op::Outs) {
            let (rip, cr3) = (self.core.cpu.save().rip, self.core.cpu.save().cr3);
            if let Some(code) = self.see_code(rip, insn.len) {
                // Another vCPU may have changed it meanwhile: what counts is what was seen.
                if emulator::decode(code.bytes(), Mode::Long64) == Ok(insn) {
                    self.core.cpu.seen(&code);
                    self.core.decoded.put(rip, cr3, insn);
                }
            }
        }
        Ok(insn)
    }
}
