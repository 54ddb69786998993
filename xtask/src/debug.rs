//! The kernel that checks: Debian's sources and the configuration of its cloud flavour with what is in
//! `scripts/debug-kernel.config`. Building it takes half an hour on two idle cores, once.

use crate::{
    compiler, debs,
    env::{Env, key},
    foreign::{self, Libraries},
    host::Boot,
    kernels::{self, Flavour, Kernel, Unpacked},
    proc, ui,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use walkdir::WalkDir;

/// What differs from Debian's configuration.
const CONFIG: &str = include_str!("../scripts/debug-kernel.config");

/// Where the modules are, once all is built.
const MODULES: &str = "hsave-modules";

/// The kernel, built if it is not in the cache.
pub fn fetch(env: &Env, kernel: Kernel) -> Result<Unpacked> {
    let base = kernels::fetch(env, kernel.series())?;
    let package = format!("linux-source-{}", kernel.series());
    let version = debs::TRIXIE.version(env, &package, kernel.series().name())?;
    let version = version.with_context(|| format!("Debian has no {package}"))?;
    let name = format!("kernels/{kernel}-{}", key(&[&version, CONFIG]));
    let root = env.artifact(&name, |dir| {
        ui::step(&format!("sources of {kernel} into the cache"), || unpack(env, &format!("{package}={version}"), dir))
    })?;
    let modules = root.join(MODULES);
    let _lock = env.lock(&format!("{name}-build"))?;
    if !modules.exists() {
        ui::step(&format!("{kernel}, a kernel that checks: half an hour, once"), || build(env, &base, &root))?;
        finish(&root)?;
    }
    let release = fs::read_to_string(root.join("include/config/kernel.release"))?.trim().to_owned();
    Ok(Unpacked { release, image: root.join("arch/x86/boot/bzImage"), headers: root, modules })
}

/// The same run, on a kernel that checks with a look at what is left behind in memory.
pub fn with_checks(boot: &Boot) -> Boot {
    let mut boot = boot.clone();
    if boot.kernel.flavour() == Flavour::Debug {
        boot.script = format!("mount -t debugfs debugfs /sys/kernel/debug\n(\n{}\n)\nstatus=$?\n{LEAKS}", boot.script);
        // The checks have their own tables.
        boot.memory += 2048;
    }
    boot
}

/// What kmemleak finds once the modules are gone goes to the report, where it counts as a complaint of the kernel's. An object
/// counts when it is five seconds old.
const LEAKS: &str = "\
    for module in kvm_amd kvm; do grep -q \"^$module \" /proc/modules && rmmod $module; done
    sleep 6
    leaks=/sys/kernel/debug/kmemleak
    echo scan >$leaks
    sed 's/^unreferenced/BUG: &/' $leaks >/dev/ttyS2
    exit $status
";

fn unpack(env: &Env, package: &str, dir: &Path) -> Result<()> {
    let scratch = dir.join("package");
    debs::TRIXIE.unpack(env, &[package.to_owned()], &scratch)?;
    let archive = proc::find_entry(&scratch.join("usr/src"), |name| name.starts_with("linux-source-"))?;
    proc::run(Command::new("tar").arg("-xJf").arg(archive).args(["--strip-components=1", "-C"]).arg(dir))?;
    proc::remove_dir(&scratch)
}

/// Configures and builds, or goes on where that was interrupted.
fn build(env: &Env, base: &Unpacked, root: &Path) -> Result<()> {
    let gcc = compiler::major(&base.headers)?;
    // Debian's makefiles look here; modules are then built with the same compiler.
    let variables = format!(
        "override ARCH = x86\noverride CROSS_COMPILE = x86_64-linux-gnu-\nCC = $(CROSS_COMPILE)gcc-{gcc}\n\
         DEBIAN_KERNEL_NO_CC_VERSION_CHECK = y\n"
    );
    proc::write_if_changed(&root.join(".kernelvariables"), variables.as_bytes())?;
    let own = base.image.with_file_name(format!("config-{}", base.release));
    let own = fs::read_to_string(&own).with_context(|| format!("cannot read {}", own.display()))?;
    if !root.join("include/config/auto.conf").exists() {
        // The emulated host needs none of Debian's modules but those that are named.
        let builtin: Vec<&str> = own.lines().filter(|line| !line.ends_with("=m")).collect();
        fs::write(root.join(".config"), format!("{}\n{CONFIG}", builtin.join("\n")))?;
    }
    let tools = tools(env)?;
    let make = |targets: &[&str]| -> Result<String> {
        let mut make = Command::new("make");
        make.arg("-C").arg(root).arg(format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from)));
        make.args(["KBUILD_BUILD_USER=hsave", "KBUILD_BUILD_HOST=hsave"]).args(targets);
        // After the system's own headers: libc's are among those of the tools, too.
        let include = format!("-idirafter {}", tools.join("usr/include").display());
        // Linked in: objtool runs later, too, when modules are built.
        let archives =
            ["libelf.a", "libz.a", "libzstd.a"].map(|name| tools.join("usr/lib/x86_64-linux-gnu").join(name));
        let archives = archives.iter().filter(|path| path.exists()).map(|path| path.display().to_string());
        let archives = archives.collect::<Vec<_>>().join(" ");
        make.arg(format!("HOSTCFLAGS={include}")).arg(format!("LIBELF_FLAGS={include}"));
        make.arg(format!("LIBELF_LIBS={archives}"));
        let mut path = compiler::path(env, &base.headers)?;
        path.push(":");
        path.push(tools.join("usr/bin"));
        make.env("PATH", path).env("M4", tools.join("usr/bin/m4"));
        make.env("BISON_PKGDATADIR", tools.join("usr/share/bison"));
        for inherited in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARCH", "CROSS_COMPILE"] {
            make.env_remove(inherited);
        }
        proc::run(&mut make)
    };
    make(&["olddefconfig"])?;
    let config = fs::read_to_string(root.join(".config"))?;
    let lost: Vec<&str> =
        CHECKS.iter().copied().filter(|name| !config.contains(&format!("\nCONFIG_{name}=y\n"))).collect();
    ensure!(lost.is_empty(), "the configuration lost {}", lost.join(", "));
    make(&["bzImage", "modules"]).map(drop)
}

/// Without these the kernel is none that checks.
const CHECKS: &[&str] = &[
    "PROVE_LOCKING",
    "PROVE_RAW_LOCK_NESTING",
    "DEBUG_ATOMIC_SLEEP",
    "KASAN",
    "UBSAN",
    "DEBUG_KMEMLEAK",
    "DEBUG_VM",
    "FAILSLAB",
    "FAIL_PAGE_ALLOC",
];

/// Puts the modules in one place and removes what only the build needed: gigabytes.
fn finish(root: &Path) -> Result<()> {
    let partial = root.join("hsave-modules.partial");
    fs::create_dir_all(&partial)?;
    for entry in WalkDir::new(root) {
        let path = entry?.into_path();
        let needed = ["scripts", "tools", "hsave-modules.partial"].iter().any(|dir| path.starts_with(root.join(dir)));
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if needed || !path.is_file() {
            continue;
        }
        if name.ends_with(".ko") {
            fs::rename(&path, partial.join(&name))?;
        } else if [".o", ".a", ".cmd"].iter().any(|end| name.ends_with(end)) {
            fs::remove_file(&path)?;
        }
    }
    Ok(fs::rename(partial, root.join(MODULES))?)
}

/// flex, bison and libelf, for this machine's own release.
fn tools(env: &Env) -> Result<PathBuf> {
    let suite = debs::own()?;
    let packages = suite.closure(env, &["flex", "bison", "m4", "libelf-dev"])?;
    let name = format!("tools/kernel-build-{}", key(&[&packages.join(" ")]));
    let root = env.artifact(&name, |dir| {
        ui::step("what building a kernel needs into the cache", || suite.unpack(env, &packages, dir))
    })?;
    let _lock = env.lock(&name)?;
    let programs = root.join("usr/bin");
    if ["flex", "bison", "m4"].iter().any(|name| foreign::cannot_start(&programs.join(name))) {
        Libraries::new(&root).wrap(&programs)?;
    }
    Ok(root)
}
