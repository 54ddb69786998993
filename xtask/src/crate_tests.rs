//! The test suite of the crate `kvm-ioctls`, as a program for the emulated host: it asks `/dev/kvm` for nearly all that
//! VMMs in Rust ask it for.
//!
//! It is the version that the workspace depends on, from where cargo has unpacked it.

use crate::{env::Env, payload::TARGET, proc};
use anyhow::{Context, Result, ensure};
use cargo_metadata::{Message, MetadataCommand};
use std::{
    fs::{self, File},
    io::{BufReader, Write},
    path::{Path, PathBuf},
};

const CRATE: &str = "kvm-ioctls";
/// What the program is called among those of the crate `tests`.
pub const NAME: &str = "kvm-ioctls-tests";

/// Builds it into `dir`, where the other programs are.
pub fn build(env: &Env, target: &Path, dir: &Path) -> Result<()> {
    let copy = env.target().join(CRATE);
    proc::remove_dir(&copy)?;
    copy_tree(&unpacked(env)?, &copy)?;
    // On its own, also where the target directory lies in the checkout.
    File::options().append(true).open(copy.join("Cargo.toml"))?.write_all(b"\n[workspace]\n")?;
    let mut cargo = env.cargo();
    cargo.current_dir(&copy).args(["test", "--lib", "--no-run", "--release", "--locked", "--target", TARGET]);
    cargo.args(["--message-format", "json-render-diagnostics"]).arg("--target-dir").arg(target);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Cstrip=symbols").env_remove("RUSTFLAGS");
    let said = proc::run(&mut cargo)?;
    let mut programs = Message::parse_stream(BufReader::new(said.as_bytes())).filter_map(|message| match message {
        Ok(Message::CompilerArtifact(artifact)) if artifact.profile.test => artifact.executable,
        _ => None,
    });
    let program = programs.next().context("cargo named no test program")?;
    ensure!(programs.next().is_none(), "{CRATE} has more than one test program");
    fs::copy(&program, dir.join(NAME)).with_context(|| format!("cannot copy {program}"))?;
    Ok(())
}

/// The directory of the crate's source.
fn unpacked(env: &Env) -> Result<PathBuf> {
    let metadata = MetadataCommand::new().manifest_path(env.root.join("Cargo.toml")).exec()?;
    let package = metadata.packages.iter().find(|package| package.name.as_str() == CRATE);
    let package = package.context("the workspace does not depend on kvm-ioctls any more")?;
    Ok(package.manifest_path.parent().context("a manifest lies in a directory")?.into())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry?;
        let place = to.join(entry.path().strip_prefix(from)?);
        if entry.file_type().is_dir() {
            fs::create_dir_all(&place)?;
        } else {
            fs::copy(entry.path(), &place)?;
        }
    }
    Ok(())
}
