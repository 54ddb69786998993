//! KVM_RUN: the loop that enters the guest, handles its exits and leaves when user space is needed.

use crate::user::{Answer, RunRequest, UserExit};
use crate::vcpu::Core;
use crate::{Ctx, MpState, exits};
use arch::Exit;
use core::convert::Infallible;
use core::sync::atomic::Ordering::SeqCst;
use host::{Cpu, Errno, Host, Request, VcpuThread, Work};

/// What an exit handler decides.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter the guest again.
    Resume,
    /// Leave to user space.
    User(UserExit),
    /// Leave with an errno, and what `kvm_run` says about it.
    Fail(Errno, UserExit),
    /// Leave KVM_RUN, and call it again with the VM in another engine, or in this one: user space takes no notice
    /// ([`Request::HandOver`]).
    HandOver,
}

::state::tagged! {
    Next { 0 = Resume, 1 = User(why), 2 = Fail(errno, why), 3 = HandOver }
}

impl<H: Host> Core<H> {
    /// Does every exit have to come to the loop?
    fn exits_matter(&self) -> bool {
        self.debug.control != 0 || self.trace.set.any() || self.clock.catches_up() || self.pv.shows_tpr()
    }

    /// After any change of what that depends on: KVM_RUN looks at one word.
    pub(crate) fn look_who_watches(&mut self) {
        self.watched = self.exits_matter();
    }
}

impl<H: Host> Ctx<'_, H> {
    /// One KVM_RUN (KVM API document, 4.10). `answer` is user space's reply to [`pending`](Self::pending).
    ///
    /// Never [`Next::Resume`]. The errno with which it fails: EINTR (signal or `immediate_exit`), EAGAIN (an application
    /// processor that has just got INIT), EFAULT (guest memory), EIO (the VM is dead).
    pub fn run(&mut self, req: RunRequest, answer: Answer) -> Next {
        if self.core.fast.lapic.is_none() {
            self.core.cr8 = req.cr8 & 15;
        }
        debug_assert_eq!(self.core.watched, self.core.exits_matter(), "Core::look_who_watches was not called");
        let fast = !self.core.watched;
        if !fast {
            self.begin_watched(&answer);
        }
        self.shrink_pause_filter();
        self.look_at_steal_time();
        if self.core.inject.smi_pending || self.core.inject.triple_fault {
            // What an SMI waited for may be gone: user space can set registers and let a debugger's guest go. And an exception
            // that it has queued may have been one too many.
            self.me.thread.requests().make_request(Request::Event);
        }
        self.core.begin_fpu();
        self.core.cpu.begin();
        // User space may have changed anything.
        self.core.fast.forget_msrs();
        self.look_at_caches();
        let Err(next) = self.work(req, answer, fast);
        if !fast {
            self.trace_return(&next);
        }
        self.leave(req, next)
    }

    /// Does the next call go on with a KVM_RUN that was left for a handover?
    pub fn resumes(&self) -> bool {
        self.core.resumes.is_some()
    }

    /// Does WBINVD do anything? It may change while the vCPU runs: a request follows then.
    pub(crate) fn look_at_caches(&mut self) {
        self.core.fast.coherent = !self.vm.noncoherent_dma.load(SeqCst);
    }

    /// KVM_RUN begins, and every exit has to come to the loop.
    #[cold]
    fn begin_watched(&mut self, answer: &Answer) {
        self.core.arm_single_step();
        self.trace_answer(answer);
    }

    /// The KVM_RUN that was left for a handover goes on ([`resumes`](Self::resumes)): as if nothing had been, but that the thread is no
    /// longer known to hold any state of the guest's in its registers. Returns what [`run`](Self::run) does.
    #[cold]
    pub fn go_on(&mut self) -> Next {
        let req = self.core.resumes.take().unwrap_or_default();
        self.core.resume_fpu();
        self.core.cpu.begin();
        self.core.fast.forget_msrs();
        self.look_at_caches();
        let next = match self.still_waits_for_page() {
            Next::Resume => {
                // It was looked at when KVM_RUN began.
                let req = RunRequest { immediate_exit: false, ..req };
                let Err(next) = self.start(req).and_then(|()| self.cycle(req, !self.core.watched));
                next
            }
            leave => leave,
        };
        self.trace_return(&next);
        self.leave(req, next)
    }

    /// KVM_RUN ends.
    fn leave(&mut self, req: RunRequest, next: Next) -> Next {
        self.core.cpu.end();
        if next == Next::HandOver {
            self.core.pause_fpu();
            self.core.resumes = Some(req);
            return next;
        }
        self.me.stats.host_state_reload.count();
        if self.core.end_fpu() {
            self.me.stats.fpu_reload.count();
        }
        if matches!(next, Next::Fail(_, UserExit::Interrupted)) {
            self.me.stats.signal_exits.count();
        }
        next
    }

    /// From the reply to the last exit to the next one that leaves. `fast`: see [`cycle`](Self::cycle).
    #[inline(always)] // It has one caller.
    fn work(&mut self, req: RunRequest, answer: Answer, fast: bool) -> Result<Infallible, Next> {
        self.complete(answer)?;
        self.start(req)?;
        self.cycle(req, fast)
    }

    /// What has to hold before the first entry.
    fn start(&mut self, req: RunRequest) -> Result<(), Next> {
        if req.immediate_exit {
            // User space still reads the exit whose completion it came for.
            return Err(Next::Fail(Errno::EINTR, UserExit::Unchanged));
        }
        if self.core.mp_state == MpState::Uninitialized {
            return Err(self.wait_for_init());
        }
        if self.core.inject.busy() {
            self.find_software_event()?;
        }
        Ok(())
    }

    /// A processor that nobody has started sleeps until INIT comes, and lets user space look then.
    #[cold]
    fn wait_for_init(&mut self) -> Next {
        loop {
            match self.service_requests() {
                // INIT came with it, and user space is told of that first: whoever waits for this vCPU is served at the next KVM_RUN.
                Err(Next::HandOver) if self.core.mp_state != MpState::Uninitialized => {
                    self.me.thread.requests().make_request(Request::HandOver);
                }
                Err(leave) => return leave,
                Ok(()) => {}
            }
            if self.core.mp_state != MpState::Uninitialized {
                return Next::Fail(Errno::EAGAIN, UserExit::Unchanged);
            }
            self.me.thread.preemptible(true);
            self.me.thread.block();
            let work = self.vm.host.do_work();
            self.me.thread.preemptible(false);
            if work == Work::Signal {
                return INTERRUPTED;
            }
        }
    }

    /// The loop. Only returns with a reason to leave. `fast`: not every exit has to come here.
    fn cycle(&mut self, req: RunRequest, fast: bool) -> Result<Infallible, Next> {
        loop {
            self.service_requests()?;
            if self.core.mp_state != MpState::Runnable {
                self.wait()?;
                continue;
            }
            let window = req.interrupt_window && self.vm.chips().is_none() && self.accepts_external();
            if window && self.ready_for_interrupt() {
                self.me.stats.request_irq_exits.count();
                return Err(Next::User(UserExit::IrqWindowOpen));
            }
            let pic = self.pic_waits() && self.take_pic();
            self.core.inject_pending(window || pic);
            self.share_apic();
            if fast {
                // Whether an NMI handler's IRET has run shows at the next exit.
                self.core.fast.enabled = self.core.inject.iret_rip.is_none();
            } else {
                self.trace_before_entry();
            }
            match self.core.cpu.enter(self.me.thread.requests(), &mut self.core.fast) {
                Exit::None => self.not_entered()?,
                exit => {
                    // Only now: a VMM may finish its setup after a KVM_RUN that entered nothing.
                    self.core.has_run = true;
                    self.me.stats.exits.add(self.core.fast.exits.wrapping_add(1));
                    self.core.fast.exits = 0;
                    if self.core.fast.injections != 0 {
                        self.count_injections();
                    }
                    if matches!(exit, Exit::Invalid) {
                        // Nothing was injected: what was about to be is kept.
                        self.core.cancel_injection();
                    } else {
                        self.core.collect_events();
                    }
                    self.look_at_shared_apic();
                    if !fast {
                        self.watch();
                    }
                    match exits::handle(self, exit) {
                        Next::Resume => {}
                        leave => return Err(leave),
                    }
                }
            }
        }
    }

    /// After an exit, where every one matters.
    #[cold]
    fn watch(&mut self) {
        if self.core.clock.catches_up() {
            self.me.thread.requests().make_request(Request::ClockUpdate);
        }
        self.trace_exit();
    }

    /// The processor was not entered: somebody wants something first.
    #[cold]
    fn not_entered(&mut self) -> Result<(), Next> {
        self.core.cancel_injection();
        self.core.cpu.tell_entry(None);
        self.look_at_shared_apic();
        if let Some(errno) = self.core.cpu.broken() {
            self.note_end(0, errno as u64);
            return Err(Next::Fail(errno, UserExit::Shutdown));
        }
        self.me.thread.preemptible(true);
        let work = self.vm.host.do_work();
        self.me.thread.preemptible(false);
        match work {
            Work::None => Ok(()),
            Work::Signal => Err(INTERRUPTED),
        }
    }

    #[inline(never)]
    fn count_injections(&mut self) {
        let n = core::mem::take(&mut self.core.fast.injections);
        self.me.stats.irq_injections.add(n & 0xffff_ffff);
        self.me.stats.nmi_injections.add(n >> 32 & 0x7fff_ffff);
        if n & crate::fast::SMI_WAITS != 0 {
            self.me.thread.requests().make_request(Request::Event);
        }
    }

    /// Does anything end HLT?
    pub(crate) fn wake_condition(&mut self) -> bool {
        if !self.core.mp_state.sleeps() {
            return false;
        }
        let unhalted = self.me.pending_events.pv_unhalted.swap(false, core::sync::atomic::Ordering::AcqRel);
        unhalted || self.has_events()
    }

    /// Does an event wait that the guest can take?
    pub(crate) fn has_events(&mut self) -> bool {
        let pic = self.pic_waits();
        let core = &mut *self.core;
        let inject = &core.inject;
        let interrupt =
            core.external().is_some() || core.fast.lapic.as_ref().is_some_and(|l| l.pending_vector().is_some()) || pic;
        inject.busy()
            || inject.nmi_pending > 0 && !inject.nmi_masked
            || inject.smi_pending && !core.smm.active()
            || interrupt && core.interruptible()
    }
}

/// A signal is pending.
pub const INTERRUPTED: Next = Next::Fail(Errno::EINTR, UserExit::Interrupted);
