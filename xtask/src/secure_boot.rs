//! What secure boot takes beside Debian's QEMU and kernel.

use crate::{
    debs::TRIXIE,
    env::{Env, key},
    ui,
};
use anyhow::Result;
use std::path::PathBuf;

/// The firmware, its variables with Microsoft's keys, and Debian's shim, which Microsoft has signed. Path in the host, path
/// here.
pub fn files(env: &Env) -> Result<Vec<(String, PathBuf)>> {
    let mut packages = TRIXIE.closure(env, &["ovmf", "shim-signed"])?;
    packages.retain(|package| package.starts_with("ovmf=") || package.starts_with("shim-signed="));
    let root = env.artifact(&format!("secure-boot/{}", key(&[&packages.join(" ")])), |dir| {
        ui::step("Debian's firmware and loader for secure boot", || TRIXIE.unpack(env, &packages, dir))
    })?;
    let from = |name: &str, path: &str| (format!("secure/{name}"), root.join(path));
    Ok(vec![
        from("OVMF_CODE_4M.secboot.fd", "usr/share/OVMF/OVMF_CODE_4M.secboot.fd"),
        from("OVMF_VARS_4M.ms.fd", "usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
        from("shim", "usr/lib/shim/shimx64.efi.signed"),
    ])
}
