//! Counters that user space can read at any time (KVM_GET_STATS_FD, KVM API document 4.133), under the names that
//! stock KVM has for the same numbers.

use crate::{Vcpu, Vm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use host::Host;

/// A number that one thread changes and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one. For the thread that it belongs to: no locked instruction.
    #[inline(always)]
    pub(crate) fn count(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Adds `n`. For the thread that it belongs to.
    #[inline(always)]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Adds one. For any thread.
    pub(crate) fn count_shared(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(crate) fn set(&self, value: bool) {
        self.0.store(value.into(), Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// How often something has happened.
    Count,
    /// How many there are now.
    Now,
    /// Whether something is so now.
    Flag,
}

/// One number.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// As stock calls it.
    pub name: &'static str,
    /// What it means.
    pub kind: Kind,
}

macro_rules! stats {
    ($(#[$m:meta])* $name:ident { $($(#[$fm:meta])* $f:ident: $kind:ident,)* }) => {
        $(#[$m])*
        #[derive(Debug, Default)]
        pub struct $name { $($(#[$fm])* pub $f: Counter,)* }

        impl $name {
            /// Names and meanings, in the order of [`values`](Self::values).
            pub const ALL: &[Stat] = &[$(Stat { name: stringify!($f), kind: Kind::$kind }),*];

            /// All values, one after the other.
            pub fn values(&self) -> [u64; Self::ALL.len()] {
                [$(self.$f.get()),*]
            }
        }
    };
}

stats! {
    /// Of a vCPU.
    VcpuStats {
        /// Nested page faults.
        pf_taken: Count,
        /// Those that mapped a page.
        pf_fixed: Count,
        /// Those where no memory is, whose instruction was emulated.
        pf_emulate: Count,
        /// Exits of the guest.
        exits: Count,
        /// IN and OUT.
        io_exits: Count,
        /// Accesses to devices of user space.
        mmio_exits: Count,
        /// KVM_RUN ended by a signal.
        signal_exits: Count,
        /// The guest could take an interrupt that waited.
        irq_window_exits: Count,
        /// HLT.
        halt_exits: Count,
        /// Interrupts of the host.
        irq_exits: Count,
        /// Instructions that were emulated.
        insn_emulation: Count,
        /// Instructions that could not be.
        insn_emulation_fail: Count,
        /// VMMCALL.
        hypercalls: Count,
        /// Sleeps in HLT that ended because there was something to do.
        halt_wakeup: Count,
        /// The vCPU sleeps.
        blocking: Flag,
    }
}

stats! {
    /// Of a VM.
    VmStats {
        /// Flushes of all vCPUs' translations that were asked for.
        remote_tlb_flush_requests: Count,
        /// Those for which a vCPU had to leave the guest.
        remote_tlb_flush: Count,
    }
}

/// The pages that are mapped, by size; what follows [`VmStats`] in [`Vm::stats`].
const PAGES: [Stat; 3] = [
    Stat { name: "pages_4k", kind: Kind::Now },
    Stat { name: "pages_2m", kind: Kind::Now },
    Stat { name: "pages_1g", kind: Kind::Now },
];

impl<H: Host> Vcpu<H> {
    /// Every number of this vCPU.
    pub fn stats(&self) -> impl Iterator<Item = (Stat, u64)> {
        VcpuStats::ALL.iter().copied().zip(self.stats.values())
    }
}

impl<H: Host> Vm<H> {
    /// Every number of the VM. Sleeps; takes as long as looking at each mapped page.
    pub fn stats(&self) -> impl Iterator<Item = (Stat, u64)> {
        let counts = VmStats::ALL.iter().copied().zip(self.stats.values());
        counts.chain(PAGES.into_iter().zip(self.mmu.mapped_pages()))
    }

    /// What [`stats`](Self::stats) lists.
    pub fn stat_list() -> impl Iterator<Item = Stat> + Clone {
        VmStats::ALL.iter().copied().chain(PAGES)
    }
}
