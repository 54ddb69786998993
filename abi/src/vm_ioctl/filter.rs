//! KVM_X86_SET_MSR_FILTER (KVM API document 4.97).

use crate::codec::read;
use crate::uapi::*;
use host::{Errno, Host, try_filled, try_push};
use vm::Vm;
use vm::msr::{FilterRange, MsrFilter};

extern crate alloc;
use alloc::vec::Vec;

/// Replaces the MSR filter. Errors: EINVAL (flags; a range without flags or too long; default deny without any
/// range), EFAULT, ENOMEM. The old filter stays then.
pub fn set_msr_filter<H: Host>(vm: &Vm<H>, filter: &kvm_msr_filter) -> Result<(), Errno> {
    let deny = filter.flags & KVM_MSR_FILTER_DEFAULT_DENY != 0;
    let used = || filter.ranges.iter().filter(|r| r.nmsrs != 0);
    if filter.flags & !KVM_MSR_FILTER_DEFAULT_DENY != 0 || deny && used().next().is_none() {
        return Err(Errno::EINVAL);
    }
    let mut bitmaps: Vec<(&kvm_msr_filter_range, Vec<u8>)> = Vec::new();
    for range in used() {
        let flags = range.flags;
        if flags == 0 || flags & !(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE) != 0 {
            return Err(Errno::EINVAL);
        }
        let mut bitmap = try_filled(0u8, MsrFilter::bitmap_bytes(range.nmsrs)?)?;
        read(&vm.host, range.bitmap, &mut bitmap)?;
        try_push(&mut bitmaps, (range, bitmap))?;
    }
    let mut ranges = Vec::new();
    for (r, bitmap) in &bitmaps {
        try_push(&mut ranges, FilterRange { flags: r.flags, base: r.base, nmsrs: r.nmsrs, bitmap })?;
    }
    vm.set_msr_filter(MsrFilter::new(filter.flags, &ranges)?);
    Ok(())
}
