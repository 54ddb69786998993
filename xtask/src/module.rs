//! `kvm.ko`, the base, and `kvm-amd.ko`, an engine, for one kernel: the C and the Rust object through the kernel's own
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
    let object = object::build_for(env, &kdir)?;
    build_with(env, &kdir, out, &object)
}

/// Builds another engine, which is loaded beside the first: NAME.ko in `out`. Its code is the same, and what it has in memory is
/// laid out otherwise; the version that it gives is what its name says (`hsave_0_2`: 0.2).
pub fn build_engine(env: &Env, kdir: &Path, out: &Path, name: &str) -> Result<PathBuf> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.chars().all(plain) || name.is_empty() || name.starts_with("kvm") {
        bail!("an engine's name has lower-case letters, digits and underscores, and does not begin with kvm");
    }
    let kdir = kdir.canonicalize().with_context(|| format!("there are no kernel headers at {}", kdir.display()))?;
    let object = object::build_altered(env, &kdir)?;
    let file = format!("{name}.ko");
    build_named(env, &kdir, out, &object, name, &[&file])?;
    Ok(out.join(file))
}

/// The same with the Rust object at hand.
pub fn build_with(env: &Env, kdir: &Path, out: &Path, object: &Path) -> Result<()> {
    build_named(env, kdir, out, object, VENDOR, &MODULES)
}

/// By what a base knows engines that were made for it (`HSAVE_INTERFACE_HASH`).
pub fn interface_hash(env: &Env) -> Result<u64> {
    border::hash(env)
}

/// The name of the engine that stands for the stock vendor module.
const VENDOR: &str = "kvm-amd";

fn build_named(env: &Env, kdir: &Path, out: &Path, object: &Path, engine: &str, wanted: &[&str]) -> Result<()> {
    if proc::which("make").is_none() {
        bail!("make is missing: `apt install make`");
    }
    let release = fs::read_to_string(kdir.join("include/config/kernel.release"))
        .with_context(|| format!("{} does not look like a kernel's build directory", kdir.display()))?;
    let release = release.trim();
    let path = compiler::path(env, kdir)?;
    let kdir = &compiler::runnable(env, kdir)?;
    // One directory per checkout, kernel and engine.
    let (root, headers) = (env.root.to_string_lossy(), kdir.to_string_lossy());
    let other = if engine == VENDOR { "" } else { engine };
    let build = env.cache.join("build").join(key(&[&root, &headers, other]));
    let _lock = env.lock(&format!("build-{}", key(&[&build.to_string_lossy()])))?;
    ui::step(&format!("{} for {release}", wanted.join(" and ")), || {
        assemble(env, &build, object)?;
        let mut make = Command::new("make");
        make.arg("-C").arg(kdir).arg(format!("M={}", build.display()));
        make.arg(format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from)));
        // Type information for BPF would need pahole of the kernel's version; modules load without.
        make.args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "PAHOLE_VERSION=$(CONFIG_PAHOLE_VERSION)"]);
        if engine != VENDOR {
            let version = engine.trim_start_matches("hsave_").replace('_', ".");
            make.arg(format!("ENGINE={engine}")).arg(format!("ENGINE_VERSION={version}"));
        }
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
        for module in wanted {
            fs::copy(build.join(module), out.join(module)).with_context(|| format!("the build left no {module}"))?;
        }
        Ok(())
    })?;
    ui::note(&format!("in {}: {}", out.display(), wanted.join(", ")));
    Ok(())
}

/// Makes `dir` hold all that the kernel's own build takes: the C shim, what is made for it from the Rust sources, and the Rust object.
/// A package ships the same.
pub fn assemble(env: &Env, dir: &Path, object: &Path) -> Result<()> {
    sync(&env.root.join("linux/shim"), dir)?;
    border::write(env, dir)?;
    proc::write_if_changed(&dir.join("kvm-amd/rust_core.o_shipped"), &fs::read(object)?)?;
    proc::write_if_changed(&dir.join("kvm").join(ABI_CHECKS), abi_checks(env)?.as_bytes())
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
            || path.ends_with(border::EXPORTS)
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
