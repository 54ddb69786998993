//! Scenarios once more, with the world switch of the module between hypervisor and script.

use std::env;
use std::process::Command;

/// Set in the environment: guests are entered and left by the real assembly.
const THROUGH: &str = "HSAVE_THROUGH_ASSEMBLY";

/// When to give up: a vCPU may never leave the guest.
const MOST_SECONDS: &str = "300";

/// Is this process one that runs scenarios through the assembly?
pub fn is_through_the_assembly() -> bool {
    env::var_os(THROUGH).is_some()
}

/// For a test called `name`: runs all others of its program through the assembly, in a process of their own.
pub fn all_through_the_assembly(name: &str) {
    if is_through_the_assembly() {
        return;
    }
    let program = env::current_exe().expect("a program");
    let mut command = Command::new("timeout");
    command.arg(MOST_SECONDS).arg(program).env(THROUGH, "1").args(["--skip", name]);
    let ran = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    let complained = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "with {THROUGH}=1:\n{said}{complained}");
}
