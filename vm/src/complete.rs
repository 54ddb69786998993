//! User space comes back from an exit that waits for its answer: the instruction goes on (KVM's `complete_userspace_io`).

use crate::run::Next;
use crate::state::Regs;
use crate::user::{Answer, Pending};
use crate::{Ctx, exits};
use emulator::Rep;
use host::Host;

const RCX: usize = 1;
const RSP: usize = 4;
const RSI: usize = 6;
const RDI: usize = 7;

impl<H: Host> Ctx<'_, H> {
    /// User space came back: finishes what the last exit left open. Err: leave again.
    #[inline]
    pub(crate) fn complete(&mut self, answer: Answer) -> Result<(), Next> {
        let pending = core::mem::take(&mut self.core.pending);
        if pending == Pending::None {
            return Ok(());
        }
        if pending == Pending::Memory && (self.core.inject.busy() || self.me.pending_events.init_sipi.is_latched()) {
            // Rather than bring the memory, the VMM has the guest do something else, or another vCPU has it begin anew.
            self.core.mmio_fragments.clear();
            return Ok(());
        }
        let begun = self.core.mmio_fragments.begun.is_some();
        match if begun { self.finish_with_registers_set(pending, answer) } else { self.finish(pending, answer) } {
            Next::Resume => Ok(()),
            leave => Err(leave),
        }
    }

    /// The same where user space has set registers meanwhile (KVM_SET_REGS): the instruction works with those that it began
    /// with, and what it writes replaces what user space has set; RIP and RFLAGS as well, once it is complete. Without
    /// this an access would be made somewhere else than where user space has answered it.
    #[cold]
    fn finish_with_registers_set(&mut self, pending: Pending, answer: Answer) -> Next {
        let Some(begun) = self.core.mmio_fragments.begun.take() else { return self.finish(pending, answer) };
        let set = self.core.regs();
        if pending == Pending::Memory && set.rip != begun.rip {
            // Rather than bring the memory, the VMM has sent the guest elsewhere.
            self.core.mmio_fragments.clear();
            return Next::Resume;
        }
        let is_string = self.core.mmio_fragments.insn.is_some_and(|i| i.is_string());
        let repeats = self.core.mmio_fragments.insn.is_some_and(|i| i.rep != Rep::None);
        if is_string && repeats && matches!(pending, Pending::PioIn { .. }) && set.gpr[RCX] != begun.gpr[RCX] {
            // REP INS moves as many elements as RCX says now. The answer is for another number of them: they are asked
            // for anew.
            self.core.load_regs(&Regs { rip: begun.rip, ..set });
            self.core.mmio_fragments.wanted = None;
            return self.finish(pending, answer);
        }
        self.core.load_regs(&begun);
        let next = self.finish(pending, answer);
        let own = self.core.regs();
        let mut ended = own;
        for (n, ((ended, begun), set)) in ended.gpr.iter_mut().zip(begun.gpr).zip(set.gpr).enumerate() {
            // What steps on does so from where user space has put it.
            let steps = n == RSP || is_string && matches!(n, RCX | RSI | RDI);
            *ended = if steps { set.wrapping_add(ended.wrapping_sub(begun)) } else { merged(begun, *ended, set) };
        }
        if self.core.mmio_fragments.insn.is_some() {
            (ended.rip, ended.rflags) = (set.rip, set.rflags);
        }
        self.core.load_regs(&ended);
        // The elements of a string instruction that are done by now are not to be done once more.
        self.core.mmio_fragments.begun = self.core.pending.resumes_instruction().then_some(own);
        next
    }

    fn finish(&mut self, pending: Pending, answer: Answer) -> Next {
        match (pending, answer) {
            (Pending::None, _) => Next::Resume,
            (Pending::MmioRead { .. }, Answer::Mmio(data)) => {
                let load = self.core.mmio_fragments.load.take();
                if let Some(next) = load.and_then(|load| self.answered_load(load, data)) {
                    next
                } else if self.core.mmio_fragments.answer(data) {
                    self.resume_instruction()
                } else {
                    self.core.mmio_fragments.give_up();
                    self.unhandleable()
                }
            }
            (Pending::FastPioIn { size }, _) => exits::complete_input(self, size),
            (Pending::FastPioOut, _) => exits::complete_output(self),
            (Pending::PioIn { .. }, _) => {
                self.core.mmio_fragments.port_answered = self.core.mmio_fragments.wanted.take();
                self.resume_instruction()
            }
            (Pending::Memory, _) => self.resume_instruction(),
            (Pending::MmioWrite | Pending::PioOut, _) => self.flush_writes(),
            (Pending::Rdmsr, Answer::Msr { data, error }) => exits::complete_msr(self, false, data, error),
            (Pending::Wrmsr, Answer::Msr { data, error }) => exits::complete_msr(self, true, data, error),
            (Pending::Hypercall, Answer::Hypercall { ret }) => exits::complete_hypercall(self, ret),
            (Pending::HypervCall, Answer::Hypercall { ret }) => self.complete_hyperv_call(ret),
            (Pending::Syndbg, Answer::Syndbg { index, status }) => {
                self.complete_syndbg(index, status);
                Next::Resume
            }
            // The answer does not fit the question: only a caller that mixes them up gets here.
            (Pending::MmioRead { .. } | Pending::Rdmsr | Pending::Wrmsr, _)
            | (Pending::Hypercall | Pending::HypervCall | Pending::Syndbg, _) => {
                self.core.mmio_fragments.clear();
                Next::Resume
            }
        }
    }

    fn resume_instruction(&mut self) -> Next {
        match self.core.mmio_fragments.insn {
            Some(insn) => self.step(insn),
            None => Next::Resume,
        }
    }
}

/// A register that an instruction found as `begun` and left as `ended`, where user space has `set` it meanwhile: the bytes
/// that the instruction has written are its own.
fn merged(begun: u64, ended: u64, set: u64) -> u64 {
    let bytes = begun.to_le_bytes().into_iter().zip(ended.to_le_bytes()).zip(set.to_le_bytes());
    bytes.rev().fold(0, |word, ((begun, ended), set)| word << 8 | u64::from(if begun == ended { set } else { ended }))
}
