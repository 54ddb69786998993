//! From Debian's package of the kernel's source to the built KVM selftests, once per version of the
//! package.

use crate::{
    debs::TRIXIE,
    env::{Env, key},
    image::Tools,
    proc, ui,
};
use anyhow::Result;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What of the source the selftests and their make files use.
const PARTS: [&str; 10] = [
    "scripts/subarch.include",
    "tools/arch/x86/include",
    "tools/build",
    "tools/include",
    "tools/lib/*.c",
    "tools/scripts",
    "tools/testing/selftests/kselftest*.h",
    "tools/testing/selftests/kvm",
    "tools/testing/selftests/lib.mk",
    "tools/testing/selftests/rseq",
];

/// The directory with the programs, and nothing else in it.
pub fn build(env: &Env) -> Result<PathBuf> {
    let mut packages = TRIXIE.closure(env, &["linux-source-6.12", "linux-libc-dev"])?;
    packages.retain(|package| package.starts_with("linux-source-") || package.starts_with("linux-libc-dev="));
    let name = format!("selftests/{}", key(&[&packages.join(" "), include_str!("sources.rs")]));
    let dir = env.artifact(&name, |dir| {
        let (packed, tree) = (dir.join("packed"), dir.join("tree"));
        ui::step("the kernel's source into the cache", || {
            TRIXIE.unpack(env, &packages, &packed)?;
            unpack(&Tools::fetch(env)?, &packed, &tree)
        })?;
        ui::step("the kernel's KVM selftests", || {
            make(&packed, &tree, &dir.join("out"))?;
            collect(&dir.join("out"), &dir.join("programs"))
        })?;
        ["packed", "tree", "out"].iter().try_for_each(|part| proc::remove_dir(&dir.join(part)))
    })?;
    Ok(dir.join("programs"))
}

fn unpack(tools: &Tools, packed: &Path, tree: &Path) -> Result<()> {
    fs::create_dir_all(tree)?;
    let archive = proc::find_entry(&packed.join("usr/src"), |name| name.ends_with(".tar.xz"))?;
    let mut tar = Command::new("tar");
    tar.arg(format!("--use-compress-program={} xz", tools.busybox().display()));
    tar.args(["--extract", "--strip-components=1", "--wildcards", "--file"]).arg(&archive).arg("-C").arg(tree);
    tar.args(PARTS.map(|part| format!("linux-source-*/{part}")));
    proc::run(&mut tar).map(drop)
}

fn make(packed: &Path, tree: &Path, out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    let headers = packed.join("usr/include");
    let mut make = Command::new("make");
    make.args(["--silent", "-C"]).arg(tree.join("tools/testing/selftests/kvm"));
    make.arg(format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from)));
    make.arg(format!("OUTPUT={}", out.display()));
    make.arg("CC=cc").arg("EXTRA_CFLAGS=-g0 -s");
    // The headers of this kernel, not those that the machine has installed.
    make.arg(format!("KHDR_INCLUDES=-isystem {0} -isystem {0}/x86_64-linux-gnu", headers.display()));
    for inherited in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARCH", "CROSS_COMPILE", "CFLAGS"] {
        make.env_remove(inherited);
    }
    proc::run(&mut make).map(drop)
}

/// The linked programs: the files without a suffix in the two directories that the build puts them in.
fn collect(out: &Path, programs: &Path) -> Result<()> {
    fs::create_dir_all(programs)?;
    for dir in [out.to_owned(), out.join("x86_64")] {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_file() && path.extension().is_none() {
                let name = path.file_name().unwrap_or_default();
                fs::rename(&path, programs.join(name))?;
            }
        }
    }
    Ok(())
}
