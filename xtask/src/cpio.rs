//! Initial file systems: a cpio archive from entries, parents made on the way.

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};
use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

/// An archive under construction; the kernel unpacks several in a row, so parts can be cached.
#[derive(Default)]
pub struct Archive {
    data: Vec<u8>,
    seen: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    /// A file with this content.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(path, mode, ModeFileType::Regular, content)
    }

    /// A copy of a file of this machine, symbolic links followed, its mode kept.
    pub fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(path, fs::metadata(from)?.permissions().mode() & 0o777, &content)
    }

    /// Every file directly in a directory of this machine.
    pub fn copy_dir(&mut self, path: &str, from: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let entries = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|p| p.is_file()).collect();
        files.sort();
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if wanted(&name) {
                self.copy(&format!("{path}/{name}"), &file)?;
            }
        }
        Ok(())
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.entry(path, 0o777, ModeFileType::Symlink, to.as_bytes())
    }

    /// The finished archive.
    pub fn finish(self) -> Result<Vec<u8>> {
        let mut data = trailer(self.data)?;
        // The next archive has to begin at a multiple of four.
        data.resize(data.len().next_multiple_of(512), 0);
        Ok(data)
    }

    fn entry(&mut self, path: &str, mode: u32, kind: ModeFileType, content: &[u8]) -> Result<()> {
        let path = path.trim_start_matches('/');
        let parents: Vec<&str> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
        for parent in parents {
            if self.seen.insert(parent.to_owned()) {
                self.raw(parent, 0o755, ModeFileType::Directory, &[])?;
            }
        }
        self.seen.insert(path.to_owned());
        self.raw(path, mode, kind, content)
    }

    fn raw(&mut self, path: &str, mode: u32, kind: ModeFileType, content: &[u8]) -> Result<()> {
        self.inode += 1;
        let builder = Builder::new(path).ino(self.inode).nlink(1).mode(mode).set_mode_file_type(kind);
        let mut writer = builder.write(std::mem::take(&mut self.data), u32::try_from(content.len())?);
        writer.write_all(content)?;
        self.data = writer.finish()?;
        Ok(())
    }
}
