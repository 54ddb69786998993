//! The kernels that hsave is built for and tested on, in the cache: Debian's own, and one built from Debian's sources with
//! everything in it that checks ([`debug`](crate::debug)).

use crate::{
    debs::{self, Suite},
    debug,
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

/// A kernel: the newest of its series in one of Debian's flavours, the cloud flavour if its name does not say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub enum Kernel {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    #[value(name = "7.3")]
    V7_3,
    #[value(name = "6.1-generic")]
    V6_1Generic,
    #[value(name = "6.12-generic")]
    V6_12Generic,
    #[value(name = "7.3-generic")]
    V7_3Generic,
    #[value(name = "6.12-rt")]
    V6_12Rt,
    #[value(name = "7.3-rt")]
    V7_3Rt,
    #[value(name = "6.12-debug")]
    V6_12Debug,
}

/// Those that everything is tested on.
pub const ALL: [Kernel; 3] = [Kernel::V6_1, Kernel::V6_12, Kernel::V7_3];

/// Those of `./x test --all` and of who asks for them by name.
pub const OTHERS: [Kernel; 6] = [
    Kernel::V6_1Generic,
    Kernel::V6_12Generic,
    Kernel::V7_3Generic,
    Kernel::V6_12Rt,
    Kernel::V7_3Rt,
    Kernel::V6_12Debug,
];

/// What a kernel was configured for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    Cloud,
    Generic,
    /// PREEMPT_RT.
    Rt,
    /// With locks, memory and undefined behaviour checked, and allocations that fail when told to.
    Debug,
}

impl Kernel {
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_3 => "7.3",
            Self::V6_1Generic => "6.1-generic",
            Self::V6_12Generic => "6.12-generic",
            Self::V7_3Generic => "7.3-generic",
            Self::V6_12Rt => "6.12-rt",
            Self::V7_3Rt => "7.3-rt",
            Self::V6_12Debug => "6.12-debug",
        }
    }

    pub fn flavour(self) -> Flavour {
        match self {
            Self::V6_1 | Self::V6_12 | Self::V7_3 => Flavour::Cloud,
            Self::V6_1Generic | Self::V6_12Generic | Self::V7_3Generic => Flavour::Generic,
            Self::V6_12Rt | Self::V7_3Rt => Flavour::Rt,
            Self::V6_12Debug => Flavour::Debug,
        }
    }

    /// The kernel of the same series that everything is tested on.
    pub fn series(self) -> Self {
        match self {
            Self::V6_1 | Self::V6_1Generic => Self::V6_1,
            Self::V6_12 | Self::V6_12Generic | Self::V6_12Rt | Self::V6_12Debug => Self::V6_12,
            Self::V7_3 | Self::V7_3Generic | Self::V7_3Rt => Self::V7_3,
        }
    }

    /// How much longer than on the kernel of the same series things may take.
    pub fn slowness(self) -> u32 {
        if self.flavour() == Flavour::Debug { 6 } else { 1 }
    }

    fn suite(self) -> Suite {
        match self.series() {
            Self::V6_1 => debs::BOOKWORM,
            Self::V6_12 => debs::TRIXIE,
            _ => debs::TRIXIE_BACKPORTS,
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
    let meta = match kernel.flavour() {
        Flavour::Cloud => ["linux-image-cloud-amd64", "linux-headers-cloud-amd64"],
        Flavour::Generic => ["linux-image-amd64", "linux-headers-amd64"],
        Flavour::Rt => ["linux-image-rt-amd64", "linux-headers-rt-amd64"],
        Flavour::Debug => return debug::fetch(env, kernel),
    };
    let mut packages = suite.closure(env, &meta)?;
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
    let headers = proc::find_entry(&root.join("usr/src"), |name| name.ends_with("-amd64"))?;
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
        for suite in [debs::BOOKWORM, debs::TRIXIE, debs::TRIXIE_BACKPORTS, debs::TRIXIE_SOURCES] {
            suite.forget(env)?;
        }
    }
    for kernel in ALL {
        let unpacked = fetch(env, kernel)?;
        ui::note(&format!("{kernel}: {} in {}", unpacked.release, unpacked.headers.display()));
    }
    Ok(())
}
