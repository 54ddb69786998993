//! Task switches (APM 15.14.1): the processor reports them before it has done anything.

use super::internal_error;
use crate::Ctx;
use crate::guest::from_emulator;
use crate::inject::Delivered;
use crate::run::Next;
use crate::user::suberror;
use arch::event::vector;
use arch::{EventType, Exception};
use emulator::{Cause, Stop, Switched, TaskSwitch};
use host::{Cpu, Host};

/// EXITINFO2: the switch is by IRET, by a far JMP; the exception pushes an error code (bits 31:0).
const BY_IRET: u64 = 1 << 36;
const BY_JUMP: u64 = 1 << 38;
const HAS_ERROR_CODE: u64 = 1 << 44;

#[cold]
pub fn handle<H: Host>(ctx: &mut Ctx<'_, H>, info1: u64, info2: u64) -> Next {
    let event = ctx.core.cpu.control().exit_int_info;
    let cause = match () {
        () if info2 & BY_IRET != 0 => Cause::Return,
        () if info2 & BY_JUMP != 0 => Cause::Jump,
        () if event.valid() => Cause::Gate,
        () => Cause::Call,
    };
    let kind = event.kind().filter(|_| cause == Cause::Gate);
    let software = match (kind, event.vector()) {
        (Some(EventType::Soft), v) | (Some(EventType::Exception), v @ (vector::BP | vector::OF)) => Some(v),
        _ => None,
    };
    // What comes from an instruction goes on after it; a fault goes on with the instruction that caused it.
    let return_rip = if cause == Cause::Gate && software.is_none() {
        ctx.core.cpu.save().rip
    } else {
        match ctx.decoded_next_rip() {
            Ok(rip) => rip,
            Err(next) => return next,
        }
    };
    let error_code = (kind == Some(EventType::Exception) && info2 & HAS_ERROR_CODE != 0).then_some(info2 as u32);
    // The switch delivers the event; it was queued to be delivered again.
    let delivered = if cause == Cause::Gate { ctx.core.inject.take_delivered() } else { Delivered::default() };
    // INT3 and INTO are exceptions whose gate is checked like that of INTn.
    let switch = TaskSwitch { selector: info1 as u16, cause, return_rip, software, error_code };
    ctx.core.mmio_fragments.clear();
    // A debugger's trap flag is not the task's.
    let steps = ctx.core.debug.steps();
    if steps {
        ctx.core.set_trap_flag(false);
    }
    let switched = emulator::task_switch(ctx, &switch);
    if matches!(switched, Switched::Not(_)) {
        ctx.core.arm_single_step();
    }
    match switched {
        Switched::Done { traps } => {
            ctx.core.mmio_fragments.step_ends = steps;
            ctx.core.cpu.set_interrupt_shadow(false);
            if let Some(dr6) = traps {
                // Of the new task: what led here has been delivered.
                ctx.fault(Exception { vector: vector::DB, error_code: None, payload: Some(dr6) });
            }
            // The old task may have been put away into a device.
            ctx.flush_writes()
        }
        // A fault finds the exception where it was.
        Switched::Partly(Stop::Fault(e)) | Switched::Not(Stop::Fault(e)) => {
            if let Some(first) = delivered.exception {
                ctx.core.inject.queue(first);
            }
            ctx.fault(from_emulator(e));
            ctx.flush_writes()
        }
        Switched::Not(Stop::NeedUser) if ctx.core.host_stop.is_some() => {
            // The event is delivered once the VMM's memory is there.
            ctx.core.inject.put_back(delivered);
            ctx.core.mmio_fragments.clear();
            ctx.stopped(Stop::NeedUser)
        }
        // A task that cannot be loaded whole cannot run; a TSS in a device, which nobody asks, is none.
        Switched::Partly(_) => failed(ctx),
        Switched::Not(_) => {
            ctx.core.inject.put_back(delivered);
            failed(ctx)
        }
    }
}

fn failed<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    ctx.core.mmio_fragments.clear();
    ctx.core.host_stop = None;
    internal_error(ctx, suberror::EMULATION, [])
}
