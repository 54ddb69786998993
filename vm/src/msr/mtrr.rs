//! Memory type range registers (APM 7.7). They are kept and checked; nested paging takes memory types from elsewhere.

use super::number::MTRR_LAST_VARIABLE;
use arch::{GuestIndexed, msr::*};

/// MTRRcap: 8 variable ranges, fixed ranges, write-combining.
pub const MTRR_CAP: u64 = 0x508;
const VARIABLE: usize = 16;

/// All MTRRs of one vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mtrr {
    /// MTRRphysBase0, MTRRphysMask0, MTRRphysBase1, ...
    variable: GuestIndexed<[u64; VARIABLE]>,
    /// 64K, two of 16K, eight of 4K.
    fixed: GuestIndexed<[u64; 11]>,
    default_type: u64,
}

::state::state! {
    place Mtrr { variable, fixed, default_type }
}

/// Is it a memory type that MTRRs may hold: UC, WC, WT, WP, WB?
const fn is_type(t: u64) -> bool {
    matches!(t & 0xff, 0 | 1 | 4 | 5 | 6)
}

/// PAT: each byte one of UC, WC, WT, WP, WB, UC- (APM 7.8.1).
pub const fn pat_valid(pat: u64) -> bool {
    // Each byte below 8, and none with bit 1 but without bit 2 (types 2 and 3).
    pat & 0xf8f8_f8f8_f8f8_f8f8 == 0 && (pat >> 1 & !(pat >> 2)) & 0x0101_0101_0101_0101 == 0
}

impl Mtrr {
    fn place(&mut self, msr: u32) -> Option<&mut u64> {
        match msr {
            MTRR_PHYS_BASE0..=MTRR_LAST_VARIABLE => self.variable.get_nospec_mut((msr - MTRR_PHYS_BASE0) as usize),
            MTRR_FIX64K => self.fixed.get_nospec_mut(0),
            MTRR_FIX16K_8 | MTRR_FIX16K_A => self.fixed.get_nospec_mut((msr - MTRR_FIX16K_8) as usize + 1),
            MTRR_FIX4K_C0..=MTRR_FIX4K_F8 => self.fixed.get_nospec_mut((msr - MTRR_FIX4K_C0) as usize + 3),
            MTRR_DEF_TYPE => Some(&mut self.default_type),
            _ => None,
        }
    }

    /// Reads one; None if `msr` is none of them.
    pub fn read(&mut self, msr: u32) -> Option<u64> {
        self.place(msr).map(|v| *v)
    }

    /// Writes one. `reserved_gpa` are the address bits that the guest does not have. False: a reserved bit or type, or
    /// `msr` is none of them.
    pub fn write(&mut self, msr: u32, value: u64, reserved_gpa: u64) -> bool {
        let valid = match msr {
            MTRR_DEF_TYPE => value & !0xcff == 0 && is_type(value),
            MTRR_PHYS_BASE0..=MTRR_LAST_VARIABLE if msr & 1 == 0 => {
                value & (reserved_gpa | 0xf00) == 0 && is_type(value)
            }
            MTRR_PHYS_BASE0..=MTRR_LAST_VARIABLE => value & (reserved_gpa | 0x7ff) == 0,
            _ => value.to_le_bytes().iter().all(|&t| is_type(t.into())),
        };
        match self.place(msr) {
            Some(place) if valid => {
                *place = value;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_register_is_its_own() {
        let mut m = Mtrr::default();
        let all: std::vec::Vec<u32> = (0x200..=0x2ff).filter(|&n| m.read(n).is_some()).collect();
        assert_eq!(all.len(), 16 + 11 + 1);
        for (i, &n) in all.iter().enumerate() {
            assert!(m.write(n, [0x0, 0x1000, 0x0, 0x1800][i % 4] & if n < 0x210 { !0 } else { 0 }, 0), "{n:#x}");
        }
        assert!(m.write(0x204, 0x1234_5006, !0 << 48));
        assert_eq!((m.read(0x204), m.read(0x205)), (Some(0x1234_5006), Some(0x1000)));
        assert!(m.write(0x26f, 0x0606_0505_0404_0100, 0));
        assert_eq!((m.read(0x26f), m.read(0x268)), (Some(0x0606_0505_0404_0100), Some(0)));
    }

    #[test]
    fn reserved_bits_and_types() {
        let mut m = Mtrr::default();
        let high = !0 << 40;
        for (msr, value, ok) in [
            (0x2ff, 0xc06, true),
            (0x2ff, 0x406, true),
            (0x2ff, 0x1c06, false),
            (0x2ff, 0x302, false),
            (0x2ff, 0xc02, false),
            (0x2ff, 0xc07, false),
            (0x200, 0x106, false),
            (0x200, 0x8000_0003, false),
            (0x200, 1 << 40, false),
            (0x200, 1 << 39, true),
            (0x201, 0xff_c000_0800, true),
            (0x201, 0x400, false),
            (0x201, 1 << 40 | 0x800, false),
            (0x250, 0x0606_0606_0606_0606, true),
            (0x250, 0x0606_0606_0606_0706, false),
            (0x210, 0, false),
            (0x251, 0, false),
            (0x277, 0, false),
        ] {
            assert_eq!(m.write(msr, value, high), ok, "{msr:#x} {value:#x}");
        }
    }

    #[test]
    fn pat_types() {
        for t in 0..=255u64 {
            for byte in 0..8 {
                let ok = matches!(t, 0 | 1 | 4 | 5 | 6 | 7);
                assert_eq!(pat_valid(t << (8 * byte)), ok, "{t} in byte {byte}");
            }
        }
        assert!(pat_valid(super::super::PAT_RESET));
    }
}
