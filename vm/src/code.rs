//! The guest's instructions: how long the intercepted one is, and which. A processor with NRIPS says the one, one with decode
//! assists gives the bytes of the other after a page fault (APM 15.7.1, 15.8.4); elsewhere guest memory is read
//! (docs/decisions/0013).

use crate::Ctx;
use crate::run::Next;
use emulator::{Insn, Known, Mode, Stop};
use host::{Cpu, Errno, Host};

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
                return Ok(rip.wrapping_add(len.into()));
            }
        }
        self.decoded_next_rip()
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

    /// Where the next instruction is could not be found out, for the reason given, and the one before has done what it does: it
    /// cannot begin anew, and so no signal ends its wait for memory of the VMM's.
    #[cold]
    pub(crate) fn skip_anyway(&mut self, what: Known, mut why: Next) -> Next {
        while matches!(why, Next::Fail(Errno::EINTR, _)) && !self.vm.host.killed() {
            let Some(gpa) = self.core.awaited else { break };
            self.memory_view().wait_for_page(gpa);
            self.vm.host.cond_resched();
            match self.next_rip(what) {
                Ok(rip) => return self.advance(rip),
                Err(again) => why = again,
            }
        }
        why
    }

    /// Decodes the instruction at RIP, which met a nested page fault, from the bytes that the processor reported with it or from
    /// memory. Where it is in `Core::decoded` now. Not for other exits: nobody says what the bytes are then.
    #[inline]
    pub(crate) fn decode(&mut self) -> Result<usize, Stop> {
        let control = self.core.cpu.control();
        let (n, bytes) = (control.insn().len(), control.insn_bytes);
        let key = (bytes, emulator::mode_of(self));
        let place = Decoded::place(&key);
        if n == bytes.len() && self.core.decoded.knows(place, &key) {
            return Ok(place);
        }
        self.decode_anew(key, n, place)
    }

    /// The same for one that is not known yet, of which the processor has reported `n` bytes.
    #[cold]
    fn decode_anew(&mut self, key: Key, n: usize, place: usize) -> Result<usize, Stop> {
        let insn = emulator::fetch(self, key.0.get(..n).unwrap_or(&[]))?;
        let whole = n == key.0.len();
        self.core.decoded.keep(place, whole.then_some(key), insn);
        Ok(place)
    }
}

/// All bytes that an instruction may have, and the mode that they are decoded for: there is nothing else that the decoder looks at.
type Key = ([u8; 15], Mode);

/// The last instructions that were decoded. A driver comes back to the same few.
#[derive(Default)]
pub(crate) struct Decoded([(Option<Key>, Option<Insn>); Self::KEPT]);

impl Decoded {
    /// A power of two.
    const KEPT: usize = 4;

    /// Below [`KEPT`](Self::KEPT) whatever the guest runs, also where a processor guesses: opcode, ModRM and displacement are
    /// mostly among these bytes.
    #[inline]
    fn place((bytes, _): &Key) -> usize {
        let [_, a, b, c, d, ..] = *bytes;
        usize::from(a ^ b ^ c ^ d) & (Self::KEPT - 1)
    }

    #[inline]
    fn knows(&self, place: usize, key: &Key) -> bool {
        self.0.get(place).is_some_and(|(known, _)| known.as_ref() == Some(key))
    }

    /// Without a key nobody finds it by its bytes.
    fn keep(&mut self, place: usize, key: Option<Key>, insn: Insn) {
        if let Some(entry) = self.0.get_mut(place) {
            *entry = (key, Some(insn));
        }
    }

    /// What was decoded last for the place.
    #[inline]
    pub(crate) fn get(&self, place: usize) -> Option<&Insn> {
        self.0.get(place)?.1.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_decoded_is_found_by_bytes_and_mode() {
        let mut known = Decoded::default();
        let key = |opcode, mode| {
            let mut bytes = [0; 15];
            (bytes[1], bytes[2]) = (opcode, 0x03);
            (bytes, mode)
        };
        let insn =
            |opcode, mode| emulator::decode(&[opcode, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], mode).unwrap();
        let (a, b) = (key(0x8b, Mode::Long64), key(0x8b, Mode::Prot32));
        let put = |known: &mut Decoded, key: Key, insn| known.keep(Decoded::place(&key), Some(key), insn);
        let find = |known: &Decoded, key: &Key| {
            let place = Decoded::place(key);
            known.knows(place, key).then(|| *known.get(place).unwrap())
        };
        put(&mut known, a, insn(0x8b, Mode::Long64));
        assert_eq!((find(&known, &a), find(&known, &b)), (Some(insn(0x8b, Mode::Long64)), None));
        put(&mut known, b, insn(0x8b, Mode::Prot32));
        assert_eq!((find(&known, &a), find(&known, &b)), (None, Some(insn(0x8b, Mode::Prot32))), "they share a place");
        let c = key(0x8a, Mode::Prot32);
        put(&mut known, c, insn(0x8a, Mode::Prot32));
        assert_eq!(
            (find(&known, &b), find(&known, &c)),
            (Some(insn(0x8b, Mode::Prot32)), Some(insn(0x8a, Mode::Prot32)))
        );
        known.keep(Decoded::place(&c), None, insn(0x8a, Mode::Prot32));
        assert_eq!(find(&known, &c), None, "it was read from memory, which may change");
    }
}
