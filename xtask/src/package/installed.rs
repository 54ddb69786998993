//! Both pairs of modules in an emulated host, where a package and the kernel leave them, with kmod, which chooses between them, and
//! `hsavectl`.

use super::command;
use crate::{
    debs::TRIXIE,
    env::{Env, key},
    foreign::Libraries,
    image::Tools,
    kernels::{self, Kernel},
    modules::{self, Modules},
    proc, ui,
};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The programs of kmod's that are one.
const KMOD: [&str; 4] = ["modprobe", "rmmod", "depmod", "modinfo"];

/// Path in the host, path here; `ours` holds our modules.
pub fn files(env: &Env, kernel: Kernel, ours: &Path) -> Result<Vec<(String, PathBuf)>> {
    let kernel = kernels::fetch(env, kernel)?;
    let tools = Tools::fetch(env)?;
    let place = format!("lib/modules/{}", kernel.release);
    let mut files = vec![("bin/hsavectl".to_owned(), ui::step("hsavectl", || command(env))?)];
    for module in ["kvm.ko", "kvm-amd.ko"] {
        files.push((format!("{place}/updates/dkms/{module}"), ours.join(module)));
    }
    for name in Modules::of(&tools, &kernel, ["kvm-amd"])?.names() {
        let path = modules::find(&kernel, name).with_context(|| format!("the kernel has no module {name}"))?;
        let relative = path.strip_prefix(&kernel.modules)?.to_string_lossy().into_owned();
        files.push((format!("{place}/{relative}"), path));
    }
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        files.push((format!("{place}/{list}"), kernel.modules.join(list)));
    }
    files.extend(kmod(env)?);
    Ok(files)
}

/// Debian's kmod and its libraries but for glibc, which the host has.
fn kmod(env: &Env) -> Result<Vec<(String, PathBuf)>> {
    let packages = TRIXIE.closure(env, &["kmod"])?;
    let root = env.artifact(&format!("kmod/{}", key(&[&packages.join(" ")])), |dir| {
        ui::step("Debian's kmod into the cache", || TRIXIE.unpack(env, &packages, dir))
    })?;
    let program = ["usr/bin/kmod", "bin/kmod"].map(|path| root.join(path)).into_iter().find(|path| path.is_file());
    let program = program.context("the package kmod has no kmod")?;
    let text = proc::run(Libraries::new(&root).command(Path::new("--list")).arg(&program))?;
    let mut files: Vec<(String, PathBuf)> = KMOD.iter().map(|name| (format!("bin/{name}"), program.clone())).collect();
    for line in text.lines() {
        let Some((name, path)) = line.split_once("=> ") else { continue };
        let (name, path) = (name.trim(), path.split(' ').next().unwrap_or_default());
        if name != "libc.so.6" {
            files.push((format!("usr/lib/x86_64-linux-gnu/{name}"), path.into()));
        }
    }
    Ok(files)
}
