//! The machine, as far as it is files and programs: a root directory, which is `/` but for tests, and how a program is run.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What went wrong and what to do about it, for a person.
pub type Result<T> = std::result::Result<T, String>;

/// What a program left.
pub struct Ran {
    pub success: bool,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
}

/// Runs a program by name.
pub type Runner = Box<dyn Fn(&str, &[&str]) -> Result<Ran>>;

/// The machine.
pub struct System {
    root: PathBuf,
    runner: Runner,
}

/// `O_NONBLOCK` of x86: the kernel's log has an end for those who ask so.
const NONBLOCK: i32 = 0o4000;

impl System {
    /// This machine.
    pub fn this() -> Self {
        Self { root: PathBuf::from("/"), runner: Box::new(program) }
    }

    /// A tree of files that stands for one.
    #[cfg(test)]
    pub fn at(root: &Path, runner: Runner) -> Self {
        Self { root: root.to_owned(), runner }
    }

    /// Where an absolute path lies.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// A file's text, trimmed at its end; None if it is not there or is not for us.
    pub fn text(&self, path: &str) -> Option<String> {
        let bytes = fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }

    /// What a process calls itself, fit for a terminal: it may be any bytes.
    pub fn name(&self, path: &str) -> Option<String> {
        self.text(path).map(|text| shown(&text))
    }

    /// The names in a directory, in order; none if there is no such directory.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// What a symbolic link says.
    pub fn link(&self, path: &str) -> Option<String> {
        Some(fs::read_link(self.path(path)).ok()?.to_string_lossy().into_owned())
    }

    /// Writes a file of the kernel's by one write, which is not made again when a signal ends it.
    pub fn write(&self, path: &str, text: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).open(self.path(path))?;
        if file.write(text.as_bytes())? == text.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Replaces a file on disk as a whole; what was there stays if that fails.
    pub fn replace(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        let new = path.with_extension("hsavectl-new");
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            let mut file = fs::File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(|error: io::Error| {
            let _ = fs::remove_file(&new);
            format!("cannot write {}: {error}", path.display())
        })
    }

    /// Removes a file; that there is none is as good.
    pub fn remove(&self, path: &str) -> Result<()> {
        let path = self.path(path);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("cannot remove {}: {error}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Runs a program to its end.
    pub fn run(&self, name: &str, words: &[&str]) -> Result<Ran> {
        (self.runner)(name, words)
    }

    /// Runs one that has to succeed.
    pub fn must(&self, name: &str, words: &[&str]) -> Result<String> {
        let ran = self.run(name, words)?;
        let error = || format!("`{name} {}` failed: {}", words.join(" "), ran.errors.trim_end());
        if ran.success { Ok(ran.output) } else { Err(error()) }
    }

    /// The running kernel's release.
    pub fn release(&self) -> Result<String> {
        self.text("/proc/sys/kernel/osrelease").ok_or_else(|| "/proc is not mounted".to_owned())
    }

    /// Whether we may do all that root may.
    pub fn is_root(&self) -> bool {
        let status = self.text("/proc/self/status").unwrap_or_default();
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        uids.split_whitespace().nth(1) == Some("0")
    }

    /// The kernel's log as far as it is kept, one record after the other. Errors: it is not for us.
    pub fn kernel_log(&self) -> io::Result<String> {
        let mut log = fs::OpenOptions::new().read(true).custom_flags(NONBLOCK).open(self.path("/dev/kmsg"))?;
        let mut text = Vec::new();
        // Each read is one record, which has at most 8 KiB.
        let mut buffer = vec![0; 16 << 10];
        loop {
            match log.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => text.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The oldest records were overwritten meanwhile; the next read goes on behind them.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error),
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn program(name: &str, words: &[&str]) -> Result<Ran> {
    // This is root's: what somebody else has put on the path is not run.
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    let output = Command::new(name).args(words).env("PATH", path).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot run {name}: {error} (`apt install kmod` has it)"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ran { success: output.status.success(), output: text(&output.stdout), errors: text(&output.stderr) })
}

/// A line with what a process calls itself in it, fit for a terminal.
pub fn shown(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
