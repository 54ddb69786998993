//! KVM_X86_SET_MSR_FILTER (KVM API document 4.97): which MSRs a guest may touch.

use alloc::vec::Vec;
use arch::GuestIndexed;
use host::{Errno, try_filled, try_push};

/// KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE.
const READ: u32 = 1;
const WRITE: u32 = 2;
/// KVM_MSR_FILTER_DEFAULT_DENY.
const DEFAULT_DENY: u32 = 1;
/// KVM_MSR_FILTER_MAX_RANGES.
const MAX_RANGES: usize = 16;
/// KVM_MSR_FILTER_MAX_BITMAP_SIZE, in bytes.
const MAX_BITMAP: usize = 0x600;

/// `struct kvm_msr_filter_range`: with `flags` saying for which accesses, bit n of the bitmap allows MSR `base + n`.
#[derive(Clone, Copy, Debug)]
pub struct FilterRange<'a> {
    /// Bit 0 reads, bit 1 writes.
    pub flags: u32,
    /// First MSR.
    pub base: u32,
    /// Number of MSRs; 0: the range is not used.
    pub nmsrs: u32,
    /// [`MsrFilter::bitmap_bytes`] bytes.
    pub bitmap: &'a [u8],
}

struct Range {
    flags: u32,
    base: u32,
    nmsrs: u32,
    bitmap: GuestIndexed<Vec<u8>>,
}

/// A filter; without one, nothing is denied.
pub struct MsrFilter {
    default_allow: bool,
    ranges: Vec<Range>,
}

::state::state! {
    value Range { flags, base, nmsrs, bitmap }
    value MsrFilter { default_allow, ranges }
}

impl MsrFilter {
    /// Bytes of the bitmap of a range with so many MSRs. Errors: EINVAL (too many).
    pub fn bitmap_bytes(nmsrs: u32) -> Result<usize, Errno> {
        // Whole 64-bit words.
        let bytes = (nmsrs as usize).div_ceil(64) * 8;
        if bytes > MAX_BITMAP { Err(Errno::EINVAL) } else { Ok(bytes) }
    }

    /// Checks and copies. Ok(None) if nothing is denied. Errors: EINVAL (unknown flags, too large, nothing at all
    /// allowed), ENOMEM.
    pub fn new(flags: u32, ranges: &[FilterRange<'_>]) -> Result<Option<Self>, Errno> {
        let default_allow = flags & DEFAULT_DENY == 0;
        let empty = ranges.iter().all(|r| r.nmsrs == 0);
        if flags & !DEFAULT_DENY != 0 || ranges.len() > MAX_RANGES || empty && !default_allow {
            return Err(Errno::EINVAL);
        }
        let mut filter = Self { default_allow, ranges: Vec::new() };
        for r in ranges.iter().filter(|r| r.nmsrs != 0) {
            if r.flags & !(READ | WRITE) != 0 {
                return Err(Errno::EINVAL);
            }
            // INDEX: how much of the bitmap counts; it is copied, and not looked at.
            let bytes = r.bitmap.get(..Self::bitmap_bytes(r.nmsrs)?).ok_or(Errno::EINVAL)?;
            let mut bitmap = try_filled(0, bytes.len())?;
            for (to, from) in bitmap.iter_mut().zip(bytes) {
                *to = *from;
            }
            try_push(
                &mut filter.ranges,
                Range { flags: r.flags, base: r.base, nmsrs: r.nmsrs, bitmap: GuestIndexed::new(bitmap) },
            )?;
        }
        Ok((!empty).then_some(filter))
    }

    /// May the guest touch it? The first range that covers the MSR and the kind of access decides. The x2APIC's MSRs
    /// cannot be filtered.
    pub fn allowed(&self, msr: u32, write: bool) -> bool {
        if let 0x800..=0x8ff = msr {
            return true;
        }
        let kind = if write { WRITE } else { READ };
        for r in self.ranges.iter().filter(|r| r.flags & kind != 0) {
            let n = msr.wrapping_sub(r.base);
            if msr >= r.base && n < r.nmsrs {
                return r.bitmap.get_nospec(n as usize / 8).is_some_and(|b| b >> (n % 8) & 1 != 0);
            }
        }
        self.default_allow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(flags: u32, base: u32, nmsrs: u32, bitmap: &[u8]) -> FilterRange<'_> {
        FilterRange { flags, base, nmsrs, bitmap }
    }

    #[test]
    fn refused() {
        let ones = [0xff; MAX_BITMAP];
        let new = |flags, r: &[FilterRange<'_>]| MsrFilter::new(flags, r).map(|f| f.is_some());
        assert_eq!(new(0, &[]), Ok(false));
        assert_eq!(new(1, &[]), Err(Errno::EINVAL));
        assert_eq!(new(2, &[]), Err(Errno::EINVAL));
        assert_eq!(new(1, &[range(3, 0, 0, &[])]), Err(Errno::EINVAL));
        assert_eq!(new(0, &[range(4, 0, 1, &ones)]), Err(Errno::EINVAL));
        assert_eq!(new(0, &[range(3, 0, 65, &ones[..8])]), Err(Errno::EINVAL));
        assert_eq!(new(0, &[range(3, 0, 0x3001, &ones)]), Err(Errno::EINVAL));
        assert_eq!(new(0, &[range(3, 0, u32::MAX, &ones)]), Err(Errno::EINVAL));
        assert_eq!(new(0, &[range(3, 0, 0x3000, &ones)]), Ok(true));
        assert_eq!(new(0, &[range(3, 0, 1, &ones); 17]), Err(Errno::EINVAL));
    }

    #[test]
    fn first_range_decides() {
        let bits = [0b101, 0, 0, 0, 0, 0, 0, 0];
        let none = [0; 8];
        let ranges = [range(READ, 0x10, 3, &bits), range(READ | WRITE, 0x12, 2, &none), range(3, u32::MAX, 1, &bits)];
        let f = MsrFilter::new(0, &ranges).unwrap().unwrap();
        for (msr, read, write) in [
            (0xf, true, true),
            (0x10, true, true),
            (0x11, false, true),
            (0x12, true, false),
            (0x13, false, false),
            (0x14, true, true),
            (u32::MAX, true, true),
            (0, true, true),
        ] {
            assert_eq!((f.allowed(msr, false), f.allowed(msr, true)), (read, write), "{msr:#x}");
        }
        let f = MsrFilter::new(1, &ranges).unwrap().unwrap();
        assert!(!f.allowed(0xf, false) && f.allowed(0x10, false) && !f.allowed(0x10, true));
        assert!(f.allowed(0x80b, true), "x2APIC");
    }
}
