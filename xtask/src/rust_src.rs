//! The sources of `core` and `alloc` that belong to the compiler in use.

use crate::{
    debs::{BOOKWORM, TRIXIE, TRIXIE_BACKPORTS},
    env::Env,
    proc, ui,
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

/// The compiler that builds the module's object.
pub struct Rustc {
    pub program: PathBuf,
    /// All of `rustc -vV`.
    pub verbose_version: String,
}

impl Rustc {
    pub fn new(env: &Env) -> Result<Self> {
        let program = PathBuf::from(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        let verbose_version = proc::run(Command::new(&program).arg("-vV").current_dir(&env.root))?;
        Ok(Self { program, verbose_version })
    }

    /// The compiler as a command, with the unstable flags that kernel code needs allowed, as in the
    /// kernel's own build.
    pub fn command(&self, env: &Env) -> Command {
        let mut rustc = Command::new(&self.program);
        rustc.env("RUSTC_BOOTSTRAP", "1").current_dir(&env.root);
        rustc
    }

    /// Such as `1.85.1`.
    pub fn release(&self) -> Result<&str> {
        Self::release_in(&self.verbose_version)
    }

    /// The release that a compiler's `-vV` names.
    pub fn release_in(verbose_version: &str) -> Result<&str> {
        let line = verbose_version.lines().find_map(|line| line.strip_prefix("release: "));
        line.context("rustc does not tell its release")
    }
}

/// The `library` directory of the compiler's own sources: the installed one, else Debian's package of
/// the same version unpacked in the cache, else the one rustup installs.
pub fn library(env: &Env, rustc: &Rustc) -> Result<PathBuf> {
    let sysroot = proc::run(rustc.command(env).args(["--print", "sysroot"]))?;
    let installed = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    if is_library(&installed) {
        return Ok(installed);
    }
    let release = rustc.release()?;
    if let Some(library) = from_debian(env, release)? {
        return Ok(library);
    }
    if proc::which("rustup").is_some() {
        ui::step("rustup component add rust-src", || {
            proc::run(Command::new("rustup").args(["component", "add", "rust-src"]).current_dir(&env.root))
        })?;
        if is_library(&installed) {
            return Ok(installed);
        }
    }
    bail!(
        "no sources of core and alloc for rustc {release}: install them with `rustup component add rust-src` \
         or `apt install rust-src` (rust-web-src where the compiler is rustc-web)"
    )
}

fn is_library(path: &Path) -> bool {
    path.join("core/src/lib.rs").is_file() && path.join("alloc/src/lib.rs").is_file()
}

/// Debian's source package of exactly this release, where there is one.
fn from_debian(env: &Env, release: &str) -> Result<Option<PathBuf>> {
    let name = format!("rust-src/{release}");
    let done = env.cache.join(&name).join("library");
    if is_library(&done) {
        return Ok(Some(done));
    }
    for (suite, package) in
        [(TRIXIE_BACKPORTS, "rust-src"), (TRIXIE, "rust-src"), (BOOKWORM, "rust-web-src"), (BOOKWORM, "rust-src")]
    {
        let Some(version) = suite.version(env, package, release)? else { continue };
        let unpacked = env.artifact(&name, |dir| {
            ui::step(&format!("sources of Rust {release} into the cache"), || {
                let whole = dir.join("whole");
                suite.unpack(env, &[format!("{package}={version}")], &whole)?;
                let source = proc::find_entry(&whole.join("usr/src"), |name| name.starts_with("rustc-"))?;
                fs::rename(source.join("library"), dir.join("library"))?;
                proc::remove_dir(&whole)
            })
        })?;
        return Ok(Some(unpacked.join("library")));
    }
    Ok(None)
}

/// Sees to a tool that belongs to the compiler in use: rustup's component, or Debian's package installed by root. False where there
/// is none: Debian 12 has one for its own Rust only, and not for the newer one that `x` installs there.
pub fn component(env: &Env, program: &str, component: &str, package: &str) -> Result<bool> {
    let there = proc::output(Command::new(program).arg("--version")).is_ok_and(|output| output.status.success());
    if proc::which("rustup").is_some() {
        if !there {
            let add = || proc::run(Command::new("rustup").args(["component", "add", component]).current_dir(&env.root));
            ui::step(&format!("rustup component add {component}"), add)?;
        }
        return Ok(true);
    }
    let rustc = Rustc::new(env)?;
    let release = rustc.release()?;
    let policy = proc::run(Command::new("apt-cache").args(["policy", package])).unwrap_or_default();
    match (there, package_version(&policy, "Installed"), package_version(&policy, "Candidate")) {
        // Neither rustup's nor Debian's.
        (true, None, _) => return Ok(true),
        (_, Some(installed), _) => return Ok(is_of(installed, release)),
        (_, _, Some(candidate)) if is_of(candidate, release) => {}
        _ => return Ok(false),
    }
    if !proc::is_root() {
        bail!("{program} is missing; as root: apt-get install {package}");
    }
    ui::step(&format!("installing {package}"), || {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "-y", "--no-install-recommends", package]).env("DEBIAN_FRONTEND", "noninteractive");
        // As in the script `x`: what apt says is kept, and shown if it fails.
        let said = proc::run(&mut apt)?;
        let mut log = fs::File::options().create(true).append(true).open(env.cache.join("installed.log"))?;
        Ok(log.write_all(said.as_bytes())?)
    })?;
    Ok(true)
}

/// A version in what `apt-cache policy` says: of the package that is installed, or of the one that would be.
fn package_version<'a>(policy: &'a str, which: &str) -> Option<&'a str> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix(which)?.strip_prefix(": "))?;
    (version != "(none)").then_some(version)
}

/// Is a package's version one of this release of Rust?
fn is_of(version: &str, release: &str) -> bool {
    version.strip_prefix(release).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_of_the_compilers_release() {
        let policy =
            "rustfmt:\n  Installed: (none)\n  Candidate: 1.63.0+dfsg1-2\n  Version table:\n     1.63.0+dfsg1-2 500\n";
        assert_eq!(package_version(policy, "Installed"), None);
        assert_eq!(package_version(policy, "Candidate"), Some("1.63.0+dfsg1-2"));
        assert!(is_of("1.85.1+dfsg1-1+deb13u1", "1.85.1"));
        assert!(!is_of("1.63.0+dfsg1-2", "1.96.0") && !is_of("1.85.10-1", "1.85.1"));
    }
}
