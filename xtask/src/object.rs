//! The one Rust object that goes into `kvm-amd.ko`, the same bytes for every kernel (docs/decisions/0002).

use crate::{env::Env, proc, rust_src::Rustc, sysroot, ui};
use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection, ObjectSymbol, RelocationFlags, elf, read::archive::ArchiveFile};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Builds the crate `linux` and returns the path of its object.
pub fn build(env: &Env) -> Result<PathBuf> {
    build_at(&env.target().join("kernel"), env, &[], &[])
}

/// What is in place of that for the kernel whose build directory is `kdir`: one that tells lockdep of its locks where there is
/// lockdep (docs/decisions/0021).
pub fn build_for(env: &Env, kdir: &Path) -> Result<PathBuf> {
    if has_lockdep(kdir) { build_for_tests(env, LOCKDEP) } else { build(env) }
}

/// The same code with the fields of its own types in another order: what another version of it may be like.
pub fn build_altered(env: &Env, kdir: &Path) -> Result<PathBuf> {
    let flags = ["-Zrandomize-layout", "-Zlayout-seed=2"];
    if has_lockdep(kdir) {
        return build_at(&env.target().join("kernel-altered-lockdep"), env, &["--features", LOCKDEP], &flags);
    }
    build_at(&env.target().join("kernel-altered"), env, &[], &flags)
}

/// The feature of the crate `linux`.
const LOCKDEP: &str = "lockdep";

/// Whether the kernel checks the order of locks.
pub fn has_lockdep(kdir: &Path) -> bool {
    let config = fs::read_to_string(kdir.join("include/config/auto.conf")).unwrap_or_default();
    config.lines().any(|line| line == "CONFIG_LOCKDEP=y")
}

/// The same with a feature that is for tests only. What others build is not touched.
pub fn build_for_tests(env: &Env, feature: &str) -> Result<PathBuf> {
    build_at(&env.target().join(format!("kernel-{feature}")), env, &["--features", feature], &[])
}

fn build_at(target: &Path, env: &Env, words: &[&str], flags: &[&str]) -> Result<PathBuf> {
    let mut cargo = cargo(env, "build", target, flags)?;
    cargo.args(words);
    ui::step("the Rust object", || {
        proc::run(&mut cargo)?;
        let archive = target.join(sysroot::TARGET).join("module/liblinux.a");
        let object = extract(&archive)?;
        check(&object)?;
        let path = target.join("rust_core.o");
        proc::write_if_changed(&path, &object)?;
        Ok(path)
    })
}

/// Clippy over the crate `linux` and all that it is made of, as they are compiled for the kernel.
pub fn clippy(env: &Env, lints: &[&str]) -> Result<()> {
    let mut cargo = cargo(env, "clippy", &env.target().join("kernel-clippy"), &[])?;
    cargo.args(["--quiet", "--"]).args(lints);
    ui::step("clippy for the kernel's target", || proc::run(&mut cargo)).map(drop)
}

/// A cargo command on `linux` with the kernel's flags and the sysroot built with them.
fn cargo(env: &Env, command: &str, target: &Path, more: &[&str]) -> Result<Command> {
    let rustc = Rustc::new(env)?;
    let flags = sysroot::flags(env, &rustc);
    let sysroot = sysroot::build(env, &rustc, &flags)?;
    let mut encoded = flags;
    encoded.extend(more.iter().map(|flag| (*flag).to_owned()));
    encoded.push(format!("--sysroot={}", sysroot.display()));
    // No path of this machine may get into the module.
    encoded.push(format!("--remap-path-prefix={}/=", env.root.display()));
    let mut cargo = env.cargo();
    cargo.args([command, "--package", "linux", "--profile", "module", "--target", sysroot::TARGET]);
    cargo.arg("--target-dir").arg(target);
    // By environment, because tests on the host must not see these flags.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", encoded.join("\x1f")).env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTFLAGS");
    Ok(cargo)
}

/// The object with code in the static library; link-time optimisation leaves one.
fn extract(archive: &Path) -> Result<Vec<u8>> {
    let data = fs::read(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let mut found: Option<(String, Vec<u8>)> = None;
    for member in ArchiveFile::parse(&*data)?.members() {
        let member = member?;
        let bytes = member.data(&*data)?;
        let Ok(file) = object::File::parse(bytes) else { continue };
        if !file.symbols().any(|symbol| symbol.is_definition()) {
            continue;
        }
        let name = String::from_utf8_lossy(member.name()).into_owned();
        if let Some((other, _)) = &found {
            bail!("the archive holds two objects with symbols, {other} and {name}: link-time optimisation is off?");
        }
        found = Some((name, bytes.to_vec()));
    }
    Ok(found.context("the archive holds no object")?.1)
}

/// Refuses what could never load: references that no C shim can satisfy, and relocations that the
/// module loader does not know. What is left undefined, modpost checks against kernel and shim.
fn check(object: &[u8]) -> Result<()> {
    let file = object::File::parse(object)?;
    let mut wrong = Vec::new();
    for symbol in file.symbols().filter(|symbol| symbol.is_undefined()) {
        let name = symbol.name().unwrap_or("");
        let rust = name.starts_with("_R") || name.starts_with("_ZN") || name.starts_with("rust_");
        let builtin = ["ti3", "tf2", "tf3", "df2", "df3", "sf2", "sf3", "fsi", "fdi", "xf2"];
        if rust {
            wrong.push(format!("{name} (Rust code that is not there)"));
        } else if name.starts_with("__") && builtin.iter().any(|end| name.ends_with(end)) {
            wrong.push(format!("{name} (128-bit division or floating point)"));
        }
    }
    ensure!(wrong.is_empty(), "the Rust object needs what a module cannot have:\n  {}", wrong.join("\n  "));
    for section in file.sections() {
        for (offset, relocation) in section.relocations() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else { continue };
            ensure!(
                [
                    elf::R_X86_64_64,
                    elf::R_X86_64_32,
                    elf::R_X86_64_32S,
                    elf::R_X86_64_PC32,
                    elf::R_X86_64_PLT32,
                    elf::R_X86_64_PC64
                ]
                .contains(&r_type),
                "{} + {offset:#x}: relocation {r_type:?} is not one the module loader knows",
                section.name().unwrap_or("?")
            );
        }
    }
    Ok(())
}
