//! The TSCs and the clock of a VM: the thin layer between the arithmetic of [`clock`](crate::clock) and the processor.

use crate::clock::{ClockData, Frequency, GuestMemory, PvClock};
use crate::{Ctx, Vm};
use arch::Gpa;
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, Host, Request, Trace, VcpuThread, linux_version};
use mmu::View;

/// Guest memory for the clock pages.
pub(crate) struct Pages<'a, H: Host>(pub View<'a, H>);

impl<H: Host> GuestMemory for Pages<'_, H> {
    fn read(&mut self, gpa: u64, buf: &mut [u8]) -> bool {
        self.0.read_phys(Gpa(gpa), buf).is_ok()
    }
    fn write(&mut self, gpa: u64, buf: &[u8]) -> bool {
        self.0.write_phys(Gpa(gpa), buf).is_ok()
    }
}

impl<H: Host> Ctx<'_, H> {
    /// The processor gets the TSC offset and ratio, and others see them.
    pub(crate) fn load_tsc(&mut self) {
        let (vcpu, next) = (self.me.id, self.core.clock.tsc_offset());
        self.vm.host.tell(|| Trace::WriteTscOffset { vcpu, previous: self.me.shown_tsc_offset(), next });
        self.core.load_tsc();
        self.me.show_tsc(&self.core.clock);
    }

    /// The TSC offset changed: the processor, the timer and the clock page follow.
    pub(crate) fn tsc_moved(&mut self) {
        self.load_tsc();
        if let Some(lapic) = &self.core.fast.lapic {
            let due = lapic.timer_due();
            self.apply_timer(due);
        }
        self.ring_clock(false);
    }

    pub(crate) fn ring_clock(&self, all: bool) {
        if all {
            self.vm.clock_changed();
        } else {
            self.me.thread.requests().make_request(Request::ClockUpdate);
        }
    }

    /// Request::ClockUpdate: writes the guest's clock page anew.
    pub(crate) fn update_clock(&mut self) {
        let now = self.vm.host.time_point();
        if self.core.clock.catches_up() {
            self.core.clock.catch_up(now);
            self.load_tsc();
        }
        let clock = *self.vm.clock.lock();
        if let Some((page, version)) = self.core.clock.publish(&clock, now, &mut Pages(self.shared_memory())) {
            let PvClock { tsc_timestamp, system_time, mul, shift, flags } = page;
            let vcpu = self.me.id;
            self.vm.host.tell(|| Trace::PvclockUpdate { vcpu, version, tsc_timestamp, system_time, mul, shift, flags });
        }
        if self.core.hyperv.is_some() {
            self.update_tsc_page();
        }
    }

    /// Request::StealUpdate: the thread has a CPU again, perhaps another one.
    pub(crate) fn scheduled(&mut self) {
        self.migrate_timers();
        self.update_steal_time();
        let stable = self.vm.host.tsc_is_stable();
        if stable && self.vm.clock.lock().is_master() {
            return;
        }
        let now = self.vm.host.time_point();
        let mut clock = self.vm.clock.lock();
        let (changed, master) = (clock.set_stable(stable, now), clock.is_master());
        drop(clock);
        if !stable {
            // Each CPU has a TSC of its own: the guest's is the host's time instead.
            self.core.clock.follow(now);
            self.tsc_moved();
        }
        if changed || !master && self.core.clock.is_stale(now) {
            self.ring_clock(changed);
        }
    }

    /// Timers expire where the vCPU is: an expiry elsewhere would take an IPI to get it out of the guest. The PIT interrupts
    /// the boot processor, nearly always.
    fn migrate_timers(&self) {
        if self.me.thread.migrate_timer() && self.vm.is_bsp(self.me.id) {
            self.vm.migrate_pit_timer();
        }
    }

    /// The machine has slept, or was about to: the guest's TSC and clock go on, and the guest is told that it did not run
    /// for a while, so that its watchdogs do not take that for a hang.
    #[cold]
    pub(crate) fn woke_up(&mut self) {
        let now = self.vm.host.time_point();
        let mut clock = self.vm.clock.lock();
        let moved = self.core.clock.make_up(&mut clock, now);
        let all = clock.look_at_tsc(now);
        drop(clock);
        if moved {
            self.tsc_moved();
        }
        // Without a clock page there is nobody to tell.
        let _ = self.core.clock.pause();
        self.ring_clock(all);
    }

    /// KVM_KVMCLOCK_CTRL. Errors: EINVAL (the guest has no clock page).
    pub fn kvmclock_ctrl(&mut self) -> Result<(), Errno> {
        self.core.clock.pause()?;
        self.ring_clock(false);
        Ok(())
    }

    /// KVM_SET_TSC_KHZ; 0 stands for the host's frequency. Errors: EINVAL (a frequency that the processor cannot give).
    pub fn set_tsc_khz(&mut self, khz: u32) -> Result<(), Errno> {
        self.core.clock.set_tolerance(self.vm.host.tsc_tolerance_ppm());
        let result = self.core.clock.set_tsc_khz(khz, self.vm.host.tsc_khz(), self.core.features.tsc_scaling);
        self.core.look_who_watches();
        self.tsc_moved();
        result
    }

    /// KVM_GET_TSC_KHZ.
    pub fn tsc_khz(&self) -> u32 {
        self.core.clock.tsc_khz()
    }

    /// KVM_VCPU_TSC_OFFSET.
    pub fn tsc_offset(&self) -> u64 {
        self.core.clock.tsc_offset()
    }

    /// KVM_VCPU_TSC_OFFSET.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        let now = self.vm.host.time_point();
        let all = self.vm.clock.lock().set_tsc_offset(&mut self.core.clock, offset, now);
        self.tsc_moved();
        self.ring_clock(all);
    }
}

impl<H: Host> Vm<H> {
    /// KVM_GET_CLOCK.
    pub fn get_clock(&self) -> ClockData {
        let (stable, now) = (self.host.tsc_is_stable(), self.host.time_point());
        let mut clock = self.clock.lock();
        let (changed, data) = (clock.set_stable(stable, now), clock.get(now));
        drop(clock);
        if changed {
            self.clock_changed();
        }
        data
    }

    /// KVM_SET_CLOCK. Errors: EINVAL (unknown flags).
    pub fn set_clock(&self, d: ClockData) -> Result<(), Errno> {
        self.clock.lock().set(d, self.host.time_point())?;
        self.clock_changed();
        Ok(())
    }

    /// The clock is another for all vCPUs, and is not locked any more: they write what they have of it anew before they enter the
    /// guest again.
    pub(crate) fn clock_changed(&self) {
        self.partition.tsc_page_is_old();
        self.ring_all(Request::ClockUpdate);
    }

    /// KVM_SET_TSC_KHZ for vCPUs to come; 0 stands for the host's frequency. Errors: EINVAL (beyond the TSC ratio; since Linux 6.17
    /// also where there are vCPUs).
    pub fn set_tsc_khz(&self, khz: u32) -> Result<(), Errno> {
        let _shape = self.shape.lock();
        let late = self.has_vcpus() && self.host.linux_version() >= linux_version(6, 17);
        if late || self.host.features().tsc_scaling && !Frequency::scalable(khz, self.host.tsc_khz()) {
            return Err(Errno::EINVAL);
        }
        self.config.tsc_khz.store(khz, Relaxed);
        Ok(())
    }
}
