//! QEMU of Debian 13's backports, beside Debian 13's own.

use crate::{
    debs::TRIXIE_BACKPORTS,
    env::{Env, key},
    foreign::Libraries,
    proc, ui,
};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

const PROGRAM: &str = "usr/bin/qemu-system-x86_64";

/// What it takes of its firmware: the BIOS, and what starts a kernel.
const FIRMWARE: [&str; 3] = [".bin", "qboot.rom", "efi-virtio.rom"];

/// The program as /backports/qemu-system-x86_64, its libraries in /backports/lib, its firmware in /backports/firmware. Path in the
/// host, path here.
pub fn files(env: &Env) -> Result<Vec<(String, PathBuf)>> {
    let packages = TRIXIE_BACKPORTS.closure(env, &["qemu-system-x86"])?;
    let root = env.artifact(&format!("tools/backports-{}", key(&[&packages.join(" ")])), |dir| {
        ui::step("QEMU of Debian's backports", || TRIXIE_BACKPORTS.unpack(env, &packages, dir))
    })?;
    let mut files = vec![("backports/qemu-system-x86_64".to_owned(), root.join(PROGRAM))];
    let name = |path: &Path| -> Result<String> {
        Ok(path.file_name().context("a file has a name")?.to_string_lossy().into_owned())
    };
    let text = proc::run(Libraries::new(&root).command(Path::new("--list")).arg(root.join(PROGRAM)))?;
    for line in text.lines() {
        let Some(path) = line.split_once("=> ").and_then(|(_, path)| path.split(' ').next()) else { continue };
        files.push((format!("backports/lib/{}", name(Path::new(path))?), path.into()));
    }
    for dir in ["usr/share/qemu", "usr/share/seabios"] {
        for entry in WalkDir::new(root.join(dir)).max_depth(1).into_iter().flatten() {
            let file = name(entry.path())?;
            if entry.path().is_file() && FIRMWARE.iter().any(|end| file.ends_with(end)) {
                files.push((format!("backports/firmware/{file}"), entry.into_path()));
            }
        }
    }
    Ok(files)
}
