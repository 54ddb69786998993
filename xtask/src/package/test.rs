//! What the packages do on the machines they are for: a plain Debian 12 and 13, in a chroot each.

use super::{Release, make};
use crate::{chroots::Chroot, debs::BOOKWORM, debs::Suite, env::Env, proc};
use anyhow::{Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Makes them twice, once more as a newer version, and does with them what `xtask/scripts/packages.sh` says.
pub fn in_chroot(env: &Env, suite: Suite) -> Result<()> {
    let out = env.target().join("packages-test").join(suite.0);
    let release = Release::new(env)?;
    let old = empty(&out.join("old")).and_then(|dir| make(env, &release, &dir))?;
    let again = empty(&out.join("again")).and_then(|dir| make(env, &release, &dir))?;
    for (first, second) in old.iter().zip(&again) {
        ensure!(fs::read(first)? == fs::read(second)?, "{} comes out different each time", first.display());
    }
    let newer = Release { version: format!("{}+newer", release.version), ..release };
    let new = empty(&out.join("new")).and_then(|dir| make(env, &newer, &dir))?;
    let chroot = Chroot::new(env, suite)?;
    chroot.put(&old, "packages/old")?;
    chroot.put(&new, "packages/new")?;
    // Both ways round: modules are built when the package comes, and when a kernel does.
    let first = if suite == BOOKWORM { "kernel" } else { "packages" };
    chroot.run(&format!("sh xtask/scripts/packages.sh ./packages/old ./packages/new {first}"))
}

fn empty(directory: &Path) -> Result<PathBuf> {
    proc::remove_dir(directory)?;
    fs::create_dir_all(directory)?;
    Ok(directory.to_owned())
}
