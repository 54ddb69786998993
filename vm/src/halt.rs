//! HLT: sleeping until something wakes the guest, and looking around a while before (halt polling; parameters of the
//! module as in the kernel's `halt-polling` document, and KVM_CAP_HALT_POLL).
//!
//! A guest that waits for something short is served faster by a host that looks out for it than by one that sleeps.
//! How long it is worth looking is learnt from how long the guest slept.

use crate::Ctx;
use crate::run::{INTERRUPTED, Next};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use host::{Host, PollParameters, VcpuThread, Work};

/// Halt polling: how long this vCPU looks for something to do before it sleeps, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HaltPoll {
    ns: u64,
}

::state::state! {
    place HaltPoll { ns }
}

impl HaltPoll {
    /// Nanoseconds.
    pub(crate) fn ns(&self) -> u64 {
        self.ns
    }

    /// The guest was halted for `halted` ns, and `woken` by something that it waited for (not by a signal).
    fn learn(&mut self, halted: u64, woken: bool, max: u64, p: &PollParameters) {
        if !woken {
            self.shrink(p);
        } else if max == 0 {
            self.ns = 0;
        } else if halted <= self.ns {
            // It was worth it.
        } else if self.ns != 0 && halted > max {
            self.shrink(p);
        } else if self.ns < max && halted < max {
            self.grow(p);
        }
        self.ns = self.ns.min(max);
    }

    fn grow(&mut self, p: &PollParameters) {
        if p.grow != 0 {
            self.ns = self.ns.saturating_mul(p.grow.into()).max(p.grow_start.into());
        }
    }

    fn shrink(&mut self, p: &PollParameters) {
        let less = self.ns.checked_div(p.shrink.into()).unwrap_or(0);
        self.ns = if less < p.grow_start.into() { 0 } else { less };
    }
}

/// KVM_CAP_HALT_POLL: the VM's own limit.
pub(crate) struct PollLimit;

impl PollLimit {
    const SET: u64 = 1 << 63;

    fn get(cell: &AtomicU64) -> Option<u64> {
        Some(cell.load(Relaxed)).filter(|v| v & Self::SET != 0).map(|v| v & !Self::SET)
    }

    fn set(cell: &AtomicU64, ns: u32) {
        cell.store(u64::from(ns) | Self::SET, Relaxed);
    }
}

impl crate::Config {
    /// KVM_CAP_HALT_POLL: vCPUs of this VM look around for at most `ns` nanoseconds before they sleep.
    pub fn set_halt_poll(&self, ns: u32) {
        PollLimit::set(&self.halt_poll, ns);
    }
}

impl<H: Host> Ctx<'_, H> {
    /// Halted: look around, then sleep until something wakes the guest, or a signal.
    pub(crate) fn wait(&mut self) -> Result<(), Next> {
        if self.wake_condition() {
            self.core.mp_state = crate::MpState::Runnable;
            return Ok(());
        }
        self.sleep()
    }

    /// Sleeps until something is rung for or a signal is pending, after looking around where HLT was executed.
    pub(crate) fn sleep(&mut self) -> Result<(), Next> {
        self.me.stats.blocking.set(true);
        self.me.thread.preemptible(true);
        if self.core.mp_state.sleeps() {
            self.halt();
        } else {
            self.me.thread.block();
        }
        let work = self.vm.host.do_work();
        self.me.thread.preemptible(false);
        self.me.stats.blocking.set(false);
        match work {
            Work::None => Ok(()),
            Work::Signal => Err(INTERRUPTED),
        }
    }

    fn halt(&mut self) {
        let (host, stats) = (&self.vm.host, &self.me.stats);
        let p = host.poll_parameters();
        let max = PollLimit::get(&self.vm.config.halt_poll).unwrap_or(p.max.into());
        // The guest may say that it polls itself (KVM_POLL_CONTROL).
        let allowed = self.core.msr.polls_for_halt();
        let requests = self.me.thread.requests();
        let start = host.now_ns();
        let (mut now, ns) = (start, self.core.poll.ns.min(max));
        let polls = allowed && ns != 0;
        if polls {
            let stop = start.saturating_add(ns);
            while !requests.pending() && now < stop && host.may_poll() {
                core::hint::spin_loop();
                now = host.now_ns();
            }
        }
        let polled = now.saturating_sub(start);
        let sleeps = !requests.pending();
        // It is halted on after a handover, and what was counted is counted once.
        let handed_over = || requests.pending() && !requests.pending_for_guest();
        if handed_over() {
            return;
        }
        if sleeps {
            self.me.thread.block();
            let asleep = host.now_ns().saturating_sub(now);
            stats.halt_wait_ns.add(asleep);
            if handed_over() {
                return;
            }
            stats.halt_wait_hist.count(asleep);
            if requests.pending() {
                stats.halt_wakeup.count();
            }
        }
        if polls {
            stats.halt_attempted_poll.count();
            let (time, each) = if sleeps {
                (&stats.halt_poll_fail_ns, &stats.halt_poll_fail_hist)
            } else {
                stats.halt_successful_poll.count();
                (&stats.halt_poll_success_ns, &stats.halt_poll_success_hist)
            };
            time.add(polled);
            each.count(polled);
        }
        if allowed {
            let halted = host.now_ns().saturating_sub(start);
            self.core.poll.learn(halted, requests.pending(), max, &p);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: PollParameters = PollParameters { max: 200_000, grow: 2, grow_start: 10_000, shrink: 2 };

    #[test]
    fn grows_while_it_helps_and_shrinks_when_it_does_not() {
        let mut poll = HaltPoll::default();
        let mut after = |halted, woken| {
            poll.learn(halted, woken, 200_000, &STOCK);
            poll.ns
        };
        assert_eq!(after(50_000, true), 10_000);
        assert_eq!(after(50_000, true), 20_000);
        assert_eq!(after(15_000, true), 20_000, "found while looking");
        assert_eq!([after(90_000, true), after(90_000, true), after(90_000, true)], [40_000, 80_000, 160_000]);
        assert_eq!(after(190_000, true), 200_000, "the limit");
        assert_eq!(after(1_000_000, true), 100_000, "too long to wait for");
        assert_eq!(after(20_000, false), 50_000, "a signal");
        assert_eq!([after(300_000, true), after(300_000, true), after(300_000, true)], [25_000, 12_500, 0]);
        assert_eq!(after(1_000_000, true), 0);
    }

    #[test]
    fn parameters_of_any_value() {
        let mut poll = HaltPoll { ns: 50_000 };
        poll.learn(300_000, true, 200_000, &PollParameters { shrink: 0, ..STOCK });
        assert_eq!(poll.ns, 0, "0 shrinks to nothing");
        poll.learn(50_000, true, 200_000, &PollParameters { grow: 0, ..STOCK });
        assert_eq!(poll.ns, 0, "0 does not grow");
        poll = HaltPoll { ns: u64::MAX / 2 };
        let huge = PollParameters { max: !0, grow: !0, grow_start: !0, shrink: 1 };
        poll.learn(u64::MAX, true, u64::MAX, &huge);
        assert_eq!(poll.ns, u64::MAX / 2, "no overflow: shrinking by 1 keeps it");
        poll.learn(1, true, 0, &STOCK);
        assert_eq!(poll.ns, 0, "0 never polls");
    }

    #[test]
    fn the_vm_may_have_a_limit_of_its_own() {
        let cell = AtomicU64::new(0);
        assert_eq!(PollLimit::get(&cell), None);
        for ns in [0, 1, u32::MAX] {
            PollLimit::set(&cell, ns);
            assert_eq!(PollLimit::get(&cell), Some(ns.into()));
        }
    }
}
