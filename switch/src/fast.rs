//! Exits that are handled without leaving the guest's context: between #VMEXIT and the next VMRUN, with GIF clear.
//!
//! The assembly jumps to `hsave_fast` once the guest's registers are stored. That function (one for the whole program,
//! defined where the type of the handlers is known) is [`handle_fast`] with everything inlined, and jumps back: to
//! `hsave_fast_again`, which loads the registers and runs the guest again, or to `hsave_fast_leave`, where the way back to
//! the host begins. It never returns: a RET could be predicted by what the guest trained.
//!
//! An interrupt for the host that comes meanwhile ends the next VMRUN at once, as if it had come a little later; so does
//! the IPI with which others ask for the vCPU. Nobody waits longer than for one exit.

use crate::{Platform, Svm, VcpuCtx};
use arch::cr::Rflags;
use arch::vmcb::{INT_SHADOW, tlb_control::DO_NOTHING};
use arch::{CleanBits, EventInj, Vmcb, exit::code};
use core::any::TypeId;
use core::ptr::null_mut;
use host::{FastExit, FastExits};

/// What `hsave_fast` gets, by the assembly's argument.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Link {
    /// The [`Svm`] around the context, if `state` is set.
    svm: *mut (),
    /// The [`FastExits`]. Null: the assembly does not jump.
    pub state: *mut (),
}

impl Default for Link {
    fn default() -> Self {
        Self { svm: null_mut(), state: null_mut() }
    }
}

impl Link {
    /// For one entry: `state` is handled by `hsave_fast` if that was made for its type, and if the machine has the fast
    /// path: the processor says where the next instruction is, and cannot be led astray on the way.
    #[inline(always)]
    pub fn new<P: Platform, F: FastExits>(svm: *mut Svm<P>, allowed: bool, state: &mut F) -> Self {
        let known = allowed && TypeId::of::<F>() == TypeId::of::<P::Fast>();
        Self { svm: svm.cast(), state: if known { (&raw mut *state).cast() } else { null_mut() } }
    }
}

/// `hsave_fast`: true if this was the exit of an instruction that is done, and the guest is to be entered again.
///
/// # Safety
/// `ctx` is the argument of `hsave_vcpu_run`, which was called by [`Svm::run`] with [`Link::state`] set; the guest was left
/// just now.
#[inline(always)]
pub unsafe fn handle_fast<P: Platform>(ctx: *mut VcpuCtx) -> bool {
    // SAFETY: `run` has set both for this entry, and uses neither while the assembly runs.
    let (svm, state) = unsafe { (&mut *(*ctx).link.svm.cast::<Svm<P>>(), &mut *(*ctx).link.state.cast::<P::Fast>()) };
    if !is_instruction(svm.vmcb().control.exit_code) {
        return false;
    }
    let all_clean = if svm.machine.features.vmcb_clean { CleanBits::all() } else { CleanBits::empty() };
    let (regs, Vmcb { control, save, .. }) = svm.parts_mut();
    let next = control.next_rip;
    // What was cut short has to be delivered again; a single step has to trap, and RF to end.
    let flags = Rflags::TF.union(Rflags::RF).bits();
    if next == 0 || control.exit_int_info.valid() || save.rflags & flags != 0 {
        return false;
    }
    if !state.handle(&mut FastExit { regs, save, control }) {
        return false;
    }
    save.rip = next;
    control.int_state &= !INT_SHADOW;
    control.event_inj = EventInj::NONE;
    control.tlb_control = DO_NOTHING;
    control.clean = all_clean.bits();
    true
}

/// May it be the intercept of an instruction that is handled so? Most exits are not, and are told from others by two comparisons.
#[inline(always)]
const fn is_instruction(exit: u64) -> bool {
    exit.wrapping_sub(code::RDTSC) <= code::XSETBV - code::RDTSC || exit <= code::CR4_READ
}
