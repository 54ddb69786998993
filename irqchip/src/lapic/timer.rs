//! The APIC timer: one-shot, periodic and TSC-deadline. APM volume 2 section 16.4.1; TSC deadline as in Intel SDM
//! volume 3 section 11.5.4.1. The count is never stored: it follows from the target time.

use super::regs::Lvt;
use super::{Lapic, regs::LVT_MASKED};

/// What the host's timer should do.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerEffect {
    /// What it does already.
    Keep,
    /// Stop.
    Cancel,
    /// Fire at this host time, in monotonic ns. May have passed already.
    ArmNs(u64),
    /// Fire when the guest's TSC reaches this. May have passed already. Convert to host time rounding up, or
    /// [`Lapic::expire`] will ask for a second try.
    ArmTsc(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    /// LVT bits 18:17 both set: a count that runs ends, and no other begins.
    Reserved,
}

impl TimerMode {
    #[inline(always)]
    pub(super) fn of(lvt: u32) -> TimerMode {
        match lvt >> 17 & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::Reserved,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Timer {
    /// Initial count register.
    pub initial: u32,
    /// Divide configuration register, bits 3, 1 and 0.
    pub divide: u32,
    /// When the count reaches zero; None: stopped.
    target_ns: Option<u64>,
    /// Guest TSC, 0: disarmed.
    tsc_deadline: u64,
}

::state::state! {
    place Timer { initial, divide, target_ns, tsc_deadline }
}

impl Timer {
    /// log2 of the divisor: 0b0000 divides by 2, 0b1010 by 128, 0b1011 by 1.
    fn divide_shift(divide: u32) -> u32 {
        ((divide & 3 | divide >> 1 & 4) + 1) & 7
    }
}

impl Lapic {
    #[inline(always)]
    fn timer_mode(&self) -> TimerMode {
        TimerMode::of(self.lvt(Lvt::Timer))
    }

    /// Nanoseconds per count; at least 1.
    fn tick_ns(&self, divide: u32) -> u64 {
        u64::from(self.cfg.bus_cycle_ns.max(1)) << Timer::divide_shift(divide)
    }

    /// Nanoseconds from the initial count to zero, and no less than the minimum when periodic.
    fn period_ns(&self) -> u64 {
        let period = u64::from(self.timer.initial).saturating_mul(self.tick_ns(self.timer.divide));
        if self.timer_mode() == TimerMode::Periodic { period.max(self.cfg.min_period_ns) } else { period }
    }

    fn counts(&self) -> bool {
        matches!(self.timer_mode(), TimerMode::OneShot | TimerMode::Periodic)
    }

    fn arm(&mut self, target: Option<u64>) -> TimerEffect {
        self.timer.target_ns = target;
        target.map_or(TimerEffect::Cancel, TimerEffect::ArmNs)
    }

    /// The initial count starts the timer; zero stops it. No effect in TSC-deadline mode.
    pub(super) fn write_initial(&mut self, value: u32, now_ns: u64) -> TimerEffect {
        if self.timer_mode() == TimerMode::TscDeadline {
            return TimerEffect::Keep;
        }
        self.timer.initial = value;
        let runs = value != 0 && self.counts();
        self.arm(runs.then(|| now_ns.saturating_add(self.period_ns())))
    }

    /// A new divisor stretches what remains of the current count.
    pub(super) fn write_divide(&mut self, value: u32, now_ns: u64) -> TimerEffect {
        let old = self.tick_ns(self.timer.divide);
        self.timer.divide = value;
        let new = self.tick_ns(value);
        match self.timer.target_ns {
            Some(_) if new != old && !self.counts() => self.arm(None),
            Some(target) if new != old => {
                let counts = target.saturating_sub(now_ns).checked_div(old).unwrap_or(0);
                self.arm(Some(now_ns.saturating_add(counts.saturating_mul(new))))
            }
            _ => TimerEffect::Keep,
        }
    }

    /// LVT timer entry rewritten. Entering or leaving TSC-deadline mode disarms; between the others the count goes on.
    pub(super) fn timer_mode_changed(&mut self, old: TimerMode) -> TimerEffect {
        let new = self.timer_mode();
        if (old == TimerMode::TscDeadline) == (new == TimerMode::TscDeadline) {
            return TimerEffect::Keep;
        }
        self.timer.initial = 0;
        self.timer.tsc_deadline = 0;
        self.arm(None)
    }

    /// Current count register. 0 in TSC-deadline mode and when stopped.
    pub(super) fn current_count(&self, now_ns: u64) -> u32 {
        let Some(target) = self.timer.target_ns else {
            return 0;
        };
        let remaining = match target.checked_sub(now_ns) {
            Some(ns) => ns,
            None if self.timer_mode() == TimerMode::Periodic => {
                // Due, but not yet handled by the host.
                let period = self.period_ns();
                period - now_ns.wrapping_sub(target).checked_rem(period).unwrap_or(0)
            }
            None => 0,
        };
        let count = remaining.checked_div(self.tick_ns(self.timer.divide)).unwrap_or(0);
        // The minimum period can be longer than the initial count.
        count.min(self.timer.initial.into()) as u32
    }

    /// IA32_TSC_DEADLINE (MSR 0x6e0): 0 when disarmed, in other modes, and while hardware-disabled.
    pub fn tsc_deadline(&self) -> u64 {
        if self.hw_enabled && self.timer_mode() == TimerMode::TscDeadline { self.timer.tsc_deadline } else { 0 }
    }

    /// Writes IA32_TSC_DEADLINE: 0 disarms. Ignored in other modes and while hardware-disabled.
    #[inline]
    pub fn set_tsc_deadline(&mut self, tsc: u64) -> TimerEffect {
        if !self.hw_enabled || self.timer_mode() != TimerMode::TscDeadline {
            return TimerEffect::Keep;
        }
        self.timer.tsc_deadline = tsc;
        if tsc == 0 { TimerEffect::Cancel } else { TimerEffect::ArmTsc(tsc) }
    }

    /// Writes IA32_TSC_DEADLINE while a timer of the host is armed that fires no later than this. True: there is nothing to
    /// do, because [`expire`](Self::expire) sees to it then. False: nothing was changed.
    #[inline(always)]
    pub fn postpone(&mut self, tsc: u64) -> bool {
        let counts = self.hw_enabled && self.timer_mode() == TimerMode::TscDeadline;
        if counts {
            self.timer.tsc_deadline = tsc;
        }
        counts
    }

    /// What should be armed at this moment.
    pub fn timer_due(&self) -> TimerEffect {
        match (self.timer_mode(), self.timer.target_ns) {
            (TimerMode::TscDeadline, _) if self.timer.tsc_deadline != 0 => TimerEffect::ArmTsc(self.timer.tsc_deadline),
            (TimerMode::TscDeadline, _) | (_, None) => TimerEffect::Cancel,
            (_, Some(target)) => TimerEffect::ArmNs(target),
        }
    }

    /// The host's timer fired. If the guest's timer is really due, the interrupt goes to IRR (unless masked), once,
    /// however many periods have passed; otherwise the answer says when to try again.
    pub fn expire(&mut self, now_ns: u64, guest_tsc: u64) -> TimerEffect {
        match self.timer_due() {
            TimerEffect::ArmTsc(deadline) if guest_tsc < deadline => TimerEffect::ArmTsc(deadline),
            TimerEffect::ArmNs(target) if now_ns < target => TimerEffect::ArmNs(target),
            TimerEffect::ArmTsc(_) => {
                self.timer.tsc_deadline = 0;
                self.fire();
                TimerEffect::Keep
            }
            TimerEffect::ArmNs(target) => {
                let next = (self.timer_mode() == TimerMode::Periodic).then(|| self.next_target(target, now_ns));
                self.timer.target_ns = next;
                self.fire();
                next.map_or(TimerEffect::Keep, TimerEffect::ArmNs)
            }
            other => other,
        }
    }

    /// The first target after `now_ns` in step with `target`: missed periods are skipped, not made up for.
    fn next_target(&self, target: u64, now_ns: u64) -> u64 {
        let period = self.period_ns().max(1);
        let late = now_ns.saturating_sub(target).checked_rem(period).unwrap_or(0);
        now_ns.saturating_add(period - late)
    }

    fn fire(&mut self) {
        // The entry has no delivery mode: always Fixed.
        if self.lvt(Lvt::Timer) & LVT_MASKED == 0 {
            let _ = self.local(Lvt::Timer);
        }
    }

    /// Continues from a current count that KVM_SET_LAPIC restored. A one-shot timer whose count is zero is due at once:
    /// it may have run out without its interrupt having been seen.
    pub(super) fn restore_timer(&mut self, current: u32, old: TimerMode, now_ns: u64) -> TimerEffect {
        let deadline = self.timer.tsc_deadline;
        let mode = self.timer_mode();
        self.timer.target_ns = None;
        if mode != TimerMode::TscDeadline || old != TimerMode::TscDeadline {
            self.timer.tsc_deadline = 0;
        } else if deadline != 0 {
            return TimerEffect::ArmTsc(deadline);
        }
        if self.timer.initial == 0 || !self.counts() {
            return TimerEffect::Cancel;
        }
        let period = self.period_ns();
        let remaining = u64::from(current).saturating_mul(self.tick_ns(self.timer.divide)).min(period);
        let remaining = if remaining == 0 && mode == TimerMode::Periodic { period } else { remaining };
        self.arm(Some(now_ns.saturating_add(remaining)))
    }
}
