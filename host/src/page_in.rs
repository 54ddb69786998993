//! Pages of the VMM's memory that the kernel brings in while a vCPU does something else.

use core::sync::atomic::{AtomicU64, Ordering::*};

/// Which of a vCPU's page-ins are over: one bit for each number from 0 to 63. Lock-free; any thread, any context.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct PageIns(AtomicU64);

impl PageIns {
    /// How many a vCPU can have under way at once (KVM's ASYNC_PF_PER_VCPU).
    pub const LIMIT: usize = 64;

    /// None is over.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Notes that page-in `n` is over, whether the page came or not. True if none was over before: the vCPU has to be
    /// told; otherwise it has been.
    pub fn finish(&self, n: u8) -> bool {
        self.0.fetch_or(bit(n), SeqCst) == 0
    }

    /// Is any over?
    #[inline]
    pub fn any(&self) -> bool {
        self.0.load(Relaxed) != 0
    }

    /// Takes one that is over: the first at or after `from`, and from 0 on if there is none, so that none waits for ever
    /// for its turn.
    pub fn take(&self, from: u8) -> Option<u8> {
        let over = self.0.load(Acquire);
        if over == 0 {
            return None;
        }
        let n = (over.rotate_right(from.into()).trailing_zeros() + u32::from(from)) as u8 & 63;
        self.0.fetch_and(!bit(n), AcqRel);
        Some(n)
    }

    /// Forgets all that are over.
    pub fn clear(&self) {
        self.0.store(0, SeqCst);
    }
}

const fn bit(n: u8) -> u64 {
    1 << (n & 63)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_after_the_other_and_each_in_its_turn() {
        let p = PageIns::new();
        assert_eq!((p.any(), p.take(0)), (false, None));
        assert!(p.finish(5));
        assert!(!p.finish(63), "the vCPU has been told");
        assert!(!p.finish(0));
        assert_eq!([p.take(1), p.take(6), p.take(0), p.take(1)], [Some(5), Some(63), Some(0), None]);
        assert!(p.finish(2), "told again, since all were taken");
        assert_eq!(p.take(3), Some(2), "it is the only one");
        p.finish(7);
        p.clear();
        assert!(!p.any());
    }
}
