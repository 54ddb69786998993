//! The strict processor without one of its features each, since processors are of many years.

use crate::kernels::{self, Kernel};
use crate::scenarios::{Scenario, program};

/// Rows of words of `-cpu` that take something away: `exits` on a processor without it.
macro_rules! without {
    ($($name:literal $flags:literal $slow:expr;)*) => {
        &[$(Scenario {
            strict: true,
            kernels: &[Kernel::V6_12],
            slow: $slow,
            cpu: concat!("EPYC,+svm,+npt,", $flags),
            ..program(concat!("without-", $name), &["exits"], "/payload/exits")
        }),*]
    };
}

/// All of them.
pub const ALL: &[Scenario] = without! {
    "nrip-save" "-nrip-save" &[];
    "v-spec-ctrl" "-v-spec-ctrl" &[];
    "decodeassists" "-decodeassists" &kernels::ALL;
    "flushbyasid" "-flushbyasid" &kernels::ALL;
    "vmcb-clean" "-vmcb-clean" &kernels::ALL;
    "tsc-scale" "-tsc-scale" &kernels::ALL;
    "pause-filter" "-pause-filter,-pfthreshold" &kernels::ALL;
    "pfthreshold" "-pfthreshold" &kernels::ALL;
    "lbrv" "-lbrv" &kernels::ALL;
    "v-vmsave-vmload" "-v-vmsave-vmload" &kernels::ALL;
    "vgif" "-vgif,-vnmi" &kernels::ALL;
    "vnmi" "-vnmi" &kernels::ALL;
    "spec-ctrl" "-v-spec-ctrl,-ibrs,-amd-stibp,-amd-ssbd" &kernels::ALL;
    "ibpb" "-ibpb" &kernels::ALL;
};
