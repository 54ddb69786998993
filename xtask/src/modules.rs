//! Kernel modules out of a Debian kernel package, with what they depend on.

use crate::{cpio::Archive, image::Tools, kernels::Unpacked, proc};
use anyhow::{Context, Result};
use object::{Object, ObjectSection};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use walkdir::WalkDir;

/// Modules in the order in which they have to be loaded.
#[derive(Default)]
pub struct Modules(Vec<(String, Vec<u8>)>);

impl Modules {
    /// These of the kernel, and what they depend on.
    pub fn of<'a>(tools: &Tools, kernel: &Unpacked, names: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut modules = Self::default();
        for name in names {
            modules.add(tools, kernel, name)?;
        }
        Ok(modules)
    }

    /// Adds a module of the kernel and, before it, what it depends on. One that the package does not
    /// have as a file is built in.
    pub fn add(&mut self, tools: &Tools, kernel: &Unpacked, name: &str) -> Result<()> {
        match find(kernel, name) {
            Some(path) => self.add_content(tools, kernel, name, read(tools, &path)?),
            None => Ok(()),
        }
    }

    /// Adds a module from a file of ours and what it depends on.
    pub fn add_file(&mut self, tools: &Tools, kernel: &Unpacked, path: &Path) -> Result<()> {
        let name = path.file_stem().context("a module has a name")?.to_string_lossy().into_owned();
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.add_content(tools, kernel, &name, content)
    }

    fn add_content(&mut self, tools: &Tools, kernel: &Unpacked, name: &str, content: Vec<u8>) -> Result<()> {
        let same = |known: &str| known.replace('-', "_") == name.replace('-', "_");
        if self.0.iter().any(|(known, _)| same(known)) {
            return Ok(());
        }
        for needed in depends(&content)? {
            self.add(tools, kernel, &needed)?;
        }
        self.0.push((name.to_owned(), content));
        Ok(())
    }

    /// Their names, in the order in which they have to be loaded.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Puts the modules into the directory `dir`.
    pub fn archive(&self, archive: &mut Archive, dir: &str) -> Result<()> {
        for (name, content) in &self.0 {
            archive.file(&format!("{dir}/{name}.ko"), 0o644, content)?;
        }
        Ok(())
    }
}

/// The content of one of the kernel's own modules.
pub fn stock(tools: &Tools, kernel: &Unpacked, name: &str) -> Result<Vec<u8>> {
    let path = find(kernel, name).with_context(|| format!("{} has no module {name}", kernel.release))?;
    read(tools, &path)
}

/// Where the file of one of the kernel's own modules lies; None if it is built in.
pub fn find(kernel: &Unpacked, name: &str) -> Option<PathBuf> {
    let wanted = name.replace('_', "-");
    WalkDir::new(&kernel.modules).into_iter().flatten().map(walkdir::DirEntry::into_path).find(|path| {
        let file = path.file_name().unwrap_or_default().to_string_lossy().replace('_', "-");
        file.strip_prefix(&wanted).is_some_and(|rest| rest == ".ko" || rest == ".ko.xz")
    })
}

/// A module's content, of a file that may be compressed.
pub fn read(tools: &Tools, path: &Path) -> Result<Vec<u8>> {
    let mut command = match path.extension().and_then(|ext| ext.to_str()) {
        Some("xz") => Command::new(tools.busybox()),
        Some("zst") => Command::new("zstd"),
        _ => return Ok(fs::read(path)?),
    };
    if path.extension().is_some_and(|ext| ext == "xz") {
        command.arg("xz");
    }
    let output = proc::output(command.arg("-dc").arg(path))?;
    anyhow::ensure!(output.status.success(), "cannot decompress {}", path.display());
    Ok(output.stdout)
}

/// The names in a module's `depends=` field.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name(".modinfo").context("not a kernel module")?;
    let fields = String::from_utf8_lossy(section.data()?).into_owned();
    let names =
        fields.split('\0').filter_map(|field| field.strip_prefix("depends=")).flat_map(|names| names.split(','));
    Ok(names.filter(|name| !name.is_empty()).map(str::to_owned).collect())
}
