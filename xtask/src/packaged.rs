//! Files out of Debian's packages for a scenario, which says of each where it wants it and where it is in which package.

use crate::{
    debs::{BOOKWORM, BOOKWORM_I386, Suite, TRIXIE, TRIXIE_BACKPORTS},
    env::{Env, key},
    proc, ui,
};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// One file.
pub struct Packaged {
    /// Where it is put in the host.
    to: &'static str,
    suite: Suite,
    package: &'static str,
    /// Where the package has it; the last part of it may end in `*`.
    path: &'static str,
}

impl Packaged {
    /// As a scenario's file writes it: PATH SUITE PACKAGE FILE.
    pub fn read(words: &[&'static str]) -> Result<Self> {
        let &[to, suite, package, path] = words else { bail!("`#: file` takes four words") };
        let suites = [BOOKWORM, BOOKWORM_I386, TRIXIE, TRIXIE_BACKPORTS];
        let suite = suites.into_iter().find(|known| known.0 == suite);
        Ok(Self { to, suite: suite.context("there is no such suite")?, package, path })
    }
}

/// The package alone, without what it depends on, unpacked in the cache.
pub fn unpacked(env: &Env, suite: Suite, package: &str) -> Result<PathBuf> {
    let mut packages = suite.closure(env, &[package])?;
    packages.retain(|one| one.split_once('=').is_some_and(|(name, _)| name == package));
    env.artifact(&format!("packaged/{}", key(&[suite.0, &packages.join(" ")])), |dir| {
        ui::step(&format!("Debian's {package} into the cache"), || suite.unpack(env, &packages, dir))
    })
}

/// Path in the host, path here.
pub fn files(env: &Env, wanted: &[Packaged]) -> Result<Vec<(String, PathBuf)>> {
    let file = |file: &Packaged| {
        let mut path = unpacked(env, file.suite, file.package)?.join(file.path);
        if let Some(start) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix('*')) {
            path = proc::find_entry(path.parent().unwrap_or(&path), |name| name.starts_with(start))?;
        }
        Ok((file.to.to_owned(), path))
    };
    wanted.iter().map(file).collect()
}
