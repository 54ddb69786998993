//! Synthetic timers (TLFS, "Synthetic Timers"): four per vCPU, which count the partition's reference time and tell the
//! guest by a message of the synthetic interrupt controller, or directly by an interrupt.
//!
//! A vCPU has one timer of the host's, which is set to whichever of these and of the local APIC's is due first.

use super::synic::{Delivery, Message};
use crate::Ctx;
use arch::GuestIndexed;
use host::{Host, Request, VcpuThread};

/// Timers of a vCPU.
pub(crate) const TIMERS: usize = 4;
/// Nanoseconds in a unit of the reference time.
pub(crate) const UNIT_NS: u64 = 100;
/// HVMSG_TIMER_EXPIRED.
const TIMER_EXPIRED: u32 = 0x8000_0010;

/// Bits of a timer's configuration.
const ENABLE: u64 = 1;
const PERIODIC: u64 = 1 << 1;
const AUTO_ENABLE: u64 = 1 << 3;
const DIRECT: u64 = 1 << 12;

/// One timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stimer {
    /// HV_X64_MSR_STIMERn_CONFIG.
    pub config: u64,
    /// HV_X64_MSR_STIMERn_COUNT: when it expires, or its period, in units of 100 ns.
    pub count: u64,
    /// When it expires, in the same units; 0: that is not settled.
    expires: u64,
    /// It has expired, and its message waits for a free slot.
    message_waits: bool,
    /// It has to be looked at.
    pending: bool,
    /// When the host's timer has to wake the vCPU for it, in nanoseconds of the host's monotonic clock.
    deadline: Option<u64>,
}

/// Does a timer with this configuration raise an interrupt by itself?
pub(super) const fn is_direct(config: u64) -> bool {
    config & DIRECT != 0
}

impl Stimer {
    fn enabled(&self) -> bool {
        self.config & ENABLE != 0
    }

    fn periodic(&self) -> bool {
        self.config & PERIODIC != 0
    }

    fn direct(&self) -> bool {
        is_direct(self.config)
    }

    /// The vector of a direct timer.
    fn vector(&self) -> u8 {
        (self.config >> 4) as u8
    }

    /// The interrupt source of one that sends messages, 0 to 15.
    fn sint(&self) -> u8 {
        (self.config >> 16) as u8 & 15
    }

    fn stop(&mut self) {
        (self.deadline, self.pending, self.message_waits, self.expires) = (None, false, false, 0);
    }

    /// The configuration is written. Source 0 is none: what was enabled is disabled by it, unless it is direct.
    fn set_config(&mut self, config: u64) {
        let was_enabled = self.enabled();
        self.stop();
        self.config = config;
        if was_enabled && !self.direct() && self.sint() == 0 {
            self.config &= !ENABLE;
        }
        self.pending = self.enabled();
    }

    /// The count is written. For the guest (not `host`) that switches the timer off (0), or on where it has asked for that.
    fn set_count(&mut self, count: u64, host: bool) {
        self.stop();
        self.count = count;
        if !host && count == 0 {
            self.config &= !ENABLE;
        } else if !host && self.config & AUTO_ENABLE != 0 {
            self.config |= ENABLE;
        }
        self.pending = self.enabled();
    }

    /// Counts from `reference` on, which is `now_ns` of the host's clock. False: it has expired already.
    fn start(&mut self, reference: u64, now_ns: u64) -> bool {
        if self.periodic() {
            if self.expires == 0 {
                self.expires = reference.saturating_add(self.count);
            } else if let Some(late) = reference.checked_sub(self.expires) {
                // Periods that were missed are skipped, not made up for.
                let late = late.checked_rem(self.count).unwrap_or(0);
                self.expires = reference.saturating_add(self.count.saturating_sub(late));
            }
        } else {
            self.expires = self.count;
            if reference >= self.count {
                return false;
            }
        }
        let ahead = self.expires.saturating_sub(reference).saturating_mul(UNIT_NS);
        self.deadline = Some(now_ns.saturating_add(ahead));
        true
    }

    /// It has expired, and the guest was told, or not yet.
    fn told(&mut self, told: bool) {
        self.message_waits = !told;
        if told && !self.periodic() {
            self.config &= !ENABLE;
        }
    }
}

/// The timers of a vCPU, and that of its local APIC where it uses the same timer of the host's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timers {
    timers: GuestIndexed<[Stimer; TIMERS]>,
    /// When the local APIC's is due, in nanoseconds of the host's monotonic clock; all ones: never.
    pub lapic: u64,
}

::state::state! {
    value Stimer { config, count, expires, message_waits, pending, deadline }
    value Timers { timers, lapic }
}

impl Default for Timers {
    fn default() -> Self {
        Self { timers: GuestIndexed::new([Stimer::default(); TIMERS]), lapic: u64::MAX }
    }
}

impl Timers {
    /// Timer `n`.
    pub fn timer(&self, n: usize) -> Option<&Stimer> {
        self.timers.get_nospec(n)
    }

    /// When the first of all is due; all ones: never.
    fn next(&self) -> u64 {
        self.timers.iter().filter_map(|t| t.deadline).fold(self.lapic, u64::min)
    }

    /// The host's timer has expired: those that are due have to be looked at.
    pub fn expire(&mut self, now_ns: u64) {
        for t in self.timers.iter_mut().filter(|t| t.deadline.is_some_and(|d| d <= now_ns)) {
            (t.deadline, t.pending) = (None, true);
        }
    }

    /// A message slot is free again: who waits for it tries again. True if somebody does.
    pub fn slot_is_free(&mut self, sint: u8) -> bool {
        let mut any = false;
        for t in self.timers.iter_mut().filter(|t| t.message_waits && t.enabled() && !t.direct() && t.sint() == sint) {
            (t.pending, any) = (true, true);
        }
        any
    }
}

impl<H: Host> Ctx<'_, H> {
    /// HV_X64_MSR_STIMERn_CONFIG of timer `n`.
    pub(super) fn set_stimer_config(&mut self, n: usize, config: u64) {
        self.change_stimer(n, |t| t.set_config(config));
    }

    /// HV_X64_MSR_STIMERn_COUNT of timer `n`.
    pub(super) fn set_stimer_count(&mut self, n: usize, count: u64, host: bool) {
        self.change_stimer(n, |t| t.set_count(count, host));
    }

    fn change_stimer(&mut self, n: usize, f: impl FnOnce(&mut Stimer)) {
        let Some(t) = self.core.hyperv.as_mut().and_then(|hv| hv.timers.timers.get_nospec_mut(n)) else { return };
        f(t);
        if t.pending {
            // The guest's clock may have to be brought up to date first. Until then the host's timer may fire for nothing.
            self.me.thread.requests().make_request(Request::Hyperv);
        } else {
            self.set_host_timer();
        }
    }

    /// [`Request::Hyperv`] and [`Request::Timer`]: looks at the timers that ask for it.
    pub(crate) fn process_stimers(&mut self) {
        let mut any = false;
        for n in 0..TIMERS {
            let Some(hv) = &mut self.core.hyperv else { return };
            let Some(t) = hv.timers.timers.get_nospec_mut(n) else { return };
            if core::mem::take(&mut t.pending) && t.enabled() {
                self.process_stimer(n);
                any = true;
            }
        }
        if any {
            self.set_host_timer();
        }
    }

    fn process_stimer(&mut self, n: usize) {
        let reference = self.reference_time();
        let Some(mut t) = self.stimer(n) else { return };
        if t.expires != 0 && reference >= t.expires {
            let told = self.tell_expired(n, &t);
            t.told(told);
        }
        if !t.enabled() || t.count == 0 {
            t.stop();
        } else if !t.message_waits && !t.start(reference, self.vm.host.now_ns()) {
            let told = self.tell_expired(n, &t);
            t.told(told);
        }
        self.put_stimer(n, t);
    }

    fn stimer(&self, n: usize) -> Option<Stimer> {
        self.core.hyperv.as_ref()?.timers.timer(n).copied()
    }

    fn put_stimer(&mut self, n: usize, t: Stimer) {
        if let Some(place) = self.core.hyperv.as_mut().and_then(|hv| hv.timers.timers.get_nospec_mut(n)) {
            *place = t;
        }
    }

    /// Tells the guest that timer `n` has expired. False: its message has to wait.
    fn tell_expired(&mut self, n: usize, t: &Stimer) -> bool {
        if t.direct() {
            // Without a local APIC in the kernel there is nobody to tell, now or later.
            return self.core.fast.lapic.is_none() || self.me.deliver_fixed(t.vector());
        }
        let mut message = Message::new(TIMER_EXPIRED);
        message.put_u64(n as u64);
        message.put_u64(t.expires);
        message.put_u64(self.reference_time());
        match self.deliver_message(t.sint(), &message) {
            Delivery::Done => true,
            // A tick that nobody could take is lost, so that they do not pile up.
            Delivery::Occupied if t.periodic() => true,
            Delivery::Occupied => {
                self.note_waiting_message(t.sint());
                false
            }
            Delivery::Failed => false,
        }
    }

    /// The local APIC's timer is due at `deadline`, in nanoseconds of the host's monotonic clock; all ones: never.
    #[inline]
    pub(crate) fn set_lapic_timer(&mut self, deadline: u64) {
        match &mut self.core.hyperv {
            None if deadline == u64::MAX => self.me.thread.cancel_timer(),
            None => self.me.thread.arm_timer(deadline),
            Some(hv) => {
                hv.timers.lapic = deadline;
                self.set_host_timer();
            }
        }
    }

    /// Sets the host's timer to what is due first.
    pub(crate) fn set_host_timer(&self) {
        let Some(hv) = &self.core.hyperv else { return };
        match hv.timers.next() {
            u64::MAX => self.me.thread.cancel_timer(),
            deadline => self.me.thread.arm_timer(deadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINT2: u64 = 2 << 16;

    fn timer(config: u64, count: u64) -> Stimer {
        let mut t = Stimer::default();
        t.set_count(count, true);
        t.set_config(config);
        t
    }

    #[test]
    fn one_shot() {
        let mut t = timer(ENABLE | SINT2, 1000);
        assert!(t.pending && t.start(400, 7));
        assert_eq!((t.expires, t.deadline), (1000, Some(7 + 600 * 100)));
        t.told(true);
        assert!(!t.enabled() && !t.message_waits);
        assert_eq!(t.count, 1000, "as it was written");
        // In the past: at once.
        assert!(!timer(ENABLE | SINT2, 1000).start(1000, 7));
        // A message that waits keeps it on.
        let mut t = timer(ENABLE | SINT2, 1000);
        t.told(false);
        assert!(t.enabled() && t.message_waits);
    }

    #[test]
    fn periods_are_kept_and_missed_ones_skipped() {
        let mut t = timer(ENABLE | PERIODIC | SINT2, 100);
        assert!(t.start(1_000, 0));
        assert_eq!((t.expires, t.deadline), (1_100, Some(10_000)));
        t.told(true);
        assert!(t.enabled() && t.start(1_107, 5));
        assert_eq!((t.expires, t.deadline), (1_200, Some(5 + 93 * 100)));
        assert!(t.start(1_533, 0));
        assert_eq!(t.expires, 1_600);
        // Looked at too early: as it was.
        assert!(t.start(1_550, 0));
        assert_eq!((t.expires, t.deadline), (1_600, Some(5_000)));
    }

    #[test]
    fn any_count_and_time() {
        for count in [1, 2, 1 << 63, u64::MAX] {
            for reference in [0, 1, 1 << 63, u64::MAX] {
                for config in [ENABLE | SINT2, ENABLE | SINT2 | PERIODIC] {
                    let mut t = timer(config, count);
                    if t.start(reference, u64::MAX - 5) {
                        assert!(t.deadline.is_some());
                        t.start(reference.wrapping_add(1), 0);
                    }
                }
            }
        }
    }

    #[test]
    fn writes_enable_and_disable() {
        let mut t = timer(AUTO_ENABLE | SINT2, 0);
        t.set_count(5, false);
        assert!(t.enabled() && t.pending);
        t.set_count(0, false);
        assert!(!t.enabled() && !t.pending);
        // Not so for who restores it.
        t.set_count(5, true);
        assert!(!t.enabled());
        // Source 0 disables what was enabled, unless it is direct.
        let mut t = timer(ENABLE | SINT2, 5);
        t.set_config(ENABLE);
        assert!(!t.enabled());
        let mut t = timer(ENABLE | SINT2, 5);
        t.set_config(ENABLE | DIRECT | 0x31 << 4);
        assert!(t.enabled() && t.vector() == 0x31);
        assert!(timer(ENABLE, 5).enabled(), "it was not enabled before");
    }

    #[test]
    fn the_first_of_all_and_of_the_local_apics() {
        let mut all = Timers::default();
        assert_eq!(all.next(), u64::MAX);
        all.lapic = 900;
        for (n, deadline) in [(1, 1_000), (3, 800)] {
            let t = all.timers.get_nospec_mut(n).unwrap();
            *t = timer(ENABLE | SINT2, 1);
            (t.deadline, t.pending) = (Some(deadline), false);
        }
        assert_eq!(all.next(), 800);
        all.expire(850);
        assert_eq!((all.next(), all.timer(3).unwrap().pending, all.timer(1).unwrap().pending), (900, true, false));
        all.timers.get_nospec_mut(1).unwrap().message_waits = true;
        assert!(all.slot_is_free(2) && !all.slot_is_free(3));
        assert!(all.timer(1).unwrap().pending);
    }
}
