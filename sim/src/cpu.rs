//! A processor that plays a script.

use crate::machine::Shared;
use arch::vmcb::{INT_SHADOW, int_ctl};
use arch::{CleanBits, ControlArea, EventInj, Exit, HostPa, Intercepts, NestedRoot, SaveArea, Zero};
use host::{Cpu, CpuFeatures, Doorbell, Errno, ExtraRegs};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

/// What the guest does until its next exit: changes its own state and names the exit (code, info1, info2).
pub type Step = Box<dyn FnOnce(&mut SimCpu) -> (u64, u64, u64) + Send>;

/// One virtual processor.
pub struct SimCpu {
    gprs: [u64; 16],
    save: Box<SaveArea>,
    control: Box<ControlArea>,
    extra: ExtraRegs,
    script: Arc<parking_lot::Mutex<VecDeque<Step>>>,
    shared: Arc<Shared>,
    features: CpuFeatures,
    /// Events that entries injected, in order.
    pub injected: Vec<EventInj>,
    /// Flushes that entries carried out.
    pub flushes: usize,
    flush: bool,
    /// MSR intercepts as they were set: (read, write).
    pub msr_intercepts: HashMap<u32, (bool, bool)>,
    /// The nested root.
    pub root: HostPa,
    /// Reports the processor as lost.
    pub lost: bool,
}

impl SimCpu {
    pub(crate) fn new(
        shared: Arc<Shared>,
        script: Arc<parking_lot::Mutex<VecDeque<Step>>>,
        root: NestedRoot,
        features: CpuFeatures,
    ) -> Self {
        Self {
            gprs: [0; 16],
            save: Box::new(SaveArea::ZERO),
            control: Box::new(ControlArea::ZERO),
            extra: ExtraRegs::default(),
            script,
            shared,
            features,
            injected: Vec::new(),
            flushes: 0,
            flush: true,
            msr_intercepts: HashMap::new(),
            root: root.pa(),
            lost: false,
        }
    }

    /// The guest's state, for a script to change.
    pub fn guest(&mut self) -> &mut SaveArea {
        &mut self.save
    }

    /// The control area, for a script to change.
    pub fn vmcb(&mut self) -> &mut ControlArea {
        &mut self.control
    }
}

impl Cpu for SimCpu {
    fn gpr(&self, n: u8) -> u64 {
        match n & 15 {
            0 => self.save.rax,
            4 => self.save.rsp,
            n => self.gprs[usize::from(n)],
        }
    }
    fn set_gpr(&mut self, n: u8, v: u64) {
        match n & 15 {
            0 => self.save.rax = v,
            4 => self.save.rsp = v,
            n => self.gprs[usize::from(n)] = v,
        }
    }
    fn save(&self) -> &SaveArea {
        &self.save
    }
    fn save_mut(&mut self, _touched: CleanBits) -> &mut SaveArea {
        &mut self.save
    }
    fn control(&self) -> &ControlArea {
        &self.control
    }
    fn set_event_inj(&mut self, e: EventInj) {
        self.control.event_inj = e;
    }
    fn set_virq(&mut self, vector: u8, priority: u8, ignore_tpr: bool) {
        self.control.int_vector = vector.into();
        self.control.int_ctl = int_ctl::V_IRQ
            | u32::from(priority & 15) << 16
            | if ignore_tpr { int_ctl::V_IGN_TPR } else { 0 }
            | self.control.int_ctl & int_ctl::V_TPR;
    }
    fn clear_virq(&mut self) {
        self.control.int_ctl &= !int_ctl::V_IRQ;
    }
    fn set_vtpr(&mut self, tpr: u8) {
        self.control.int_ctl = self.control.int_ctl & !int_ctl::V_TPR | u32::from(tpr & 15);
    }
    fn set_interrupt_shadow(&mut self, on: bool) {
        self.control.int_state = if on { INT_SHADOW } else { 0 };
    }
    fn set_intercept(&mut self, which: Intercepts, on: bool) {
        let (low, high) = (which.bits() as u32, (which.bits() >> 32) as u32);
        if on {
            self.control.intercept_3 |= low;
            self.control.intercept_4 |= high;
        } else {
            self.control.intercept_3 &= !low;
            self.control.intercept_4 &= !high;
        }
    }
    fn set_cr_intercepts(&mut self, read: u16, write: u16) {
        (self.control.intercept_cr_read, self.control.intercept_cr_write) = (read, write);
    }
    fn set_exception_intercepts(&mut self, mask: u32) {
        self.control.intercept_exceptions = mask;
    }
    fn set_msr_intercept(&mut self, msr: u32, read: bool, write: bool) {
        crate::alloc::uncounted(|| self.msr_intercepts.insert(msr, (read, write)));
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.control.tsc_offset = offset;
    }
    fn set_root(&mut self, root: NestedRoot) {
        self.root = root.pa();
        self.flush = true;
    }
    fn flush_tlb(&mut self) {
        self.flush = true;
    }
    fn extra(&self) -> &ExtraRegs {
        &self.extra
    }
    fn extra_mut(&mut self) -> &mut ExtraRegs {
        &mut self.extra
    }
    fn begin(&mut self) {}
    fn end(&mut self) {}

    fn enter(&mut self, bell: &Doorbell) -> Exit {
        if self.shared.signal.load(SeqCst) || self.lost || !bell.try_enter() {
            return Exit::None;
        }
        let next = self.script.lock().pop_front();
        let Some(step) = next else {
            bell.leave();
            self.shared.signal.store(true, SeqCst);
            return Exit::None;
        };
        crate::alloc::uncounted(|| {
            if self.control.event_inj.valid() {
                self.injected.push(self.control.event_inj);
            }
            self.control.event_inj = EventInj::NONE;
            self.control.exit_int_info = EventInj::NONE;
            self.flushes += usize::from(std::mem::take(&mut self.flush));
            let (code, info1, info2) = step(self);
            (self.control.exit_code, self.control.exit_info_1, self.control.exit_info_2) = (code, info1, info2);
        });
        bell.leave();
        Exit::decode(&self.control.exit_info(), self.features.decode_assists)
    }
    fn last_cpu(&self) -> u32 {
        0
    }
    fn broken(&self) -> Option<Errno> {
        self.lost.then_some(Errno::EIO)
    }
}

