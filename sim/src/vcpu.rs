//! A vCPU's processor as the run loop has it: the simulated one directly, or behind the world switch of the module.
//!
//! Behind the world switch [`Svm`] has the vCPU's state, in a VMCB, and the real text of `entry.s` enters and leaves the
//! guest. The simulated processor is what VMRUN finds: the same one, with the same script, which then sees and changes
//! what was loaded (`vmrun.rs`).

use crate::SimCpu;
use crate::alloc::uncounted;
use crate::vmrun::Loaded;
use ::state::{Reader, Refused, Writer};
use arch::{CleanBits, ControlArea, EventInj, Exit, HostPa, Intercepts, NestedRoot, SaveArea};
use host::{Cpu, CpuConfig, CpuFeatures, Errno, ExtraRegs, FastExits, Request, VcpuRequests};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering::SeqCst;
use switch::Svm;
use switch::model::{self, Kernel};

/// One vCPU's processor. What the script sees of it, and what it notes, is in the [`SimCpu`].
pub struct SimVcpu {
    cpu: SimCpu,
    through: Option<Switched>,
}

struct Switched {
    svm: Svm<Kernel>,
    loaded: Loaded,
}

impl SimVcpu {
    pub(crate) fn direct(cpu: SimCpu) -> Self {
        Self { cpu, through: None }
    }

    /// `make` makes the processor; the world switch's own allocations count as the hypervisor's.
    pub(crate) fn switched(
        config: &CpuConfig,
        features: CpuFeatures,
        make: impl FnOnce() -> SimCpu,
    ) -> Result<Self, Errno> {
        let machine = uncounted(|| model::machine(features));
        let through = Switched { svm: Svm::new(machine, config)?, loaded: Loaded::default() };
        Ok(Self { cpu: uncounted(make), through: Some(through) })
    }

    /// The vCPU of `old`, which does not run any more, goes on here: what is no part of any engine is this one's, and what the
    /// hardware knows of the guest it knows of the new one.
    pub fn take_over(&mut self, old: &mut Self) {
        if let (Some(new), Some(was)) = (&mut self.through, &mut old.through) {
            std::mem::swap(&mut new.loaded, &mut was.loaded);
        }
        self.cpu.take_over(&mut old.cpu);
    }

    /// The nested tables that the next entry uses.
    pub fn nested_root(&self) -> HostPa {
        let through = self.through.as_ref();
        through.map_or(self.cpu.root, |through| HostPa(through.svm.control().nested_cr3))
    }

    /// The guest's state between two entries, to be changed behind the hypervisor's back.
    pub fn guest(&mut self) -> &mut SaveArea {
        self.save_mut(CleanBits::all())
    }
}

impl SimVcpu {
    fn enter_once<F: FastExits>(&mut self, requests: &VcpuRequests, fast: &mut F) -> Exit {
        let cpu = &mut self.cpu;
        let Some(Switched { svm, loaded }) = &mut self.through else { return cpu.enter(requests, fast) };
        if cpu.lost {
            return uncounted(|| model::refuse(svm, requests, fast));
        }
        let may_enter = cpu.may_enter(requests);
        let play = &mut |turn: model::Turn<'_>| cpu.vmrun(loaded, turn);
        let (exit, handled) = uncounted(|| model::enter(svm, may_enter, requests, fast, play));
        cpu.handled_fast += handled;
        exit
    }
}

impl Deref for SimVcpu {
    type Target = SimCpu;
    fn deref(&self) -> &SimCpu {
        &self.cpu
    }
}

impl DerefMut for SimVcpu {
    fn deref_mut(&mut self) -> &mut SimCpu {
        &mut self.cpu
    }
}

/// The same of whichever has the state.
macro_rules! either {
    (&$self:ident . $f:ident($($a:expr),*)) => {
        match &$self.through {
            Some(through) => through.svm.$f($($a),*),
            None => $self.cpu.$f($($a),*),
        }
    };
    (&mut $self:ident . $f:ident($($a:expr),*)) => {
        match &mut $self.through {
            Some(through) => through.svm.$f($($a),*),
            None => $self.cpu.$f($($a),*),
        }
    };
}

impl Cpu for SimVcpu {
    fn gpr(&self, n: u8) -> u64 {
        either!(&self.gpr(n))
    }
    fn set_gpr(&mut self, n: u8, v: u64) {
        either!(&mut self.set_gpr(n, v))
    }
    fn save(&self) -> &SaveArea {
        either!(&self.save())
    }
    fn save_mut(&mut self, touched: CleanBits) -> &mut SaveArea {
        either!(&mut self.save_mut(touched))
    }
    fn control(&self) -> &ControlArea {
        either!(&self.control())
    }
    fn set_event_inj(&mut self, e: EventInj) {
        either!(&mut self.set_event_inj(e))
    }
    fn set_next_rip(&mut self, rip: u64) {
        either!(&mut self.set_next_rip(rip))
    }
    fn set_virq(&mut self, vector: u8, priority: u8, ignore_tpr: bool) {
        either!(&mut self.set_virq(vector, priority, ignore_tpr))
    }
    fn clear_virq(&mut self) {
        either!(&mut self.clear_virq())
    }
    fn set_vtpr(&mut self, tpr: u8) {
        either!(&mut self.set_vtpr(tpr))
    }
    fn set_interrupt_shadow(&mut self, on: bool) {
        either!(&mut self.set_interrupt_shadow(on))
    }
    fn set_intercept(&mut self, which: Intercepts, on: bool) {
        either!(&mut self.set_intercept(which, on))
    }
    fn set_invpcid_intercept(&mut self, on: bool) {
        either!(&mut self.set_invpcid_intercept(on))
    }
    fn set_cr_intercepts(&mut self, read: u16, write: u16) {
        either!(&mut self.set_cr_intercepts(read, write))
    }
    fn set_exception_intercepts(&mut self, mask: u32) {
        either!(&mut self.set_exception_intercepts(mask))
    }
    fn set_msr_intercept(&mut self, msr: u32, read: bool, write: bool) {
        self.cpu.set_msr_intercept(msr, read, write);
        if let Some(through) = &mut self.through {
            through.svm.set_msr_intercept(msr, read, write);
        }
    }
    fn set_pause_filter(&mut self, count: u16) {
        either!(&mut self.set_pause_filter(count))
    }
    fn exit_after_injection(&mut self) {
        either!(&mut self.exit_after_injection())
    }
    fn tell_entry(&mut self, vcpu: Option<u32>) {
        either!(&mut self.tell_entry(vcpu))
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        either!(&mut self.set_tsc_offset(offset))
    }
    fn set_root(&mut self, root: NestedRoot) {
        either!(&mut self.set_root(root))
    }
    fn flush_tlb(&mut self) {
        either!(&mut self.flush_tlb())
    }
    fn extra(&self) -> &ExtraRegs {
        either!(&self.extra())
    }
    fn extra_mut(&mut self) -> &mut ExtraRegs {
        either!(&mut self.extra_mut())
    }
    fn begin(&mut self) {
        self.cpu.begin();
        if let Some(through) = &mut self.through {
            uncounted(|| model::begin(&mut through.svm));
        }
    }
    fn end(&mut self) {
        self.cpu.end();
        if let Some(through) = &mut self.through {
            through.svm.end();
        }
    }

    fn enter<F: FastExits>(&mut self, requests: &VcpuRequests, fast: &mut F) -> Exit {
        let exit = self.enter_once(requests, fast);
        if exit != Exit::None && self.cpu.shared.hand_over.load(SeqCst) {
            requests.make_request(Request::HandOver);
        }
        exit
    }
    fn save_state(&mut self, w: &mut Writer) {
        either!(&mut self.save_state(w))
    }
    fn load_state(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        either!(&mut self.load_state(r))
    }
    fn last_cpu(&self) -> u32 {
        either!(&self.last_cpu())
    }
    fn broken(&self) -> Option<Errno> {
        either!(&self.broken())
    }
}
