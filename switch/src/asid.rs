//! Address space identifiers: which translations in this CPU's TLB are whose (APM 15.16).
//!
//! Each CPU hands out its own ASIDs in order. When they run out it starts over with a new generation and one flush
//! of everything; a vCPU whose ASID is of another generation, or of another CPU, takes a new one. A fresh ASID has
//! no translations, so taking one is also how a guest is flushed where the processor cannot flush one ASID.

/// An ASID as it was handed out. The default is never valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AsidGeneration {
    generation: u64,
    /// 1..=max; 0 is the host's and never handed out.
    pub asid: u32,
}

/// The ASIDs of one CPU. All zero is a valid start: it has none until [`reset`](Self::reset).
#[derive(Clone, Copy, Debug, Default)]
pub struct Asids {
    pub(crate) generation: u64,
    pub(crate) next: u32,
    pub(crate) max: u32,
}

impl Asids {
    /// What the base does (linux/shim/kvm/cpu.c) when the CPU is switched on (again) with ASIDs up to `max`. The generation
    /// goes on from where it was and is another one, so that no ASID from before is good or taken for a new one.
    #[cfg(any(test, feature = "model"))]
    pub fn reset(&mut self, max: u32) {
        self.max = max;
        self.generation = self.generation.wrapping_add(1);
        // The first ASID opens a new generation, which flushes whatever the TLB holds.
        self.next = max.wrapping_add(1);
    }

    /// Is the ASID still good on this CPU? It must have come from this CPU.
    #[inline]
    pub fn holds(&self, t: AsidGeneration) -> bool {
        t.generation == self.generation && t.asid != 0
    }

    /// A fresh ASID; true if the TLB has to be flushed of all ASIDs before it is used.
    pub fn take(&mut self) -> (AsidGeneration, bool) {
        let flush = self.next > self.max || self.next == 0;
        if flush {
            self.generation = self.generation.wrapping_add(1);
            self.next = 1;
        }
        let t = AsidGeneration { generation: self.generation, asid: self.next };
        self.next = self.next.wrapping_add(1);
        (t, flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asid_zero_is_never_handed_out_and_running_out_flushes() {
        let mut a = Asids::default();
        a.reset(3);
        let (first, flush) = a.take();
        assert!(flush && first.asid == 1 && a.holds(first));
        assert!((2..=3).all(|n| a.take() == (AsidGeneration { generation: first.generation, asid: n }, false)));
        assert!(a.holds(first));
        let (again, flush) = a.take();
        assert!(flush && again.asid == 1);
        assert!(a.holds(again) && !a.holds(first));
    }

    #[test]
    fn a_cpu_that_comes_back_honours_no_old_generation() {
        let mut a = Asids::default();
        a.reset(8);
        let (old, _) = a.take();
        a.reset(8);
        assert!(!a.holds(old));
        let (new, flush) = a.take();
        assert!(flush && new.asid == old.asid && !a.holds(old) && a.holds(new));
    }

    #[test]
    fn the_default_generation_is_invalid_on_a_fresh_cpu() {
        assert!(!Asids::default().holds(AsidGeneration::default()));
    }
}
