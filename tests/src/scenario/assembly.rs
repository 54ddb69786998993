//! Scenarios once more, with the world switch of the module between hypervisor and script.

use super::handover::{EVERYWHERE, is_handed_over_everywhere};
use std::env;
use std::process::Command;

/// Set in the environment: guests are entered and left by the real assembly.
const THROUGH: &str = "HSAVE_THROUGH_ASSEMBLY";

/// When to give up: a vCPU may never leave the guest.
const MOST_SECONDS: &str = "900";

/// Is this process one that runs scenarios through the assembly?
pub fn is_through_the_assembly() -> bool {
    env::var_os(THROUGH).is_some()
}

/// For a test called `name`: runs all others of its program through the assembly, in a process of their own.
pub fn all_through_the_assembly(name: &str) {
    again_with(&[THROUGH], name);
}

/// The same with a handover wherever there can be one.
pub fn all_handed_over_through_the_assembly(name: &str) {
    again_with(&[THROUGH, EVERYWHERE], name);
}

/// For a test called `name`: runs all others of its program with these variables set, unless this is such a process already.
pub(super) fn again_with(variables: &[&str], name: &str) {
    if is_through_the_assembly() || is_handed_over_everywhere() {
        return;
    }
    let program = env::current_exe().expect("a program");
    let mut command = Command::new("timeout");
    command.arg(MOST_SECONDS).arg(program).args(["--skip", name]);
    if variables.contains(&EVERYWHERE) {
        // Dozens of vCPUs go along at each ioctl: that takes minutes, and the tests hand over where it matters.
        command.args(["--skip", "broadcast::"]);
    }
    command.envs(variables.iter().map(|v| (v, "1")));
    let ran = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    let complained = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "with {variables:?}:\n{said}{complained}");
}
