//! What happens at an exit: one exhaustive match, and the handlers that need no file of their own.

mod cpuid;
mod cr;
mod dump;
mod io;
mod misc;
mod msr;
mod npf;
mod task;

pub(crate) use io::{Pio, complete_input, complete_output};
pub(crate) use misc::complete_hypercall;
pub(crate) use msr::complete as complete_msr;

use crate::Ctx;
use crate::run::Next;
use crate::user::{UserExit, suberror};
use arch::cr::Rflags;
use arch::event::vector;
use arch::exit::code;
use arch::{Exception, Exit, Gpa};
use emulator::Known;
use host::{Cpu, Host, LastExit, Request, VcpuThread};

/// Handles one exit of the guest.
#[inline]
pub fn handle<H: Host>(ctx: &mut Ctx<'_, H>, exit: Exit) -> Next {
    match exit {
        Exit::Npf { gpa, code } => npf::handle(ctx, gpa, code),
        Exit::Io(io) => io::handle(ctx, io),
        Exit::Cpuid => cpuid::handle(ctx),
        Exit::Rdmsr => msr::read(ctx),
        Exit::Wrmsr => msr::write(ctx),
        Exit::Hlt => misc::hlt(ctx),
        // The world switch let the host take them; there is nothing left to do.
        Exit::Intr => {
            ctx.me.stats.irq_exits.count();
            Next::Resume
        }
        Exit::None | Exit::Nmi | Exit::Smi | Exit::Init => Next::Resume,
        // The window is open: the loop injects, or tells user space.
        Exit::Vintr => {
            ctx.me.stats.irq_window_exits.count();
            Next::Resume
        }
        Exit::Iret => {
            ctx.me.stats.nmi_window_exits.count();
            ctx.core.on_iret();
            Next::Resume
        }
        Exit::Vmmcall => misc::vmmcall(ctx),
        Exit::CrRead { gpr, n } => cr::cr(ctx, n, gpr, false),
        Exit::CrWrite { gpr, n } => cr::cr(ctx, n, gpr, true),
        Exit::Cr0SelWrite { gpr } => cr::cr(ctx, 0, gpr, true),
        Exit::DrRead { n, gpr } => cr::dr(ctx, n, gpr, false),
        Exit::DrWrite { n, gpr } => cr::dr(ctx, n, gpr, true),
        Exit::Xsetbv => misc::xsetbv(ctx),
        Exit::Wbinvd => misc::wbinvd(ctx),
        // Caches are coherent and shared with the host: there is nothing that a guest could need thrown away.
        Exit::Invd => ctx.skip(Known::Invd),
        Exit::Pause => misc::pause(ctx),
        // Without their CPUID bits these idle hints do nothing, as on stock KVM.
        Exit::Monitor => misc::idle_hint(ctx, Known::Monitor),
        Exit::Mwait => misc::idle_hint(ctx, Known::Mwait),
        Exit::Rdpmc => misc::rdpmc(ctx),
        // Intercepted only from guests whose CPUID does not have them (`hide_instructions`).
        Exit::Rdtscp | Exit::Invpcid => ctx.fault(Exception::UD),
        // Nothing asks for this exit.
        Exit::Rdtsc => misc::unknown(ctx, arch::exit::code::RDTSC),
        Exit::Invlpg { .. } => ctx.emulate(),
        Exit::Shutdown => misc::shutdown(ctx),
        Exit::Exception { vector, error_code, .. } => misc::exception(ctx, vector, error_code),
        // No nested virtualisation is offered (no SVM bit in the guest's CPUID, EFER.SVME is refused): #UD. So is RDPRU.
        Exit::Svm { .. } | Exit::Rdpru => ctx.fault(Exception::UD),
        Exit::Rsm => ctx.rsm(),
        Exit::TaskSwitch { info1, info2 } => task::handle(ctx, info1, info2),
        Exit::Invalid => misc::invalid(ctx),
        Exit::Unknown { code, .. } => misc::unknown(ctx, code),
    }
}

impl<H: Host> Ctx<'_, H> {
    /// Queues an exception that the instruction at RIP caused. Always [`Next::Resume`].
    pub(crate) fn fault(&mut self, e: Exception) -> Next {
        if e.vector == vector::PF {
            self.me.stats.pf_guest.count();
        }
        self.core.inject.queue(e);
        if self.core.inject.triple_fault {
            // User space is told before the guest is entered again, and finds the registers as they were.
            self.me.thread.requests().make_request(Request::Event);
        }
        Next::Resume
    }

    /// Moves RIP past the intercepted instruction, which has done what it does.
    #[inline(always)] // `what` is a constant: the comparison of its opcode is a word's.
    pub(crate) fn skip(&mut self, what: Known) -> Next {
        match self.next_rip(what) {
            Ok(rip) => self.advance(rip),
            Err(stop) => self.skip_anyway(what, stop),
        }
    }

    /// RIP becomes `rip`; the shadow of the instruction before ends, RFLAGS.RF as well, and a single step traps.
    #[inline]
    pub(crate) fn advance(&mut self, rip: u64) -> Next {
        let save = self.core.cpu.save_mut(arch::CleanBits::empty());
        save.rip = rip;
        save.rflags &= !Rflags::RF.bits();
        let single_step = save.rflags & Rflags::TF.bits() != 0;
        if self.core.cpu.control().int_state & arch::vmcb::INT_SHADOW != 0 {
            self.core.cpu.set_interrupt_shadow(false);
        }
        if single_step {
            return self.single_step();
        }
        Next::Resume
    }

    /// The vCPU leaves for `reason` (KVM_EXIT_*) and has nowhere to go on: the host remembers its last exit. `detail` goes with the
    /// reason.
    #[cold]
    pub(crate) fn note_end(&self, reason: u32, detail: u64) {
        let (info, rip) = (self.core.cpu.control().exit_info(), self.core.cpu.save().rip);
        self.vm.host.ended(LastExit {
            vcpu: self.me.id,
            reason,
            detail,
            code: info.code,
            info1: info.info1,
            info2: info.info2,
            int_info: info.int_info.0,
            rip,
        });
    }

    /// #DB after an instruction that was carried out here with RFLAGS.TF set.
    #[cold]
    pub(crate) fn single_step(&mut self) -> Next {
        if self.core.debug.control & crate::debug::SINGLESTEP != 0 {
            return misc::debug_exit(self, vector::DB, arch::cr::DR6_BS | arch::cr::DR6_RESET);
        }
        self.fault(Exception { vector: vector::DB, error_code: None, payload: Some(arch::cr::DR6_BS) })
    }
}

/// KVM_EXIT_INTERNAL_ERROR with the words given.
#[cold]
pub(crate) fn internal_error<H: Host, const N: usize>(ctx: &mut Ctx<'_, H>, suberror: u32, words: [u64; N]) -> Next {
    ctx.note_end(UserExit::InternalError { suberror, ndata: 0 }.reason(), suberror.into());
    for (d, w) in ctx.core.exit_words.iter_mut().zip(words) {
        *d = w;
    }
    Next::User(UserExit::InternalError { suberror, ndata: N.min(8) as u32 })
}

/// The hardware reported something that it was never asked for.
#[cold]
pub(crate) fn unexpected<H: Host>(ctx: &mut Ctx<'_, H>, code: u64) -> Next {
    let cpu = ctx.core.cpu.last_cpu();
    internal_error(ctx, suberror::UNEXPECTED_EXIT_REASON, [code, cpu.into()])
}

/// The delivery of an event met a device, or wrote memory that the guest may only read: there is no instruction that could
/// be emulated. The words are the event as EXITINTINFO has it, the exit with its error code, the address and the processor.
#[cold]
fn undeliverable<H: Host>(ctx: &mut Ctx<'_, H>, gpa: Gpa, error_code: u64) -> Next {
    let event = ctx.core.cpu.control().exit_int_info.0;
    let cpu = ctx.core.cpu.last_cpu();
    internal_error(ctx, suberror::DELIVERY_EV, [event, code::NPF, error_code, gpa.0, cpu.into()])
}
