//! What is run in the emulated AMD host by `./x test`: one line per scenario.

use crate::kernels::{self, Kernel};
use std::time::Duration;

/// One script for the emulated host, on some kernels.
pub struct Scenario {
    pub name: &'static str,
    pub kernels: &'static [Kernel],
    /// busybox sh; exit status 0 is success.
    pub script: &'static str,
    /// Run on stock kvm-amd too, and compare what was printed.
    pub compare: bool,
    /// Binaries of the crate `tests` that the script starts, as /payload/NAME.
    pub payloads: &'static [&'static str],
    pub smp: u32,
    pub timeout: Duration,
}

const MINUTES: u64 = 60;

/// A Linux guest from power-on to power-off, its console and its disk the same as on stock kvm-amd.
const fn boot(name: &'static str, script: &'static str) -> Scenario {
    Scenario {
        name,
        kernels: &kernels::ALL,
        script,
        compare: true,
        payloads: &[],
        smp: 2,
        timeout: Duration::from_secs(6 * MINUTES),
    }
}

/// All of them, in the order in which they are started.
pub const ALL: &[Scenario] = &[
    boot("boot-microvm", "boot-guest microvm check"),
    boot("boot-q35", "boot-guest q35 check"),
    boot("boot-pc", "boot-guest pc check"),
    Scenario {
        name: "load-unload",
        kernels: &kernels::ALL,
        script: "for i in 1 2 3; do rmmod kvm_amd && rmmod kvm || exit 1; [ ! -e /dev/kvm ] || exit 2; \
                 insmod /modules/kvm.ko && insmod /modules/kvm-amd.ko || exit 3; [ -c /dev/kvm ] || exit 4; done",
        compare: false,
        payloads: &[],
        smp: 2,
        timeout: Duration::from_secs(2 * MINUTES),
    },
];

/// Binaries of the crate `tests` that are no scenario of their own.
pub const NOT_SCENARIOS: &[&str] = &["bench"];
