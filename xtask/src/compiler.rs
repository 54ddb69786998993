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
    process::Command,
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

/// Programs of a kernel's build directory that are run during a build. Newer releases put a script in front of those that exist
/// once per architecture.
const PROBES: [&str; 3] =
    ["tools/objtool/objtool.real-x86", "tools/objtool/objtool", "scripts/mod/modpost.real-lsb-64"];

/// The parts of a build directory that hold its host programs.
const PROGRAMS: [&str; 2] = ["scripts", "tools"];

/// A build directory that says what `kdir` says, whose host programs run on this machine: `kdir` where they do. Else the headers
/// are those of a newer release, and the directory is one in the cache, because `kdir` is not ours to change: it may be
/// what a package has put into /usr/src.
pub fn runnable(env: &Env, kdir: &Path) -> Result<PathBuf> {
    if !PROBES.iter().any(|probe| foreign::cannot_start(&kdir.join(probe))) {
        return Ok(kdir.to_owned());
    }
    let gcc = major(kdir)?;
    let libraries = toolchain(env, gcc).with_context(|| {
        format!(
            "the programs in {} (objtool, modpost) need a newer glibc than this machine has, and that of the Debian \
             release with gcc {gcc} cannot be had",
            kdir.display()
        )
    })?;
    // Another package at the same place has programs of another time.
    let changed = PROBES.map(|probe| fs::metadata(kdir.join(probe)).and_then(|data| data.modified()).ok());
    let name =
        format!("kdirs/{}", key(&[&kdir.to_string_lossy(), &format!("{changed:?}"), include_str!("compiler.rs")]));
    env.artifact(&name, |dir| shadow(kdir, dir, &env.cache.join(&name)))?;
    let place = env.cache.join(&name);
    let _lock = env.lock(&name)?;
    for part in PROGRAMS {
        // The scripts carry absolute paths, so they are written at the final place.
        Libraries::new(&libraries).wrap(&place.join(part))?;
    }
    Ok(place)
}

/// Fills `dir` with links to what `kdir` holds, and with copies of its host programs and of its Makefile, which names `place` as the
/// directory that the build works in.
fn shadow(kdir: &Path, dir: &Path, place: &Path) -> Result<()> {
    for entry in fs::read_dir(kdir)? {
        let entry = entry?;
        let (from, name) = (entry.path(), entry.file_name());
        let to = dir.join(&name);
        if PROGRAMS.iter().any(|part| name == *part) {
            // Debian's are links to another package's directory.
            proc::run(Command::new("cp").arg("--archive").arg(from.canonicalize()?).arg(&to))?;
        } else if name == "Makefile" {
            let line = |line: &str| match line.strip_prefix("KBUILD_OUTPUT=") {
                Some(_) => format!("KBUILD_OUTPUT={}\n", place.display()),
                None => format!("{line}\n"),
            };
            fs::write(&to, fs::read_to_string(&from)?.lines().map(line).collect::<String>())?;
        } else {
            std::os::unix::fs::symlink(from, to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_shadow_leaves_the_headers_as_they_are() {
        let base = std::env::temp_dir().join(format!("hsave-shadow-{}", std::process::id()));
        let (kdir, kbuild, dir) = (base.join("headers"), base.join("kbuild"), base.join("shadow"));
        for made in [kdir.join("include"), kbuild.join("scripts/mod"), dir.clone()] {
            fs::create_dir_all(made).unwrap();
        }
        fs::copy("/bin/true", kbuild.join("scripts/mod/modpost.real-lsb-64")).unwrap();
        symlink("../kbuild/scripts", kdir.join("scripts")).unwrap();
        let makefile = format!("KBUILD_OUTPUT={0}\ninclude {0}-common/Makefile\n", kdir.display());
        fs::write(kdir.join("Makefile"), &makefile).unwrap();

        shadow(&kdir, &dir, Path::new("/there")).unwrap();
        Libraries::new(Path::new("/")).wrap(&dir.join("scripts")).unwrap();
        assert_eq!(fs::read_link(dir.join("include")).unwrap(), kdir.join("include"));
        let common = format!("KBUILD_OUTPUT=/there\ninclude {}-common/Makefile\n", kdir.display());
        assert_eq!(fs::read_to_string(dir.join("Makefile")).unwrap(), common);
        assert!(dir.join("scripts/mod/modpost.real-lsb-64.wrapped").is_file());
        assert!(!foreign::cannot_start(&dir.join("scripts/mod/modpost.real-lsb-64")));
        assert_eq!(fs::read_to_string(kdir.join("Makefile")).unwrap(), makefile);
        assert!(!kbuild.join("scripts/mod/modpost.real-lsb-64.wrapped").exists());
        fs::remove_dir_all(base).unwrap();
    }
}
