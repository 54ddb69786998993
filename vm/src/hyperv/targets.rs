//! Whom a hypercall is for: a set of virtual processors, as banks of 64 of which only those are there that have a member (TLFS,
//! "Virtual Processor Sets").

use crate::{Vcpu, Vm};
use arch::GuestIndexed;
use core::sync::atomic::Ordering::Relaxed;
use host::Host;

/// Most banks.
pub(super) const BANKS: usize = 64;

/// A set of virtual processors, by their numbers among the guest's.
pub(super) struct Targets {
    /// All there are.
    pub all: bool,
    /// A bit for each bank that is there.
    pub valid: u64,
    /// The banks that are there, one behind the other.
    pub banks: GuestIndexed<[u64; BANKS]>,
}

impl Targets {
    /// The first 64 of them, a bit each.
    pub fn first(mask: u64) -> Self {
        let mut banks = [0; BANKS];
        let [first, ..] = &mut banks;
        *first = mask;
        Self { all: false, valid: 1, banks: GuestIndexed::new(banks) }
    }

    fn contains(&self, number: u32) -> bool {
        let (bank, bit) = (number / 64, number % 64);
        if bank >= BANKS as u32 || self.valid >> bank & 1 == 0 {
            return self.all;
        }
        let before = self.valid & ((1 << bank) - 1);
        let word = self.banks.get_nospec(before.count_ones() as usize).copied().unwrap_or(0);
        self.all || word >> bit & 1 != 0
    }
}

impl<H: Host> Vm<H> {
    /// Calls `f` for each of them that exists.
    pub(super) fn for_each_target(&self, targets: &Targets, mut f: impl FnMut(&Vcpu<H>)) {
        if targets.all || self.partition.renumbered.load(Relaxed) != 0 {
            return self.vcpus().filter(|v| targets.contains(v.vp_index())).for_each(f);
        }
        // Their numbers are their places: nobody else need be looked at.
        let banks = (0..BANKS).filter(|bank| targets.valid >> bank & 1 != 0);
        for (bank, word) in banks.zip(targets.banks.iter()) {
            let mut rest = *word;
            while rest != 0 {
                let bit = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                if let Some(v) = self.vcpu(64 * bank + bit) {
                    f(v);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_banks() {
        let mut t = Targets::first(0b101);
        assert!(t.contains(0) && !t.contains(1) && t.contains(2) && !t.contains(64) && !t.contains(u32::MAX));
        t.valid = 1 << 1 | 1 << 63;
        for (n, word) in [(0, 1 << 3), (1, 1 << 63)] {
            *t.banks.get_nospec_mut(n).unwrap() = word;
        }
        assert!(t.contains(67) && t.contains(4095));
        assert_eq!((0..5000).filter(|n| t.contains(*n)).count(), 2);
        t.all = true;
        assert!((0..5000).all(|n| t.contains(n)));
    }
}
