//! KVM_HC_CLOCK_PAIRING: time of day and guest TSC of one moment (KVM's hypercalls document).

use crate::Ctx;
use arch::Gpa;
use host::Host;

const EFAULT: u64 = -14i64 as u64;
const EOPNOTSUPP: u64 = -95i64 as u64;
/// The one kind of clock.
const WALL_CLOCK: u64 = 0;

impl<H: Host> Ctx<'_, H> {
    /// Writes `struct kvm_clock_pairing` (64 bytes: seconds, nanoseconds, TSC, flags and padding of zero). Returns the
    /// hypercall's result.
    pub(crate) fn pair_clocks(&self, to: Gpa, kind: u64) -> u64 {
        if kind != WALL_CLOCK || !self.vm.host.tsc_is_stable() || self.core.clock.catches_up() {
            return EOPNOTSUPP;
        }
        let now = self.vm.host.time_point();
        let words = [now.real_ns / 1_000_000_000, now.real_ns % 1_000_000_000, self.core.clock.guest_tsc(now.tsc)];
        let mut bytes = [0; 64];
        for (to, from) in bytes.iter_mut().zip(words.iter().flat_map(|w| w.to_le_bytes())) {
            *to = from;
        }
        if self.shared_memory().write_phys(to, &bytes).is_ok() { 0 } else { EFAULT }
    }
}
