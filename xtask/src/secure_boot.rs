//! What secure boot takes beside Debian's QEMU and kernel.

use crate::{
    debs::TRIXIE,
    env::{Env, key},
    ui,
};
use anyhow::Result;
use std::path::PathBuf;

/// The packages of which anything is taken.
const PACKAGES: [&str; 3] = ["ovmf", "shim-signed", "grub-efi-amd64-signed"];

/// The firmware, its variables with Microsoft's keys, Debian's shim, which Microsoft has signed, and its GRUB, which Debian
/// has. Path in the host, path here.
pub fn files(env: &Env) -> Result<Vec<(String, PathBuf)>> {
    let mut packages = TRIXIE.closure(env, &PACKAGES)?;
    packages.retain(|package| package.split_once('=').is_some_and(|(name, _)| PACKAGES.contains(&name)));
    let root = env.artifact(&format!("secure-boot/{}", key(&[&packages.join(" ")])), |dir| {
        ui::step("Debian's firmware and loader for secure boot", || TRIXIE.unpack(env, &packages, dir))
    })?;
    let from = |name: &str, path: &str| (format!("secure/{name}"), root.join(path));
    Ok(vec![
        from("OVMF_CODE_4M.secboot.fd", "usr/share/OVMF/OVMF_CODE_4M.secboot.fd"),
        from("OVMF_VARS_4M.ms.fd", "usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
        from("shim", "usr/lib/shim/shimx64.efi.signed"),
        from("grub", "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"),
    ])
}
