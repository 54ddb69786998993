//! The tests of `arch` under Miri, where rustup has a nightly toolchain with it (docs/decisions/0015).

use crate::{env::Env, proc, ui};
use anyhow::Result;
use std::process::Command;

/// Runs them. None: there is no Miri here.
pub fn run(env: &Env) -> Option<Result<()>> {
    let miri = || {
        let mut rustup = Command::new("rustup");
        rustup.args(["run", "nightly", "cargo", "miri"]).current_dir(&env.root);
        rustup.env_remove("RUSTC").env("CARGO_TARGET_DIR", env.target().join("miri"));
        rustup
    };
    if !proc::output(miri().arg("--version")).is_ok_and(|output| output.status.success()) {
        return None;
    }
    let run = || proc::run(miri().args(["test", "--quiet", "--package", "arch", "--lib"]));
    Some(ui::step("arch under Miri", run).map(drop))
}
