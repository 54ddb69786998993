//! A list of named checks with a result line each, for programs that run in the emulated host.

use anyhow::{Result, bail};

/// A check: its name and what it does.
pub type Check = (&'static str, fn() -> Result<()>);

/// Runs all checks whose name contains the first argument (all without one); prints `ok NAME` or `FAIL NAME: why`.
/// Errors: at least one failed.
pub fn run(checks: &[Check]) -> Result<()> {
    let only = std::env::args().nth(1).unwrap_or_default();
    let mut failed = 0;
    for (name, check) in checks.iter().filter(|(name, _)| name.contains(&only)) {
        match check() {
            Ok(()) => println!("ok {name}"),
            Err(e) => {
                println!("FAIL {name}: {e:#}");
                failed += 1;
            }
        }
    }
    if failed > 0 { bail!("{failed} checks failed") } else { Ok(()) }
}
