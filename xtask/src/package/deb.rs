//! One Debian package: a tree of files, the fields that describe it, and dpkg-deb.

use super::Release;
use crate::proc;
use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};
use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};
use walkdir::WalkDir;

pub struct Deb {
    name: &'static str,
    root: PathBuf,
    fields: Vec<(&'static str, String)>,
}

impl Deb {
    /// An empty package in a directory of its own under `work`.
    pub fn new(name: &'static str, work: &Path) -> Result<Self> {
        let root = work.join(name);
        proc::remove_dir(&root)?;
        fs::create_dir_all(root.join("DEBIAN"))?;
        Ok(Self { name, root, fields: Vec::new() })
    }

    /// Where a path of the package is, relative to `/`.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("a file lies in a directory")?)?;
        fs::write(&path, content)?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(mode))?)
    }

    /// A file that gzip has made as small as it can, without its name and time.
    pub fn compressed(&mut self, path: &str, content: &[u8]) -> Result<()> {
        let mut gzip = Command::new("gzip");
        gzip.args(["--best", "--no-name"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = gzip.spawn().context("cannot run gzip")?;
        let mut input = child.stdin.take().context("gzip has an input")?;
        let content = content.to_owned();
        let writer = std::thread::spawn(move || input.write_all(&content));
        let output = child.wait_with_output()?;
        if !output.status.success() || !matches!(writer.join(), Ok(Ok(()))) {
            bail!("gzip failed");
        }
        self.file(path, 0o644, &output.stdout)
    }

    /// A script that dpkg runs.
    pub fn script(&mut self, name: &str, text: &str) -> Result<()> {
        self.file(&format!("DEBIAN/{name}"), 0o755, text.as_bytes())
    }

    /// Files that something else has put into a directory of the package's are as all files are.
    pub fn plain_modes(&self, directory: &str) -> Result<()> {
        for entry in WalkDir::new(self.path(directory)) {
            let entry = entry?;
            let mode = if entry.file_type().is_dir() { 0o755 } else { 0o644 };
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    /// A field of the control file; of several lines as it stands there.
    pub fn field(&mut self, name: &'static str, value: &str) {
        self.fields.push((name, value.to_owned()));
    }

    /// Writes what describes the package and makes it in `out`.
    pub fn finish(mut self, release: &Release, out: &Path) -> Result<PathBuf> {
        let mut sums = Vec::new();
        let mut bytes = 0;
        for entry in WalkDir::new(&self.root).sort_by_file_name() {
            let entry = entry?;
            let relative = entry.path().strip_prefix(&self.root)?;
            if entry.file_type().is_file() && !relative.starts_with("DEBIAN") {
                sums.push(relative.to_string_lossy().into_owned());
                bytes += entry.metadata()?.len().div_ceil(1024) * 1024;
            }
            if entry.file_type().is_dir() {
                fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o755))?;
            }
        }
        let sums = proc::run(Command::new("md5sum").args(&sums).current_dir(&self.root))?;
        self.file("DEBIAN/md5sums", 0o644, sums.as_bytes())?;
        let mut control = format!("Package: {}\nSource: hsave\nVersion: {}\n", self.name, release.version);
        control += &format!("Architecture: amd64\nMaintainer: {}\n", release.maintainer);
        control += &format!("Installed-Size: {}\nPriority: optional\n", bytes / 1024);
        for (name, value) in &self.fields {
            control += &format!("{name}: {value}\n");
        }
        self.file("DEBIAN/control", 0o644, control.as_bytes())?;
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(release.epoch);
        for entry in WalkDir::new(&self.root).contents_first(true) {
            File::open(entry?.path())?.set_modified(time)?;
        }
        let path = out.join(format!("{}_{}_amd64.deb", self.name, release.version));
        let mut dpkg = Command::new("dpkg-deb");
        dpkg.args(["--root-owner-group", "-Zxz", "--build"]).arg(&self.root).arg(&path);
        dpkg.env("SOURCE_DATE_EPOCH", release.epoch.to_string());
        proc::run(&mut dpkg)?;
        Ok(path)
    }
}

/// The newest version of glibc's symbols that a program asks for.
pub fn glibc(program: &[u8]) -> Result<[u32; 2]> {
    let file = object::File::parse(program)?;
    let names = file.section_by_name(".dynstr").context("the program is not linked dynamically")?;
    let version = |name: &[u8]| {
        let (major, minor) = std::str::from_utf8(name).ok()?.strip_prefix("GLIBC_")?.split_once('.')?;
        // Some have a third number.
        Some([major.parse().ok()?, minor.split('.').next()?.parse().ok()?])
    };
    names.data()?.split(|&byte| byte == 0).filter_map(version).max().context("the program asks for no glibc")
}
