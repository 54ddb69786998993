//! From cycles to nanoseconds and back without division by anything but a frequency.

/// A ratio of two 32-bit numbers as `mul * 2^(shift - 32)`, `mul` with its top bit set, so that the error is below
/// 2^-31. Zero counts as 1.
const fn ratio(above: u32, below: u32) -> (u32, i8) {
    let mut above = if above == 0 { 1 } else { above as u64 };
    let mut below = if below == 0 { 1 } else { below as u64 };
    let mut shift = 0;
    // Bring it to [1/2, 1); the smaller one stays below 2^32.
    while above >= below {
        below <<= 1;
        shift += 1;
    }
    while above << 1 < below {
        above <<= 1;
        shift -= 1;
    }
    let mul = match (above << 32).checked_div(below) {
        Some(mul) => mul as u32,
        None => u32::MAX,
    };
    (mul, shift)
}

/// `value * mul * 2^(shift - 32)`, rounded down; saturates.
const fn apply(value: u64, (mul, shift): (u32, i8)) -> u64 {
    // The shifts of a kHz number and a million stay between -20 and 20.
    let product = (value as u128 * mul as u128) >> (32 - shift as i32);
    if product > u64::MAX as u128 { u64::MAX } else { product as u64 }
}

/// Multiplier and shift with which a guest turns TSC cycles into nanoseconds: `(cycles << shift) * mul >> 32`, a
/// negative shift being a shift to the right (`pvclock_vcpu_time_info`, KVM's MSR document). A frequency of zero counts
/// as 1 kHz.
pub const fn time_scale(tsc_khz: u32) -> (u32, i8) {
    ratio(1_000_000, tsc_khz)
}

/// A frequency, prepared for conversion both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    khz: u32,
    ns: (u32, i8),
    cycles: (u32, i8),
}

/// What follows from the frequency is computed anew.
impl state::State for Rate {
    fn save(&self, w: &mut state::Writer) {
        self.khz.save(w);
    }
    fn load(&mut self, r: &mut state::Reader<'_>) -> Result<(), state::Refused> {
        *self = Self::new(r.value()?);
        Ok(())
    }
}

impl Rate {
    /// For a TSC frequency in kHz; zero counts as 1.
    pub const fn new(khz: u32) -> Self {
        Self { khz: if khz == 0 { 1 } else { khz }, ns: time_scale(khz), cycles: ratio(khz, 1_000_000) }
    }

    /// The frequency in kHz.
    pub const fn khz(&self) -> u32 {
        self.khz
    }

    /// What goes into a clock page: multiplier and shift.
    pub const fn scale(&self) -> (u32, i8) {
        self.ns
    }

    /// Nanoseconds that `cycles` take, rounded down; saturates.
    pub const fn to_ns(&self, cycles: u64) -> u64 {
        apply(cycles, self.ns)
    }

    /// Cycles in `ns` nanoseconds, rounded down; saturates.
    pub const fn to_cycles(&self, ns: u64) -> u64 {
        apply(ns, self.cycles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: [u32; 14] = [
        1,
        2,
        999,
        1_000,
        32_768,
        999_999,
        1_000_000,
        1_000_001,
        1_999_999,
        2_000_000,
        2_893_437,
        3_400_000,
        5_000_000,
        u32::MAX,
    ];

    #[test]
    fn known_values() {
        assert_eq!(time_scale(1_000_000), (1 << 31, 1));
        assert_eq!(time_scale(2_000_000), (1 << 31, 0));
        assert_eq!(time_scale(4_000_000), (1 << 31, -1));
        assert_eq!(time_scale(0), time_scale(1));
    }

    #[test]
    fn a_day_is_right_to_a_hundred_microseconds() {
        for khz in SOME {
            let (mul, shift) = time_scale(khz);
            assert!((-12..=20).contains(&shift), "{khz}: {shift}");
            assert!(mul >= 1 << 31, "{khz}: {mul:#x}");
            let cycles = u64::from(khz) * 86_400_000;
            let day = 86_400_000_000_000u64;
            // As the guest computes it, and as we do.
            let shifted = if shift < 0 { cycles >> -shift } else { cycles << shift };
            let guest = ((u128::from(shifted) * u128::from(mul)) >> 32) as u64;
            assert!(day.abs_diff(guest) < 100_000, "{khz}: {guest}");
            assert!(guest.abs_diff(Rate::new(khz).to_ns(cycles)) <= 2_000, "{khz}");
        }
    }

    #[test]
    fn there_and_back() {
        for khz in SOME {
            let rate = Rate::new(khz);
            for ns in [0, 1, 1_000, 1_000_000_007, 86_400_000_000_000] {
                let back = rate.to_ns(rate.to_cycles(ns));
                let grain = 2 + 1_000_000 / u64::from(khz);
                assert!(back.abs_diff(ns) <= grain + ns / 500_000_000, "{khz} {ns} {back}");
            }
            rate.to_ns(u64::MAX);
            rate.to_cycles(u64::MAX);
        }
    }
}
