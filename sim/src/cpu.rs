//! A processor that plays a script, and does itself what SVM's hardware does around it: refuses a VMCB that no
//! processor takes, delivers injected events and virtual interrupts.
//!
//! Long because: one trait, and what stands behind its functions.

use crate::machine::Shared;
use crate::tlb::Tlb;
use crate::{alloc::uncounted, thread};
use ::state::{Reader, Refused, State, Writer};
use arch::cr::{Cr0, Cr4, Efer, Rflags};
use arch::exit::code;
use arch::vmcb::{INT_SHADOW, int_ctl};
use arch::{
    CleanBits, ControlArea, EventInj, EventType, Exit, HostPa, Intercepts, NestedRoot, SaveArea, SegmentAttr, Zero,
};
use host::{Cpu, CpuFeatures, Errno, ExtraRegs, FastExit, FastExits, GuestState, Trace, VcpuRequests};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

/// What a step of the script came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest exits with this code and EXITINFO1 and 2.
    Exit(u64, u64, u64),
    /// The guest exits, and does the step again when it is entered next: a fault.
    Again(u64, u64, u64),
    /// The guest goes on with the next step.
    Next,
}

/// What the guest does: changes its own state, and says what came of it.
pub type Step = Box<dyn FnMut(&mut SimCpu) -> Outcome + Send>;

pub(crate) type Script = Arc<Mutex<VecDeque<Step>>>;

/// One virtual processor.
pub struct SimCpu {
    number: usize,
    pub(crate) gprs: [u64; 16],
    pub(crate) save: Box<SaveArea>,
    pub(crate) control: Box<ControlArea>,
    pub(crate) extra: ExtraRegs,
    pub(crate) script: Script,
    pub(crate) shared: Arc<Shared>,
    features: CpuFeatures,
    /// Events that entries injected, in order, and the return addresses that they pushed.
    pub injected: Vec<(EventInj, u64)>,
    /// Virtual interrupts that were taken, in order.
    pub taken: Vec<u8>,
    /// Flushes that entries carried out.
    pub flushes: usize,
    pub(crate) flush: bool,
    pub(crate) tlb: Tlb,
    /// How often the world switch executed VMRUN; 0 where it has no part in this.
    pub vmruns: usize,
    /// Exits that were handled without leaving the guest.
    pub handled_fast: usize,
    /// MSR intercepts as they were set: (read, write).
    pub msr_intercepts: HashMap<u32, (bool, bool)>,
    /// The nested root.
    pub root: HostPa,
    /// Reports the processor as lost.
    pub lost: bool,
    /// Between [`Cpu::begin`] and [`Cpu::end`].
    running: bool,
    pub(crate) exit_at_once: bool,
    tells_entry: Option<u32>,
    /// RFLAGS.TF traps after each step that goes on to the next.
    pub single_steps: bool,
    /// The processor has NRIPS, whether that is said of it or not (the parameter `nrips`).
    pub has_nrips: bool,
    /// The event that was delivered last, and RFLAGS before that.
    delivered: EventInj,
    rflags_before: u64,
}

impl SimCpu {
    pub(crate) fn new(
        number: usize,
        shared: Arc<Shared>,
        script: Script,
        root: NestedRoot,
        features: CpuFeatures,
    ) -> Self {
        Self {
            number,
            gprs: [0; 16],
            save: Box::new(SaveArea::ZERO),
            control: Box::new(ControlArea::ZERO),
            extra: ExtraRegs::default(),
            script,
            shared,
            features,
            injected: Vec::new(),
            taken: Vec::new(),
            flushes: 0,
            flush: true,
            tlb: Tlb::default(),
            vmruns: 0,
            handled_fast: 0,
            msr_intercepts: HashMap::new(),
            root: root.pa(),
            lost: false,
            running: false,
            exit_at_once: false,
            tells_entry: None,
            single_steps: false,
            has_nrips: features.nrips,
            delivered: EventInj::NONE,
            rflags_before: 0,
        }
    }

    /// What is no part of any engine: the processor's number, its TLB, the script and what tests look at.
    pub(crate) fn take_over(&mut self, old: &mut Self) {
        macro_rules! swap {
            ($($f:ident)*) => { $(std::mem::swap(&mut self.$f, &mut old.$f);)* };
        }
        swap!(number script injected taken flushes tlb vmruns handled_fast lost single_steps has_nrips);
        swap!(delivered rflags_before);
    }

    /// The guest's state, for a script to change.
    pub fn guest(&mut self) -> &mut SaveArea {
        &mut self.save
    }

    /// The control area, for a script to change.
    pub fn vmcb(&mut self) -> &mut ControlArea {
        &mut self.control
    }

    /// The exit comes in the middle of delivering the last event that was injected, or that the guest took by itself.
    pub fn cut_delivery_short(&mut self) {
        self.control.exit_int_info = self.delivered;
        self.save.rflags = self.rflags_before;
    }

    /// Illegal state (APM 15.5.1) or an event that cannot be injected (APM 15.20).
    fn refused(&self) -> bool {
        let s = &*self.save;
        let (cr0, cr4, efer) =
            (Cr0::from_bits_retain(s.cr0), Cr4::from_bits_retain(s.cr4), Efer::from_bits_retain(s.efer));
        let long = efer.contains(Efer::LME) && cr0.contains(Cr0::PG);
        let e = self.control.event_inj;
        let bad_event = match e.kind() {
            Some(EventType::Exception) => e.vector() == 2 || e.vector() > 31,
            Some(_) => false,
            None => true,
        };
        !efer.contains(Efer::SVME)
            || cr0.contains(Cr0::NW) && !cr0.contains(Cr0::CD)
            || (s.cr0 | s.dr6 | s.dr7) >> 32 != 0
            || long && (!cr4.contains(Cr4::PAE) || !cr0.contains(Cr0::PE))
            || long && s.cs.attrib.has(SegmentAttr::L | SegmentAttr::DB)
            || e.valid() && bad_event
    }

    /// Delivers what EVENTINJ holds; interrupts and NMIs through gates that clear RFLAGS.IF.
    fn deliver(&mut self, next_rip: u64) {
        let e = std::mem::take(&mut self.control.event_inj);
        self.rflags_before = self.save.rflags;
        if e.valid() {
            let trap = e.kind() == Some(EventType::Exception) && matches!(e.vector(), 3 | 4);
            let software = trap || e.kind() == Some(EventType::Soft);
            self.injected.push((e, if software && self.has_nrips { next_rip } else { self.save.rip }));
            self.delivered = e;
            self.save.rflags &= !Rflags::TF.bits();
            if e.kind() != Some(EventType::Exception) {
                self.save.rflags &= !Rflags::IF.bits();
            }
        }
    }

    /// Takes the virtual interrupt, if the guest can (APM 15.21.4). True if it is intercepted.
    fn take_virq(&mut self) -> bool {
        let ctl = self.control.int_ctl;
        let priority = ctl >> 16 & 15;
        let can = ctl & int_ctl::V_IRQ != 0
            && self.save.rflags & Rflags::IF.bits() != 0
            && self.control.int_state & INT_SHADOW == 0
            && (ctl & int_ctl::V_IGN_TPR != 0 || priority > ctl & 15);
        if can && u64::from(self.control.intercept_3) & Intercepts::VINTR.bits() != 0 {
            return true;
        }
        if can {
            self.control.int_ctl &= !int_ctl::V_IRQ;
            self.taken.push(self.control.int_vector as u8);
            self.delivered = EventInj::new(EventType::Intr, self.control.int_vector as u8, None);
            self.rflags_before = self.save.rflags;
            self.save.rflags &= !Rflags::IF.bits();
        }
        false
    }

    /// As the world switch does it with an exit that needs nothing of the host.
    fn handled<F: FastExits>(&mut self, fast: &mut F) -> bool {
        let flags = Rflags::TF.union(Rflags::RF).bits();
        let (next, traps) = (self.control.next_rip, self.save.rflags & flags != 0);
        if next == 0 || traps || self.control.exit_int_info.valid() {
            return false;
        }
        let mut guest = FastExit { regs: &mut self.gprs, save: &mut self.save, control: &self.control };
        if !fast.handle(&mut guest) {
            return false;
        }
        self.save.rip = next;
        self.control.int_state &= !INT_SHADOW;
        self.handled_fast += 1;
        true
    }

    /// May the guest be entered, as far as the kernel is concerned? If it has nothing left to do, its thread has a signal.
    pub(crate) fn may_enter(&self, requests: &VcpuRequests) -> bool {
        if self.shared.signal.load(SeqCst) || thread::raised() {
            return false;
        }
        if self.script.lock().is_empty() && !requests.pending() {
            thread::raise();
            return false;
        }
        true
    }

    /// Runs the guest until it exits.
    pub(crate) fn guest_runs(&mut self) -> (u64, u64, u64) {
        self.control.exit_int_info = EventInj::NONE;
        let next_rip = self.control.next_rip;
        if self.has_nrips {
            self.control.next_rip = 0;
        }
        if self.refused() {
            return (code::INVALID, 0, 0);
        }
        if std::mem::take(&mut self.flush) {
            self.flushes += 1;
        }
        self.deliver(next_rip);
        if std::mem::take(&mut self.exit_at_once) {
            return (code::INTR, 0, 0);
        }
        loop {
            if self.take_virq() {
                return (code::VINTR, 0, 0);
            }
            let traps = self.single_steps && self.save.rflags & Rflags::TF.bits() != 0;
            let shadow = self.control.int_state & INT_SHADOW;
            // Out of the queue while it runs: a step may add steps.
            let Some(mut step) = self.script.lock().pop_front() else { return (code::INTR, 0, 0) };
            match step(self) {
                Outcome::Exit(code, info1, info2) => return (code, info1, info2),
                Outcome::Again(code, info1, info2) => {
                    self.script.lock().push_front(step);
                    return (code, info1, info2);
                }
                // The shadow lasts for one instruction, and so does a single step.
                Outcome::Next => {
                    self.control.int_state &= !shadow;
                    if traps {
                        self.save.dr6 |= arch::cr::DR6_BS;
                        return (code::EXCP0 + 1, 0, 0);
                    }
                }
            }
        }
    }
}

impl Drop for SimCpu {
    fn drop(&mut self) {
        self.shared.cpus.lock()[self.number] = false;
    }
}

/// Whoever waits for the vCPU to leave the guest need not wait for one that panicked.
struct InGuest<'a>(&'a VcpuRequests);

impl Drop for InGuest<'_> {
    fn drop(&mut self) {
        self.0.leave();
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
    fn set_next_rip(&mut self, rip: u64) {
        self.control.next_rip = rip;
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
    fn set_invpcid_intercept(&mut self, on: bool) {
        self.control.intercept_5 = if on { arch::vmcb::INTERCEPT_INVPCID } else { 0 };
    }
    fn set_cr_intercepts(&mut self, read: u16, write: u16) {
        (self.control.intercept_cr_read, self.control.intercept_cr_write) = (read, write);
    }
    fn set_exception_intercepts(&mut self, mask: u32) {
        self.control.intercept_exceptions = mask;
    }
    fn set_msr_intercept(&mut self, msr: u32, read: bool, write: bool) {
        uncounted(|| self.msr_intercepts.insert(msr, (read, write)));
    }
    fn set_pause_filter(&mut self, count: u16) {
        self.control.pause_filter_count = count;
    }
    fn exit_after_injection(&mut self) {
        self.exit_at_once = true;
    }
    fn tell_entry(&mut self, vcpu: Option<u32>) {
        self.tells_entry = vcpu;
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
    fn begin(&mut self) {
        assert!(!std::mem::replace(&mut self.running, true), "begin twice");
    }
    fn end(&mut self) {
        assert!(std::mem::take(&mut self.running), "end without begin");
    }

    fn enter<F: FastExits>(&mut self, requests: &VcpuRequests, fast: &mut F) -> Exit {
        assert!(self.running, "entered outside of begin and end");
        if self.shared.signal.load(SeqCst) || thread::raised() || self.lost || !requests.try_enter() {
            return Exit::None;
        }
        let in_guest = InGuest(requests);
        if self.script.lock().is_empty() {
            thread::raise();
            return Exit::None;
        }
        if self.flush {
            self.tlb.clear();
        }
        if let Some(vcpu) = self.tells_entry.take() {
            let (rip, event_inj) = (self.save.rip, self.control.event_inj.0);
            self.shared.told(Trace::Entry { vcpu, rip, immediate: self.exit_at_once, event_inj });
        }
        loop {
            let (code, info1, info2) = uncounted(|| self.guest_runs());
            (self.control.exit_code, self.control.exit_info_1, self.control.exit_info_2) = (code, info1, info2);
            if !self.handled(fast) {
                break;
            }
        }
        drop(in_guest);
        Exit::decode(&self.control.exit_info(), self.features.decode_assists)
    }
    fn save_state(&mut self, w: &mut Writer) {
        assert!(!self.running, "saved while it runs");
        GuestState { regs: &mut self.gprs, save: &mut self.save, control: &mut self.control, extra: &mut self.extra }
            .save(w);
        // As the world switch of the module writes it: no CPU.
        u32::MAX.save(w);
        self.flush.save(w);
        self.exit_at_once.save(w);
    }
    fn load_state(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        let (save, control) = (&mut self.save, &mut self.control);
        GuestState { regs: &mut self.gprs, save, control, extra: &mut self.extra }.load(r)?;
        let _: u32 = r.value()?;
        self.flush.load(r)?;
        self.exit_at_once.load(r)
    }
    fn last_cpu(&self) -> u32 {
        0
    }
    fn broken(&self) -> Option<Errno> {
        self.lost.then_some(Errno::EIO)
    }
}
