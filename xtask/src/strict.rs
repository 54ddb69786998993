//! The strict processor: Debian 13's QEMU with our patches to its emulation of SVM (`strict/`, docs/strict.md), built from
//! Debian's source package.
//!
//! It is built in an unpacked Debian 13 of its own, which programs enter with `unshare` and `chroot`, so that the machine needs
//! no compiler, Python or library for it, and it comes out the same on every machine. That takes root, or a kernel that gives
//! users namespaces of their own.

use crate::{
    debs::{TRIXIE, TRIXIE_SOURCES},
    env::{Env, key},
    proc, ui,
};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use walkdir::WalkDir;

/// Who emulates the AMD host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Processor {
    /// Debian's QEMU with our patches: more of SVM, and nothing forgiven
    Strict,
    /// Debian's QEMU as it is
    Plain,
}

/// The version that the patches were made for. The mirror has it until Debian 13 gets another one.
const VERSION: &str = "1:10.0.13+ds-0+deb13u1";
/// What the build calls, and what these need is taken with them.
const TOOLS: &[&str] = &[
    "base-files",
    "bash",
    "binutils",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "gcc",
    "grep",
    "libc6-dev",
    "libglib2.0-dev",
    "mawk",
    "meson",
    "ninja-build",
    "patch",
    "pkgconf",
    "python3",
    "python3-distlib",
    "python3-pip",
    "sed",
    "tar",
    "xz-utils",
    "zlib1g-dev",
];
/// Enters the root `$0` with the directory `$1` at /qemu and starts the rest there.
const ENTER: &str = "mount --rbind /dev \"$0/dev\" && mount --rbind /proc \"$0/proc\" && mount --bind \"$1\" \"$0/qemu\" && shift \
     && exec chroot \"$0\" env -i PATH=/usr/bin HOME=/tmp LANG=C.UTF-8 \"$@\"";

/// Names a build of somebody who works on the patches.
const OWN: &str = "HSAVE_STRICT";

/// The features of SVM beyond the plain one's that every AMD processor of some age has, as `-cpu` names them.
pub const FEATURES: &str = "+nrip-save,+decodeassists,+flushbyasid,+vmcb-clean,+tsc-scale,+pause-filter,+pfthreshold,\
     +lbrv,+v-vmsave-vmload,+vgif,+vnmi,+v-spec-ctrl,+ibrs,+ibpb,+amd-stibp,+amd-ssbd";

/// What stands for `EPYC`: the first of these was Zen 1, which has to untrain all returns; this is Zen 3. It has the leaf that stock
/// reads without asking whether the processor has it; what the emulator says of others is another leaf's.
const MODEL: &str = "EPYC-Milan,xlevel=0x80000021";

/// The processor model of a host with that command line: it has the features that the plain one lacks as well, unless the model
/// says otherwise. `unchecked` are bits of checks that are off.
pub fn cpu(model: &str, cmdline: &str, unchecked: u32) -> String {
    match model.split_once(',') {
        Some((name, own)) if own.contains("+svm") => {
            let name = if name == "EPYC" { MODEL } else { name };
            format!("{name},{FEATURES},svm-checks={},{own}", checks(cmdline) & !unchecked)
        }
        _ => model.to_owned(),
    }
}

/// Which of its checks are on, as `svm-checks` takes them: all, but for the predictions on a host that does not care for them.
fn checks(cmdline: &str) -> u32 {
    let careless = ["mitigations=", "spectre", "retbleed", "spec_rstack"].iter().any(|word| cmdline.contains(word));
    if careless { ALL_CHECKS & !PREDICTION } else { ALL_CHECKS }
}

const ALL_CHECKS: u32 = 0x7f;
const PREDICTION: u32 = 0x10;
/// Where user space sets interrupt shadows as it likes.
pub const SHADOW: u32 = 0x40;

/// The emulator, built unless it is in the cache. None, with the reason said, if its source cannot be had.
pub fn fetch(env: &Env) -> Result<Option<PathBuf>> {
    if let Some(own) = std::env::var_os(OWN) {
        return Ok(Some(own.into()));
    }
    let ours = ours(env)?;
    let mut identity = vec![VERSION.to_owned()];
    for (name, path) in &ours {
        identity.extend([name.clone(), fs::read_to_string(path)?]);
    }
    let name = format!("strict/{}", key(&identity.iter().map(String::as_str).collect::<Vec<_>>()));
    if !env.cache.join(&name).exists() {
        let (source, root) = match parts(env) {
            Ok(parts) => parts,
            Err(error) => {
                ui::note(&format!("no strict processor, Debian's own QEMU serves: {error:#}"));
                return Ok(None);
            }
        };
        env.artifact(&name, |dir| {
            ui::progress("the strict processor: QEMU from its source", |tell| build(&root, &source, &ours, dir, tell))
        })?;
    }
    Ok(Some(env.cache.join(name).join("qemu-system-x86_64")))
}

/// The source, and the root to build it in. Fails where they cannot be had or used.
fn parts(env: &Env) -> Result<(PathBuf, PathBuf)> {
    let output = proc::output(unshare().arg("true")).context("cannot run unshare (is util-linux installed?)")?;
    ensure!(output.status.success(), "it is built in a root of its own, which takes root or name spaces for users");
    let source = source(env).context("its source cannot be had")?;
    Ok((source, root(env).context("what builds it cannot be had")?))
}

/// All files under `strict/`, by their place in it.
fn ours(env: &Env) -> Result<Vec<(String, PathBuf)>> {
    let top = env.root.join("strict");
    let mut files = Vec::new();
    for part in ["build.sh", "files", "patches"] {
        for entry in WalkDir::new(top.join(part)).sort_by_file_name() {
            let entry = entry?;
            if entry.file_type().is_file() {
                let name = entry.path().strip_prefix(&top)?.display().to_string();
                files.push((name, entry.path().to_owned()));
            }
        }
    }
    Ok(files)
}

/// Where the source package is.
fn source(env: &Env) -> Result<PathBuf> {
    env.artifact(&format!("sources/qemu-{}", key(&[VERSION])), |dir| {
        let version = ui::step("the source of Debian's QEMU", || TRIXIE_SOURCES.source(env, "qemu", VERSION, dir))?;
        if version != VERSION {
            ui::note(&format!("the mirror has QEMU {version} instead of {VERSION}; the patches may not apply"));
        }
        Ok(())
    })
}

/// The unpacked Debian to build in.
fn root(env: &Env) -> Result<PathBuf> {
    let packages = TRIXIE.closure(env, TOOLS)?;
    env.artifact(&format!("roots/{}", key(&[&packages.join(" ")])), |dir| {
        ui::step("Debian's compiler and what else builds QEMU", || TRIXIE.unpack(env, &packages, dir))?;
        // What the package's configuration would link.
        std::os::unix::fs::symlink("mawk", dir.join("usr/bin/awk"))?;
        Ok(fs::create_dir(dir.join("qemu"))?)
    })
}

/// Leaves nothing in `dir` but the program.
fn build(root: &Path, source: &Path, ours: &[(String, PathBuf)], dir: &Path, tell: &dyn Fn(u32, u32)) -> Result<()> {
    let work = dir.join("work");
    fs::create_dir(&work)?;
    for entry in fs::read_dir(source)? {
        copy(&entry?.path(), &work.join("source"))?;
    }
    for (name, path) in ours {
        let to = work.join(name);
        copy(path, to.parent().context("a file lies in a directory")?)?;
    }
    let mut unshare = unshare();
    unshare.args(["sh", "-c", ENTER]).arg(root).arg(&work).args(["sh", "/qemu/build.sh"]);
    run(unshare, tell)?;
    fs::rename(work.join("build/qemu-system-x86_64"), dir.join("qemu-system-x86_64"))?;
    proc::remove_dir(&work)
}

/// Starts what follows with mounts of its own.
fn unshare() -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private"]);
    if !proc::is_root() {
        unshare.arg("--map-root-user");
    }
    unshare
}

fn copy(from: &Path, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let name = from.file_name().context("a file has a name")?;
    fs::copy(from, dir.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// Runs the build, telling how far it is by ninja's `[DONE/ALL]`.
fn run(mut command: Command, tell: &dyn Fn(u32, u32)) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run unshare (is util-linux installed?)")?;
    let mut stderr = child.stderr.take().context("the build has an output")?;
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stderr, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().context("the build has an output")?).lines() {
        let line = line?;
        match progress(&line) {
            Some((done, all)) => tell(done, all),
            None => said += &format!("{line}\n"),
        }
    }
    let (status, errors) = (child.wait()?, errors.join().unwrap_or_default());
    if !status.success() {
        bail!("{}\n{}\nthe strict processor could not be built: {status}", proc::tail(&said), proc::tail(&errors));
    }
    Ok(())
}

/// `[DONE/ALL] what`, as ninja says it.
fn progress(line: &str) -> Option<(u32, u32)> {
    let (done, all) = line.strip_prefix('[')?.split_once(']')?.0.split_once('/')?;
    Some((done.parse().ok()?, all.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninja_tells_how_far_it_is() {
        assert_eq!(progress("[12/1500] Compiling C object a.o"), Some((12, 1500)));
        assert_eq!(progress("FAILED: [code=1] a.o"), None);
    }

    #[test]
    fn a_host_without_mitigations_is_not_blamed_for_that() {
        assert_eq!(checks(""), 0x7f);
        assert_eq!(checks("mitigations=off"), 0x6f);
    }

    #[test]
    fn the_models_own_words_come_last() {
        let cpu = cpu("EPYC,+svm,-nrip-save", "", SHADOW);
        assert!(
            cpu.starts_with("EPYC-Milan,xlevel=0x80000021,+nrip-save,")
                && cpu.ends_with(",svm-checks=63,+svm,-nrip-save"),
            "{cpu}"
        );
        assert!(super::cpu("max,+svm", "", 0).starts_with("max,+nrip-save,"));
        assert_eq!(super::cpu("EPYC,-svm", "", 0), "EPYC,-svm");
    }
}
