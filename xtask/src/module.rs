//! `kvm.ko` and `kvm-amd.ko` for one kernel: the Rust object and the C shim through the kernel's own
//! build, with no warning from the compiler, objtool or modpost.

use crate::{
    border, compiler,
    env::{Env, key},
    object, proc, ui,
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use walkdir::WalkDir;

/// The modules, as the kernel names them.
pub const MODULES: [&str; 2] = ["kvm.ko", "kvm-amd.ko"];

/// A C file without code: the compiler compares the structs and numbers of the crate `abi` with the headers of the
/// kernel that the modules are for.
const ABI_CHECKS: &str = "abi_checks.c";

fn abi_checks(env: &Env) -> Result<String> {
    proc::run(env.cargo().args(["run", "--quiet", "--package", "abi", "--example", "abi_checks"]))
}

/// Builds both modules for the kernel whose build directory is `kdir` and puts them in `out`.
pub fn build(env: &Env, kdir: &Path, out: &Path) -> Result<()> {
    let kdir = kdir.canonicalize().with_context(|| format!("there are no kernel headers at {}", kdir.display()))?;
    let object = object::build(env)?;
    build_with(env, &kdir, out, &object)
}

/// The same with the Rust object at hand.
pub fn build_with(env: &Env, kdir: &Path, out: &Path, object: &Path) -> Result<()> {
    if proc::which("make").is_none() {
        bail!("make is missing: `apt install make`");
    }
    let release = fs::read_to_string(kdir.join("include/config/kernel.release"))
        .with_context(|| format!("{} does not look like a kernel's build directory", kdir.display()))?;
    let release = release.trim();
    let path = compiler::path(env, kdir)?;
    let kdir = &compiler::runnable(env, kdir)?;
    // One directory per checkout and kernel.
    let build = env.cache.join("build").join(key(&[&env.root.to_string_lossy(), &kdir.to_string_lossy()]));
    let _lock = env.lock(&format!("build-{}", key(&[&build.to_string_lossy()])))?;
    ui::step(&format!("kvm.ko and kvm-amd.ko for {release}"), || {
        sync(&env.root.join("linux/shim"), &build)?;
        border::write(env, &build)?;
        proc::write_if_changed(&build.join("kvm/rust_core.o_shipped"), &fs::read(object)?)?;
        proc::write_if_changed(&build.join("kvm").join(ABI_CHECKS), abi_checks(env)?.as_bytes())?;
        let mut make = Command::new("make");
        make.arg("-C").arg(kdir).arg(format!("M={}", build.display()));
        make.arg(format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from)));
        // Type information for BPF would need pahole of the kernel's version; modules load without.
        make.args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "PAHOLE_VERSION=$(CONFIG_PAHOLE_VERSION)"]);
        make.args(["KBUILD_MODPOST_WARN=", "modules"]).env("PATH", path);
        for inherited in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "KBUILD_MODPOST_WARN", "ARCH", "CROSS_COMPILE"] {
            make.env_remove(inherited);
        }
        let output = proc::output(&mut make)?;
        let text = proc::both(&output);
        if !output.status.success() {
            bail!("{}\nthe kernel's build failed for {release}", proc::tail(&text));
        }
        let warnings: Vec<&str> = text.lines().filter(|line| is_warning(line)).collect();
        if !warnings.is_empty() {
            // Built files would not warn again.
            proc::remove_dir(&build)?;
            let shown = warnings.iter().take(20).copied().collect::<Vec<_>>().join("\n");
            bail!("{shown}\n{} warnings from the kernel's build for {release}; none is allowed", warnings.len());
        }
        fs::create_dir_all(out)?;
        for module in MODULES {
            fs::copy(build.join(module), out.join(module)).with_context(|| format!("the build left no {module}"))?;
        }
        Ok(())
    })?;
    ui::note(&format!("{} and {} are in {}", MODULES[0], MODULES[1], out.display()));
    Ok(())
}

/// Compiler, linker, objtool and modpost each write it their way.
fn is_warning(line: &str) -> bool {
    line.to_ascii_lowercase().contains("warning")
}

/// Makes `to` hold the sources of `from`, touching only what differs and keeping what was built.
fn sync(from: &Path, to: &Path) -> Result<()> {
    let mut wanted = Vec::new();
    for entry in WalkDir::new(from) {
        let entry = entry.context("the C shim is missing")?;
        if entry.file_type().is_file() {
            let relative = entry.path().strip_prefix(from)?.to_owned();
            proc::write_if_changed(&to.join(&relative), &fs::read(entry.path())?)?;
            wanted.push(relative);
        }
    }
    for entry in WalkDir::new(to) {
        let path = entry?.into_path();
        let source = path.extension().is_some_and(|ext| ["c", "h", "S"].iter().any(|known| ext == *known));
        let generated = path.ends_with(border::HEADER)
            || path.file_name().is_some_and(|name| name == ABI_CHECKS || name.to_string_lossy().ends_with(".mod.c"));
        if path.is_file() && source && !generated && !wanted.iter().any(|known| to.join(known) == path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Where the modules for a stock Debian kernel are put.
pub fn default_out(env: &Env, release: &str) -> PathBuf {
    env.target().join("modules").join(release)
}
