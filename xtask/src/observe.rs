//! What people look at guests with: Debian's perf and trace-cmd, as they are.

use crate::{
    debs::TRIXIE,
    env::{Env, key},
    foreign::Libraries,
    proc, ui,
};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The programs, and where they are in their packages.
const PROGRAMS: [&str; 2] = ["usr/bin/perf", "usr/bin/trace-cmd"];

/// The programs with their libraries, for `/observe/lib` in LD_LIBRARY_PATH. Path in the host, path here.
pub fn files(env: &Env) -> Result<Vec<(String, PathBuf)>> {
    let packages = TRIXIE.closure(env, &["linux-perf", "trace-cmd"])?;
    let root = env.artifact(&format!("observe/{}", key(&[&packages.join(" ")])), |dir| {
        ui::step("Debian's perf and trace-cmd", || TRIXIE.unpack(env, &packages, dir))
    })?;
    let mut files = Vec::new();
    for program in PROGRAMS {
        let name = Path::new(program).file_name().context("a program has a name")?.to_string_lossy().into_owned();
        files.push((format!("observe/{name}"), root.join(program)));
        let mut list = Libraries::new(&root).command(Path::new("--list"));
        let text = proc::run(list.arg(root.join(program)))?;
        let path = |line: &str| line.split_once("=> ")?.1.split(' ').next().map(PathBuf::from);
        for library in text.lines().filter_map(path) {
            let name = library.file_name().context("a library has a name")?.to_string_lossy().into_owned();
            files.push((format!("observe/lib/{name}"), library));
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}
