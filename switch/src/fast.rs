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
use arch::cr::{Efer, Rflags};
use arch::vmcb::{INT_SHADOW, tlb_control::DO_NOTHING};
use arch::{CleanBits, EventInj, SegmentAttr, Vmcb, exit::code};
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
    /// For one entry: `state` is handled by `hsave_fast` if that was made for its type.
    #[inline(always)]
    pub fn new<P: Platform, F: FastExits>(svm: *mut Svm<P>, state: &mut F) -> Self {
        let known = TypeId::of::<F>() == TypeId::of::<P::Fast>();
        Self { svm: svm.cast(), state: if known { (&raw mut *state).cast() } else { null_mut() } }
    }
}

/// The first half of `hsave_fast`: true if this is the exit of an instruction. What a processor without NRIPS does not say
/// of it is found: NEXT_RIP, or 0.
///
/// # Safety
/// As for [`handle_fast`].
#[inline(always)]
pub unsafe fn find_length<P: Platform>(ctx: *mut VcpuCtx) -> bool {
    // SAFETY: by contract; the vCPU's mode does not yet say that it left.
    unsafe { (*(*ctx).link.svm.cast::<Svm<P>>()).fill_next_rip() }
}

/// The second half of `hsave_fast`, after an instruction: true if the guest is to be entered again.
///
/// # Safety
/// `ctx` is the argument of `hsave_vcpu_run`, which was called by [`Svm::run`] with [`Link::state`] set; the guest was left
/// just now.
#[inline(always)]
pub unsafe fn handle_fast<P: Platform>(ctx: *mut VcpuCtx) -> bool {
    // SAFETY: `run` has set both for this entry, and uses neither while the assembly runs.
    let (svm, state) = unsafe { (&mut *(*ctx).link.svm.cast::<Svm<P>>(), &mut *(*ctx).link.state.cast::<P::Fast>()) };
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

/// Is it the intercept of an instruction whose length the processor may leave open? That of IN and OUT it always tells.
#[inline(always)]
const fn is_instruction(exit: u64) -> bool {
    exit.wrapping_sub(code::RDTSC) <= code::XSETBV - code::RDTSC && exit != code::IOIO
}

impl<P: Platform> Svm<P> {
    /// Was an instruction intercepted? On a processor that does not say where the next one is, this says it if it is known and
    /// the guest in 64-bit mode, or 0.
    ///
    /// # Safety
    /// The vCPU's mode says that it is in the guest.
    #[inline(always)]
    unsafe fn fill_next_rip(&mut self) -> bool {
        let Vmcb { control, save, .. } = self.vmcb();
        let instruction = is_instruction(control.exit_code);
        if let Some(seen) = &self.seen {
            let mut next = 0;
            // After a nested page fault, too: its instruction may have to be emulated. And after a move to or from a control
            // or debug register, which is not one of those that `handle_fast` looks at.
            let moves = control.exit_code <= code::DR15_WRITE || control.exit_code == code::CR0_SEL_WRITE;
            let asked = instruction || moves || control.exit_code == code::NPF;
            if asked && save.efer & Efer::LMA.bits() != 0 && save.cs.attrib.has(SegmentAttr::L) {
                // SAFETY: by contract.
                next = unsafe { seen.next_rip(save.rip, save.cr3) };
            }
            self.vmcb_mut().control.next_rip = next;
        }
        instruction
    }
}
