//! What user space is told once an instruction has been carried out: its writes to devices, what devices in the kernel want
//! of it, and last that a debugger's step is over.

use crate::Ctx;
use crate::mmio::{AnswerPart, MmioFragment, Target};
use crate::run::Next;
use crate::user::{Pending, UserExit};
use host::{Host, SharedPage};

impl<H: Host> Ctx<'_, H> {
    /// Sends the next posted write to user space. When all are out it is told what a device in the kernel wants of it (EOI of
    /// its IOAPIC). Then Resume, or the debugger's step ends.
    pub(crate) fn flush_writes(&mut self) -> Next {
        let Some(p) = self.core.mmio_fragments.next_write().or_else(|| self.next_of_answer()) else {
            if !matches!(self.core.device_exit, Next::Resume) {
                return self.leave_for_device();
            }
            let step_ends = core::mem::take(&mut self.core.mmio_fragments.step_ends);
            // It may have been called off meanwhile.
            return if step_ends && self.core.debug.steps() { self.single_step() } else { Next::Resume };
        };
        match p.target {
            Target::Mmio(gpa) => {
                self.me.stats.mmio_exits.count();
                self.core.pending = Pending::MmioWrite;
                Next::User(UserExit::Mmio { gpa, data: p.data, len: p.len, write: true })
            }
            Target::Port(port) => {
                self.me.pio_page().cells().write(0, p.data.get(..p.len.into()).unwrap_or(&[]));
                self.core.pending = Pending::PioOut;
                Next::User(UserExit::Io { input: false, size: p.len, port, count: 1 })
            }
        }
    }

    /// The next piece of what REP INS has got and a device gets: it is where user space has put it.
    fn next_of_answer(&mut self) -> Option<MmioFragment> {
        let AnswerPart { gpa, at, len } = self.core.mmio_fragments.next_part()?;
        let mut data = [0; 8];
        if let Some(bytes) = data.get_mut(..len.into()) {
            self.me.pio_page().cells().read(at.into(), bytes);
        }
        Some(MmioFragment { target: Target::Mmio(gpa), len, data })
    }

    #[cold]
    fn leave_for_device(&mut self) -> Next {
        let what = core::mem::replace(&mut self.core.device_exit, Next::Resume);
        if let Next::User(why) = what { self.leave_for(why) } else { what }
    }

    /// Leaves for something that needs no answer. If a debugger's step ends with the instruction, that follows.
    fn leave_for(&mut self, why: UserExit) -> Next {
        if self.core.mmio_fragments.step_ends {
            self.core.pending = Pending::MmioWrite;
        }
        Next::User(why)
    }

    /// An instruction is complete, wants `what` of user space, and has ended as `step` says (see
    /// [`advance`](Self::advance)): a debugger is told of its step once user space has done the other.
    #[inline]
    pub(crate) fn also(&mut self, what: Next, step: Next) -> Next {
        match what {
            Next::Resume => step,
            Next::User(why) => {
                self.core.mmio_fragments.step_ends = step != Next::Resume;
                self.leave_for(why)
            }
            leave => leave,
        }
    }
}
