//! Exits that somebody wants to know of: what stock's trace events say of them, found out around the handlers.
//!
//! Nothing of this is on the way of an exit that nobody looks at. While an event of the run loop's is on, `Core::trace` makes
//! `Core::exits_matter` true: the loop then calls the functions here before it enters and after it has
//! left, and no exit is handled beside it. What a handler has done shows in the guest's registers, in counters and in what
//! KVM_RUN returns; so the handlers do not take part. Where the order of events differs from stock's for that, or the
//! moment, docs/decisions/0038 says so.
//!
//! Long because: one account of an exit, from before the entry to what user space is told.

use crate::Ctx;
use crate::fast::Armed;
use crate::run::Next;
use crate::stats::VcpuStats;
use crate::user::{Answer, Pending, UserExit};
use crate::vcpu::Core;
use arch::{EventInj, EventType, Exit, msr};
use host::{Cpu, Host, MmioKind, SharedPage, Trace, TraceEvent, TraceSet, VcpuThread};
use irqchip::Bits256;

/// Offsets in the local APIC's page.
mod register {
    pub const EOI: u32 = 0xb0;
    pub const ICR: u32 = 0x300;
    pub const ICR2: u32 = 0x310;
    pub const SELF_IPI: u32 = 0x3f0;
}

/// What is traced of a vCPU, and what is remembered for that.
#[derive(Default)]
pub(crate) struct Tracing {
    /// Events that somebody wants.
    pub set: TraceSet,
    /// The exit whose handler may have done something that is still to be told.
    open: Option<Open>,
    /// What the last exit cut short, which goes into EVENTINJ once more.
    cut_short: Option<(EventType, u8)>,
    /// The interrupt that the processor holds, if it was told already.
    announced: Option<u8>,
    /// Vectors in IRR that were told.
    irr: Bits256,
    /// What user space was asked for.
    asked: Option<Asked>,
    pauses: u16,
    poll_ns: u64,
    waited: [u64; 2],
}

/// What is told when user space has answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Mmio { gpa: u64, len: u8 },
    Port { port: u16, size: u8, count: u32 },
}

::state::tagged! {
    Asked { 0 = Mmio { gpa, len }, 1 = Port { port, size, count } }
}

::state::state! {
    // What else is remembered each engine finds out anew: it is behind the handler of the last exit, or the guest's state says it.
    place Tracing { asked since 3 = None, announced since 3 = None; not set, open, cut_short, irr, pauses, poll_ns, waited }
}

/// The guest as the handler found it.
struct Open {
    exit: Exit,
    rip: u64,
    rax: u64,
    rcx: u64,
    rdx: u64,
    isr_max: u8,
}

impl<H: Host> Core<H> {
    /// Tells these events from here on, and nothing of what was before.
    pub(crate) fn begin_tracing(&mut self, set: TraceSet, stats: &VcpuStats) {
        self.trace = Tracing {
            set,
            irr: self.fast.lapic.as_ref().map_or(Bits256::EMPTY, |lapic| *lapic.irr()),
            pauses: self.pauses,
            poll_ns: self.poll.ns(),
            waited: waited(stats),
            ..Tracing::default()
        };
        self.look_who_watches();
    }

    /// The same in another engine: what the one before has told halfway is not begun anew.
    pub(crate) fn go_on_tracing(&mut self, set: TraceSet, stats: &VcpuStats) {
        let Tracing { asked, announced, .. } = self.trace;
        self.begin_tracing(set, stats);
        (self.trace.asked, self.trace.announced) = (asked, announced);
    }
}

/// Time looked around for and slept in HLT, in nanoseconds.
fn waited(stats: &VcpuStats) -> [u64; 2] {
    [stats.halt_poll_success_ns.get().wrapping_add(stats.halt_poll_fail_ns.get()), stats.halt_wait_ns.get()]
}

impl<H: Host> Ctx<'_, H> {
    fn tell(&self, event: TraceEvent, what: impl FnOnce() -> Trace) {
        if self.core.trace.set.has(event) {
            self.vm.host.trace(what());
        }
    }

    /// Request::Trace: from here on this is told, and nothing of what was before.
    #[cold]
    pub(crate) fn trace_changed(&mut self) {
        self.core.begin_tracing(self.vm.host.traced(), &self.me.stats);
    }

    /// KVM_RUN begins or goes on: what user space has answered.
    #[cold]
    pub(crate) fn trace_answer(&mut self, answer: &Answer) {
        let Some(asked) = self.core.trace.asked.take() else { return };
        match (asked, self.core.pending, answer) {
            (Asked::Mmio { gpa, len }, Pending::MmioRead { .. }, Answer::Mmio(data)) => {
                let value = low(u64::from_le_bytes(*data), len);
                self.tell(TraceEvent::Mmio, || Trace::Mmio { kind: MmioKind::Read, len: len.into(), gpa, value });
            }
            (Asked::Port { port, size, count }, Pending::FastPioIn { .. } | Pending::PioIn { .. }, _) => {
                let value = low(self.me.pio_page().word(0), size) as u32;
                self.tell(TraceEvent::Pio, || Trace::Pio { write: false, port, size, count, value });
            }
            _ => {}
        }
    }

    /// KVM_RUN returns.
    #[cold]
    pub(crate) fn trace_return(&mut self, next: &Next) {
        if !self.core.trace.set.any() || matches!(next, Next::HandOver) {
            return;
        }
        self.trace_handled(Some(next));
        let (why, errno) = match next {
            Next::User(why) => (why, 0),
            Next::Fail(errno, why) => (why, -(*errno as i32)),
            Next::Resume | Next::HandOver => return,
        };
        if let Next::User(why) = next {
            self.trace_question(why);
            self.core.trace.asked = match *why {
                UserExit::Mmio { gpa, len, write: false, .. } => Some(Asked::Mmio { gpa, len }),
                UserExit::Io { input: true, size, port, count } => Some(Asked::Port { port, size, count }),
                _ => None,
            };
        }
        let reason = why.reason();
        self.tell(TraceEvent::UserspaceExit, || Trace::UserspaceExit { reason, errno });
    }

    fn trace_question(&self, why: &UserExit) {
        match *why {
            UserExit::Mmio { gpa, data, len, write } => {
                let (kind, value) = match write {
                    true => (MmioKind::Write, low(u64::from_le_bytes(data), len)),
                    false => (MmioKind::UnsatisfiedRead, 0),
                };
                self.tell(TraceEvent::Mmio, || Trace::Mmio { kind, len: len.into(), gpa, value });
            }
            // One that is not part of a string was told when it exited.
            UserExit::Io { input: false, size, port, count } if self.core.pending == Pending::PioOut => {
                let value = low(self.me.pio_page().word(0), size) as u32;
                self.tell(TraceEvent::Pio, || Trace::Pio { write: true, port, size, count, value });
            }
            _ => {}
        }
    }

    /// The guest is about to be entered, by the loop that tells.
    #[cold]
    pub(crate) fn trace_before_entry(&mut self) {
        self.core.fast.enabled = false;
        if !self.core.trace.set.any() {
            return;
        }
        self.trace_handled(None);
        self.trace_waits();
        self.trace_irr();
        let (pauses, vcpu) = (self.core.pauses, self.me.id);
        let old = core::mem::replace(&mut self.core.trace.pauses, pauses);
        if old != pauses {
            let (new, old) = (pauses.into(), old.into());
            self.tell(TraceEvent::PleWindow, || Trace::PleWindowUpdate { vcpu, new, old });
        }
        self.trace_injection();
        if self.core.trace.set.has(TraceEvent::Entry) {
            self.core.cpu.tell_entry(Some(vcpu));
        }
    }

    /// What the entry injects, or what the processor delivers by itself as soon as it is there.
    fn trace_injection(&mut self) {
        let (save, control) = (self.core.cpu.save(), self.core.cpu.control());
        let inj = control.event_inj;
        if inj.valid() {
            if let Some((event, what)) = injected(inj, self.core.trace.cut_short) {
                self.tell(event, || what);
            }
            return;
        }
        let armed = self.core.fast.armed;
        let Some(Armed::Apic(vector) | Armed::External(vector)) = armed else { return };
        let free = save.rflags & arch::cr::Rflags::IF.bits() != 0 && control.int_state & arch::vmcb::INT_SHADOW == 0;
        let above = u32::from(vector >> 4) > control.int_ctl & 0xf || matches!(armed, Some(Armed::External(_)));
        if free && above && self.core.trace.announced != Some(vector) {
            self.core.trace.announced = Some(vector);
            self.tell(TraceEvent::InjVirq, || Trace::InjVirq { vector, soft: false, reinjected: false });
        }
    }

    /// HLT has ended since the last look.
    fn trace_waits(&mut self) {
        let waited = waited(&self.me.stats);
        let [polled, slept] = waited;
        let [polled_before, slept_before] = core::mem::replace(&mut self.core.trace.waited, waited);
        // Whoever may write to debugfs can set them back.
        let (polled, slept) = (polled.saturating_sub(polled_before), slept.saturating_sub(slept_before));
        if polled | slept != 0 {
            let ns = polled.wrapping_add(slept);
            self.tell(TraceEvent::VcpuWakeup, || Trace::VcpuWakeup { ns, waited: slept != 0, valid: true });
        }
        let (new, vcpu) = (self.core.poll.ns(), self.me.id);
        let old = core::mem::replace(&mut self.core.trace.poll_ns, new);
        if new != old {
            let word = |ns: u64| u32::try_from(ns).unwrap_or(u32::MAX);
            let what = Trace::HaltPollNs { grow: new > old, vcpu, new: word(new), old: word(old) };
            self.tell(TraceEvent::HaltPollNs, || what);
        }
    }

    /// Interrupts that the local APIC has accepted since the last look.
    fn trace_irr(&mut self) {
        let Some(lapic) = &self.core.fast.lapic else { return };
        let (irr, tmr, apic_id) = (*lapic.irr(), *lapic.tmr(), self.me.id);
        let before = core::mem::replace(&mut self.core.trace.irr, irr);
        if irr == before {
            return;
        }
        for vector in 0..=u8::MAX {
            if irr.contains(vector) && !before.contains(vector) {
                let level = tmr.contains(vector);
                self.tell(TraceEvent::ApicAcceptIrq, || Trace::ApicAcceptIrq { apic_id, vector, level });
            }
        }
    }

    /// The guest has exited, and its events were collected.
    #[cold]
    pub(crate) fn trace_exit(&mut self) {
        if !self.core.trace.set.any() {
            return;
        }
        self.trace_taken();
        let inject = &self.core.inject;
        let exception = inject.exception.map(|e| (EventType::Exception, e.vector));
        let kind = |soft| if soft { EventType::Soft } else { EventType::Intr };
        self.core.trace.cut_short = exception.or(inject.interrupt.map(|i| (kind(i.soft), i.vector)));
        let (info, rip, vcpu) = (self.core.cpu.control().exit_info(), self.core.cpu.save().rip, self.me.id);
        let requests = self.me.thread.requests().word().load(core::sync::atomic::Ordering::Relaxed);
        let (info1, info2) = (info.info1, info.info2);
        let what = Trace::Exit { vcpu, rip, code: info.code, info1, info2, int_info: info.int_info.0, requests };
        self.tell(TraceEvent::Exit, || what);
        // Once more, so that the loop need not keep it in memory for this.
        let exit = Exit::decode(&info, self.core.features.decode_assists);
        let gpr = |n| self.core.cpu.gpr(n);
        let isr_max = self.core.fast.lapic.as_ref().map_or(0, |lapic| lapic.isr_max());
        let open = Open { exit, rip, rax: gpr(0), rcx: gpr(1), rdx: gpr(2), isr_max };
        match exit {
            Exit::Npf { .. } => {
                self.tell(TraceEvent::PageFault, || Trace::PageFault { vcpu, rip, address: info2, error_code: info1 });
            }
            Exit::CrWrite { gpr: Some(n), n: cr } => {
                let value = gpr(n);
                self.tell(TraceEvent::Cr, || Trace::Cr { write: true, cr, value });
            }
            Exit::Cr0SelWrite { gpr: Some(n) } => {
                let value = gpr(n);
                self.tell(TraceEvent::Cr, || Trace::Cr { write: true, cr: 0, value });
            }
            Exit::Io(io) if !io.string() && !io.input() => {
                let value = low(gpr(0), io.size()) as u32;
                self.tell(TraceEvent::Pio, || Trace::Pio {
                    write: true,
                    port: io.port(),
                    size: io.size(),
                    count: 1,
                    value,
                });
            }
            Exit::Vmmcall if self.takes_hyperv_calls() => {
                let pair = |high, low| gpr(high) << 32 | gpr(low) & 0xffff_ffff;
                let long = self.in_64bit_mode();
                let [control, input, output] =
                    if long { [gpr(1), gpr(2), gpr(8)] } else { [pair(2, 0), pair(3, 1), pair(7, 6)] };
                self.tell(TraceEvent::HvHypercall, || Trace::HvHypercall { control, input, output });
            }
            Exit::Vmmcall => {
                let mask = if self.in_64bit_mode() { !0 } else { 0xffff_ffff };
                let args = [3, 1, 2, 6].map(|n| gpr(n) & mask);
                self.tell(TraceEvent::Hypercall, || Trace::Hypercall { nr: gpr(0) & mask, args });
            }
            _ => {}
        }
        self.core.trace.open = Some(open);
    }

    /// The virtual interrupt was taken though it was not told, because it was not certain to be.
    fn trace_taken(&mut self) {
        let control = self.core.cpu.control();
        let taken = self.core.fast.armed.is_none();
        let announced = self.core.trace.announced;
        if taken {
            self.core.trace.announced = None;
        }
        if let Some(lapic) = &self.core.fast.lapic {
            // What was taken is not there any more, and is told again when it comes again.
            let (words, now) = (self.core.trace.irr.words(), lapic.irr().words());
            let vector = control.int_vector as u8;
            let was_there = self.core.trace.irr.contains(vector);
            let [a, b, c, d] = words;
            let [p, q, r, s] = now;
            self.core.trace.irr = Bits256::from_words([a & p, b & q, c & r, d & s]);
            if taken && was_there && !lapic.irr().contains(vector) && announced != Some(vector) {
                self.tell(TraceEvent::InjVirq, || Trace::InjVirq { vector, soft: false, reinjected: false });
            }
        }
    }

    /// What the handler of the last exit has done. `left`: with what KVM_RUN returns.
    fn trace_handled(&mut self, left: Option<&Next>) {
        let Some(open) = self.core.trace.open.take() else { return };
        let (save, gpr) = (self.core.cpu.save(), |n| self.core.cpu.gpr(n));
        let done = save.rip != open.rip;
        let to_user = matches!(left, Some(Next::User(UserExit::Msr { .. })));
        match open.exit {
            Exit::Cpuid if done => {
                let (function, index) = (open.rax as u32, open.rcx as u32);
                let regs = [0, 3, 1, 2].map(|n| gpr(n) as u32);
                let found = self.core.cpuid.get(function, index).is_some();
                let used_max_basic = !found && self.core.cpuid.answers_as_highest(function);
                self.tell(TraceEvent::Cpuid, || Trace::Cpuid { function, index, regs, found, used_max_basic });
            }
            Exit::Rdmsr | Exit::Wrmsr if !to_user => {
                let (write, index) = (matches!(open.exit, Exit::Wrmsr), open.rcx as u32);
                let pair = |high: u64, low: u64| high << 32 | low & 0xffff_ffff;
                let value = match (write, done) {
                    (true, _) => pair(open.rdx, open.rax),
                    (false, true) => pair(gpr(2), gpr(0)),
                    (false, false) => 0,
                };
                if done && (msr::X2APIC_BASE..=msr::X2APIC_LAST).contains(&index) {
                    self.trace_apic((index - msr::X2APIC_BASE) << 4, write, value, open.isr_max);
                }
                self.tell(TraceEvent::Msr, || Trace::Msr { write, index, value, fault: !done });
            }
            Exit::CrRead { n: cr, gpr: Some(n) } if done => {
                let value = gpr(n);
                self.tell(TraceEvent::Cr, || Trace::Cr { write: false, cr, value });
            }
            Exit::Io(io) if done && io.input() && !io.string() => {
                let value = low(gpr(0), io.size()) as u32;
                let what = Trace::Pio { write: false, port: io.port(), size: io.size(), count: 1, value };
                self.tell(TraceEvent::Pio, || what);
            }
            _ => {}
        }
    }

    /// An access to a register of the local APIC. `isr_max`: the highest vector in service before it; 0: none.
    fn trace_apic(&self, register: u32, write: bool, value: u64, isr_max: u8) {
        let x2apic = self.core.fast.lapic.as_ref().is_some_and(|l| l.mode() == irqchip::Mode::X2Apic);
        if write && x2apic && register == register::ICR {
            // Of this one stock tells the write behind what came of it.
            let destination = (value >> 32) as u32;
            self.tell(TraceEvent::ApicIpi, || Trace::ApicIpi { icr_low: value as u32, destination });
        }
        self.tell(TraceEvent::Apic, || Trace::Apic { write, register, value });
        if !write {
            return;
        }
        let apic_id = self.me.id;
        match register {
            register::EOI => {
                let vector = if isr_max == 0 { -1 } else { isr_max.into() };
                self.tell(TraceEvent::Eoi, || Trace::Eoi { apic_id, vector });
            }
            register::ICR if !x2apic => {
                let destination = self.icr2() >> 24;
                self.tell(TraceEvent::ApicIpi, || Trace::ApicIpi { icr_low: value as u32, destination });
            }
            register::SELF_IPI => {
                let icr_low = 1 << 18 | value as u32 & 0xff;
                self.tell(TraceEvent::ApicIpi, || Trace::ApicIpi { icr_low, destination: 0 });
            }
            _ => {}
        }
    }

    fn icr2(&self) -> u32 {
        let now = self.vm.host.now_ns();
        self.core.fast.lapic.as_ref().and_then(|lapic| lapic.peek(register::ICR2, now)).unwrap_or(0)
    }

    /// An instruction has read or written the local APIC's page. `isr_max` as in `trace_apic`.
    #[cold]
    pub(crate) fn trace_apic_page(&self, offset: u32, write: bool, data: &[u8], isr_max: u8) {
        let value = data.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        self.trace_apic(offset & !0xf, write, value, isr_max);
        let base = self.core.fast.lapic.as_ref().map_or(0, |lapic| lapic.base_gpa());
        self.trace_mmio(base | u64::from(offset), write, data);
    }

    /// A device in the kernel has answered.
    #[cold]
    pub(crate) fn trace_mmio(&self, gpa: u64, write: bool, data: &[u8]) {
        let value = data.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let (kind, len) = (if write { MmioKind::Write } else { MmioKind::Read }, data.len() as u32);
        self.tell(TraceEvent::Mmio, || Trace::Mmio { kind, len, gpa, value });
    }

    /// The guest has ended an interrupt by what it shares with the hypervisor.
    #[cold]
    pub(crate) fn trace_pv_eoi(&self, vector: u8) {
        let apic_id = self.me.id;
        self.tell(TraceEvent::PvEoi, || Trace::PvEoi { apic_id, vector: vector.into() });
    }
}

/// The event for what EVENTINJ holds.
fn injected(inj: EventInj, cut_short: Option<(EventType, u8)>) -> Option<(TraceEvent, Trace)> {
    let (kind, vector) = (inj.kind()?, inj.vector());
    let reinjected = cut_short == Some((kind, vector));
    match kind {
        EventType::Intr => Some((TraceEvent::InjVirq, Trace::InjVirq { vector, soft: false, reinjected })),
        EventType::Soft => Some((TraceEvent::InjVirq, Trace::InjVirq { vector, soft: true, reinjected })),
        EventType::Exception => {
            let error_code = inj.error_code();
            Some((TraceEvent::InjException, Trace::InjException { vector, error_code, reinjected }))
        }
        EventType::Nmi => None,
    }
}

/// The low `len` bytes.
const fn low(value: u64, len: u8) -> u64 {
    match len {
        0 => 0,
        1..=7 => value & ((1 << (8 * len)) - 1),
        _ => value,
    }
}
