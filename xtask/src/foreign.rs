//! Running programs from an unpacked Debian release on another one.
//!
//! Such a program asks for libraries, or a glibc, that the machine does not have. It is put behind a
//! two-line script that starts it with the dynamic loader and the libraries it was unpacked with.

use crate::proc;
use anyhow::{Context, Result};
use object::{
    elf::{FileHeader64, PT_INTERP},
    read::elf::{FileHeader, ProgramHeader},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};
use walkdir::WalkDir;

/// Where the loader and libraries lie in an unpacked tree.
pub struct Libraries {
    loader: PathBuf,
    path: String,
}

impl Libraries {
    /// The libraries of a tree that holds at least libc6.
    pub fn new(root: &Path) -> Self {
        let dirs = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        let path = dirs.map(|dir| root.join(dir).display().to_string()).join(":");
        // The link in lib64 may be absolute, so would lead to the machine's own.
        let loader = dirs.map(|dir| root.join(dir).join("ld-linux-x86-64.so.2")).into_iter().find(|path| path.exists());
        let loader = loader.unwrap_or_else(|| root.join("usr/lib64/ld-linux-x86-64.so.2"));
        Self { loader, path }
    }

    /// The machine's own loader and glibc, and the other libraries of a tree that holds no libc6. Needs a machine whose glibc is as
    /// new as the tree's programs want it.
    pub fn of_this_machine(root: &Path) -> Self {
        Self { loader: PathBuf::from("/lib64/ld-linux-x86-64.so.2"), ..Self::new(root) }
    }

    /// The loader and glibc of one tree, and the other libraries of another.
    pub fn with(libc: &Path, root: &Path) -> Self {
        let (libc, rest) = (Self::new(libc), Self::new(root));
        Self { loader: libc.loader, path: format!("{}:{}", libc.path, rest.path) }
    }

    /// A program itself, whether it has been put behind a script or not.
    pub fn real(program: &Path) -> PathBuf {
        let wrapped = Self::behind(program);
        if wrapped.exists() { wrapped } else { program.to_owned() }
    }

    /// Where [`Libraries::wrap`] puts a program.
    fn behind(program: &Path) -> PathBuf {
        PathBuf::from(format!("{}.wrapped", program.display()))
    }

    /// A command that starts `program` with these libraries.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(&self.loader);
        command.arg("--library-path").arg(&self.path).arg(program);
        command
    }

    /// Puts every x86-64 program under `dir` behind a script that starts it with these libraries.
    pub fn wrap(&self, dir: &Path) -> Result<()> {
        for entry in WalkDir::new(dir) {
            let entry = entry?;
            let path = entry.path();
            let executable = entry.file_type().is_file() && entry.metadata()?.permissions().mode() & 0o111 != 0;
            if !executable || path.extension().is_some_and(|ext| ext == "wrapped") || !is_program(path)? {
                continue;
            }
            let real = Self::behind(path);
            fs::rename(path, &real)?;
            let script = format!(
                "#!/bin/sh\nexec '{}' --argv0 \"$0\" --library-path '{}' '{}' \"$@\"\n",
                self.loader.display(),
                self.path,
                real.display()
            );
            fs::write(path, script)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }
}

/// Whether a file is a dynamically linked x86-64 program.
fn is_program(path: &Path) -> Result<bool> {
    let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let Ok(header) = FileHeader64::<object::Endianness>::parse(&*data) else { return Ok(false) };
    let Ok(endian) = header.endian() else { return Ok(false) };
    if header.e_machine(endian) != object::elf::EM_X86_64 {
        return Ok(false);
    }
    Ok(header.program_headers(endian, &*data)?.iter().any(|segment| segment.p_type(endian) == PT_INTERP))
}

/// Whether the machine lacks what this program is linked with: libraries, or a glibc as new.
pub fn cannot_start(program: &Path) -> bool {
    lacks_libraries(&mut Command::new(program))
}

/// The same of a program that is started by a command.
pub fn lacks_libraries(command: &mut Command) -> bool {
    proc::output(command.arg("--version")).is_ok_and(|output| {
        let text = proc::both(&output);
        text.contains("GLIBC_") || text.contains("error while loading shared libraries")
    })
}
