//! Flushes of other processors' translations, and interrupts to them (TLFS, "Virtual MMU" and "Virtual Interrupts").

use super::hypercall::{Call, REPS_DONE, Refused, XMM_WORDS};
use super::number::{call, status};
use super::targets::{BANKS, Targets};
use crate::Ctx;
use arch::GuestIndexed;
use host::{Host, Request};

/// In a flush's flags: whatever the processors named, all of them.
const ALL_PROCESSORS: u64 = 1;
/// Formats of a set of processors: banks, and all there are.
const SPARSE: u64 = 0;
const ALL: u64 = 1;
/// Longer lists of addresses are not looked at: everything is flushed.
const ENTRIES: usize = 15;

/// Where a call's words come from, behind those that have been taken.
enum Words {
    /// Registers, from this one on.
    Xmm(usize),
    /// Memory, from this address on.
    Memory(u64),
}

impl<H: Host> Ctx<'_, H> {
    /// HvCallFlushVirtualAddressSpace and _List.
    pub(super) fn flush(&mut self, call: &Call) -> Result<u64, Refused> {
        let [mask, ..] = call.xmm;
        let (flags, mask, mut words) = if call.fast {
            (call.output, mask, Words::Xmm(1))
        } else {
            let mut header = [0; 3];
            self.read_input(call.input, &mut header)?;
            let [_, flags, mask] = header;
            (flags, mask, Words::Memory(call.input.wrapping_add(24)))
        };
        let mut targets = Targets::first(mask);
        // Windows Server 2012 names nobody, and expects that something is flushed.
        targets.all = flags & ALL_PROCESSORS != 0 || mask == 0;
        self.flush_targets(call, &targets, &mut words)
    }

    /// The same with any processors.
    pub(super) fn flush_ex(&mut self, call: &Call) -> Result<u64, Refused> {
        let [format, valid, ..] = call.xmm;
        let (format, valid, mut words) = if call.fast {
            (format, valid, Words::Xmm(2))
        } else {
            let mut header = [0; 4];
            self.read_input(call.input, &mut header)?;
            let [_, _, format, valid] = header;
            (format, valid, Words::Memory(call.input.wrapping_add(32)))
        };
        let targets = self.targets(call, format != SPARSE, valid, &mut words)?;
        match targets {
            Some(targets) => self.flush_targets(call, &targets, &mut words),
            None => Ok(done(call)),
        }
    }

    /// The processors that follow the header of a call. None: nobody.
    fn targets(&self, call: &Call, all: bool, valid: u64, words: &mut Words) -> Result<Option<Targets>, Refused> {
        if u32::from(call.var_count) != valid.count_ones() {
            return Err(Refused::INPUT);
        }
        let mut banks = [0; BANKS];
        let count = usize::from(call.var_count);
        if !all {
            if count == 0 {
                return Ok(None);
            }
            // INDEX: not more than there are bits in a word of 64.
            self.take_words(call, words, banks.get_mut(..count).ok_or(Refused::INPUT)?)?;
        } else {
            // They may be there, and are skipped.
            skip_words(words, count);
        }
        Ok(Some(Targets { all, valid, banks: GuestIndexed::new(banks) }))
    }

    fn take_words(&self, call: &Call, words: &mut Words, to: &mut [u64]) -> Result<(), Refused> {
        match *words {
            Words::Xmm(taken) => {
                if taken.saturating_add(to.len()) > XMM_WORDS {
                    return Err(Refused::INPUT);
                }
                for (to, from) in to.iter_mut().zip(call.xmm.iter().skip(taken)) {
                    *to = *from;
                }
            }
            Words::Memory(at) => self.read_input(at, to)?,
        }
        skip_words(words, to.len());
        Ok(())
    }

    /// Whichever addresses and address spaces are named, all of these processors' translations go: which space one of them
    /// is in cannot be seen from here.
    fn flush_targets(&mut self, call: &Call, targets: &Targets, words: &mut Words) -> Result<u64, Refused> {
        let lists = matches!(call.code, call::FLUSH_ADDRESS_LIST | call::FLUSH_ADDRESS_LIST_EX);
        let mut entries = [0; ENTRIES];
        // INDEX: how many words of the guest's are read into an array that is thrown away.
        if let (true, Some(entries)) = (lists, entries.get_mut(..usize::from(call.reps))) {
            self.take_words(call, words, entries)?;
        }
        self.vm.for_each_target(targets, |v| v.request(Request::TlbFlush));
        self.vm.for_each_target(targets, |v| v.wait_for_exit(Request::TlbFlush));
        Ok(done(call))
    }

    /// HvCallSendSyntheticClusterIpi.
    pub(super) fn send_ipi(&mut self, call: &Call) -> Result<u64, Refused> {
        self.has_receivers()?;
        let (vector, mask) = if call.fast {
            (u32::try_from(call.input).map_err(|_| Refused::INPUT)?, call.output)
        } else {
            let mut input = [0; 2];
            self.read_input(call.input, &mut input)?;
            let [vector, mask] = input;
            (vector as u32, mask)
        };
        self.send_to_targets(vector, &Targets::first(mask))
    }

    /// HvCallSendSyntheticClusterIpiEx.
    pub(super) fn send_ipi_ex(&mut self, call: &Call) -> Result<u64, Refused> {
        self.has_receivers()?;
        let [valid, ..] = call.xmm;
        let (vector, format, valid, mut words) = if call.fast {
            (call.input as u32, call.output, valid, Words::Xmm(1))
        } else {
            let mut header = [0; 3];
            self.read_input(call.input, &mut header)?;
            let [vector, format, valid] = header;
            (vector as u32, format, valid, Words::Memory(call.input.wrapping_add(24)))
        };
        match self.targets(call, format == ALL, valid, &mut words)? {
            Some(targets) => self.send_to_targets(vector, &targets),
            None => Ok(status::SUCCESS),
        }
    }

    /// Without local APICs in the kernel there is nobody to take an interrupt.
    fn has_receivers(&self) -> Result<(), Refused> {
        if self.core.fast.lapic.is_some() { Ok(()) } else { Err(Refused::INPUT) }
    }

    fn send_to_targets(&mut self, vector: u32, targets: &Targets) -> Result<u64, Refused> {
        let vector = u8::try_from(vector).ok().filter(|v| *v >= 16).ok_or(Refused::INPUT)?;
        // Who has switched his local APIC off gets nothing.
        self.vm.for_each_target(targets, |v| {
            v.deliver_fixed(vector);
        });
        Ok(status::SUCCESS)
    }
}

fn skip_words(words: &mut Words, n: usize) {
    match words {
        Words::Xmm(taken) => *taken = taken.saturating_add(n),
        Words::Memory(at) => *at = at.wrapping_add(8 * n as u64),
    }
}

/// All repetitions are done.
fn done(call: &Call) -> u64 {
    status::SUCCESS | u64::from(call.reps) << REPS_DONE
}
