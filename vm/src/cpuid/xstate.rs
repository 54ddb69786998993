//! Sizes of XSAVE areas (APM 11.5.2, 11.5.3; CPUID Fn0000_000D).

use super::HostInfo;

/// Components that have a size and an offset of their own.
const COMPONENTS: usize = 20;
/// The legacy area and the XSAVE header.
const HEADER: u32 = 512 + 64;

/// Where the host's processor puts the state components.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XstateTable {
    /// Size in bytes and offset in the standard format; zero where the host has no such component.
    parts: [(u32, u32); COMPONENTS],
    /// Components that are aligned to 64 bytes in the compacted format.
    aligned: u32,
}

impl XstateTable {
    /// Reads the table from the host for the components in `mask`.
    pub fn new(host: &impl HostInfo, mask: u64) -> Self {
        let mut table = Self { parts: [(0, 0); COMPONENTS], aligned: 0 };
        for (i, part) in table.parts.iter_mut().enumerate().skip(2) {
            if mask >> i & 1 != 0 {
                let [size, offset, flags, _] = host.leaf(0xd, i as u32);
                *part = (size, offset);
                table.aligned |= (flags >> 1 & 1) << i;
            }
        }
        table
    }

    /// Bytes that XSAVE (standard format) or XSAVEC and XSAVES (compacted) need for the components in `mask`.
    pub fn required(&self, mask: u64, compacted: bool) -> u32 {
        let mut end = HEADER;
        for (i, &(size, offset)) in self.parts.iter().enumerate().skip(2) {
            if mask >> i & 1 == 0 {
                continue;
            }
            let start = match (compacted, self.aligned >> i & 1 != 0) {
                (false, _) => offset,
                (true, true) => end.wrapping_add(63) & !63,
                (true, false) => end,
            };
            end = end.max(start.wrapping_add(size));
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::FakeHost;
    use super::*;

    #[test]
    fn sizes_of_both_formats() {
        let t = XstateTable::new(&FakeHost::zen3(), 0x207);
        assert_eq!(t.required(1, false), 576);
        assert_eq!(t.required(3, false), 576);
        assert_eq!(t.required(7, false), 832);
        // PKRU lies at 2432 in the standard format and right behind AVX in the compacted one.
        assert_eq!(t.required(0x207, false), 2440);
        assert_eq!(t.required(0x207, true), 840);
        assert_eq!(t.required(0x203, true), 584);
        // Unknown components add nothing and do not disturb.
        assert_eq!(t.required(!0 ^ 0x200, true), 832);
    }
}
