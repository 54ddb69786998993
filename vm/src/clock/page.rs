//! The pages that a guest reads the time from (KVM's MSR document: `pvclock_vcpu_time_info`, `pvclock_wall_clock`).

use super::VmClock;
use host::TimePoint;

/// Guest memory by guest physical address. False: there is none, and nothing was done.
pub trait GuestMemory {
    /// Fills `buf`.
    fn read(&mut self, gpa: u64, buf: &mut [u8]) -> bool;
    /// Writes `buf`.
    fn write(&mut self, gpa: u64, buf: &[u8]) -> bool;
}

/// One vCPU's clock page without its version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PvClock {
    /// Guest TSC at which `system_time` was right.
    pub tsc_timestamp: u64,
    /// The VM's clock in ns.
    pub system_time: u64,
    /// See [`time_scale`](super::time_scale).
    pub mul: u32,
    /// See [`time_scale`](super::time_scale).
    pub shift: i8,
    /// [`STABLE`](Self::STABLE), [`STOPPED`](Self::STOPPED).
    pub flags: u8,
}

impl PvClock {
    /// All vCPUs read the same time.
    pub const STABLE: u8 = 1;
    /// The guest was stopped by user space for a while: its watchdogs should look away. The guest clears it.
    pub const STOPPED: u8 = 2;
    /// Bytes of the page that are used.
    pub const SIZE: usize = 32;

    /// The page's bytes.
    pub fn encode(&self, version: u32) -> [u8; Self::SIZE] {
        let mut b = [0; Self::SIZE];
        let fields: [(usize, &[u8]); 6] = [
            (0, &version.to_le_bytes()),
            (8, &self.tsc_timestamp.to_le_bytes()),
            (16, &self.system_time.to_le_bytes()),
            (24, &self.mul.to_le_bytes()),
            (28, &self.shift.to_le_bytes()),
            (29, &[self.flags]),
        ];
        for (at, bytes) in fields {
            for (to, from) in b.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        }
        b
    }

    /// Writes the page. The guest takes a reading only if the version is even and did not change meanwhile, so it is
    /// odd while the rest is written. A stop that the guest has not seen yet stays noted.
    /// Returns what it says now, with its version; None: there is no memory.
    pub fn publish(mut self, gpa: u64, mem: &mut impl GuestMemory) -> Option<(Self, u32)> {
        let mut old = [0; Self::SIZE];
        if !mem.read(gpa, &mut old) {
            return None;
        }
        let [v0, v1, v2, v3, ..] = old;
        let odd = u32::from_le_bytes([v0, v1, v2, v3]).wrapping_add(1) | 1;
        self.flags |= old[29] & Self::STOPPED;
        let even = odd.wrapping_add(1);
        let done = self.encode(even);
        let (version, rest) = done.split_at(4);
        let written =
            mem.write(gpa, &odd.to_le_bytes()) && mem.write(gpa.wrapping_add(4), rest) && mem.write(gpa, version);
        written.then_some((self, even))
    }
}

/// Writes the wall clock page at `gpa`: the time of day when the VM's clock was zero, as seconds and nanoseconds behind
/// a version. Nothing happens at address zero.
pub fn write_wall_clock(vm: &VmClock, gpa: u64, now: TimePoint, mem: &mut impl GuestMemory) {
    let mut version = [0; 4];
    if gpa == 0 || !mem.read(gpa, &mut version) {
        return;
    }
    // Odd while it is written; whatever lay there before the first time.
    let odd = u32::from_le_bytes(version).wrapping_add(1) | 1;
    let epoch = now.real_ns.wrapping_sub(vm.now(now));
    let (seconds, nanoseconds) = ((epoch / 1_000_000_000) as u32, (epoch % 1_000_000_000) as u32);
    let _ = mem.write(gpa, &odd.to_le_bytes())
        && mem.write(gpa.wrapping_add(4), &seconds.to_le_bytes())
        && mem.write(gpa.wrapping_add(8), &nanoseconds.to_le_bytes())
        && mem.write(gpa, &odd.wrapping_add(1).to_le_bytes());
}
