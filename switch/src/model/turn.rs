//! Running a guest that is played by the caller: through [`Svm`] and the assembly, on the CPU of the calling thread.
#![cfg(any(test, feature = "model"))]

use super::{
    cpus::mine,
    hardware::{Guest, Hardware, host_gs, hw},
    kernel::{Handler, Kernel, cpu_data, set_host_spec_ctrl},
    system::System,
};
use crate::{Machine, Svm, machine::TSC_RATIO_ONE};
use arch::{Exit, Vmcb, cr::Cr4, exit::code, msr};
use host::{Cpu, ExtraRegs, FastExits, VcpuRequests};
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
    /// Registers that neither has, as the processor has them. Of those that the guest may be left alone with, SPEC_CTRL and
    /// the debug addresses, changes stay.
    pub extra: &'a mut ExtraRegs,
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
    let seed = ((hw.system.star >> 48) as u16).wrapping_add(0x10);
    hw.system = System { gs: host_gs(hw.cpu), ..System::pattern(seed) };
    let other = u64::from(seed >> 4);
    hw.msrs.insert(msr::DEBUGCTL, other & 1);
    // IBRS, where there is such a thing.
    let ibrs = other >> 1 & u64::from(cpu.machine.features.spec_ctrl);
    hw.msrs.insert(msr::SPEC_CTRL, ibrs & 1);
    set_host_spec_ctrl(hw.cpu, ibrs & 1);
}

/// [`Cpu::enter`], on the CPU of the calling thread. The kernel lets it happen if `may_enter`. At each VMRUN `guest` has
/// its turn. The exit, and how many before it `fast` handled.
///
/// A panic of `guest` ends its turn and goes on in the caller once the host is back. Afterwards the host has all that it
/// had before, or this is a panic.
pub fn enter<F: FastExits>(
    cpu: &mut Svm<Kernel>,
    may_enter: bool,
    requests: &VcpuRequests,
    fast: &mut F,
    guest: &mut Play<'_>,
) -> (Exit, usize) {
    let hw = mine(cpu.machine);
    let machine = cpu.machine;
    let before = Host::of(hw, machine);
    let asked = *cpu.extra();
    (hw.may_enter, hw.svm_count) = (may_enter, 0);
    hw.trace.clear();
    hw.entries.clear();
    let mut panicked = None;
    let play = |regs: &mut [u64; 16], vmcb: &mut Vmcb| {
        // A panic must not go through the assembly.
        if let Err(why) = catch_unwind(AssertUnwindSafe(|| turn(machine, asked, regs, vmcb, guest))) {
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
    let exit = cpu.enter(requests, &mut fast);
    drop(core::mem::replace(&mut self::hw().guest, others));
    if let Some(why) = panicked {
        resume_unwind(why);
    }
    let hw = self::hw();
    assert!(hw.gif && hw.interrupts, "interrupts stay off: {:?}", hw.trace);
    assert_eq!(Host::of(hw, machine), before, "not what the host had: {:?}", hw.trace);
    (exit, fast.handled)
}

/// The same while SVM is off on the CPU: it refuses.
pub fn refuse<F: FastExits>(cpu: &mut Svm<Kernel>, requests: &VcpuRequests, fast: &mut F) -> Exit {
    let machine = cpu.machine;
    let hw = mine(machine);
    hw.may_enter = true;
    machine.disable();
    let exit = cpu.enter(requests, fast);
    machine.enable().expect("SVM is free");
    exit
}

fn turn(machine: &Machine<Kernel>, asked: ExtraRegs, regs: &mut [u64; 16], vmcb: &mut Vmcb, guest: &mut Play<'_>) {
    let hw = hw();
    // VMSAVE's part of the memory is VMSAVE's: as it was, once the guest had its turn.
    let memory = System::load(&vmcb.save);
    hw.system.save(&mut vmcb.save);
    (vmcb.save.rax, vmcb.save.rsp) = (regs[0], regs[4]);
    let mut extra = extra(machine, hw, asked, vmcb);
    guest(Turn { regs, vmcb, extra: &mut extra, interrupt: hw.interrupt, cpu: hw.cpu });
    let hw = self::hw();
    if machine.features.v_spec_ctrl {
        vmcb.save.spec_ctrl = extra.spec_ctrl;
    } else if machine.features.spec_ctrl {
        hw.msrs.insert(msr::SPEC_CTRL, extra.spec_ctrl);
    }
    if extra.load_dr {
        hw.dr = extra.dr;
    }
    hw.system = System::load(&vmcb.save);
    memory.save(&mut vmcb.save);
    (regs[0], regs[4]) = (vmcb.save.rax, vmcb.save.rsp);
}

/// What the processor has where the guest was to have what was `asked`.
fn extra(machine: &Machine<Kernel>, hw: &Hardware, asked: ExtraRegs, vmcb: &Vmcb) -> ExtraRegs {
    let f = &machine.features;
    let mut now = asked;
    if f.v_spec_ctrl {
        now.spec_ctrl = vmcb.save.spec_ctrl;
    } else if f.spec_ctrl {
        now.spec_ctrl = hw.msr(msr::SPEC_CTRL);
    }
    if asked.load_dr {
        now.dr = hw.dr;
    }
    if f.tsc_aux {
        // SAFETY: the thread's CPU.
        now.tsc_aux = unsafe { (*cpu_data(hw.cpu)).tsc_aux.get() };
    }
    if f.tsc_scaling {
        // 0 stands for 1.0.
        now.tsc_ratio = hw.msr(msr::TSC_RATIO);
        if asked.tsc_ratio == 0 && now.tsc_ratio == TSC_RATIO_ONE {
            now.tsc_ratio = 0;
        }
    }
    if vmcb.save.cr4 & Cr4::OSXSAVE.bits() != 0 && machine.host_xcr0 != 0 {
        now.xcr0 = hw.xcr0.unwrap_or(machine.host_xcr0);
    }
    assert_eq!(hw.msr(msr::DEBUGCTL), vmcb.save.dbgctl, "DEBUGCTL is not the guest's");
    now
}

/// What the host has to find as it was.
#[derive(Debug, PartialEq, Eq)]
struct Host {
    system: System,
    spec_ctrl: u64,
    debugctl: u64,
    xcr0: u64,
}

impl Host {
    fn of(hw: &Hardware, machine: &Machine<Kernel>) -> Self {
        let xcr0 = hw.xcr0.unwrap_or(machine.host_xcr0);
        Self { system: hw.system, spec_ctrl: hw.msr(msr::SPEC_CTRL), debugctl: hw.msr(msr::DEBUGCTL), xcr0 }
    }
}
