//! Everything that a user builds, with the oldest Rust that Debian 12 and 13 have: the one that `x` installs there may be as
//! old, and the machine's own says nothing about it.
//!
//! The packages are unpacked in the cache, without the C toolchain that they ask for: the linker is the machine's own `cc`,
//! since what is linked (build scripts, macros, xtask) runs on this machine.

use crate::{
    debs::{self, Suite},
    env::{Env, key},
    foreign::{self, Libraries},
    proc,
    rust_src::Rustc,
    selection::Selection,
    ui,
};
use anyhow::{Context, Result, ensure};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The suites, and how Debian calls their newest Rust: 12's own is older than the workspace promises, so that `x` takes the one
/// that is there for browsers.
const SUITES: [(Suite, &[&str]); 2] = [
    (debs::BOOKWORM, &["rustc-web", "cargo-web", "libstd-rust-web-dev"]),
    (debs::TRIXIE, &["rustc", "cargo", "libstd-rust-dev"]),
];

/// The kernel that the module is built for. The object is the same for all.
const KERNEL: &str = "6.12";

/// Those whose compiler is asked.
pub fn suites(selection: &Selection) -> impl Iterator<Item = (Suite, &'static [&'static str])> + '_ {
    SUITES.into_iter().filter(|(suite, _)| selection.wants(&format!("oldest-rust {}", suite.0)))
}

/// Builds xtask and, with it, the module; 12's looks at all else, too, which is what `./x test` builds: 13's is of the same release with
/// a correction more.
pub fn build(env: &Env, suite: Suite, packages: &[&str]) -> Result<()> {
    let toolchain = Toolchain::fetch(env, suite, packages)?;
    let target = env.target().join("oldest").join(suite.0);
    ui::step(&format!("xtask by the oldest Rust of Debian {}, {}", suite.0, toolchain.release), || {
        proc::run(toolchain.cargo(env, &target).args(["build", "--locked", "--package", "xtask"]))
    })?;
    if suite.0 == debs::BOOKWORM.0 {
        ui::step("all other crates and their tests by it", || {
            proc::run(toolchain.cargo(env, &target).args(["check", "--locked", "--all-targets"]))
        })?;
    }
    ui::step("core, alloc and the module by it", || {
        let mut xtask = Command::new(target.join("debug/xtask"));
        xtask.args(["module", "--kernel", KERNEL, "--out"]).arg(target.join("modules"));
        proc::run(toolchain.set(&mut xtask, env, &target))
    })?;
    // Nobody else uses what it built, and it is a gigabyte and more.
    proc::remove_dir(&target)
}

/// A Rust toolchain out of Debian's packages, which runs on this machine.
struct Toolchain {
    /// Holds `cargo` and `rustc`.
    bin: PathBuf,
    release: String,
}

impl Toolchain {
    fn fetch(env: &Env, suite: Suite, packages: &[&str]) -> Result<Self> {
        let first = packages.first().context("a toolchain has a compiler")?;
        let version =
            suite.oldest(env, first)?.with_context(|| format!("Debian {} has no package {first}", suite.0))?;
        let wanted: Vec<String> = packages.iter().map(|package| format!("{package}={version}")).collect();
        let mut all = suite.closure(env, &wanted.iter().map(String::as_str).collect::<Vec<_>>())?;
        all.retain(|package| !is_for_c(package));
        let (libc, rest): (Vec<String>, Vec<String>) =
            all.into_iter().partition(|package| package.starts_with("libc6="));
        let name = format!("toolchains/rust-{}-{}", suite.0, key(&[&libc.join(" "), &rest.join(" ")]));
        env.artifact(&name, |dir| {
            ui::step(&format!("the oldest Rust of Debian {} into the cache", suite.0), || {
                suite.unpack(env, &libc, &dir.join("libc"))?;
                suite.unpack(env, &rest, &dir.join("rust"))
            })
        })?;
        let root = env.cache.join(&name);
        let _lock = env.lock(&name)?;
        // The compiler loads macros that this machine has linked with its own glibc, so it runs with that one if it can. The
        // scripts carry absolute paths, so they are written at the final place.
        let rust = root.join("rust");
        let bin = rust.join("usr/bin");
        let mut libraries = Libraries::of_this_machine(&rust);
        if foreign::lacks_libraries(&mut libraries.command(&Libraries::real(&bin.join("rustc")))) {
            libraries = Libraries::with(&root.join("libc"), &rust);
        }
        libraries.wrap(&bin)?;
        let verbose = proc::run(Command::new(bin.join("rustc")).arg("-vV"))?;
        let toolchain = Self { bin, release: Rustc::release_in(&verbose)?.to_owned() };
        let promised = promised(env)?;
        ensure!(
            toolchain.release.starts_with(&promised),
            "the oldest Rust of Debian {} is {}, and Cargo.toml promises {promised}: \
             what `x` installs there and `rust-version` have to agree",
            suite.0,
            toolchain.release
        );
        Ok(toolchain)
    }

    /// Its cargo, for builds into `target`.
    fn cargo(&self, env: &Env, target: &Path) -> Command {
        let mut cargo = Command::new(self.bin.join("cargo"));
        self.set(&mut cargo, env, target);
        cargo
    }

    /// Makes a command and all that it starts use this toolchain.
    fn set<'c>(&self, command: &'c mut Command, env: &Env, target: &Path) -> &'c mut Command {
        for inherited in ["RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_MANIFEST_DIR"] {
            command.env_remove(inherited);
        }
        // Cargo believes that it is the dynamic loader unless it is told.
        command.env("CARGO", self.bin.join("cargo")).env("RUSTC", self.bin.join("rustc"));
        command.env("CARGO_TARGET_DIR", target).env("CARGO_PROFILE_DEV_DEBUG", "0");
        command.env("HSAVE_CACHE", &env.cache).current_dir(&env.root)
    }
}

/// The `rust-version` of the workspace.
fn promised(env: &Env) -> Result<String> {
    let text = std::fs::read_to_string(env.root.join("Cargo.toml"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("rust-version = "));
    Ok(line.context("the workspace promises no rust-version")?.trim_matches('"').to_owned())
}

/// Whether a package is there for the C compiler alone.
fn is_for_c(package: &str) -> bool {
    let name = package.split('=').next().unwrap_or(package);
    let compiler = ["gcc", "g++", "cpp", "binutils", "linux-libc-dev", "libc-dev-bin", "rpcsvc-proto"];
    compiler.iter().any(|start| name.starts_with(start)) || name.ends_with("-dev") && !name.contains("rust")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_for_the_c_compiler_are_known() {
        for package in ["gcc-14-base=1", "libgcc-14-dev=1", "cpp-12=1", "libc6-dev=2", "binutils-common=1"] {
            assert!(is_for_c(package), "{package}");
        }
        for package in ["libstd-rust-dev=1", "libc6=2", "libgcc-s1=1", "libllvm19=1", "rustc-web=1"] {
            assert!(!is_for_c(package), "{package}");
        }
    }
}
