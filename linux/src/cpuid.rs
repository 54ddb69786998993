//! The host's CPUID, as far as the kernel lets it be used, and XCR0.

use crate::shim;
use core::arch::x86_64::__cpuid_count;

/// Bits of which the kernel's record says nothing, (leaf, register, bits): OSXSAVE (Fn1_ECX) and OSPKE (Fn7_ECX) follow a control
/// register at run time; LA57 (Fn7_ECX) is gone there if the kernel itself uses four levels, and a guest's own tables are walked by
/// the processor in the guest's mode.
const LIVE: [(u32, u32, u32); 2] = [(1, 2, 1 << 27), (7, 2, 1 << 4 | 1 << 16)];

/// CPUID, unfiltered.
pub fn raw(leaf: u32, subleaf: u32) -> [u32; 4] {
    #[allow(unused_unsafe)] // Safe on newer compilers.
    // SAFETY: every processor with SVM has CPUID.
    let r = unsafe { __cpuid_count(leaf, subleaf) };
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Of this leaf the kernel knows bits by the processor's model and microcode, also where the processor does not have the leaf.
const KNOWN: u32 = 0x8000_0021;

/// CPUID without what the kernel switched off, and with what it knows better.
pub fn limited(leaf: u32, subleaf: u32) -> [u32; 4] {
    let lacks = leaf == KNOWN && raw(0x8000_0000, 0)[0] < KNOWN;
    let mut regs = if lacks { [0; 4] } else { raw(leaf, subleaf) };
    for (n, reg) in (0..).zip(&mut regs) {
        let live = LIVE.iter().find(|l| (l.0, l.1) == (leaf, n)).map_or(0, |l| l.2);
        *reg &= shim::hsave_cpuid_mask(leaf, subleaf, n) | live;
        if leaf == KNOWN {
            *reg |= shim::hsave_known_features(n);
        }
    }
    regs
}

/// XCR0 as the host runs; 0 where it does not use XSAVE.
pub fn host_xcr0() -> u64 {
    if raw(1, 0)[2] & 1 << 27 == 0 {
        return 0;
    }
    let (lo, hi): (u32, u32);
    // SAFETY: OSXSAVE says that XGETBV works.
    unsafe {
        core::arch::asm!("xgetbv", in("ecx") 0, out("eax") lo, out("edx") hi, options(nomem, nostack, preserves_flags));
    }
    u64::from(hi) << 32 | u64::from(lo)
}
