//! KVM_GET_SUPPORTED_CPUID and KVM_GET_EMULATED_CPUID (KVM API document 4.46, 4.88).
//!
//! Leaf by leaf what stock KVM reports on AMD: features masked, sizes recomputed, what describes this very processor
//! (topology) left out, everything unknown zero. Basic leaves come first, then extended ones, then KVM's own.

use super::feature::{Feature, Word};
use super::{Caps, HostInfo, KVM_FEATURES, KVM_PV_STEAL_TIME};
use crate::state::{CPUID_SUBLEAF_MATTERS, CpuidEntry};
use alloc::vec::Vec;
use arch::cpuid::KVM_SIGNATURE;
use host::{Errno, try_push};

/// Last basic leaf that is reported, whatever the host has.
const MAX_BASIC: u32 = 0x24;
/// Last extended leaf that is reported.
const MAX_EXTENDED: u32 = 0x8000_0022;
/// The extended feature leaf 2, reported even where the host has none: it says that LFENCE serializes.
pub const EXTENDED_2: u32 = 0x8000_0021;
const ZERO: [u32; 4] = [0; 4];

struct List<'a, I> {
    host: &'a I,
    caps: Caps,
    entries: Vec<CpuidEntry>,
}

/// All leaves that a guest can be shown. Errors: ENOMEM.
pub fn supported_cpuid(host: &impl HostInfo) -> Result<Vec<CpuidEntry>, Errno> {
    let mut list = List { host, caps: Caps::new(host), entries: Vec::new() };
    let (max_basic, max_extended) = list.limits();
    for function in 0..=max_basic {
        list.basic(function, max_basic)?;
    }
    for function in 0x8000_0000..=max_extended {
        list.extended(function, max_extended)?;
    }
    let [b, c, d] = [*b"KVMK", *b"VMKV", *b"M\0\0\0"].map(u32::from_le_bytes);
    list.push(KVM_SIGNATURE, [KVM_SIGNATURE + 1, b, c, d])?;
    let without = if host.steal_time() { 0 } else { KVM_PV_STEAL_TIME };
    list.push(KVM_SIGNATURE + 1, [KVM_FEATURES & !without, 0, 0, 0])?;
    Ok(list.entries)
}

/// Instructions that a guest may use though the processor lacks them: MOVBE, and RDPID where TSC_AUX exists. Errors: ENOMEM.
pub fn emulated_cpuid(host: &impl HostInfo) -> Result<Vec<CpuidEntry>, Errno> {
    let mut entries = Vec::new();
    let rdpid = if Caps::new(host).has(Feature::RDTSCP) { 1 << 22 } else { 0 };
    for (function, flags, regs) in
        [(0, 0, [7, 0, 0, 0]), (1, 0, [0, 0, 1 << 22, 0]), (7, CPUID_SUBLEAF_MATTERS, [0, 0, rdpid, 0])]
    {
        try_push(&mut entries, CpuidEntry { function, index: 0, flags, regs })?;
    }
    Ok(entries)
}

impl<I: HostInfo> List<'_, I> {
    /// Highest basic and extended leaf to report.
    fn limits(&self) -> (u32, u32) {
        let (basic, extended) = self.caps.limits();
        let extended = extended.clamp(0x8000_0000, MAX_EXTENDED);
        // Only with the leaf of the caches: QEMU takes it from the processor itself as soon as a limit promises it.
        let says_more = extended >= 0x8000_001d
            && (self.caps.has(Feature::LFENCE_RDTSC) || self.caps.has(Feature::NULL_SEL_CLR_BASE));
        (basic.min(MAX_BASIC), if says_more { extended.max(EXTENDED_2) } else { extended })
    }

    /// The host's leaf, zero beyond its limits.
    fn raw(&self, function: u32, index: u32) -> [u32; 4] {
        let (basic, extended) = self.caps.limits();
        let known = if function >> 31 == 0 { function <= basic } else { function <= extended };
        if known { self.host.leaf(function, index) } else { ZERO }
    }

    fn push(&mut self, function: u32, regs: [u32; 4]) -> Result<(), Errno> {
        try_push(&mut self.entries, CpuidEntry { function, index: 0, flags: 0, regs })
    }

    fn push_sub(&mut self, function: u32, index: u32, regs: [u32; 4]) -> Result<(), Errno> {
        try_push(&mut self.entries, CpuidEntry { function, index, flags: CPUID_SUBLEAF_MATTERS, regs })
    }

    fn basic(&mut self, function: u32, max: u32) -> Result<(), Errno> {
        let raw @ [a, b, c, d] = self.raw(function, 0);
        let w = |word| self.caps.word(word);
        match function {
            0 => self.push(0, [max, b, c, d]),
            1 => self.push(1, [a, b, w(Word::F1Ecx), w(Word::F1Edx)]),
            2 => self.push(2, raw),
            4 => self.caches(4),
            // ARAT: the local APIC timer never stops.
            6 => self.push(6, [1 << 2, 0, 0, 0]),
            7 => self.features_7(a),
            // Topology is user space's to describe; zero says that there is none.
            0xb | 0x1f => self.push_sub(function, 0, [0, 0, 0, d]),
            0xd => self.xsave(),
            // Leaves with indices that are not offered: resource monitoring, SGX, PT, AMX, AVX10 and so on.
            0xf | 0x10 | 0x12 | 0x14 | 0x17 | 0x18 | 0x1d | 0x1e | 0x24 => self.push_sub(function, 0, ZERO),
            _ => self.push(function, ZERO),
        }
    }

    fn features_7(&mut self, host_max: u32) -> Result<(), Errno> {
        let w = |word| self.caps.word(word);
        let max = host_max.min(2);
        let first = [max, w(Word::F7Ebx), w(Word::F7Ecx), w(Word::F7Edx)];
        let second = [w(Word::F71Eax), 0, 0, w(Word::F71Edx)];
        self.push_sub(7, 0, first)?;
        if max > 0 {
            self.push_sub(7, 1, second)?;
        }
        if max > 1 {
            // What of SPEC_CTRL only Intel's processors have.
            self.push_sub(7, 2, ZERO)?;
        }
        Ok(())
    }

    /// Leaves 4 and 0x8000001D: one entry per cache, up to and with the empty one that ends the list.
    fn caches(&mut self, function: u32) -> Result<(), Errno> {
        for index in 0..16 {
            let regs = self.raw(function, index);
            self.push_sub(function, index, regs)?;
            if regs[0] & 0x1f == 0 {
                break;
            }
        }
        Ok(())
    }

    fn xsave(&mut self) -> Result<(), Errno> {
        let xcr0 = self.caps.xcr0();
        if xcr0 == 0 {
            return self.push_sub(0xd, 0, ZERO);
        }
        let size = self.caps.xstate().required(xcr0, false);
        self.push_sub(0xd, 0, [xcr0 as u32, size, size, (xcr0 >> 32) as u32])?;
        let compacted = if self.caps.has(Feature::XSAVEC) || self.caps.has(Feature::XSAVES) {
            self.caps.xstate().required(xcr0, true)
        } else {
            0
        };
        // No supervisor components: IA32_XSS stays zero.
        self.push_sub(0xd, 1, [self.caps.word(Word::Fd1Eax), compacted, 0, 0])?;
        for index in (2..64).filter(|i| xcr0 >> i & 1 != 0) {
            let [a, b, c, _] = self.raw(0xd, index);
            // Bit 2 would say that XFD can disarm the component.
            self.push_sub(0xd, index, [a, b, c & !4, 0])?;
        }
        Ok(())
    }

    fn extended(&mut self, function: u32, max: u32) -> Result<(), Errno> {
        let [a, b, c, d] = self.raw(function, 0);
        let w = |word| self.caps.word(word);
        match function {
            0x8000_0000 => self.push(function, [max, b, c, d]),
            // EBX[27:16] is reserved.
            0x8000_0001 => self.push(function, [a, b & !0x0fff_0000, w(Word::X1Ecx), w(Word::X1Edx)]),
            0x8000_0005 => self.push(function, [a, b, c, d]),
            0x8000_0006 => self.push(function, [a, b, c, d & !(3 << 16)]),
            0x8000_0007 => self.push(function, [0, 0, 0, w(Word::X7Edx)]),
            0x8000_0008 => {
                // What lies above 48 bits cannot be mapped with four levels of nested pages (GuestPhysAddrSize).
                let (physical, linear) = (a & 0xff, (a >> 8 & 0xff).max(48));
                let mapped = if self.host.five_nested_levels() { physical } else { physical.min(48) };
                let sizes = physical | linear << 8 | mapped << 16;
                self.push(function, [sizes, w(Word::X8Ebx), c & 0xf0ff, 0])
            }
            0x8000_0019 => self.push(function, [a, b, 0, 0]),
            0x8000_001a => self.push(function, [a & 7, 0, 0, 0]),
            0x8000_001d => self.caches(function),
            EXTENDED_2 => self.push(function, [w(Word::X21Eax), 0, w(Word::X21Ecx), 0]),
            // The name is user space's; SVM, IBS, LWP, SEV, performance monitoring are not offered; the topology of
            // leaf 0x8000001E is this processor's, not the guest's.
            _ => self.push(function, ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::supported_cpuid;
    use crate::cpuid::tests::{FakeHost, find};

    #[test]
    fn limits_of_leaves_and_subleaves_are_the_hosts_or_ours() {
        let mut host = FakeHost::zen3();
        host.leaves.get_mut(&(0, 0)).unwrap()[0] = 0x30;
        host.leaves.get_mut(&(7, 0)).unwrap()[0] = 9;
        for (function, index) in [(7, 2), (7, 3), (0x20, 0), (0x24, 0), (0x24, 1)] {
            host.leaves.insert((function, index), [!0; 4]);
        }
        let list = supported_cpuid(&host).unwrap();
        assert_eq!((find(&list, 0, 0)[0], find(&list, 7, 0)[0]), (0x24, 2));
        assert_eq!([find(&list, 7, 2), find(&list, 0x20, 0), find(&list, 0x24, 0)], [[0; 4]; 3]);
        assert!(!list.iter().any(|e| matches!((e.function, e.index), (7, 3) | (0x24, 1) | (0x25..=0x30, _))));
    }

    /// GuestPhysAddrSize: how far the nested tables reach.
    #[test]
    fn five_nested_levels_map_every_address() {
        let mut host = FakeHost::zen3();
        for (bits, five, mapped) in [(48, false, 48), (52, false, 48), (52, true, 52), (40, true, 40)] {
            host.leaves.get_mut(&(0x8000_0008, 0)).unwrap()[0] = 0x3900 | bits;
            host.five_levels = five;
            let sizes = find(&supported_cpuid(&host).unwrap(), 0x8000_0008, 0)[0];
            assert_eq!(sizes, mapped << 16 | 0x3900 | bits, "{bits} {five}");
        }
    }
}
