//! One vCPU's TSC and clock page.

use super::{GuestMemory, PvClock, Rate, VmClock};
use host::{Errno, TimePoint};

/// A requested frequency counts as the host's within this many parts in a million (stock's `tsc_tolerance_ppm`).
const TOLERANCE_PPM: u64 = 250;

/// TSC offset and frequency, and where the clock page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuClock {
    pub(super) offset: u64,
    pub(super) rate: Rate,
    /// Which of the VM's TSC generations it runs in.
    pub(super) generation: u64,
    /// The system-time MSR: page address, bit 0 enables.
    system_time: u64,
    /// KVM_KVMCLOCK_CTRL was called since the page was written.
    stopped: bool,
}

impl VcpuClock {
    /// A vCPU whose TSC runs at `tsc_khz`. [`VmClock::vcpu_created`] puts it in step with the others.
    pub fn new(tsc_khz: u32) -> Self {
        Self { offset: 0, rate: Rate::new(tsc_khz), generation: 0, system_time: 0, stopped: false }
    }

    /// What is added to the host's TSC.
    #[inline]
    pub fn tsc_offset(&self) -> u64 {
        self.offset
    }

    /// The guest's TSC when the host's is `host_tsc`.
    #[inline]
    pub fn guest_tsc(&self, host_tsc: u64) -> u64 {
        host_tsc.wrapping_add(self.offset)
    }

    /// Moves this vCPU's TSC only, as a guest does by writing its TSC or TSC_ADJUST.
    pub fn adjust_tsc(&mut self, by: u64) {
        self.offset = self.offset.wrapping_add(by);
    }

    /// Frequency in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.rate.khz()
    }

    /// KVM_SET_TSC_KHZ; 0 stands for the host's frequency. There is no TSC scaling, so only the host's frequency and
    /// what is as good as it can be had. Errors: EINVAL.
    pub fn set_tsc_khz(&mut self, khz: u32, host_khz: u32) -> Result<(), Errno> {
        let khz = if khz == 0 { host_khz } else { khz };
        let tolerance = u64::from(host_khz) * TOLERANCE_PPM / 1_000_000;
        if u64::from(khz.abs_diff(host_khz)) > tolerance {
            return Err(Errno::EINVAL);
        }
        self.rate = Rate::new(khz);
        Ok(())
    }

    /// How long the guest's TSC takes for so many cycles, in ns, rounded up: a timer set so never fires early.
    pub fn guest_cycles_to_ns(&self, cycles: u64) -> u64 {
        self.rate.to_ns(cycles).saturating_add(1)
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

    /// Writes the clock page, if there is one.
    pub fn publish(&mut self, vm: &VmClock, now: TimePoint, mem: &mut impl GuestMemory) {
        if !self.active() {
            return;
        }
        let mut page = vm.page(self, now);
        if core::mem::take(&mut self.stopped) {
            page.flags |= PvClock::STOPPED;
        }
        page.publish(self.system_time & !1, mem);
    }
}
