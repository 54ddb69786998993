//! One vCPU's TSC and clock page.

use super::{Frequency, GuestMemory, PvClock, Rate, VmClock};
use host::{Errno, TimePoint};

/// TSC offset and frequency, and where the clock page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuClock {
    pub(super) offset: u64,
    pub(super) frequency: Frequency,
    /// What the host's TSC had lost ([`TimePoint::tsc_lost`]) when `offset` was last right.
    pub(super) lost: u64,
    /// Which of the VM's TSC generations it runs in.
    pub(super) generation: u64,
    /// Host time in ns, and the guest's TSC at that time: what a TSC that catches up is counted from.
    pub(super) since: (u64, u64),
    /// The system-time MSR: page address, bit 0 enables.
    system_time: u64,
    /// KVM_KVMCLOCK_CTRL was called since the page was written.
    stopped: bool,
    /// Host time in ns when the page was written.
    published: u64,
}

::state::state! {
    place VcpuClock { offset, frequency, lost, generation, since, system_time, stopped, published }
}

/// See [`VcpuClock::is_stale`].
const STALE_NS: u64 = 1_000_000_000;

impl VcpuClock {
    /// A vCPU whose TSC runs at `tsc_khz`, the host's frequency. [`VmClock::vcpu_created`] puts it in step with the others.
    pub fn new(tsc_khz: u32) -> Self {
        let frequency = Frequency::host(tsc_khz);
        Self {
            offset: 0,
            lost: 0,
            frequency,
            generation: 0,
            since: (0, 0),
            system_time: 0,
            stopped: false,
            published: 0,
        }
    }

    /// What is added to the host's TSC, as the processor scales it.
    #[inline]
    pub fn tsc_offset(&self) -> u64 {
        self.offset
    }

    /// The guest's TSC when the host's is `host_tsc`.
    #[inline]
    pub fn guest_tsc(&self, host_tsc: u64) -> u64 {
        self.frequency.scale(host_tsc).wrapping_add(self.offset)
    }

    /// Moves this vCPU's TSC only, as a guest does by writing its TSC or TSC_ADJUST.
    pub fn adjust_tsc(&mut self, by: u64) {
        self.offset = self.offset.wrapping_add(by);
        self.since.1 = self.since.1.wrapping_add(by);
    }

    /// Frequency in kHz, as asked for.
    pub fn tsc_khz(&self) -> u32 {
        self.rate().khz()
    }

    pub(super) fn rate(&self) -> &Rate {
        self.frequency.wanted()
    }

    /// For the TSC ratio MSR; 0 stands for 1.0.
    pub fn tsc_ratio(&self) -> u64 {
        self.frequency.ratio()
    }

    /// See [`Frequency::tolerance_ppm`].
    pub fn set_tolerance(&mut self, ppm: u32) {
        self.frequency.tolerance_ppm = ppm;
    }

    /// KVM_SET_TSC_KHZ. Errors: EINVAL (see [`Frequency::set`]).
    pub fn set_tsc_khz(&mut self, khz: u32, host_khz: u32, scaling: bool) -> Result<(), Errno> {
        self.frequency.set(khz, host_khz, scaling)
    }

    /// Does the TSC run too slowly by itself? Then [`catch_up`](Self::catch_up) is due after each exit.
    #[inline]
    pub fn catches_up(&self) -> bool {
        self.frequency.catches_up()
    }

    /// How far the TSC lags behind where its frequency says that it ought to be.
    fn lag(&self, now: TimePoint) -> u64 {
        let (ns, tsc) = self.since;
        let due = tsc.wrapping_add(self.rate().to_cycles(now.boot_ns.saturating_sub(ns)));
        due.wrapping_sub(self.guest_tsc(now.tsc))
    }

    /// Puts a TSC that runs too slowly forward to where it ought to be.
    pub fn catch_up(&mut self, now: TimePoint) {
        let lag = self.lag(now);
        // Never back: the guest has seen it.
        if lag as i64 > 0 {
            self.offset = self.offset.wrapping_add(lag);
        }
    }

    /// Puts the TSC where it ought to be by the host's time, forward or back: the CPU's own TSC means nothing.
    pub fn follow(&mut self, now: TimePoint) {
        self.offset = self.offset.wrapping_add(self.lag(now));
    }

    /// The host's TSC was set back: the guest's goes on from where it was. True if it was.
    pub fn make_up(&mut self, vm: &mut VmClock, now: TimePoint) -> bool {
        let lost = now.tsc_lost.wrapping_sub(self.lost);
        if lost == 0 {
            return false;
        }
        self.lost = now.tsc_lost;
        self.offset = self.offset.wrapping_add(self.frequency.scale(lost));
        vm.make_up(now);
        true
    }

    /// How long the guest's TSC takes for so many cycles, in ns, rounded up: a timer set so never fires early.
    pub fn guest_cycles_to_ns(&self, cycles: u64) -> u64 {
        self.rate().to_ns(cycles).saturating_add(1)
    }

    /// The value of the system-time MSR.
    pub fn system_time_msr(&self) -> u64 {
        self.system_time
    }

    /// Sets the system-time MSR. [`publish`](Self::publish) then writes the page.
    pub fn set_system_time_msr(&mut self, value: u64) {
        self.system_time = value;
    }

    /// Does the guest have a clock page?
    pub fn active(&self) -> bool {
        self.system_time & 1 != 0
    }

    /// KVM_KVMCLOCK_CTRL: the next write of the page says that the guest was stopped. Errors: EINVAL (no page).
    pub fn pause(&mut self) -> Result<(), Errno> {
        if !self.active() {
            return Err(Errno::EINVAL);
        }
        self.stopped = true;
        Ok(())
    }

    /// RESET and INIT: the page is forgotten.
    pub fn reset(&mut self) {
        self.system_time = 0;
    }

    /// Was the page written so long ago that it may have drifted from the VM's clock, as long as that is no straight
    /// line?
    pub fn is_stale(&self, now: TimePoint) -> bool {
        self.active() && now.boot_ns.saturating_sub(self.published) > STALE_NS
    }

    /// Writes the clock page, if there is one, and returns what it says now, with its version.
    pub fn publish(&mut self, vm: &VmClock, now: TimePoint, mem: &mut impl GuestMemory) -> Option<(PvClock, u32)> {
        if !self.active() {
            return None;
        }
        self.published = now.boot_ns;
        let mut page = vm.page(self, now);
        if core::mem::take(&mut self.stopped) {
            page.flags |= PvClock::STOPPED;
        }
        page.publish(self.system_time & !1, mem)
    }
}
