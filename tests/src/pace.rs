//! How patient a program of the emulated host has to be, and how careful if it is in another.

use std::time::Duration;

/// A limit as it is to be on this machine. The host's first program sets `SLOW` to how many times longer its start took than on an
/// idle machine; in virtual time that is 1 everywhere.
pub fn limit(on_an_idle_machine: Duration) -> Duration {
    let slow = std::env::var("SLOW").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    on_an_idle_machine.saturating_mul(std::cmp::max(slow, 1))
}

/// Whether this is somebody's machine (`./x test --here` sets `HSAVE_HERE`), where nothing is done that outlasts the program, to
/// processors or memory: it is left out, with a line that says so.
pub fn leaves_out(what: &str) -> bool {
    let here = std::env::var_os("HSAVE_HERE").is_some();
    if here {
        println!("   ({what}: not on somebody's machine)");
    }
    here
}
