//! How patient a program of the emulated host has to be.

use std::time::Duration;

/// A limit as it is to be on this machine. The host's first program sets `SLOW` to how many times longer its start took than on an
/// idle machine; in virtual time that is 1 everywhere.
pub fn limit(on_an_idle_machine: Duration) -> Duration {
    let slow = std::env::var("SLOW").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    on_an_idle_machine.saturating_mul(std::cmp::max(slow, 1))
}
