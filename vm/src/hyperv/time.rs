//! The partition's reference time (TLFS, "Timers", "Partition Reference Counter"): units of 100 ns since the VM was made, read
//! from an MSR, or computed by the guest from its TSC and a page that says how.
//!
//! It is the VM's clock ([`VmClock`](crate::clock::VmClock)), as KVM's own guests have it in their clock pages: while all
//! TSCs are in step that is one straight line over them, and the page holds that line.

use super::number::{PAGE_ADDRESS, PAGE_ENABLED};
use super::partition::Partition;
use super::stimer::UNIT_NS;
use crate::Ctx;
use crate::clock::PvClock;
use arch::Gpa;
use core::sync::atomic::{Ordering, fence};
use host::{Host, Request, VcpuThread};
use mmu::{Memory, PhysError};

/// What has become of the page that the guest has named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PageStatus {
    /// There is none.
    #[default]
    Unset,
    /// The guest has named it, and nothing is in it yet.
    GuestChanged,
    /// User space has named it: it may hold what the guest knew before it was moved. Or what it holds is not right any more.
    HostChanged,
    /// It holds the reference time.
    Set,
    /// It cannot be written.
    Broken,
}

/// The line: `((tsc * scale) >> 64) + offset`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub scale: u64,
    pub offset: u64,
}

/// `(a * b) >> 64`.
const fn high(a: u64, b: u64) -> u64 {
    ((a as u128 * b as u128) >> 64) as u64
}

impl Line {
    /// The same line as a clock page has it. None: it is none, or too steep (a TSC of less than 10 MHz).
    pub fn of(page: &PvClock) -> Option<Self> {
        // The page's scale is mul * 2^(shift - 32) nanoseconds per cycle; this one is 2^64 / 100 of that.
        let shift = u32::try_from(32 + i32::from(page.shift)).ok()?;
        let (units, rest) = (u64::from(page.mul) / UNIT_NS, u64::from(page.mul) % UNIT_NS);
        let steep = shift >= 64 || units.leading_zeros() < shift || rest.leading_zeros() < shift;
        if page.flags & PvClock::STABLE == 0 || steep {
            return None;
        }
        let scale = (units << shift).checked_add((rest << shift) / UNIT_NS)?;
        let offset = (page.system_time / UNIT_NS).wrapping_sub(high(page.tsc_timestamp, scale));
        Some(Self { scale, offset })
    }

    fn at(&self, tsc: u64) -> u64 {
        high(tsc, self.scale).wrapping_add(self.offset)
    }
}

/// HV_X64_MSR_REFERENCE_TSC and what belongs to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TscPage {
    /// The MSR.
    pub msr: u64,
    pub status: PageStatus,
    /// What the page holds, if it is [`Set`](PageStatus::Set).
    pub line: Line,
    /// HV_X64_MSR_TSC_EMULATION_CONTROL.
    pub emulation: u64,
}

::state::state! {
    value Line { scale, offset }
    value TscPage { msr, status, line, emulation }
}

::state::units! { PageStatus { Unset, GuestChanged, HostChanged, Set, Broken } }

impl TscPage {
    /// A guest that has asked for emulation of its TSC after it was moved expects the page to stay as it was until it has ended
    /// that. Its TSC must then run as before, which user space has to see to.
    fn stays(&self) -> bool {
        self.status != PageStatus::GuestChanged && self.emulation != 0
    }

    /// Brings the page up to date: `line` is the reference time, or there is none and the guest has to read the MSR.
    fn update<H: Host>(&mut self, line: Option<Line>, memory: &Memory<'_, H>) -> Result<(), PhysError> {
        let page = self.msr & PAGE_ADDRESS;
        let sequence = memory_u32(memory, page)?;
        if sequence != 0 && self.stays() {
            self.line = Line { scale: memory_u64(memory, page + 8)?, offset: memory_u64(memory, page + 16)? };
            self.status = PageStatus::Set;
            return Ok(());
        }
        // While it changes, the guest has to read the MSR.
        memory.write(Gpa(page), &[0; 4])?;
        let Some(line) = line else {
            // It is tried again when the clocks change.
            self.status = PageStatus::HostChanged;
            return Ok(());
        };
        fence(Ordering::Release);
        memory.write(Gpa(page + 8), &line.scale.to_le_bytes())?;
        memory.write(Gpa(page + 16), &line.offset.to_le_bytes())?;
        fence(Ordering::Release);
        // Neither 0 nor all ones is a sequence number.
        let next = match sequence.wrapping_add(1) {
            0 | u32::MAX => 1,
            next => next,
        };
        memory.write(Gpa(page), &next.to_le_bytes())?;
        (self.line, self.status) = (line, PageStatus::Set);
        Ok(())
    }
}

fn memory_u32<H: Host>(memory: &Memory<'_, H>, gpa: u64) -> Result<u32, PhysError> {
    let mut bytes = [0; 4];
    memory.read(Gpa(gpa), &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn memory_u64<H: Host>(memory: &Memory<'_, H>, gpa: u64) -> Result<u64, PhysError> {
    let mut bytes = [0; 8];
    memory.read(Gpa(gpa), &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

impl<H: Host> Partition<H> {
    /// The VM's clock has changed: the reference time is read from it until a vCPU has written the page anew.
    pub(crate) fn tsc_page_is_old(&self) {
        let tsc = &mut self.msrs.lock().tsc;
        if tsc.status == PageStatus::Set && !tsc.stays() {
            tsc.status = PageStatus::HostChanged;
        }
    }
}

impl<H: Host> Ctx<'_, H> {
    /// HV_X64_MSR_TIME_REF_COUNT: what the page gives on this vCPU, or what it would give.
    pub(super) fn reference_time(&self) -> u64 {
        let TscPage { status, line, .. } = self.vm.partition.msrs.lock().tsc;
        if status == PageStatus::Set {
            return line.at(self.guest_tsc());
        }
        self.vm.clock.lock().now(self.vm.host.time_point()) / UNIT_NS
    }

    /// The page has to be written: the first vCPU does it, asleep or not, unless another one comes to it earlier.
    pub(super) fn ring_tsc_page(&self) {
        if let Some(v) = self.vm.vcpu(0) {
            v.thread.requests().make_request(Request::ClockUpdate);
            v.thread.wake();
        }
    }

    /// The VM's clock may have changed, and the guest's page follows it. A page that is not right is brought up to date by whoever
    /// comes first. What one vCPU's guest has done to its TSC is seen where it is the first vCPU, by whose TSC the page is.
    pub(crate) fn update_tsc_page(&self) {
        let mut msrs = self.vm.partition.msrs.lock();
        // Only now: what was before the page became old must not get into it afterwards.
        let page = self.vm.clock.lock().page(&self.core.clock, self.vm.host.time_point());
        let line = Line::of(&page);
        let tsc = &mut msrs.tsc;
        let right = match tsc.status {
            PageStatus::Unset | PageStatus::Broken => true,
            PageStatus::Set => tsc.stays() || self.me.index != 0 || Some(tsc.line) == line,
            PageStatus::GuestChanged | PageStatus::HostChanged => tsc.msr & PAGE_ENABLED == 0,
        };
        if !right && tsc.update(line, &self.shared_memory().memory()).is_err() {
            tsc.status = PageStatus::Broken;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::time_scale;

    fn page(khz: u32, tsc_timestamp: u64, system_time: u64) -> PvClock {
        let (mul, shift) = time_scale(khz);
        PvClock { tsc_timestamp, system_time, mul, shift, flags: PvClock::STABLE }
    }

    #[test]
    fn the_line_is_that_of_the_clock_page() {
        for khz in [10_001, 100_000, 999_999, 1_000_000, 2_893_437, 5_000_000, u32::MAX] {
            let at = 123_456_789_012;
            let line = Line::of(&page(khz, at, 77_000_000_000)).expect("not too steep");
            assert_eq!(line.at(at), 770_000_000, "{khz}");
            // An hour later, to a microsecond.
            let hour = line.at(at + u64::from(khz) * 3_600_000);
            assert!(hour.abs_diff(770_000_000 + 36_000_000_000) <= 40, "{khz}: {hour}");
        }
    }

    #[test]
    fn no_line_where_there_is_none() {
        assert_eq!(Line::of(&PvClock { flags: 0, ..page(1_000_000, 0, 0) }), None);
        for khz in [1, 2, 100, 9_999] {
            assert_eq!(Line::of(&page(khz, 0, 0)), None, "{khz}: more than one unit in a cycle");
        }
        for shift in i8::MIN..=i8::MAX {
            Line::of(&PvClock { shift, mul: u32::MAX, ..page(1, u64::MAX, u64::MAX) });
        }
    }

    #[test]
    fn when_a_page_stays() {
        let page = |status, emulation| TscPage { status, emulation, ..TscPage::default() };
        assert!(page(PageStatus::HostChanged, 1).stays() && page(PageStatus::Set, 1).stays());
        assert!(!page(PageStatus::GuestChanged, 1).stays() && !page(PageStatus::HostChanged, 0).stays());
    }
}
