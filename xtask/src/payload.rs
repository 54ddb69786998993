//! The binaries of the crate `tests` that run inside the emulated host: static, so that they need
//! nothing there.

use crate::{crate_tests, env::Env, proc, ui};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What they are built for.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The names of all of them.
pub fn names(env: &Env) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(env.root.join("tests/src/bin")) else { return Ok(Vec::new()) };
    let name = |path: PathBuf| {
        let rust = path.extension().is_some_and(|ext| ext == "rs") || path.join("main.rs").is_file();
        rust.then(|| path.file_stem().unwrap_or_default().to_string_lossy().into_owned())
    };
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| name(entry.path())).collect();
    names.sort();
    Ok(names)
}

/// Builds them all and returns the directory they are in.
pub fn build(env: &Env) -> Result<PathBuf> {
    let target = env.target().join("payload");
    if names(env)?.is_empty() {
        return Ok(target);
    }
    ui::step("the test programs for the emulated host", || {
        let mut cargo = env.cargo();
        cargo.args(["build", "--release", "--package", "tests", "--bins", "--target", TARGET]);
        cargo.arg("--target-dir").arg(&target);
        cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static").env_remove("RUSTFLAGS");
        proc::run(&mut cargo)?;
        crate_tests::build(env, &target, &target.join(TARGET).join("release"))
    })?;
    Ok(target.join(TARGET).join("release"))
}

/// Where a built one goes in the host, and where it is here.
pub fn file(dir: &Path, name: &str) -> Result<(String, PathBuf)> {
    let path = dir.join(name);
    fs::metadata(&path).with_context(|| format!("the crate `tests` has no binary {name}"))?;
    Ok((format!("payload/{name}"), path))
}
