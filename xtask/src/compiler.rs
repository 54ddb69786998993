//! The C compiler a kernel's headers ask for: the machine's own, or Debian's unpacked in the cache.
//!
//! Debian's kernel headers name their compiler (`gcc-12`, `x86_64-linux-gnu-gcc-14`), so it is enough
//! that this name is found first on the PATH.

use crate::{
    debs,
    env::{Env, key},
    foreign::{self, Libraries},
    proc, ui,
};
use anyhow::{Context, Result, bail};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

/// The PATH for building against the headers in `kdir`.
pub fn path(env: &Env, kdir: &Path) -> Result<OsString> {
    let own = std::env::var_os("PATH").unwrap_or_default();
    let major = major(kdir)?;
    if ["", "x86_64-linux-gnu-"].iter().all(|prefix| proc::which(&format!("{prefix}gcc-{major}")).is_some()) {
        return Ok(own);
    }
    let mut path = OsString::from(toolchain(env, major)?.join("usr/bin"));
    path.push(":");
    path.push(own);
    Ok(path)
}

/// The gcc version the kernel was configured with, from its build configuration.
pub fn major(kdir: &Path) -> Result<u32> {
    let path = ["include/config/auto.conf", ".config"].map(|name| kdir.join(name)).into_iter().find(|p| p.exists());
    let path = path.with_context(|| format!("{} does not look like a kernel's build directory", kdir.display()))?;
    let text = fs::read_to_string(&path)?;
    let version = text.lines().find_map(|line| line.strip_prefix("CONFIG_GCC_VERSION="));
    let version: u32 = version.and_then(|value| value.parse().ok()).unwrap_or(0);
    match version / 10_000 {
        0 => bail!("{} was not configured with gcc; other compilers are not supported", kdir.display()),
        major => Ok(major),
    }
}

/// That gcc with its binutils, from the suite that has it, unpacked and runnable on this machine.
fn toolchain(env: &Env, major: u32) -> Result<PathBuf> {
    let suite = match major {
        12 => debs::BOOKWORM,
        14 => debs::TRIXIE,
        _ => bail!("these headers were configured with gcc {major}: install gcc-{major}"),
    };
    let gcc = format!("gcc-{major}");
    let packages = suite.closure(env, &[&gcc, "binutils", "libelf1"])?;
    let name = format!("toolchains/{gcc}-{}", key(&[&packages.join(" ")]));
    env.artifact(&name, |dir| {
        ui::step(&format!("gcc {major} of Debian {} into the cache", suite.0), || suite.unpack(env, &packages, dir))
    })?;
    // The scripts carry absolute paths, so they are written at the final place.
    let root = env.cache.join(&name);
    let _lock = env.lock(&name)?;
    let programs = ["gcc", "as", "ld"].map(|name| match name {
        "gcc" => format!("usr/bin/x86_64-linux-gnu-gcc-{major}"),
        other => format!("usr/bin/x86_64-linux-gnu-{other}"),
    });
    if programs.iter().any(|program| foreign::cannot_start(&root.join(program))) || cc1_cannot_start(&root, major) {
        let libraries = Libraries::new(&root);
        for dir in ["usr/libexec/gcc", "usr/lib/gcc", "usr/bin"] {
            if root.join(dir).exists() {
                libraries.wrap(&root.join(dir))?;
            }
        }
    }
    Ok(root)
}

/// The compiler proper lies in libexec in new releases and in lib in older ones.
fn cc1_cannot_start(root: &Path, major: u32) -> bool {
    let dirs =
        ["usr/libexec/gcc", "usr/lib/gcc"].map(|dir| root.join(dir).join(format!("x86_64-linux-gnu/{major}/cc1")));
    dirs.iter().any(|cc1| cc1.exists() && foreign::cannot_start(cc1))
}

/// Makes the host programs of an unpacked kernel's build system run on this machine.
pub fn adopt_kbuild(env: &Env, kbuild: &Path, gcc: u32) -> Result<()> {
    // Newer releases put a script in front of programs that exist once per architecture.
    let probes = ["tools/objtool/objtool.real-x86", "tools/objtool/objtool", "scripts/mod/modpost.real-lsb-64"];
    let probes = probes.map(|probe| kbuild.join(probe));
    if probes.iter().any(|probe| foreign::cannot_start(probe)) {
        Libraries::new(&toolchain(env, gcc)?).wrap(kbuild)?;
    }
    Ok(())
}
