//! All sources as one archive: what the object in the package was compiled from.

use crate::{env::Env, proc};
use anyhow::Result;
use std::{fs, path::Path, process::Command};
use walkdir::WalkDir;

/// What of the checkout is no source.
const NOT_SOURCES: [&str; 3] = ["target", ".cache", ".git"];

/// Writes the archive, the same for the same sources.
pub fn archive(env: &Env, version: &str, epoch: u64, to: &Path) -> Result<()> {
    let list = to.with_extension("list");
    fs::write(&list, files(env)?.join("\n"))?;
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--file").arg(to).arg("--directory").arg(&env.root);
    tar.args(["--xz", "--sort=name", "--owner=root:0", "--group=root:0", "--mode=u=rwX,go=rX", "--format=gnu"]);
    tar.arg(format!("--mtime=@{epoch}")).arg(format!("--transform=s,^,hsave-{version}/,"));
    tar.arg("--files-from").arg(&list);
    proc::run(&mut tar)?;
    Ok(fs::remove_file(list)?)
}

/// Those that git knows, or where there is no repository, all that do not look like something built.
fn files(env: &Env) -> Result<Vec<String>> {
    let known = proc::run(Command::new("git").args(["ls-files", "--cached"]).current_dir(&env.root));
    if let (true, Ok(known)) = (env.root.join(".git").exists(), known) {
        let there = |file: &&str| env.root.join(file).is_file();
        let mut files: Vec<String> = known.lines().filter(there).map(str::to_owned).collect();
        files.sort();
        return Ok(files);
    }
    let wanted =
        |entry: &walkdir::DirEntry| entry.depth() != 1 || !NOT_SOURCES.iter().any(|name| entry.file_name() == *name);
    let mut files = Vec::new();
    for entry in WalkDir::new(&env.root).into_iter().filter_entry(wanted) {
        let entry = entry?;
        if entry.file_type().is_file() {
            files.push(entry.path().strip_prefix(&env.root)?.to_string_lossy().into_owned());
        }
    }
    files.sort();
    Ok(files)
}
