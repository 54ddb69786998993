//! Counters that user space can read at any time (KVM_GET_STATS_FD, KVM API document 4.133), under the names that
//! stock KVM has for the same numbers.
//!
//! Long because: the list of all statistics is most of it.

use crate::{Vcpu, Vm};
use ::state::State as _;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use host::{Errno, Host, VcpuThread};

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

    /// What another engine has counted.
    pub(crate) fn become_it(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub(crate) fn set(&self, value: bool) {
        self.0.store(value.into(), Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How often something took so long: by the number of bits of its nanoseconds, and the last one for all that took longer
/// (KVM_STATS_TYPE_LOG_HIST).
#[derive(Debug, Default)]
pub struct Histogram([Counter; Self::BUCKETS]);

impl Histogram {
    /// How many numbers it has (HALT_POLL_HIST_COUNT).
    pub const BUCKETS: usize = 32;

    /// Counts one that took `ns`. For the thread that it belongs to.
    pub(crate) fn count(&self, ns: u64) {
        let bits = 64 - ns.leading_zeros() as usize;
        if let Some(bucket) = self.0.get(bits.min(Self::BUCKETS - 1)) {
            bucket.count();
        }
    }
}

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// How often something has happened.
    Count,
    /// How many there are now.
    Now,
    /// The most that there ever were.
    Peak,
    /// Whether something is so now.
    Flag,
    /// Nanoseconds that something took altogether.
    Time,
    /// A [`Histogram`].
    Histogram,
}

/// One number, or a histogram's.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// As stock calls it.
    pub name: &'static str,
    /// What it means.
    pub kind: Kind,
}

impl Stat {
    /// How many numbers there are under its name.
    pub const fn words(&self) -> usize {
        if matches!(self.kind, Kind::Histogram) { Histogram::BUCKETS } else { 1 }
    }
}

/// Who is told the numbers.
type Each<'a> = &'a mut dyn FnMut(u64) -> Result<(), Errno>;

macro_rules! stats {
    (@type Histogram) => { Histogram };
    (@type $kind:ident) => { Counter };
    (@tell Histogram $field:expr, $each:ident) => { $field.0.iter().try_for_each(|n| $each(n.get()))? };
    (@tell $kind:ident $field:expr, $each:ident) => { $each($field.get())? };
    (@clear Histogram $field:expr, $left:ident) => {
        for word in &$field.0 {
            stats!(@clear Count word, $left);
        }
    };
    (@clear $kind:ident $field:expr, $left:ident) => {
        match $left {
            0 => return $field.0.store(0, Relaxed),
            _ => $left -= 1,
        }
    };
    ($(#[$m:meta])* $name:ident { $($(#[$fm:meta])* $f:ident: $kind:ident,)* }) => {
        $(#[$m])*
        #[derive(Debug, Default)]
        pub struct $name { $($(#[$fm])* pub $f: stats!(@type $kind),)* }

        impl $name {
            /// Names and meanings, in the order of [`each`](Self::each).
            pub const ALL: &[Stat] = &[$(Stat { name: stringify!($f), kind: Kind::$kind }),*];

            /// Tells all numbers, one after the other. Errors: the first of `each`.
            pub fn each(&self, each: Each<'_>) -> Result<(), Errno> {
                $(stats!(@tell $kind self.$f, each);)*
                Ok(())
            }

            /// Begins word `n` of those anew; nothing happens if there is none.
            pub fn clear(&self, n: usize) {
                let mut left = n;
                $(stats!(@clear $kind self.$f, left);)*
                let _ = left;
            }
        }

        /// By their names: numbers come and go, and no guest depends on them.
        impl ::state::State for $name {
            fn save(&self, w: &mut ::state::Writer) {
                w.count(Self::ALL.len());
                $(
                    name_hash(stringify!($f)).save(w);
                    self.$f.save_words(w);
                )*
            }
            fn load(&mut self, r: &mut ::state::Reader<'_>) -> Result<(), ::state::Refused> {
                for _ in 0..r.count()? {
                    let name: u32 = r.value()?;
                    let mut words = [0; Histogram::BUCKETS];
                    for n in 0..r.count()? {
                        let word: u64 = r.value()?;
                        if let Some(place) = words.get_mut(n) {
                            *place = word;
                        }
                    }
                    $(
                        if name == const { name_hash(stringify!($f)) } {
                            self.$f.set_words(&words);
                        }
                    )*
                }
                Ok(())
            }
        }
    };
}

/// A name in few bytes (FNV-1a).
const fn name_hash(name: &str) -> u32 {
    let (bytes, mut hash, mut n) = (name.as_bytes(), 0x811c_9dc5u32, 0);
    while n < bytes.len() {
        // INDEX: a constant of ours.
        hash = (hash ^ bytes[n] as u32).wrapping_mul(0x0100_0193);
        n += 1;
    }
    hash
}

impl Counter {
    fn save_words(&self, w: &mut ::state::Writer) {
        w.count(1);
        self.get().save(w);
    }
    fn set_words(&self, [n, ..]: &[u64; Histogram::BUCKETS]) {
        self.0.store(*n, Relaxed);
    }
}

impl Histogram {
    fn save_words(&self, w: &mut ::state::Writer) {
        w.count(self.0.len());
        self.0.iter().for_each(|n| n.get().save(w));
    }
    fn set_words(&self, words: &[u64; Self::BUCKETS]) {
        self.0.iter().zip(words).for_each(|(to, from)| to.0.store(*from, Relaxed));
    }
}

stats! {
    /// Of a vCPU, in stock's order. Those that say "never" are there because programs that know stock look for them by name.
    VcpuStats {
        /// HLT ended while the host looked around before sleeping.
        halt_successful_poll: Count,
        /// The host looked around before sleeping.
        halt_attempted_poll: Count,
        /// Never: whatever ends HLT is for the guest.
        halt_poll_invalid: Count,
        /// Sleeps in HLT that ended because there was something to do.
        halt_wakeup: Count,
        /// Time that was looked around for with success.
        halt_poll_success_ns: Time,
        /// Time that was looked around for in vain.
        halt_poll_fail_ns: Time,
        /// Time asleep in HLT.
        halt_wait_ns: Time,
        /// Each time of `halt_poll_success_ns`.
        halt_poll_success_hist: Histogram,
        /// Each time of `halt_poll_fail_ns`.
        halt_poll_fail_hist: Histogram,
        /// Each time of `halt_wait_ns`.
        halt_wait_hist: Histogram,
        /// The vCPU sleeps.
        blocking: Flag,
        /// Nested page faults.
        pf_taken: Count,
        /// Those that mapped a page.
        pf_fixed: Count,
        /// Those where no memory is, whose instruction was emulated.
        pf_emulate: Count,
        /// Those that found the page mapped already.
        pf_spurious: Count,
        /// Those that only made a page writable again, for the dirty log.
        pf_fast: Count,
        /// Never: nothing is remembered about addresses without memory.
        pf_mmio_spte_created: Count,
        /// Page faults of the guest's own that it was given here.
        pf_guest: Count,
        /// Flushes of its translations that it was asked for.
        tlb_flush: Count,
        /// Never: there is no shadow paging.
        invlpg: Count,
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
        /// The IRET was met that ends an NMI's handler.
        nmi_window_exits: Count,
        /// Never: AMD's processors need no flush of the data cache.
        l1d_flush: Count,
        /// HLT.
        halt_exits: Count,
        /// KVM_RUN ended because user space wanted to hand over an interrupt.
        request_irq_exits: Count,
        /// Interrupts of the host.
        irq_exits: Count,
        /// The host's state was put back after a guest's: once for each KVM_RUN.
        host_state_reload: Count,
        /// The host's FPU state was put back after a guest's.
        fpu_reload: Count,
        /// Instructions that were emulated.
        insn_emulation: Count,
        /// Instructions that could not be.
        insn_emulation_fail: Count,
        /// VMMCALL.
        hypercalls: Count,
        /// Interrupts that the guest was given.
        irq_injections: Count,
        /// NMIs that the guest was given.
        nmi_injections: Count,
        /// Something was to be injected, it was said.
        req_event: Count,
        /// Never: no nested virtualisation.
        nested_run: Count,
        /// The guest asked to run another vCPU in its place.
        directed_yield_attempted: Count,
        /// It did.
        directed_yield_successful: Count,
        /// The thread lost its CPU while it could be told the guest; see [`Vcpu::stats`].
        preemption_reported: Count,
        /// It lost it elsewhere.
        preemption_other: Count,
        /// Never: no nested virtualisation.
        guest_mode: Flag,
        /// Never: AMD's processors have no such exit.
        notify_window_exits: Count,
    }
}

stats! {
    /// Of a VM.
    VmStats {
        /// Those for which a vCPU had to leave the guest.
        remote_tlb_flush: Count,
        /// Flushes of all vCPUs' translations that were asked for.
        remote_tlb_flush_requests: Count,
    }
}

/// What follows [`VmStats`] in [`Vm::stats`]: the pages that are mapped, by size; the others are zero, as with stock's
/// nested paging, because there is no shadow paging and no large page is split against its will.
const VM_REST: [Stat; 13] = {
    const fn stat(name: &'static str, kind: Kind) -> Stat {
        Stat { name, kind }
    }
    [
        stat("mmu_shadow_zapped", Kind::Count),
        stat("mmu_pte_write", Kind::Count),
        stat("mmu_pde_zapped", Kind::Count),
        stat("mmu_flooded", Kind::Count),
        stat("mmu_recycled", Kind::Count),
        stat("mmu_cache_miss", Kind::Count),
        stat("mmu_unsync", Kind::Now),
        stat("pages_4k", Kind::Now),
        stat("pages_2m", Kind::Now),
        stat("pages_1g", Kind::Now),
        stat("nx_lpage_splits", Kind::Now),
        stat("max_mmu_rmap_size", Kind::Peak),
        stat("max_mmu_page_hash_collisions", Kind::Peak),
    ]
};

/// Where in it the pages are.
const PAGES: usize = 7;

/// Word `n` of what is told; 0 if there is none.
fn word(n: usize, tell: impl FnOnce(Each<'_>) -> Result<(), Errno>) -> u64 {
    let (mut left, mut found) = (n, 0);
    let tell = tell(&mut |value| {
        found = value;
        // The error ends it, and says nothing else.
        left.checked_sub(1).ok_or(Errno::EINTR).map(|rest| left = rest)
    });
    if tell.is_err() { found } else { 0 }
}

impl<H: Host> Vcpu<H> {
    /// Word `n` of what [`stats`](Self::stats) tells.
    pub fn stat(&self, n: usize) -> u64 {
        word(n, |each| self.stats(each))
    }

    /// Tells every number of this vCPU, in the order of [`VcpuStats::ALL`]. Errors: the first of `each`.
    pub fn stats(&self, each: Each<'_>) -> Result<(), Errno> {
        // Counted where the scheduler calls.
        let [reported, other] = self.thread.preemptions();
        self.stats.preemption_reported.0.store(reported, Relaxed);
        self.stats.preemption_other.0.store(other, Relaxed);
        self.stats.each(each)
    }
}

impl<H: Host> Vm<H> {
    /// Tells every number of the VM, in the order of [`stat_list`](Self::stat_list). Sleeps; takes as long as looking at
    /// each mapped page. Errors: the first of `each`.
    pub fn stats(&self, each: Each<'_>) -> Result<(), Errno> {
        self.stats.each(each)?;
        [0; PAGES].into_iter().try_for_each(&mut *each)?;
        self.mmu.mapped_pages().into_iter().try_for_each(&mut *each)?;
        VM_REST.iter().skip(PAGES + 3).try_for_each(|_| each(0))
    }

    /// Word `n` of what [`stats`](Self::stats) tells. Takes as long as that for the mapped pages only.
    pub fn stat(&self, n: usize) -> u64 {
        let own = VmStats::ALL.iter().map(Stat::words).sum();
        match n.checked_sub(own).map(|n| n.checked_sub(PAGES)) {
            None => word(n, |each| self.stats.each(each)),
            Some(Some(size @ 0..3)) => self.mmu.mapped_pages().into_iter().nth(size).unwrap_or(0),
            Some(_) => 0,
        }
    }

    /// Begins word `n` of the VM's counts anew. What is there now, and not counted, stays.
    pub fn clear_stat(&self, n: usize) {
        self.stats.clear(n);
    }

    /// What [`stats`](Self::stats) tells.
    pub fn stat_list() -> impl Iterator<Item = Stat> + Clone {
        VmStats::ALL.iter().copied().chain(VM_REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_by_the_number_of_bits() {
        let h = Histogram::default();
        for ns in [0, 1, 2, 3, 4, 1 << 29, 1 << 30, u64::MAX] {
            h.count(ns);
        }
        let filled = h.0.iter().enumerate().filter(|(_, n)| n.get() != 0).map(|(i, n)| (i, n.get()));
        assert!(filled.eq([(0, 1), (1, 1), (2, 2), (3, 1), (30, 1), (31, 2)]));
    }
}
