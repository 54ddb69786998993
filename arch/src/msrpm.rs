//! The MSR permission map (APM 15.11): two bits per MSR (read, write), three ranges of 0x2000 MSRs, 8 KiB.

/// Bytes in the map.
pub const MSRPM_SIZE: usize = 2 * 4096;

/// Byte offset (below 6144) and bit (0, 2, 4 or 6) of an MSR's read intercept; the write intercept is the next bit.
/// None for MSRs outside of the map, which are always intercepted.
pub const fn position(msr: u32) -> Option<(usize, u8)> {
    let (range, index) = match msr {
        0..=0x1fff => (0, msr),
        0xc000_0000..=0xc000_1fff => (0x800, msr & 0x1fff),
        0xc001_0000..=0xc001_1fff => (0x1000, msr & 0x1fff),
        _ => return None,
    };
    Some((range + index as usize / 4, (index % 4 * 2) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_msr_has_its_own_bits() {
        extern crate std;
        let mut seen = std::collections::HashSet::new();
        for base in [0u32, 0xc000_0000, 0xc001_0000] {
            for i in (0..0x2000).step_by(crate::STRIDE) {
                let (byte, bit) = position(base + i).unwrap();
                assert!(byte < MSRPM_SIZE && bit < 7);
                assert!(seen.insert((byte, bit)));
            }
        }
        assert_eq!(position(0x2000), None);
        assert_eq!(position(0xc000_2000), None);
        assert_eq!(position(0xbfff_ffff), None);
    }

    #[test]
    fn exactly_the_msrs_of_the_three_ranges_are_in_the_map() {
        let ranges = [(0, 0), (0xc000_0000, 0x800), (0xc001_0000, 0x1000)];
        let all = (0..0x3_0000).chain(0xbfff_0000..0xc003_0000).chain(0xffff_0000..=u32::MAX);
        for msr in all.step_by(crate::STRIDE) {
            let range = ranges.into_iter().find(|(first, _)| msr.wrapping_sub(*first) < 0x2000);
            // Two bits per MSR, as one string of bits from the start of the range.
            let bits = range.map(|(first, at)| at * 8 + (msr - first) as usize * 2);
            assert_eq!(position(msr), bits.map(|n| (n / 8, (n % 8) as u8)), "{msr:#x}");
        }
    }
}
