//! Whatever user space, the host around it and a guest may do, as values: for tests that make them up. And what has to hold
//! in between, whatever they do.
//!
//! Long because: one list of what can be done, and how each is done.

use super::{CODE, DATA, Left, Machine, PLAIN, RAM, RAM_HVA};
use abi::VmReply;
use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::Page;
use sim::alloc::{counted, uncounted};
use sim::arch::EventInj;
use sim::arch::exit::code;
use sim::arch::vmcb::int_ctl;
use sim::host::{Cpu, CpuFeatures, Errno, Host};
use std::sync::Arc;
use vm::fast::Armed;

/// What user space or the machine around it does.
#[derive(Clone, Debug)]
pub enum Op {
    /// An ioctl on the VM.
    Vm {
        /// Its number.
        cmd: u32,
        /// Its argument.
        arg: u64,
    },
    /// An ioctl on the vCPU, but KVM_RUN.
    Vcpu {
        /// Its number.
        cmd: u32,
        /// Its argument.
        arg: u64,
    },
    /// An ioctl on /dev/kvm, but KVM_CREATE_VM.
    System {
        /// Its number.
        cmd: u32,
        /// Its argument.
        arg: u64,
    },
    /// Fills the memory that arguments point to.
    Argument {
        /// Where.
        at: u64,
        /// With what.
        words: [u64; 8],
    },
    /// Takes a part of the vCPU's state, changes some bytes, and puts it back.
    State {
        /// Place in [`STATES`].
        which: usize,
        /// Place, modulo its size, and value.
        changes: [(u16, u8); 3],
    },
    /// The same with a part of the VM's.
    VmState {
        /// Place in [`VM_STATES`].
        which: usize,
        /// Place, modulo its size, and value.
        changes: [(u16, u8); 3],
    },
    /// KVM_SET_USER_MEMORY_REGION.
    Region {
        /// With the address space in bits 31:16.
        slot: u32,
        /// KVM_MEM_*.
        flags: u32,
        /// Guest frame.
        page: u64,
        /// How many.
        pages: u64,
        /// In units of 64 KiB of the VMM's memory.
        hva: u64,
    },
    /// The host takes pages of guest memory away, or brings them.
    Host {
        /// Guest frame.
        page: u64,
        /// How many.
        pages: u64,
        /// What becomes of them.
        how: Page,
    },
    /// The same in the middle of the next nested fault.
    DuringFault {
        /// Guest frame.
        page: u64,
        /// How many.
        pages: u64,
        /// What becomes of them.
        how: Page,
    },
    /// KVM_SIGNAL_MSI.
    Msi {
        /// Low half of the address.
        low: u32,
        /// What is written there.
        data: u32,
    },
    /// KVM_SET_MSRS.
    Msr {
        /// Which.
        index: u32,
        /// Its value.
        value: u64,
    },
    /// KVM_ENABLE_CAP on the VM.
    Cap {
        /// Which.
        cap: u32,
        /// Its first argument.
        arg: u64,
    },
    /// Virtual nanoseconds pass; timers of the VM's devices that are due expire.
    Advance(u64),
    /// The host sleeps for so many nanoseconds.
    Suspend(u64),
    /// Bytes of code, and in which mode they are run.
    Code {
        /// Real, protected, long.
        mode: u8,
        /// The code.
        bytes: [u8; 16],
    },
    /// The guest does something and exits.
    Guest(Guest),
    /// The guest executes RDMSR or WRMSR.
    GuestMsr {
        /// WRMSR.
        write: bool,
        /// Which.
        index: u32,
        /// Its value.
        value: u64,
    },
    /// VMMCALL with these in RCX, RDX and R8.
    Hypercall {
        /// RCX.
        value: u64,
        /// RDX.
        input: u64,
        /// R8.
        output: u64,
    },
    /// The guest accesses memory through the nested tables.
    Touch {
        /// Where.
        gpa: u64,
        /// A write.
        write: bool,
    },
    /// KVM_RUN with these first bytes of `kvm_run` and this answer to the last exit.
    Run {
        /// `request_interrupt_window` and `immediate_exit`.
        head: [u8; 2],
        /// The first words of the union.
        answer: [u64; 4],
    },
    /// The ops that follow are this vCPU's, modulo how many there are.
    Select(usize),
    /// The VM goes to another engine.
    HandOver,
    /// The VM becomes its own state with some bytes changed, if that is taken.
    Become([(u32, u8); 3]),
}

/// A change of state and an exit.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// RIP.
    pub rip: u64,
    /// RFLAGS, as far as a guest can have them.
    pub flags: u64,
    /// RAX, RCX and RBX.
    pub gprs: [u64; 3],
    /// V_TPR.
    pub tpr: u8,
    /// An interrupt shadow.
    pub shadow: bool,
    /// EXITCODE.
    pub code: u64,
    /// EXITINFO1 and EXITINFO2.
    pub info: [u64; 2],
    /// The exit comes while an event is delivered.
    pub cut_short: bool,
}

/// Pairs of numbers that read and write the same struct of a vCPU.
pub const STATES: [(u32, u32); 10] = [
    (KVM_GET_REGS, KVM_SET_REGS),
    (KVM_GET_SREGS, KVM_SET_SREGS),
    (KVM_GET_SREGS2, KVM_SET_SREGS2),
    (KVM_GET_FPU, KVM_SET_FPU),
    (KVM_GET_XSAVE, KVM_SET_XSAVE),
    (KVM_GET_XCRS, KVM_SET_XCRS),
    (KVM_GET_LAPIC, KVM_SET_LAPIC),
    (KVM_GET_MP_STATE, KVM_SET_MP_STATE),
    (KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS),
    (KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS),
];

/// The same of a VM, with the number that the struct begins with.
pub const VM_STATES: [(u32, u32, u32); 5] = [
    (KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, 0),
    (KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, 1),
    (KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, 2),
    (KVM_GET_PIT2, KVM_SET_PIT2, 0),
    (KVM_GET_CLOCK, KVM_SET_CLOCK, 0),
];

/// Most vCPUs that a VM gets.
const MOST_VCPUS: usize = 3;

/// What a machine begins with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kind {
    /// Next RIP, decode assists, large pages.
    pub newer: bool,
    /// Which interrupt controllers are in the kernel.
    pub irqchip: Irqchip,
    /// It is a guest of Hyper-V's.
    pub hyperv: bool,
    /// SMRAM, as large as the memory outside, and dirty rings.
    pub more: bool,
    /// A second vCPU.
    pub two: bool,
}

/// Which interrupt controllers are in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Irqchip {
    /// None.
    #[default]
    None,
    /// Local APICs.
    Split,
    /// All of them, and the PIT.
    Full,
}

/// A machine on which anything is done.
pub struct Anything {
    /// The machine.
    pub machine: Arc<Machine>,
    vcpus: usize,
    at: usize,
    /// It has taken a state that no engine wrote: what user space cannot bring about may be.
    damaged: bool,
}

impl Anything {
    /// A machine with memory and a vCPU in 64-bit mode.
    pub fn new(kind: Kind) -> Self {
        let Kind { newer, irqchip, hyperv, more, two } = kind;
        let features = CpuFeatures { nrips: newer, decode_assists: newer, page_1g: newer, ..PLAIN };
        let m = Machine::bare(features).expect("a VM");
        match irqchip {
            Irqchip::None => {}
            Irqchip::Split => assert_eq!(m.enable(KVM_CAP_SPLIT_IRQCHIP, 24), Ok(0)),
            Irqchip::Full => {
                assert_eq!(m.vm(KVM_CREATE_IRQCHIP, 0), Ok(0));
                assert_eq!(m.vm_with(KVM_CREATE_PIT2, &kvm_pit_config::default()), Ok(0));
            }
        }
        assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
        if more {
            assert_eq!(m.region(0x1_0000, 0, 0, RAM, RAM_HVA), Ok(0));
            assert_eq!(m.enable(KVM_CAP_DIRTY_LOG_RING_ACQ_REL, 4096), Ok(0));
        }
        let vcpus = if two { 2 } else { 1 };
        for id in 0..vcpus {
            if hyperv {
                m.add_hyperv_vcpu(id as u64, |_| ());
                let synic = m.enable_vcpu(id, KVM_CAP_HYPERV_SYNIC, 0);
                assert_eq!(synic.is_ok(), irqchip != Irqchip::None);
                assert_eq!(m.set_msr(id, 0x4000_0000, 1), Ok(1));
            } else {
                m.add_vcpu(id as u64).expect("a vCPU");
            }
        }
        m.long(0, &[]);
        if irqchip != Irqchip::None {
            m.x2apic(0);
        }
        Self { machine: Arc::new(m), vcpus, at: 0, damaged: false }
    }

    /// Does it, and looks whether everything still holds. A VM that is dead answers nothing any more, and goes from one engine to
    /// the next all the same.
    pub fn perform(&mut self, op: Op) {
        if self.machine.engine().check_alive().is_err() {
            match op {
                Op::Vm { cmd, arg } => assert_eq!(self.machine.vm(cmd, arg), Err(Errno::EIO)),
                Op::Vcpu { cmd, arg } => assert_eq!(self.machine.vcpu(self.at, cmd, arg), Err(Errno::EIO)),
                Op::HandOver => drop(self.machine.hand_over()),
                _ => {}
            }
            return self.check();
        }
        // What an ioctl answers is not the point here.
        let _ = self.answer(op);
        self.check();
    }

    fn answer(&mut self, op: Op) -> Result<i64, Errno> {
        let (m, at) = (&self.machine, self.at);
        match op {
            Op::Vm { cmd, arg } => return self.vm(cmd, arg),
            Op::Vcpu { cmd: KVM_RUN, .. } | Op::System { cmd: KVM_CREATE_VM, .. } => {}
            Op::Vcpu { cmd, arg } => return m.vcpu(at, cmd, arg),
            Op::System { cmd, arg } => return m.system(cmd, arg),
            Op::Argument { at, words } => m.put_at(at, &words),
            Op::State { which, changes } => {
                let (get, set) = STATES[which];
                m.vcpu(at, get, DATA)?;
                m.change(get, changes);
                return m.vcpu(at, set, DATA);
            }
            Op::VmState { which, changes } => {
                let (get, set, begins) = VM_STATES[which];
                m.put_at(DATA, &begins);
                m.vm(get, DATA)?;
                m.change(get, changes);
                return m.vm(set, DATA);
            }
            Op::Region { slot, flags, page, pages, hva } => {
                return m.region(slot, flags, page << 12, pages << 12, RAM_HVA + (hva << 16));
            }
            Op::Host { page, pages, how } => m.host_changes(page << 12, pages, how),
            Op::DuringFault { page, pages, how } => {
                let other = Arc::downgrade(m);
                m.sim.during_fault(move || {
                    if let Some(m) = other.upgrade() {
                        m.host_changes(page << 12, pages, how);
                    }
                });
            }
            Op::Msi { low, data } => {
                return m.vm_with(KVM_SIGNAL_MSI, &kvm_msi { address_lo: low, data, ..Default::default() });
            }
            Op::Msr { index, value } => return m.set_msr(at, index, value),
            Op::Cap { cap, arg } => return m.enable(cap, arg),
            Op::Advance(ns) => {
                m.sim.advance(ns);
                // A timer that begins anew at once has come far enough by then.
                for _ in 0..100 {
                    let Some(which) = m.engine().hrtimers.due(m.sim.now_ns()) else { break };
                    m.expire(which);
                }
            }
            Op::Suspend(ns) => m.sim.sleeps(ns),
            Op::Code { mode, bytes } => {
                // The VMM's memory may not be there any more; then the vCPU stays as it is.
                m.host_changes(0, 16, Page::Writable);
                let start = [Machine::try_real, Machine::try_protected, Machine::try_long];
                return start[usize::from(mode)](m, at, &bytes);
            }
            Op::Guest(g) => m.play(at, g),
            Op::GuestMsr { write: true, index, value } => m.wrmsr(at, index, value),
            Op::GuestMsr { write: false, index, .. } => m.rdmsr(at, index),
            Op::Hypercall { value, input, output } => {
                m.host_changes(CODE, 1, Page::Writable);
                m.hypercall(at, value, input, output);
            }
            Op::Touch { gpa, write } => m.tries(at, gpa, write),
            Op::Run { head, answer } => {
                m.page(at).set_u8(0, head[0] & 1);
                m.page(at).set_u8(1, u8::from(head[1] > 200));
                for (n, word) in answer.into_iter().enumerate() {
                    m.page(at).set_u64(32 + 8 * n, word);
                }
                match m.run(at) {
                    Ok(Left::Other(KVM_EXIT_DIRTY_RING_FULL | KVM_EXIT_TPR_ACCESS)) => {}
                    Ok(Left::Other(reason)) => panic!("exit reason {reason}"),
                    _ => {}
                }
            }
            Op::Select(which) => self.at = which % self.vcpus,
            Op::HandOver => drop(m.hand_over()),
            Op::Become(changes) => {
                // What cannot be written now has nowhere to go.
                let Ok(mut bytes) = uncounted(|| m.engine().leave().map(|parcel| parcel.state)) else { return Ok(0) };
                let size = bytes.len();
                for (at, byte) in changes {
                    bytes[at as usize % size] ^= byte;
                }
                if m.become_state(&bytes).is_ok() {
                    self.damaged |= changes.iter().any(|(_, byte)| *byte != 0);
                    let again = m.engine().leave().map(|parcel| parcel.state);
                    if let Ok(again) = again {
                        assert!(m.become_state(&again).is_ok(), "what was written is read");
                    }
                }
            }
        }
        Ok(0)
    }

    fn vm(&mut self, cmd: u32, arg: u64) -> Result<i64, Errno> {
        if cmd == KVM_CREATE_VCPU && self.vcpus == MOST_VCPUS {
            return Ok(0);
        }
        // What the module does with the other answers is its own.
        match counted(|| abi::vm_ioctl(&self.machine.engine(), cmd, arg))? {
            VmReply::Value(value) => Ok(value),
            VmReply::NewVcpu { index } => {
                assert_eq!(index, self.vcpus);
                self.vcpus += 1;
                Ok(0)
            }
            VmReply::Stats | VmReply::Irqfd(_) | VmReply::NewDevice => Ok(0),
        }
    }

    /// What holds between ioctls.
    fn check(&self) {
        let m = &self.machine;
        if !self.damaged {
            (0..self.vcpus).for_each(|vcpu| m.check(vcpu));
        }
        assert_eq!(m.sim.page_references(), 0, "a page is held");
        let stale = m.sim.0.warnings.lock().iter().any(|(what, _)| what.contains("another page"));
        assert!(!stale, "a mapping that outlived its page");
    }

    /// Nothing of the VM may be left on the machine.
    pub fn end(self) {
        for vcpu in 0..self.vcpus {
            self.machine.sim.drop_script(vcpu);
        }
        // A hook that has not fired holds on to nothing.
        Arc::into_inner(self.machine).expect("nobody else has it").end();
    }
}

impl Machine {
    /// Changes the struct that the ioctl `get` has left.
    fn change(&self, get: u32, changes: [(u16, u8); 3]) {
        let size = u64::from(get >> 16 & 0x3fff);
        for (at, byte) in changes {
            self.put_at(DATA + u64::from(at) % size, &byte);
        }
    }

    /// Registers that a guest can have at any exit.
    fn play(&self, vcpu: usize, g: Guest) {
        self.sim.step(vcpu, move |c| {
            // VMRUN has refused the state: the guest did nothing.
            if g.code as u32 == code::INVALID as u32 {
                return (g.code, 0, 0);
            }
            c.guest().rip = g.rip;
            c.guest().rflags = g.flags & 0x3f_7fd5 & !(1 << 17) | 2;
            for (n, v) in [0, 1, 3].into_iter().zip(g.gprs) {
                c.set_gpr(n, v);
            }
            let v = c.vmcb();
            v.int_ctl = v.int_ctl & !int_ctl::V_TPR | u32::from(g.tpr);
            v.int_state = g.shadow.into();
            if g.cut_short {
                c.cut_delivery_short();
            }
            (g.code, g.info[0], g.info[1])
        });
    }

    /// What holds of a vCPU between ioctls.
    fn check(&self, vcpu: usize) {
        self.inside(vcpu, |c| {
            let core = &*c.core;
            let control = core.cpu.control();
            let armed = core.fast.armed;
            assert!(!core.fpu.is_loaded(), "the guest's FPU stays loaded");
            assert_eq!(control.event_inj, EventInj::NONE, "an event that nobody will look at again");
            assert_eq!(u32::from(core.vtpr), control.int_ctl & 15, "V_TPR");
            assert_eq!(armed.is_some(), control.int_ctl & int_ctl::V_IRQ != 0, "{armed:?} and V_IRQ");
            assert_eq!(armed == Some(Armed::Window), control.intercept_3 & 1 << 4 != 0, "{armed:?} and the intercept");
            assert!(core.inject.nmi_pending <= 2);
            assert_eq!(
                core.cpu.nested_root(),
                c.vm.mmu.root(core.smm.space()).pa(),
                "the other address space's tables"
            );
            assert!(core.cpu.save().efer & 1 << 12 != 0, "EFER.SVME");
            assert!(core.cpu.save().cr0 & (1 << 29 | 1 << 30) == 0, "caches are the host's");
        });
    }
}
