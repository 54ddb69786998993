//! Where things lie: the checkout, the cache, and artifacts in the cache that are made once.

use crate::{proc, ui};
use anyhow::{Context, Result};
use fs4::FileExt;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// The two roots every command works under.
pub struct Env {
    /// The checkout.
    pub root: PathBuf,
    /// Downloads and builds: `$HSAVE_CACHE`, or `.cache` in the checkout.
    pub cache: PathBuf,
}

impl Env {
    pub fn new() -> Result<Self> {
        // `cargo run` says where the package lies now; the compiled-in place is for the bare program.
        let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&package).parent().context("xtask lies in the checkout")?.to_owned();
        let cache = std::env::var_os("HSAVE_CACHE").map_or_else(|| root.join(".cache"), PathBuf::from);
        fs::create_dir_all(&cache).with_context(|| format!("cannot create the cache {}", cache.display()))?;
        let cache = cache.canonicalize()?;
        Ok(Self { root, cache })
    }

    /// Cargo's target directory for builds started from here.
    pub fn target(&self) -> PathBuf {
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from)
    }

    /// Says beforehand, of so many GiB that the cache and cargo's target directory will take, what a full disk would say an hour
    /// later of something that is not at fault.
    pub fn tell_of_a_full_disk(&self, needed: [u64; 2]) -> Result<()> {
        let target = self.target();
        fs::create_dir_all(&target)?;
        for (path, needed) in [&self.cache, &target].into_iter().zip(needed) {
            let free = fs4::available_space(path)? >> 30;
            if free < needed {
                ui::note(&format!("{free} GiB are free for {}, and up to {needed} may be needed", path.display()));
            }
        }
        Ok(())
    }

    /// The cargo that started us, else the one on the PATH.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root);
        cargo
    }

    /// A directory in the cache that is complete if it exists: `make` fills a temporary directory
    /// that is renamed at the end, under a lock, so that parallel commands make it once.
    pub fn artifact(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.cache.join(name);
        if path.exists() {
            return Ok(path);
        }
        let _lock = self.lock(name)?;
        if path.exists() {
            return Ok(path);
        }
        let partial = self.cache.join(format!("{name}.partial"));
        proc::remove_dir(&partial)?;
        fs::create_dir_all(&partial)?;
        make(&partial)?;
        fs::rename(&partial, &path)?;
        Ok(path)
    }

    /// Holds the lock of that name, between processes, until the file is dropped.
    pub fn lock(&self, name: &str) -> Result<File> {
        let path = self.cache.join("locks").join(name.replace('/', "-"));
        fs::create_dir_all(path.parent().unwrap_or(&self.cache))?;
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        FileExt::lock(&file)?;
        Ok(file)
    }
}

/// A short name for content: the first 12 hex digits of its SHA-256.
pub fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
