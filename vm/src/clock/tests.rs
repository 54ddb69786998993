//! Clocks over a time line that the tests draw themselves.

use super::*;
use host::{Errno, TimePoint};
use std::{vec, vec::Vec};

/// A frequency that the scale hits exactly.
const KHZ: u32 = 2_000_000;
const SECOND: u64 = 1_000_000_000;

/// Some time after boot; the TSC started with the host.
fn at(ns: u64) -> TimePoint {
    TimePoint { tsc: ns * 2, boot_ns: ns, real_ns: 1_700_000_000 * SECOND + ns, tsc_lost: 0 }
}

struct Ram {
    bytes: Vec<u8>,
    writes: Vec<(u64, Vec<u8>)>,
}

impl Ram {
    fn new() -> Self {
        Self { bytes: vec![0; 256], writes: Vec::new() }
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }
    /// What a guest computes from the page at zero.
    fn guest_time(&self, tsc: u64) -> u64 {
        assert_eq!(self.u32(0) & 1, 0);
        let delta = tsc - self.u64(8);
        let shift = self.bytes[28] as i8;
        let delta = if shift < 0 { delta >> -shift } else { delta << shift };
        self.u64(16) + ((u128::from(delta) * u128::from(self.u32(24))) >> 32) as u64
    }
}

impl GuestMemory for Ram {
    fn read(&mut self, gpa: u64, buf: &mut [u8]) -> bool {
        self.bytes.get(gpa as usize..gpa as usize + buf.len()).map(|b| buf.copy_from_slice(b)).is_some()
    }
    fn write(&mut self, gpa: u64, buf: &[u8]) -> bool {
        self.writes.push((gpa, buf.to_vec()));
        self.bytes.get_mut(gpa as usize..gpa as usize + buf.len()).map(|b| b.copy_from_slice(buf)).is_some()
    }
}

fn vm_with(n: usize, now: TimePoint) -> (VmClock, Vec<VcpuClock>) {
    let mut vm = VmClock::new(now, KHZ, true);
    let mut vcpus = vec![VcpuClock::new(KHZ); n];
    for (i, c) in vcpus.iter_mut().enumerate() {
        vm.vcpu_created(c, TimePoint { tsc: now.tsc + 1000 * i as u64, ..now });
    }
    (vm, vcpus)
}

#[test]
fn vcpus_are_born_in_step_at_zero() {
    let (vm, vcpus) = vm_with(4, at(5 * SECOND));
    assert!(vcpus.iter().all(|c| c.tsc_offset() == vcpus[0].tsc_offset()));
    assert_eq!(vcpus[0].guest_tsc(at(5 * SECOND).tsc), 0);
    assert!(vm.is_master());
    assert_eq!(vm.now(at(5 * SECOND)), 0);
    assert_eq!(vm.now(at(6 * SECOND)).abs_diff(SECOND), 0);
}

#[test]
fn writes_close_together_mean_in_step() {
    let (mut vm, mut c) = vm_with(3, at(5 * SECOND));
    // Restoring a snapshot: the same value to every vCPU, some time apart.
    vm.write_tsc(&mut c[0], 1_000_000_000_000, at(6 * SECOND));
    assert!(!vm.is_master(), "one of three");
    vm.write_tsc(&mut c[1], 1_000_000_000_000, at(6 * SECOND + 300_000));
    vm.write_tsc(&mut c[2], 1_000_000_000_050, at(6 * SECOND + 900_000_000));
    assert_eq!(c[0].tsc_offset(), c[1].tsc_offset());
    assert_eq!(c[0].tsc_offset(), c[2].tsc_offset());
    assert_eq!(c[0].guest_tsc(at(6 * SECOND).tsc), 1_000_000_000_000);
    assert!(vm.is_master());
    // Far away means what it says.
    vm.write_tsc(&mut c[1], 5, at(7 * SECOND));
    assert_eq!(c[1].guest_tsc(at(7 * SECOND).tsc), 5);
    assert!(!vm.is_master());
    // Writing the same offset to all brings them back.
    let offset = c[1].tsc_offset();
    for c in &mut c {
        vm.set_tsc_offset(c, offset, at(8 * SECOND));
    }
    assert!(vm.is_master());
}

#[test]
fn the_first_write_of_user_space_is_taken_literally() {
    let (mut vm, mut c) = vm_with(1, at(SECOND));
    vm.write_tsc(&mut c[0], 1234, at(SECOND + 10));
    assert_eq!(c[0].guest_tsc(at(SECOND + 10).tsc), 1234);
}

#[test]
fn without_a_stable_tsc_there_is_no_master_clock() {
    let mut vm = VmClock::new(at(0), KHZ, false);
    let mut c = VcpuClock::new(KHZ);
    vm.vcpu_created(&mut c, at(SECOND));
    assert!(!vm.is_master());
    assert_eq!(vm.get(at(2 * SECOND)), ClockData { clock: 2 * SECOND, ..ClockData::default() });
    assert_eq!(vm.page(&c, at(2 * SECOND)).flags, 0);
    assert_eq!(vm.page(&c, at(2 * SECOND)).system_time, 2 * SECOND);
}

#[test]
fn time_never_steps_when_the_master_clock_comes_and_goes() {
    let (mut vm, mut c) = vm_with(2, at(SECOND));
    // The host's boot clock runs 100 ppm faster than its TSC says.
    let skewed = |ns: u64| TimePoint { boot_ns: ns + ns / 10_000, ..at(ns) };
    let mut last = 0;
    for i in 1..50u64 {
        let now = skewed(SECOND + i * SECOND);
        let before = vm.now(now);
        assert!(before >= last);
        match i % 3 {
            0 => vm.system_time_written(true, Some(true), now),
            1 => vm.system_time_written(true, Some(false), now),
            _ => vm.write_tsc(&mut c[i as usize % 2], i << 40, now),
        };
        let after = vm.now(now);
        assert!(after.abs_diff(before) <= 1, "{i}");
        last = after;
    }
}

#[test]
fn the_old_msr_on_the_boot_vcpu_ends_the_master_clock() {
    let (mut vm, _) = vm_with(1, at(SECOND));
    assert!(!vm.system_time_written(false, Some(true), at(SECOND)));
    assert!(vm.is_master());
    assert!(!vm.system_time_written(true, None, at(SECOND)));
    assert!(vm.system_time_written(true, Some(true), at(SECOND)));
    assert!(!vm.is_master());
    assert!(vm.system_time_written(true, Some(false), at(SECOND)));
}

#[test]
fn get_and_set() {
    let (mut vm, _) = vm_with(1, at(SECOND));
    let d = vm.get(at(3 * SECOND));
    assert_eq!(d, ClockData { clock: 2 * SECOND, flags: 14, realtime: at(3 * SECOND).real_ns, host_tsc: 6 * SECOND });
    vm.set(ClockData { clock: 77 * SECOND, ..Default::default() }, at(4 * SECOND)).unwrap();
    assert_eq!(vm.now(at(5 * SECOND)), 78 * SECOND);
    // A migration that took ten seconds.
    let d = ClockData { clock: 100 * SECOND, flags: 4, realtime: at(0).real_ns, host_tsc: 0 };
    vm.set(d, at(10 * SECOND)).unwrap();
    assert_eq!(vm.now(at(10 * SECOND)), 110 * SECOND);
    // A host whose clock is behind does not turn the guest's back.
    let d = ClockData { clock: 100 * SECOND, flags: 4, realtime: u64::MAX, host_tsc: 0 };
    vm.set(d, at(10 * SECOND)).unwrap();
    assert_eq!(vm.now(at(10 * SECOND)), 100 * SECOND);
    assert_eq!(vm.set(ClockData { flags: 1, ..d }, at(0)), Err(Errno::EINVAL));
    // What GET returned may be given back.
    vm.set(vm.get(at(11 * SECOND)), at(11 * SECOND)).unwrap();
    assert_eq!(vm.now(at(11 * SECOND)), 101 * SECOND);
}

#[test]
fn the_page_tells_the_time() {
    let (mut vm, mut c) = vm_with(2, at(SECOND));
    let mut ram = Ram::new();
    c[0].publish(&vm, at(SECOND), &mut ram);
    assert!(ram.writes.is_empty(), "not enabled");
    c[0].set_system_time_msr(1);
    vm.system_time_written(true, Some(false), at(SECOND));
    c[0].publish(&vm, at(2 * SECOND), &mut ram);
    let versions: Vec<u8> = ram.writes.iter().filter(|w| w.0 == 0).map(|w| w.1[0]).collect();
    assert_eq!(versions, [1, 2], "odd before, even after");
    for later in [2 * SECOND, 3 * SECOND, 86_400 * SECOND] {
        let tsc = c[0].guest_tsc(at(later).tsc);
        assert!(ram.guest_time(tsc).abs_diff(vm.now(at(later))) < 100_000);
    }
    assert_eq!(ram.bytes[29], PvClock::STABLE);
    // The other vCPU's page is the same line.
    let first = ram.bytes.clone();
    c[1].set_system_time_msr(0x21);
    c[1].publish(&vm, at(9 * SECOND), &mut ram);
    assert_eq!(ram.bytes[0x28..0x3d], first[8..29]);
}

#[test]
fn a_stop_is_told_until_the_guest_has_seen_it() {
    let (vm, mut c) = vm_with(1, at(SECOND));
    let mut ram = Ram::new();
    assert_eq!(c[0].pause(), Err(Errno::EINVAL));
    c[0].set_system_time_msr(1);
    c[0].pause().unwrap();
    c[0].publish(&vm, at(SECOND), &mut ram);
    assert_eq!(ram.bytes[29], PvClock::STABLE | PvClock::STOPPED);
    c[0].publish(&vm, at(SECOND), &mut ram);
    assert_eq!(ram.bytes[29], PvClock::STABLE | PvClock::STOPPED, "not cleared by the guest");
    ram.bytes[29] &= !PvClock::STOPPED;
    c[0].publish(&vm, at(SECOND), &mut ram);
    assert_eq!(ram.bytes[29], PvClock::STABLE);
    c[0].reset();
    assert!(!c[0].active());
}

#[test]
fn pages_where_there_is_no_memory() {
    let (vm, mut c) = vm_with(1, at(SECOND));
    let mut ram = Ram::new();
    c[0].set_system_time_msr(0x1001);
    c[0].publish(&vm, at(SECOND), &mut ram);
    write_wall_clock(&vm, 0x1000, at(SECOND), &mut ram);
    write_wall_clock(&vm, 0, at(SECOND), &mut ram);
    assert!(ram.writes.is_empty());
}

#[test]
fn wall_clock_is_the_time_of_day_at_zero() {
    let (vm, _) = vm_with(1, at(SECOND));
    let mut ram = Ram::new();
    ram.bytes[64] = 7;
    write_wall_clock(&vm, 64, at(5 * SECOND), &mut ram);
    assert_eq!((ram.u32(64), ram.u32(68), ram.u32(72)), (10, 1_700_000_001, 0));
}

#[test]
fn a_timer_never_fires_early() {
    assert_eq!(VcpuClock::new(KHZ).guest_cycles_to_ns(3_000), 1_501);
}

#[test]
fn a_tsc_that_is_too_slow_catches_up() {
    let mut vm = VmClock::new(at(0), KHZ, true);
    let mut c = VcpuClock::new(KHZ);
    assert_eq!(c.set_tsc_khz(2 * KHZ, KHZ, false), Ok(()));
    vm.vcpu_created(&mut c, at(SECOND));
    assert_eq!(c.guest_tsc(at(2 * SECOND).tsc), 2 * SECOND, "by itself it counts as the host's");
    c.catch_up(at(2 * SECOND));
    assert_eq!(c.guest_tsc(at(2 * SECOND).tsc), 4 * SECOND);
    c.catch_up(at(2 * SECOND - 1));
    assert_eq!(c.guest_tsc(at(2 * SECOND).tsc), 4 * SECOND, "never back");
    // The page is still right: it counts at the speed that the TSC really has.
    let mut ram = Ram::new();
    c.set_system_time_msr(1);
    c.publish(&vm, at(2 * SECOND), &mut ram);
    let later = at(3 * SECOND);
    assert!(ram.guest_time(c.guest_tsc(later.tsc)).abs_diff(vm.now(later)) < 2_000);
}

#[test]
fn a_scaled_tsc_counts_differently_from_the_hosts() {
    let mut vm = VmClock::new(at(0), KHZ, true);
    let mut c = [VcpuClock::new(KHZ), VcpuClock::new(KHZ)];
    for c in &mut c {
        assert_eq!(c.set_tsc_khz(KHZ / 2, KHZ, true), Ok(()));
        vm.vcpu_created(c, at(SECOND));
    }
    assert!(vm.is_master());
    assert_eq!(c[1].guest_tsc(at(3 * SECOND).tsc), 2 * SECOND, "a cycle is a nanosecond");
    vm.write_tsc(&mut c[0], 1000, at(4 * SECOND));
    assert_eq!(c[0].guest_tsc(at(5 * SECOND).tsc), 1000 + SECOND);
    let mut ram = Ram::new();
    c[0].set_system_time_msr(1);
    c[0].publish(&vm, at(5 * SECOND), &mut ram);
    let later = at(9 * SECOND);
    assert!(ram.guest_time(c[0].guest_tsc(later.tsc)).abs_diff(vm.now(later)) < 2_000);
}

#[test]
fn a_host_tsc_that_was_set_back() {
    // It lost all that it had counted, and the machine slept from 10 to 20 s.
    let after = |ns: u64| TimePoint { tsc: (ns - 20 * SECOND) * 2, tsc_lost: 20 * SECOND, ..at(ns) };
    let mut vm = VmClock::new(at(0), KHZ, true);
    let mut c = [VcpuClock::new(KHZ), VcpuClock::new(KHZ)];
    for c in &mut c {
        vm.vcpu_created(c, at(SECOND));
    }
    assert!(vm.is_master());
    let before = c[0].guest_tsc(at(10 * SECOND).tsc);
    // Whoever asks before a vCPU was looked at gets no nonsense.
    assert_eq!(vm.now(after(21 * SECOND)), 21 * SECOND);
    assert!(c[0].make_up(&mut vm, after(20 * SECOND)));
    assert!(vm.look_at_tsc(after(20 * SECOND)), "the clock changes for all");
    assert!(!vm.is_master());
    // The TSC goes on, the clock has counted the sleep.
    assert_eq!(c[0].guest_tsc(after(20 * SECOND).tsc), before);
    assert_eq!(c[0].guest_tsc(after(22 * SECOND).tsc), before + 4 * SECOND);
    assert_eq!(vm.now(after(22 * SECOND)), 22 * SECOND);
    assert!(!c[0].make_up(&mut vm, after(22 * SECOND)), "once");
    // The others follow, those that come later too; but never again on one line.
    assert!(c[1].make_up(&mut vm, after(23 * SECOND)));
    let mut late = VcpuClock::new(KHZ);
    vm.vcpu_created(&mut late, after(24 * SECOND));
    let tsc = after(25 * SECOND).tsc;
    assert_eq!([c[1].guest_tsc(tsc), late.guest_tsc(tsc)], [c[0].guest_tsc(tsc); 2]);
    assert!(!vm.set_stable(true, after(26 * SECOND)) && !vm.is_master());
}

#[test]
fn a_vcpu_that_comes_before_the_others_have_made_up() {
    let after = |ns: u64| TimePoint { tsc: (ns - 20 * SECOND) * 2, tsc_lost: 20 * SECOND, ..at(ns) };
    let (mut vm, mut c) = vm_with(2, at(SECOND));
    // The guest has put the first one's TSC forward, which is nobody else's.
    c[0].adjust_tsc(1_000);
    let before = c[1].guest_tsc(at(10 * SECOND).tsc);
    let mut late = VcpuClock::new(KHZ);
    vm.vcpu_created(&mut late, after(20 * SECOND));
    assert_eq!(late.guest_tsc(after(20 * SECOND).tsc), before, "in step with those who have not been looked at");
    for c in &mut c {
        assert!(c.make_up(&mut vm, after(21 * SECOND)));
    }
    assert!(!late.make_up(&mut vm, after(21 * SECOND)), "it had nothing to make up for");
    let mut later = VcpuClock::new(KHZ);
    vm.vcpu_created(&mut later, after(22 * SECOND));
    let tsc = after(22 * SECOND).tsc;
    assert_eq!([c[1].guest_tsc(tsc), late.guest_tsc(tsc), later.guest_tsc(tsc)], [before + 4 * SECOND; 3]);
    assert_eq!(c[0].guest_tsc(tsc), before + 4 * SECOND + 1_000);
}

#[test]
fn writes_that_belong_together_while_vcpus_make_up() {
    let after = |ns: u64| TimePoint { tsc: (ns - 20 * SECOND) * 2, tsc_lost: 20 * SECOND, ..at(ns) };
    let (mut vm, mut c) = vm_with(2, at(SECOND));
    // Each is looked at when user space next calls it.
    for c in &mut c {
        c.make_up(&mut vm, after(21 * SECOND));
        vm.write_tsc(c, 5_000, after(21 * SECOND));
    }
    let tsc = after(22 * SECOND).tsc;
    assert_eq!([c[0].guest_tsc(tsc), c[1].guest_tsc(tsc)], [5_000 + 2 * SECOND; 2]);
    assert_eq!(c[0].generation, c[1].generation);
}
