//! What VMLOAD and VMSAVE move (APM 15.5.2, table B-2), for real in the model.
#![cfg(any(test, feature = "model"))]

use arch::{SaveArea, Segment};

/// Hidden parts of FS, GS, TR and LDTR, and the system-call registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct System {
    pub fs: Segment,
    pub gs: Segment,
    pub tr: Segment,
    pub ldtr: Segment,
    pub kernel_gs_base: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
}

impl System {
    /// Registers that all differ from each other and, with another seed, from those of that seed.
    pub fn pattern(seed: u16) -> Self {
        let wide = |n: u64| (seed as u64) << 48 | n;
        let segment =
            |n: u16| Segment { selector: seed ^ n, limit: n as u32, base: wide(n as u64), ..Default::default() };
        Self {
            fs: segment(1),
            gs: segment(2),
            tr: segment(3),
            ldtr: segment(4),
            kernel_gs_base: wide(5),
            star: wide(6),
            lstar: wide(7),
            cstar: wide(8),
            sfmask: wide(9),
            sysenter_cs: wide(10),
            sysenter_esp: wide(11),
            sysenter_eip: wide(12),
        }
    }

    /// VMLOAD.
    pub fn load(s: &SaveArea) -> Self {
        Self {
            fs: s.fs,
            gs: s.gs,
            tr: s.tr,
            ldtr: s.ldtr,
            kernel_gs_base: s.kernel_gs_base,
            star: s.star,
            lstar: s.lstar,
            cstar: s.cstar,
            sfmask: s.sfmask,
            sysenter_cs: s.sysenter_cs,
            sysenter_esp: s.sysenter_esp,
            sysenter_eip: s.sysenter_eip,
        }
    }

    /// VMSAVE.
    pub fn save(&self, s: &mut SaveArea) {
        (s.fs, s.gs, s.tr, s.ldtr) = (self.fs, self.gs, self.tr, self.ldtr);
        (s.kernel_gs_base, s.star, s.lstar) = (self.kernel_gs_base, self.star, self.lstar);
        (s.cstar, s.sfmask, s.sysenter_cs) = (self.cstar, self.sfmask, self.sysenter_cs);
        (s.sysenter_esp, s.sysenter_eip) = (self.sysenter_esp, self.sysenter_eip);
    }
}
