//! The stock Debian kernels that hsave is built for and tested on, unpacked in the cache.

use crate::{
    debs::{self, Suite},
    env::{Env, key},
    proc, ui,
};
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};
use walkdir::WalkDir;

/// A kernel series: the newest of it that Debian ships in its cloud flavour.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub enum Kernel {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    #[value(name = "7.3")]
    V7_3,
}

pub const ALL: [Kernel; 3] = [Kernel::V6_1, Kernel::V6_12, Kernel::V7_3];

impl Kernel {
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_3 => "7.3",
        }
    }

    fn suite(self) -> Suite {
        match self {
            Self::V6_1 => debs::BOOKWORM,
            Self::V6_12 => debs::TRIXIE,
            Self::V7_3 => debs::TRIXIE_BACKPORTS,
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One unpacked kernel.
#[derive(Clone)]
pub struct Unpacked {
    /// As `uname -r` says it.
    pub release: String,
    /// The bootable image.
    pub image: PathBuf,
    /// The build directory for modules.
    pub headers: PathBuf,
    /// `.../lib/modules/RELEASE`
    pub modules: PathBuf,
}

/// The kernel, downloaded and unpacked if it is not in the cache.
pub fn fetch(env: &Env, kernel: Kernel) -> Result<Unpacked> {
    let suite = kernel.suite();
    let mut packages = suite.closure(env, &["linux-image-cloud-amd64", "linux-headers-cloud-amd64"])?;
    // Meta packages and what only matters to an installed kernel are left out.
    packages.retain(|package| {
        let versioned = package.starts_with("linux-") && package.split('=').next().is_some_and(has_digit);
        versioned && !package.contains("-compiler-") && !package.starts_with("linux-base")
    });
    let name = format!("kernels/{kernel}-{}", key(&[&packages.join(" ")]));
    env.artifact(&name, |dir| {
        ui::step(&format!("Debian's kernel {kernel} into the cache"), || suite.unpack(env, &packages, dir))?;
        let root = env.cache.join(&name);
        for header in header_dirs(dir)? {
            relocate(&header.join("Makefile"), &root)?;
        }
        Ok(())
    })?;
    let root = env.cache.join(&name);
    let headers = proc::find_entry(&root.join("usr/src"), |name| name.ends_with("-cloud-amd64"))?;
    let image = WalkDir::new(&root).into_iter().flatten().map(walkdir::DirEntry::into_path).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")) && path.is_file()
    });
    let image = image.with_context(|| format!("no kernel image under {}", root.display()))?;
    let modules = [root.join("usr/lib/modules"), root.join("lib/modules")].into_iter().find(|dir| dir.exists());
    let modules = proc::find_entry(&modules.context("no modules in the kernel package")?, |_| true)?;
    let release = modules.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Unpacked { release, image, headers, modules })
}

fn has_digit(text: &str) -> bool {
    // `amd64` is no version.
    text.replace("amd64", "").contains(|c: char| c.is_ascii_digit())
}

fn header_dirs(root: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(root.join("usr/src"))?;
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.join("Makefile").is_file()).collect())
}

/// Debian's header packages name each other by absolute path; makes those point into `root`.
fn relocate(makefile: &Path, root: &Path) -> Result<()> {
    let text = fs::read_to_string(makefile)?;
    let moved = text.replace("/usr/src/linux-headers", &format!("{}/usr/src/linux-headers", root.display()));
    if moved != text {
        fs::write(makefile, moved)?;
    }
    Ok(())
}

/// Everything the tests need from Debian.
pub fn fetch_all(env: &Env, refresh: bool) -> Result<()> {
    if refresh {
        for suite in [debs::BOOKWORM, debs::TRIXIE, debs::TRIXIE_BACKPORTS] {
            suite.forget(env)?;
        }
    }
    for kernel in ALL {
        let unpacked = fetch(env, kernel)?;
        ui::note(&format!("{kernel}: {} in {}", unpacked.release, unpacked.headers.display()));
    }
    Ok(())
}
