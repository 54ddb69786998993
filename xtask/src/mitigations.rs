//! The module under every setting of the host kernel's mitigations: one scenario for each.
//!
//! The kernel patches its own code by them, and with it what our object calls: return thunks, retpolines, and what runs
//! at entry to the kernel. The emulated processor has the faults that Zen 1 has, as far as the kernel knows, but neither
//! SPEC_CTRL nor PRED_CMD (no IBRS, STIBP, SSBD, IBPB): settings that need those fall back to another, or leave it
//! "Vulnerable: ... no microcode". The scripts check what each came to, so that a setting without effect is not taken
//! for a tested one.

use crate::kernels::{self, Kernel};
use crate::scenarios::{Scenario, program};
use std::time::Duration;

/// Rows of a name, words of the command line, and what the files of /sys/devices/system/cpu/vulnerabilities begin with.
macro_rules! mitigations {
    ($($name:literal $cmdline:literal $($file:literal $says:literal),+;)*) => {
        &[$(mitigations!($name, $cmdline, $($file, $says),+)),*]
    };
    ($name:literal, $cmdline:literal, $($file:literal, $says:literal),+) => {
        Scenario {
            // Debian's 7.3 warns about its own Rust code, which it cannot patch so, before anything else is loaded.
            kernels: match $name.as_bytes() {
                b"spectre_v2-lfence" => &[Kernel::V6_1, Kernel::V6_12],
                _ => &kernels::ALL,
            },
            // A few of them stand for the others: no mitigation, each way of leading branches, and each thunk.
            slow: match $name.as_bytes() {
                b"off" | b"spectre_v2-lfence" | b"retbleed-unret" | b"srso-ibpb" => &[Kernel::V6_1, Kernel::V7_3],
                _ => &kernels::ALL,
            },
            cmdline: $cmdline,
            // The settings are told apart as on Zen 1 without these; the strict processor has them, and is a later one where it can.
            cpu: "EPYC-v1,+svm,+npt,-ibrs,-ibpb,-amd-stibp,-amd-ssbd",
            timeout: Duration::from_secs(300),
            ..program(
                concat!("mitigations-", $name),
                &["exits"],
                concat!(
                    "cd /sys/devices/system/cpu/vulnerabilities; grep . retbleed spec* >/dev/ttyS0; ",
                    $("grep -q '^", $says, "' ", $file, " || { echo ", $file, " is $(cat ", $file, "); exit 1; }; ",)+
                    "/payload/exits"
                ),
            )
        }
    };
}

/// All of them.
pub const ALL: &[Scenario] = mitigations! {
    "off" "mitigations=off" "spectre_v2" "Vulnerable", "retbleed" "Vulnerable", "spectre_v1" "Vulnerable";
    "auto-nosmt" "mitigations=auto,nosmt" "spectre_v2" "Mitigation: Retpolines", "retbleed" "Mitigation: untrained";
    "spectre_v2-off" "spectre_v2=off retbleed=off" "spectre_v2" "Vulnerable", "retbleed" "Vulnerable";
    "spectre_v2-retpoline" "spectre_v2=retpoline" "spectre_v2" "Mitigation: Retpolines";
    "spectre_v2-lfence" "spectre_v2=retpoline,lfence" "spectre_v2" ".*LFENCE";
    // Without SPEC_CTRL it comes to retpolines.
    "spectre_v2-ibrs" "spectre_v2=ibrs" "spectre_v2" "Mitigation: Retpolines";
    "retbleed-off" "retbleed=off" "retbleed" "Vulnerable", "spectre_v2" "Mitigation: Retpolines";
    "retbleed-unret" "retbleed=unret" "retbleed" "Mitigation: untrained return thunk";
    // Without PRED_CMD it comes to the untrained return thunk.
    "retbleed-ibpb" "retbleed=ibpb" "retbleed" "Mitigation: untrained return thunk";
    // Both are vulnerable in the eyes of 6.12, with and without the safe return, because the microcode lacks its part. 6.1 says
    // the same of both, and 7.3 counts on SMT being off.
    "srso-off" "spec_rstack_overflow=off"
        "spec_rstack_overflow" "\\(Vulnerable\\|Vulnerable, no microcode\\|Mitigation: SMT disabled\\)$";
    "srso-ibpb" "spec_rstack_overflow=ibpb"
        "spec_rstack_overflow" "\\(Vulnerable: No microcode\\|Vulnerable, no microcode\\|Mitigation: SMT disabled\\)$";
};
