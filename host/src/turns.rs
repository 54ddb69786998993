//! Going through much without keeping the CPU.

use crate::Host;

/// So many are gone through before another task may have the CPU.
const AT_A_TIME: usize = 64;

/// All of them. Task context, no spin lock held.
pub fn in_turns<H: Host, I: IntoIterator>(host: &H, all: I) -> impl Iterator<Item = I::Item> {
    all.into_iter().enumerate().map(|(n, one)| {
        if n % AT_A_TIME == AT_A_TIME - 1 {
            host.cond_resched();
        }
        one
    })
}
