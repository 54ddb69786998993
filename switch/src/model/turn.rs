//! Running a guest that is played by the caller: through [`Svm`] and the assembly, on the CPU of the calling thread.
#![cfg(any(test, feature = "model"))]

use super::{
    cpus::mine,
    hardware::{Guest, Hardware, host_gs, hw},
    kernel::{Handler, Kernel},
    system::System,
};
use crate::Svm;
use arch::{Exit, Vmcb, exit::code, msr};
use host::{Cpu, Doorbell, FastExits};
use std::{
    boxed::Box,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

/// From VMRUN to #VMEXIT.
pub struct Turn<'a> {
    /// The general registers in the order of their encoding, but RAX and RSP (0 and 4), which are in the VMCB.
    pub regs: &'a mut [u64; 16],
    /// The VMCB of VMRUN. For the turn, what VMLOAD had brought is in the save area as well, wherever it came from. The turn
    /// ends with the exit in the control area.
    pub vmcb: &'a mut Vmcb,
    /// An interrupt for the host is pending.
    pub interrupt: bool,
    /// Number of the CPU.
    pub cpu: u64,
}

/// A guest that [`enter`] runs.
type Play<'a> = dyn FnMut(Turn<'_>) + 'a;

/// A [`Guest`] that borrows.
type Borrowed<'a> = dyn FnMut(&mut [u64; 16], &mut Vmcb) + 'a;

/// To be called with [`Cpu::begin`]: user space ran, and the registers that the host has for it are others.
pub fn begin(cpu: &mut Svm<Kernel>) {
    cpu.begin();
    let hw = mine(cpu.machine);
    let seed = (hw.system.star >> 48) as u16;
    hw.system = System { gs: host_gs(hw.cpu), ..System::pattern(seed.wrapping_add(0x10)) };
}

/// [`Cpu::enter`], on the CPU of the calling thread. The kernel lets it happen if `may_enter`. At each VMRUN `guest` has
/// its turn. The exit, and how many before it `fast` handled.
///
/// A panic of `guest` ends its turn and goes on in the caller once the host is back. Afterwards the host has all that it
/// had before, or this is a panic.
pub fn enter<F: FastExits>(
    cpu: &mut Svm<Kernel>,
    may_enter: bool,
    bell: &Doorbell,
    fast: &mut F,
    guest: &mut Play<'_>,
) -> (Exit, usize) {
    let hw = mine(cpu.machine);
    let before = hw.system;
    (hw.may_enter, hw.svm_count) = (may_enter, 0);
    hw.trace.clear();
    hw.entries.clear();
    let mut panicked = None;
    let play = |regs: &mut [u64; 16], vmcb: &mut Vmcb| {
        // A panic must not go through the assembly.
        if let Err(why) = catch_unwind(AssertUnwindSafe(|| turn(regs, vmcb, guest))) {
            vmcb.control.exit_code = code::INTR;
            panicked = Some(why);
        }
    };
    let play: Box<Borrowed<'_>> = Box::new(play);
    // SAFETY: only the lifetime is another: the hardware gives it up before it ends. It stays on this thread.
    let play = unsafe { core::mem::transmute::<Box<Borrowed<'_>>, Guest>(play) };
    let others = core::mem::replace(&mut hw.guest, play);
    // SAFETY: it is gone before `fast` is the caller's again.
    let mut fast = unsafe { Handler::lent(fast) };
    let exit = cpu.enter(bell, &mut fast);
    drop(core::mem::replace(&mut self::hw().guest, others));
    if let Some(why) = panicked {
        resume_unwind(why);
    }
    check(self::hw(), before);
    (exit, fast.handled)
}

/// The same while SVM is off on the CPU: it refuses.
pub fn refuse<F: FastExits>(cpu: &mut Svm<Kernel>, bell: &Doorbell, fast: &mut F) -> Exit {
    let machine = cpu.machine;
    let hw = mine(machine);
    hw.may_enter = true;
    machine.disable();
    let exit = cpu.enter(bell, fast);
    machine.enable().expect("SVM is free");
    exit
}

fn turn(regs: &mut [u64; 16], vmcb: &mut Vmcb, guest: &mut Play<'_>) {
    let hw = hw();
    // VMSAVE's part of the memory is VMSAVE's: as it was, once the guest had its turn.
    let memory = System::load(&vmcb.save);
    hw.system.save(&mut vmcb.save);
    (vmcb.save.rax, vmcb.save.rsp) = (regs[0], regs[4]);
    guest(Turn { regs, vmcb, interrupt: hw.interrupt, cpu: hw.cpu });
    self::hw().system = System::load(&vmcb.save);
    memory.save(&mut vmcb.save);
    (regs[0], regs[4]) = (vmcb.save.rax, vmcb.save.rsp);
}

/// The host is back with all that it had.
fn check(hw: &Hardware, before: System) {
    assert!(hw.gif && hw.interrupts, "interrupts stay off: {:?}", hw.trace);
    assert_eq!(hw.system, before, "what VMLOAD loads is not the host's: {:?}", hw.trace);
    let spec_ctrl = hw.msrs.get(&msr::SPEC_CTRL).copied().unwrap_or(0);
    assert_eq!(spec_ctrl, crate::insn::host_spec_ctrl(), "SPEC_CTRL is not the host's: {:?}", hw.trace);
}
