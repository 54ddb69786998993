//! Loops of PAUSE: a guest that spins waits for another vCPU, which may be waiting for this CPU. PAUSE exits tell
//! (APM 15.14.4, pause filter), and the CPU is given to a vCPU that could use it: directed yield.

use crate::vcpu::Core;
use crate::{Ctx, Vcpu, Vm};
use arch::Intercepts;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use host::{Cpu, Errno, Host, PauseParameters, VcpuThread, linux_version};

/// Attempts to give the CPU away that the scheduler may refuse before the guest goes on spinning.
const TRIES: u32 = 3;

/// What vCPUs know of each other's loops.
#[derive(Default)]
pub struct Spin {
    /// In such a loop now, looking for somebody to yield to.
    spinning: AtomicBool,
    /// A vCPU that spins itself is yielded to every other time only: it would likely spin on.
    turn: AtomicBool,
    /// Index of the vCPU that got the CPU last; the search begins after it.
    last: AtomicUsize,
}

::state::state! {
    place Spin { spinning, turn, last }
}

impl Spin {
    fn eligible(&self) -> bool {
        !self.spinning.load(Relaxed) || self.turn.fetch_xor(true, Relaxed)
    }
}

/// All of KVM_X86_DISABLE_EXITS_*.
const DISABLE_ALL: u64 = 15;
/// KVM_X86_DISABLE_EXITS_MWAIT, _HLT, _PAUSE. (_CSTATE is about MSRs that AMD's processors do not have.)
pub(crate) const DISABLE_MWAIT: u32 = 1;
/// See [`DISABLE_MWAIT`].
pub(crate) const DISABLE_HLT: u32 = 2;
const DISABLE_PAUSE: u32 = 4;

impl<H: Host> Core<H> {
    /// Which instructions that idle exit: all that the VM's owner has not disabled (KVM_CAP_X86_DISABLE_EXITS). PAUSE
    /// only where the processor counts it: an exit for each would cost more than the guest's spinning.
    pub(crate) fn set_idle_exits(&mut self, disabled: u32, pause: PauseParameters) {
        self.disabled_exits = disabled;
        if self.counts_pauses() && pause.count != 0 && disabled & DISABLE_PAUSE == 0 {
            self.pauses = pause.count;
        }
        self.fewest_pauses = self.pauses;
        self.load_idle_intercepts();
    }

    fn counts_pauses(&self) -> bool {
        self.features.pause_filter && self.features.pause_filter_threshold
    }

    /// The intercepts of instructions that idle, by what is noted of them.
    pub(crate) fn load_idle_intercepts(&mut self) {
        let counts = self.counts_pauses() && self.pauses != 0;
        if counts {
            self.cpu.set_pause_filter(self.pauses);
        }
        self.cpu.set_intercept(Intercepts::PAUSE, counts);
        self.cpu.set_intercept(Intercepts::HLT, self.disabled_exits & DISABLE_HLT == 0);
        let mwait = Intercepts::MONITOR | Intercepts::MWAIT | Intercepts::MWAIT_COND;
        self.cpu.set_intercept(mwait, self.disabled_exits & DISABLE_MWAIT == 0);
    }

    /// The guest spins: it is let spin longer next time.
    pub(crate) fn grow_pause_filter(&mut self, pause: PauseParameters) {
        let more = if pause.grow == 0 { pause.count } else { self.pauses.saturating_mul(pause.grow) };
        self.pauses = more.min(pause.max);
        self.cpu.set_pause_filter(self.pauses);
    }
}

impl<H: Host> Ctx<'_, H> {
    /// The guest was not on a CPU for a while: who it waited for has had its chance.
    #[inline]
    pub(crate) fn shrink_pause_filter(&mut self) {
        if self.core.pauses != self.core.fewest_pauses {
            self.shrink_pauses();
        }
    }

    #[cold]
    fn shrink_pauses(&mut self) {
        let pause = self.vm.host.pause_parameters();
        let less = self.core.pauses.checked_div(pause.shrink).unwrap_or(pause.count).max(pause.count);
        if less != self.core.pauses {
            self.core.pauses = less;
            self.core.cpu.set_pause_filter(less);
        }
    }
}

impl<H: Host> Vm<H> {
    /// KVM_CAP_X86_DISABLE_EXITS: instructions of `which` (KVM_X86_DISABLE_EXITS_*) do not exit on vCPUs that are made from
    /// now on, and what CPUID says of them follows on all. Errors: EINVAL (one that is not known; since Linux 6.14 also one that has to
    /// exit here, which has no effect before that, and where there are vCPUs).
    pub fn disable_exits(&self, which: u64) -> Result<(), Errno> {
        let _shape = self.shape.lock();
        let strict = self.host.linux_version() >= linux_version(6, 14);
        if which & !DISABLE_ALL != 0 || strict && (which & !u64::from(self.host.idle_exits()) != 0 || self.has_vcpus())
        {
            return Err(Errno::EINVAL);
        }
        self.config.disabled_exits.fetch_or(which as u32 & self.host.idle_exits(), Relaxed);
        Ok(())
    }
}

impl<H: Host> Ctx<'_, H> {
    /// The guest spins: gives the CPU to a vCPU that is in KVM_RUN but not in the guest, because it was preempted, and
    /// not asleep.
    pub(crate) fn yield_to_others(&mut self) {
        let me = self.me;
        let count = self.vm.vcpus().count();
        let first = me.spin.last.load(Relaxed).wrapping_add(1);
        let mut tries = TRIES;
        me.spin.spinning.store(true, Relaxed);
        for n in 0..count {
            let Some(index) = first.wrapping_add(n).checked_rem(count) else { break };
            let Some(v) = self.vm.vcpu(index).filter(|v| v.index != me.index && could_run(v)) else { continue };
            match v.thread.yield_to() {
                Some(true) => {
                    me.spin.last.store(index, Relaxed);
                    break;
                }
                Some(false) => {}
                None => tries -= 1,
            }
            if tries == 0 {
                break;
            }
        }
        me.spin.spinning.store(false, Relaxed);
        // Where it spins again it is eligible at once.
        me.spin.turn.store(false, Relaxed);
    }

    /// The guest asks to run the vCPU with this APIC ID, which it has just kicked.
    pub(crate) fn yield_to_apic_id(&self, apic_id: u32) {
        let stats = &self.me.stats;
        stats.directed_yield_attempted.count();
        if let Some(v) = self.vm.vcpu_by_id(apic_id).filter(|v| v.index != self.me.index && could_run(v)) {
            if v.thread.yield_to() == Some(true) {
                stats.directed_yield_successful.count();
            }
        }
    }
}

/// Not in the guest: a vCPU whose CPU was taken away leaves the guest for that. Not asleep, or about to wake up.
fn could_run<H: Host>(v: &Vcpu<H>) -> bool {
    let requests = v.thread.requests();
    !requests.needs_ipi() && (!v.thread.is_blocked() || requests.pending()) && v.spin.eligible()
}
