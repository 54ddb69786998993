//! Debian 13 with packages installed, as a disk for the emulated host: for clients that are more than a program and its libraries.
//!
//! The packages' own scripts have run, in the tree that debootstrap makes, so that users, directories and configuration are
//! there as on a machine of somebody's. That takes root here. Nothing runs in it that the script does not start.

use crate::{
    chroots,
    debs::TRIXIE,
    drive::{Access, Drive},
    env::{Env, key},
    proc, ui,
};
use anyhow::{Context, Result, bail};
use std::{fs, path::Path, process::Command};

/// Modules of the host's kernel that its file system takes, beside those of a disk.
pub const MODULES: [&str; 1] = ["ext4"];

/// What its file system is called: `in-debian` mounts no other.
const LABEL: &str = "hsave-debian";

/// Room that is left on it, in megabytes.
const ROOM: u64 = 512;

/// The disk, made once for these packages. The host can write to it, and nothing of that stays.
///
/// Errors: this machine's user is not root or cannot mount; the network.
pub fn disk(env: &Env, packages: &[&str]) -> Result<Drive> {
    let mut packages = packages.to_vec();
    packages.sort_unstable();
    let versions = TRIXIE.closure(env, &packages)?.join(" ");
    let name = format!("debian/{}", key(&[&versions, include_str!("debian.rs")]));
    let dir = env.artifact(&name, |dir| {
        if let Some(needed) = chroots::lacking() {
            bail!("Debian with {} takes {needed}", packages.join(", "));
        }
        let pristine = chroots::pristine(env, TRIXIE)?;
        ui::step(&format!("Debian 13 with {}", packages.join(", ")), || {
            let root = dir.join("root");
            proc::run(Command::new("cp").arg("--archive").arg(pristine).arg(&root))?;
            install(env, &root, &packages)?;
            image(&root, &dir.join("disk"))?;
            proc::remove_dir(&root)
        })
    })?;
    Ok(Drive { path: dir.join("disk"), format: "raw", access: Access::Forgotten })
}

/// Installs packages into a tree; what apt downloads is not kept in it.
fn install(env: &Env, root: &Path, packages: &[&str]) -> Result<()> {
    fs::write(root.join("etc/apt/sources.list"), TRIXIE.own_sources()?)?;
    fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))?;
    // No service is started while packages are configured.
    let policy = root.join("usr/sbin/policy-rc.d");
    fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
    proc::run(Command::new("chmod").arg("755").arg(&policy))?;
    let debs = env.cache.join("debs/debian");
    fs::create_dir_all(debs.join("partial"))?;
    let script = format!(
        "mount --make-rprivate / && mount -t proc proc '{root}/proc' && mount --rbind /dev '{root}/dev' && \
         mount --bind '{debs}' '{root}/var/cache/apt/archives' && exec chroot '{root}' sh -ec 'apt-get update; \
         apt-get install -y --no-install-recommends -o APT::Keep-Downloaded-Packages=true {packages}'",
        root = root.display(),
        debs = debs.display(),
        packages = packages.join(" "),
    );
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &script]).env_clear();
    shell.env("HOME", "/root").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(chroots::proxies());
    shell.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    proc::run(&mut shell)?;
    for left in ["var/lib/apt/lists", "usr/share/doc", "usr/share/locale"] {
        proc::remove_dir(&root.join(left))?;
    }
    Ok(())
}

/// An ext4 file system with a tree in it.
fn image(root: &Path, disk: &Path) -> Result<()> {
    let used = proc::run(Command::new("du").args(["--summarize", "--block-size=1M"]).arg(root))?;
    let used: u64 = used.split_whitespace().next().and_then(|word| word.parse().ok()).context("du says how much")?;
    let size = format!("{}M", used + used / 8 + ROOM);
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-L", LABEL, "-O", "^has_journal", "-d"]).arg(root).arg(disk).arg(size);
    mke2fs.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    proc::run(&mut mke2fs).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the script says of a disk whose file system is called `label`.
    fn refusal(label: &str) -> (Option<i32>, String) {
        let path = std::env::temp_dir().join(format!("in-debian-{}-{label}", std::process::id()));
        let mut disk = vec![0; 4096];
        for (to, from) in disk.iter_mut().skip(1024 + 0x78).zip(label.bytes()) {
            *to = from;
        }
        fs::write(&path, disk).unwrap();
        // No program of its own is found but those that look: nothing is mounted, whoever runs this.
        let script =
            format!("mkdir() {{ exit 7; }}; mount() {{ exit 7; }}\n{}", include_str!("../scripts/in-debian.sh"));
        let ran = Command::new("sh").args(["-c", &script]).env("DISK", &path).output().unwrap();
        fs::remove_file(path).unwrap();
        (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned())
    }

    #[test]
    fn somebody_elses_disk_is_not_mounted() {
        for label in ["", "root", "hsave-debiaN", "hsave-debian2"] {
            let (status, said) = refusal(label);
            assert!(status == Some(2) && said.contains("not the Debian"), "{label}: {status:?} {said}");
        }
        assert_eq!(refusal(LABEL).0, Some(7));
    }
}
