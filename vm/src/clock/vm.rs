//! The VM's clock, and TSCs in step.

use super::{Frequency, PvClock, Rate, VcpuClock};
use host::{Errno, TimePoint};

/// KVM_GET_CLOCK and KVM_SET_CLOCK (`struct kvm_clock_data`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockData {
    /// The VM's clock in ns.
    pub clock: u64,
    /// [`TSC_STABLE`](Self::TSC_STABLE), [`REALTIME`](Self::REALTIME), [`HOST_TSC`](Self::HOST_TSC).
    pub flags: u32,
    /// Host time of day in ns at the moment of `clock`, with REALTIME.
    pub realtime: u64,
    /// Host TSC at the moment of `clock`, with HOST_TSC.
    pub host_tsc: u64,
}

impl ClockData {
    /// KVM_CLOCK_TSC_STABLE: one clock for all vCPUs.
    pub const TSC_STABLE: u32 = 2;
    /// KVM_CLOCK_REALTIME.
    pub const REALTIME: u32 = 4;
    /// KVM_CLOCK_HOST_TSC.
    pub const HOST_TSC: u32 = 8;
    const VALID: u32 = Self::TSC_STABLE | Self::REALTIME | Self::HOST_TSC;
}

/// The point through which the straight line over the host's TSC goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Master {
    tsc: u64,
    ns: u64,
}

/// What the last write to a TSC by the host left behind, to recognise writes that belong together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LastWrite {
    ns: u64,
    tsc: u64,
    offset: u64,
    khz: u32,
}

/// The clock of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmClock {
    host: Rate,
    stable: bool,
    /// Added to the host's boot clock.
    offset: u64,
    master: Option<Master>,
    /// The boot vCPU uses the old pair of MSRs, whose guests do not expect a stable flag.
    old_msr: bool,
    last: LastWrite,
    /// Offset and number of the current TSC generation: the vCPUs that are in step.
    current: u64,
    generation: u64,
    /// The frequency of their TSCs.
    frequency: Frequency,
    /// What the host's TSC had lost when `current` was last right.
    made_up: u64,
    /// Host time in ns when it began, and the TSC that was written then.
    since: (u64, u64),
    in_step: u32,
    vcpus: u32,
    /// What the host's TSC had lost when the VM was made. If it has lost more since, there is no straight line over it any
    /// more, for good: it may happen again at any time, and the line would end in the past.
    lost: u64,
    /// User space has written a TSC; from then on its writes are taken to be attempts at being in step.
    user_set: bool,
}

::state::state! {
    value Master { tsc, ns }
    value LastWrite { ns, tsc, offset, khz }
    // The host's frequency is the machine's.
    place VmClock {
        stable, offset, master, old_msr, last, current, generation, frequency, made_up, since, in_step, vcpus, lost, user_set;
        not host
    }
}

impl VmClock {
    /// Starts at zero. `tsc_khz`: the host's; `stable`: the host keeps time by its TSC, on all CPUs alike.
    pub fn new(now: TimePoint, tsc_khz: u32, stable: bool) -> Self {
        Self {
            host: Rate::new(tsc_khz),
            stable,
            offset: 0u64.wrapping_sub(now.boot_ns),
            master: None,
            old_msr: false,
            last: LastWrite::default(),
            current: 0,
            generation: 0,
            frequency: Frequency::host(tsc_khz),
            made_up: now.tsc_lost,
            since: (now.boot_ns, 0),
            in_step: 0,
            vcpus: 0,
            lost: now.tsc_lost,
            user_set: false,
        }
    }

    /// Host time in ns: on the master line while there is one.
    fn base(&self, now: TimePoint) -> u64 {
        match self.master.filter(|_| now.tsc_lost == self.lost) {
            Some(m) => m.ns.wrapping_add(self.host.to_ns(now.tsc.wrapping_sub(m.tsc))),
            None => now.boot_ns,
        }
    }

    /// The VM's clock in ns.
    pub fn now(&self, now: TimePoint) -> u64 {
        self.base(now).wrapping_add(self.offset)
    }

    /// Do all vCPUs share one clock?
    pub fn is_master(&self) -> bool {
        self.master.is_some()
    }

    /// Enters or leaves the master clock; the time goes on without a step. True if it changed.
    fn update_master(&mut self, now: TimePoint) -> bool {
        let straight = self.stable && now.tsc_lost == self.lost;
        let want = straight && !self.old_msr && self.vcpus != 0 && self.in_step == self.vcpus;
        if want == self.master.is_some() {
            return false;
        }
        let time = self.now(now);
        self.master = want.then_some(Master { tsc: now.tsc, ns: now.boot_ns });
        self.offset = time.wrapping_sub(self.base(now));
        true
    }

    /// The host's TSC is good to keep time by, or is not any more. Ring the clock on all vCPUs if true.
    pub fn set_stable(&mut self, stable: bool, now: TimePoint) -> bool {
        self.stable = stable;
        self.update_master(now)
    }

    /// Makes up for what the host's TSC has lost, for all who come into step from now on. What was written before is compared
    /// with nothing any more.
    pub(super) fn make_up(&mut self, now: TimePoint) {
        let lost = now.tsc_lost.wrapping_sub(self.made_up);
        if lost != 0 {
            self.made_up = now.tsc_lost;
            self.current = self.current.wrapping_add(self.frequency.scale(lost));
            self.last = LastWrite { khz: self.last.khz, ..LastWrite::default() };
        }
    }

    /// The host's TSC may have been set back: leaves the master clock then. True: the clock changed for all vCPUs.
    pub fn look_at_tsc(&mut self, now: TimePoint) -> bool {
        self.update_master(now)
    }

    /// A new vCPU: its TSC starts at zero with the first, and in step with the others. Ring the clock on all vCPUs if
    /// true.
    pub fn vcpu_created(&mut self, c: &mut VcpuClock, now: TimePoint) -> bool {
        c.lost = now.tsc_lost;
        self.vcpus = self.vcpus.saturating_add(1);
        self.synchronize(c, 0, now)
    }

    /// The host writes a vCPU's TSC (KVM_SET_MSRS). Values close to what the last write has become by now, a second
    /// either way, are meant to put the vCPUs in step; so is zero. True: the clock changed for all vCPUs.
    pub fn write_tsc(&mut self, c: &mut VcpuClock, value: u64, now: TimePoint) -> bool {
        let changed = self.synchronize(c, value, now);
        self.user_set = true;
        changed
    }

    /// Sets a vCPU's TSC to `value`, or puts it in step with the last one that was set.
    ///
    /// A VMM that starts or restores a VM writes the same value to one vCPU after the other, or values that it read one after the
    /// other. What passes between two such writes is the VMM's own delay and not meant for the guest, so a value within a second
    /// of what the last write has become counts as a request for the same offset (KVM has the same second in
    /// `kvm_synchronize_tsc`): no VMM takes longer from one vCPU to the next, and nobody moves a clock by so little on purpose.
    /// Before user space has written any TSC only zero, from creation, puts vCPUs in step.
    fn synchronize(&mut self, c: &mut VcpuClock, value: u64, now: TimePoint) -> bool {
        self.make_up(now);
        let elapsed = c.rate().to_cycles(now.boot_ns.wrapping_sub(self.last.ns));
        let together = if value == 0 {
            true
        } else if self.user_set {
            let second = u64::from(c.rate().khz()).saturating_mul(1_000);
            let expected = self.last.tsc.wrapping_add(elapsed);
            value < expected.saturating_add(second) && value.saturating_add(second) > expected
        } else {
            false
        };
        let matched = together && self.last.khz == c.rate().khz();
        let (offset, value) = match (matched, self.stable) {
            (true, true) => (self.current, value),
            // TSCs that drift apart are put in step by the time that has passed.
            (true, false) => {
                let value = value.wrapping_add(elapsed);
                (value.wrapping_sub(c.frequency.scale(now.tsc)), value)
            }
            (false, _) => (value.wrapping_sub(c.frequency.scale(now.tsc)), value),
        };
        self.set_step(c, offset, value, matched, now)
    }

    /// KVM_VCPU_TSC_OFFSET. True: the clock changed for all vCPUs.
    pub fn set_tsc_offset(&mut self, c: &mut VcpuClock, offset: u64, now: TimePoint) -> bool {
        self.make_up(now);
        let matched = self.last.khz == c.rate().khz() && self.last.offset == offset;
        self.user_set = true;
        let tsc = c.frequency.scale(now.tsc).wrapping_add(offset);
        self.set_step(c, offset, tsc, matched, now)
    }

    fn set_step(&mut self, c: &mut VcpuClock, offset: u64, tsc: u64, matched: bool, now: TimePoint) -> bool {
        self.last = LastWrite { ns: now.boot_ns, tsc, offset, khz: c.rate().khz() };
        c.offset = offset;
        if !matched {
            self.generation = self.generation.wrapping_add(1);
            self.current = offset;
            self.frequency = c.frequency;
            self.since = (now.boot_ns, tsc);
            self.in_step = 1;
        } else if c.generation != self.generation {
            self.in_step = self.in_step.saturating_add(1);
        }
        c.generation = self.generation;
        c.since = self.since;
        self.update_master(now)
    }

    /// A system-time MSR was written. `boot_vcpu`: that of the vCPU with id 0, whose choice counts for all. `old_msr`:
    /// by the guest, to the old (true) or the new one; None if it was user space, which restores both.
    /// True: the clock changed for all vCPUs.
    pub fn system_time_written(&mut self, boot_vcpu: bool, old_msr: Option<bool>, now: TimePoint) -> bool {
        if let (true, Some(old)) = (boot_vcpu, old_msr) {
            self.old_msr = old;
        }
        self.update_master(now)
    }

    /// KVM_GET_CLOCK.
    pub fn get(&self, now: TimePoint) -> ClockData {
        let clock = self.now(now);
        if self.is_master() {
            ClockData { clock, flags: ClockData::VALID, realtime: now.real_ns, host_tsc: now.tsc }
        } else {
            ClockData { clock, ..ClockData::default() }
        }
    }

    /// KVM_SET_CLOCK; with REALTIME, the time that passed since `realtime` is added, never subtracted. The caller then
    /// has all vCPUs write their pages. Errors: EINVAL (unknown flags).
    pub fn set(&mut self, data: ClockData, now: TimePoint) -> Result<(), Errno> {
        if data.flags & !ClockData::VALID != 0 {
            return Err(Errno::EINVAL);
        }
        let passed = match data.flags & ClockData::REALTIME {
            0 => 0,
            _ => now.real_ns.saturating_sub(data.realtime),
        };
        self.update_master(now);
        if let Some(m) = &mut self.master {
            *m = Master { tsc: now.tsc, ns: now.boot_ns };
        }
        self.offset = data.clock.wrapping_add(passed).wrapping_sub(now.boot_ns);
        Ok(())
    }

    /// The contents of a vCPU's clock page.
    pub fn page(&self, c: &VcpuClock, now: TimePoint) -> PvClock {
        let at = self.master.unwrap_or(Master { tsc: now.tsc, ns: now.boot_ns });
        let (mul, shift) = c.frequency.real().scale();
        PvClock {
            tsc_timestamp: c.guest_tsc(at.tsc),
            system_time: at.ns.wrapping_add(self.offset),
            mul,
            shift,
            flags: if self.is_master() { PvClock::STABLE } else { 0 },
        }
    }
}
