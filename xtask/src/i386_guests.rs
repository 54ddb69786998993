//! Guests whose kernel is for 32-bit processors: Debian 12's, with page-table entries of 8 bytes (PAE) and of 4.

use crate::{
    debs::BOOKWORM_I386,
    env::{Env, key},
    image::{self, Tools},
    kernels::Unpacked,
    packaged, proc, ui,
};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The flavours of Debian's kernel.
const FLAVOURS: [&str; 2] = ["686", "686-pae"];

/// What `boot-guest` takes from the directory that GUEST names, for each flavour. Path in the host, path here.
pub fn files(env: &Env) -> Result<Vec<(String, PathBuf)>> {
    let tools = Tools::fetch(env)?;
    let mut files = Vec::new();
    for flavour in FLAVOURS {
        let dir = guest(env, &tools, flavour)?;
        for name in ["vmlinuz", "initrd", "pattern"] {
            files.push((format!("guest-{flavour}/{name}"), dir.join(name)));
        }
    }
    Ok(files)
}

fn guest(env: &Env, tools: &Tools, flavour: &str) -> Result<PathBuf> {
    let busybox = packaged::unpacked(env, BOOKWORM_I386, "busybox-static")?;
    let mut packages = BOOKWORM_I386.closure(env, &[&format!("linux-image-{flavour}")])?;
    // The kernel itself, without the package that names the newest one.
    packages.retain(|package| package.starts_with("linux-image-6."));
    let init = include_str!("../scripts/guest-init.sh");
    let key = key(&[&packages.join(" "), &busybox.display().to_string(), init, include_str!("i386_guests.rs")]);
    env.artifact(&format!("i386-guests/{flavour}-{key}"), |dir| {
        ui::step(&format!("Debian's kernel for {flavour} into the cache"), || {
            let root = dir.join("root");
            BOOKWORM_I386.unpack(env, &packages, &root)?;
            let kernel = kernel(&root)?;
            fs::copy(&kernel.image, dir.join("vmlinuz"))?;
            let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| busybox.join(path));
            let busybox = busybox.iter().find(|path| path.is_file()).context("the package has no busybox")?;
            fs::write(dir.join("initrd"), image::guest_initrd(tools, &kernel, busybox)?)?;
            fs::write(dir.join("pattern"), image::pattern())?;
            proc::remove_dir(&root)
        })
    })
}

fn kernel(root: &Path) -> Result<Unpacked> {
    let modules = proc::find_entry(&root.join("lib/modules"), |_| true)?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let image = proc::find_entry(&root.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    Ok(Unpacked { release, image, headers: PathBuf::new(), modules })
}
