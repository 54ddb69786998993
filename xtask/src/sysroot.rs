//! `core` and `alloc` for kernel mode, by calling rustc directly (docs/decisions/0003).

use crate::{
    env::{Env, key},
    proc,
    rust_src::{self, Rustc},
    ui,
};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// rustc's built-in bare target, which the kernel's ABI flags are added to.
pub const TARGET: &str = "x86_64-unknown-none";

/// 128-bit division and floating point need the real one; without it they fail at link time, as they
/// must in kernel code.
const EMPTY_COMPILER_BUILTINS: &str = "#![feature(compiler_builtins)]\n#![compiler_builtins]\n\
    #![no_builtins]\n#![no_std]\n//! Empty on purpose.\n";

/// The flags that make rustc's output fit a Debian kernel with all its mitigations: no red zone, kernel
/// code model, retpolines and return thunks by external name, ENDBR at entries, call padding.
/// `cf-protection` and padding are inert on kernels that do not use them, so one object fits all.
pub fn flags(env: &Env, rustc: &Rustc) -> Vec<String> {
    let knows = |flag: &str| {
        let mut probe = rustc.command(env);
        probe.args(["--target", TARGET, flag, "--print", "target-libdir"]);
        proc::output(&mut probe).is_ok_and(|output| output.status.success())
    };
    let mut flags = vec![
        "-Csymbol-mangling-version=v0",
        "-Cpanic=abort",
        "-Crelocation-model=static",
        "-Ccode-model=kernel",
        "-Cno-redzone=y",
        "-Cforce-unwind-tables=n",
        // Without it calls go through GOTPCREL relocations, which the module loader rejects.
        "-Zplt=yes",
        "-Zfunction-sections=n",
        "-Ctarget-cpu=x86-64",
        "-Ztune-cpu=generic",
    ];
    // Names changed between rustc 1.85 and now.
    flags.push(if knows("-Cjump-tables=n") { "-Cjump-tables=n" } else { "-Zno-jump-tables" });
    flags.push(if knows("-Zretpoline-external-thunk") {
        "-Zretpoline-external-thunk"
    } else {
        "-Ctarget-feature=+retpoline-external-thunk,+retpoline-indirect-branches,+retpoline-indirect-calls"
    });
    if knows("-Zindirect-branch-cs-prefix") {
        flags.push("-Zindirect-branch-cs-prefix");
    }
    flags.extend(["-Zfunction-return=thunk-extern", "-Zcf-protection=branch", "-Zpatchable-function-entry=16,16"]);
    flags.into_iter().map(str::to_owned).collect()
}

/// Builds the sysroot unless the cache has it for this compiler, these sources and these flags.
pub fn build(env: &Env, rustc: &Rustc, flags: &[String]) -> Result<PathBuf> {
    let library = rust_src::library(env, rustc)?;
    let key = key(&[&rustc.verbose_version, &library.to_string_lossy(), &flags.join(" "), include_str!("sysroot.rs")]);
    env.artifact(&format!("sysroot/{key}"), |out| {
        ui::step("core and alloc for kernel mode", || {
            let builtins = out.join("compiler_builtins.rs");
            fs::write(&builtins, EMPTY_COMPILER_BUILTINS)?;
            let source = |name: &str| library.join(name).join("src/lib.rs");
            let compile = |name, edition: &str, source: &Path| {
                compile(env, rustc, TARGET, flags, out, &library, name, edition, source)
            };
            compile("core", &edition(&library, "core")?, &source("core"))?;
            compile("compiler_builtins", "2021", &builtins)?;
            compile("alloc", &edition(&library, "alloc")?, &source("alloc"))
        })
    })
}

/// Builds `core` alone, for a program of another target, unless the cache has it.
pub fn core(env: &Env, rustc: &Rustc, target: &str) -> Result<PathBuf> {
    let library = rust_src::library(env, rustc)?;
    let flags = ["-Cpanic=abort".to_owned(), "-Crelocation-model=static".to_owned()];
    let key = key(&[&rustc.verbose_version, &library.to_string_lossy(), target, include_str!("sysroot.rs")]);
    env.artifact(&format!("sysroot/{target}-{key}"), |out| {
        ui::step(&format!("core for {target}"), || {
            let builtins = out.join("compiler_builtins.rs");
            fs::write(&builtins, EMPTY_COMPILER_BUILTINS)?;
            let (edition, source) = (edition(&library, "core")?, library.join("core/src/lib.rs"));
            compile(env, rustc, target, &flags, out, &library, "core", &edition, &source)?;
            compile(env, rustc, target, &flags, out, &library, "compiler_builtins", "2021", &builtins)
        })
    })
}

#[expect(clippy::too_many_arguments, reason = "one call of rustc, spelled out once")]
fn compile(
    env: &Env,
    rustc: &Rustc,
    target: &str,
    flags: &[String],
    out: &Path,
    library: &Path,
    name: &str,
    edition: &str,
    source: &Path,
) -> Result<()> {
    let libs = out.join("lib/rustlib").join(target).join("lib");
    fs::create_dir_all(&libs)?;
    let mut command = rustc.command(env);
    command.args(["--target", target, "--crate-type", "rlib", "--crate-name", name, "--edition", edition]);
    command.args(["-Copt-level=2", "-Ccodegen-units=1", "-Cembed-bitcode=yes", "-Cdebuginfo=0"]);
    command.args(["--cap-lints", "allow", "-Zforce-unstable-if-unmarked"]);
    command.arg("--sysroot").arg(out).arg("-L").arg(&libs);
    // No path of this machine may get into panic messages.
    command.arg("--remap-path-prefix").arg(format!("{}=library", library.display()));
    command.args(flags).arg(source).arg("-o").arg(libs.join(format!("lib{name}.rlib")));
    proc::run(&mut command).map(drop)
}

/// The edition that a library crate declares.
fn edition(library: &Path, name: &str) -> Result<String> {
    let text = fs::read_to_string(library.join(name).join("Cargo.toml"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("edition"));
    let value = line.and_then(|rest| rest.split('"').nth(1)).context("the library crate declares no edition")?;
    Ok(value.to_owned())
}
