//! How fast a guest's TSC is asked to run, and what is done about it (KVM API document 4.55).
//!
//! With TSC scaling the processor multiplies (APM 15.30.5). Without, a guest whose TSC ought to be faster is put
//! forward at each exit, so that it is right on average; a slower one cannot be had.

use super::Rate;
use host::Errno;

/// Bits behind the binary point of the TSC ratio.
const FRACTION: u32 = 32;
/// The ratio has eight bits before the binary point.
const MAX_RATIO: u64 = 0xff_ffff_ffff;

/// The TSC frequency of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frequency {
    /// What was asked for.
    wanted: Rate,
    /// What the guest's RDTSC counts at.
    real: Rate,
    /// TSC ratio; 0 stands for 1.0.
    ratio: u64,
    /// The offset grows at each exit.
    catches_up: bool,
    /// A requested frequency counts as the host's within this many parts in a million.
    pub tolerance_ppm: u32,
}

::state::state! {
    place Frequency { wanted, real, ratio, catches_up, tolerance_ppm }
}

impl Frequency {
    /// The host's own, in kHz.
    pub fn host(khz: u32) -> Self {
        Self { wanted: Rate::new(khz), real: Rate::new(khz), ratio: 0, catches_up: false, tolerance_ppm: 250 }
    }

    /// KVM_SET_TSC_KHZ; 0 stands for the host's frequency. As on stock, the wanted frequency is noted even if it
    /// cannot be had. Errors: EINVAL (beyond what the ratio can say; or slower than the host without scaling).
    pub fn set(&mut self, khz: u32, host_khz: u32, scaling: bool) -> Result<(), Errno> {
        if scaling && !Self::scalable(khz, host_khz) {
            return Err(Errno::EINVAL);
        }
        let khz = if khz == 0 { host_khz } else { khz };
        (self.wanted, self.real, self.ratio) = (Rate::new(khz), Rate::new(host_khz), 0);
        self.catches_up = false;
        let tolerance = u64::from(host_khz) * u64::from(self.tolerance_ppm) / 1_000_000;
        if u64::from(khz.abs_diff(host_khz)) <= tolerance {
            return Ok(());
        }
        if scaling {
            let ratio = (u64::from(khz) << FRACTION).checked_div(host_khz.into()).unwrap_or(0);
            if ratio == 0 || ratio > MAX_RATIO {
                return Err(Errno::EINVAL);
            }
            (self.real, self.ratio) = (Rate::new(khz), ratio);
            return Ok(());
        }
        self.catches_up = khz > host_khz;
        if self.catches_up { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Is it below what KVM_SET_TSC_KHZ takes on a processor with scaling?
    pub fn scalable(khz: u32, host_khz: u32) -> bool {
        u64::from(khz) < limit(host_khz)
    }

    /// As asked for.
    pub fn wanted(&self) -> &Rate {
        &self.wanted
    }

    /// As the guest sees it from one exit to the next.
    pub fn real(&self) -> &Rate {
        &self.real
    }

    /// For the TSC ratio MSR; 0 stands for 1.0.
    pub fn ratio(&self) -> u64 {
        self.ratio
    }

    /// Has the TSC to be put forward now and then?
    #[inline]
    pub fn catches_up(&self) -> bool {
        self.catches_up
    }

    /// What the processor makes of the host's TSC, before the offset.
    #[inline]
    pub fn scale(&self, host_tsc: u64) -> u64 {
        match self.ratio {
            0 => host_tsc,
            ratio => ((u128::from(host_tsc) * u128::from(ratio)) >> FRACTION) as u64,
        }
    }
}

/// KVM_SET_TSC_KHZ takes frequencies below this, with scaling.
fn limit(host_khz: u32) -> u64 {
    ((u128::from(host_khz) * u128::from(MAX_RATIO)) >> FRACTION).min(i32::MAX as u128) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: u32 = 2_000_000;

    #[test]
    fn without_scaling_only_faster_or_nearly_equal() {
        let mut f = Frequency::host(HOST);
        for (khz, result, catches_up) in [
            (0, Ok(()), false),
            (HOST + 500, Ok(()), false),
            (HOST - 500, Ok(()), false),
            (HOST + 501, Ok(()), true),
            (HOST - 501, Err(Errno::EINVAL), false),
            (1, Err(Errno::EINVAL), false),
            (u32::MAX, Ok(()), true),
        ] {
            assert_eq!(f.set(khz, HOST, false), result, "{khz}");
            assert_eq!((f.catches_up(), f.ratio()), (catches_up, 0), "{khz}");
            assert_eq!(f.wanted().khz(), if khz == 0 { HOST } else { khz });
            assert_eq!(f.real().khz(), HOST);
            assert_eq!(f.scale(12345), 12345);
        }
    }

    #[test]
    fn with_scaling_the_processor_multiplies() {
        let mut f = Frequency::host(HOST);
        assert_eq!(f.set(HOST / 2, HOST, true), Ok(()));
        assert_eq!((f.ratio(), f.scale(1 << 40), f.real().khz()), (1 << 31, 1 << 39, HOST / 2));
        assert_eq!(f.set(HOST * 3, HOST, true), Ok(()));
        assert_eq!((f.ratio(), f.scale(100), f.catches_up()), (3 << 32, 300, false));
        assert_eq!(f.set(HOST * 256, HOST, true), Err(Errno::EINVAL), "eight bits before the point");
        assert_eq!(f.set(i32::MAX as u32, HOST, true), Err(Errno::EINVAL));
        assert_eq!(f.ratio(), 3 << 32, "refused before anything changed");
        assert_eq!(f.set(HOST + 1, HOST, true), Ok(()));
        assert_eq!(f.ratio(), 0, "as good as the host's");
        assert_eq!(f.set(0, HOST, true), Ok(()));
        assert_eq!(f.wanted().khz(), HOST);
    }
}
