//! The guest's instructions: how long the intercepted one is, and which. A processor with NRIPS says the one, one with decode
//! assists gives the bytes of the other (APM 15.7.1, 15.8.4); without them guest memory is read (docs/decisions/0013).

use crate::Ctx;
use crate::run::Next;
use emulator::{Insn, Known, Mode, Stop};
use host::{Cpu, Host};

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

    /// Decodes the instruction at RIP, from the bytes that the processor reported or from memory.
    pub(crate) fn decode(&mut self) -> Result<Insn, Stop> {
        let mut bytes = [0; 15];
        let reported = self.core.cpu.control().insn();
        let n = reported.len();
        if let Some(b) = bytes.get_mut(..n) {
            b.copy_from_slice(reported);
        }
        emulator::fetch(self, bytes.get(..n).unwrap_or(&[]))
    }
}
