//! `./x package`: the Debian packages `hsave-dkms` and `hsave-tools`.
//!
//! What is in them depends on the sources and the compiler alone: files carry the changelog's time, and no path of this machine.

mod deb;
pub mod installed;
pub mod parameters;
mod source;
pub mod test;

use crate::{
    env::{Env, key},
    module, object, proc, ui,
};
use anyhow::{Context, Result, ensure};
use deb::Deb;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The kernels whose series the module is tested on, as `uname -r` begins; dkms skips all others.
const KERNELS: &str = "^(6\\.1|6\\.12|7\\.3)[.]";

/// The oldest glibc that the command has to run with: Debian 12's.
const GLIBC: [u32; 2] = [2, 36];

const MAINTAINER_SCRIPTS: [(&str, &str); 3] = [
    ("postinst", include_str!("../../packaging/dkms.postinst")),
    ("prerm", include_str!("../../packaging/dkms.prerm")),
    ("postrm", include_str!("../../packaging/dkms.postrm")),
];
const TOOLS_POSTRM: &str = include_str!("../../packaging/tools.postrm");

/// The version of the workspace, which is that of the packages.
pub fn version(env: &Env) -> Result<String> {
    let text = fs::read_to_string(env.root.join("Cargo.toml"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("version = "));
    Ok(line.context("the workspace has no version")?.trim_matches('"').to_owned())
}

/// What all parts of a package have in common.
struct Release {
    version: String,
    /// The time of the changelog's newest entry, in seconds.
    epoch: u64,
    /// The same as a date.
    date: String,
    maintainer: String,
    changelog: String,
}

impl Release {
    fn new(env: &Env) -> Result<Self> {
        let changelog = fs::read_to_string(env.root.join("xtask/packaging/changelog"))?;
        let version = version(env)?;
        let top = changelog.lines().next().unwrap_or_default();
        ensure!(
            top.starts_with(&format!("hsave ({version}) ")),
            "Cargo.toml has version {version}, and the changelog begins with `{top}`: add an entry to xtask/packaging/changelog"
        );
        let signed = changelog.lines().find_map(|line| line.strip_prefix(" -- "));
        let (maintainer, time) =
            signed.and_then(|line| line.split_once("  ")).context("the changelog is not signed")?;
        let date = |format: &str| proc::run(Command::new("date").args(["--utc", "--date", time, format]));
        Ok(Self {
            version,
            epoch: date("+%s")?.trim().parse()?,
            date: date("+%Y-%m-%d")?.trim().to_owned(),
            maintainer: maintainer.to_owned(),
            changelog,
        })
    }

    /// A text with its placeholders filled in.
    fn fill(&self, text: &str) -> String {
        text.replace("@VERSION@", &self.version).replace("@DATE@", &self.date).replace("@KERNELS@", KERNELS)
    }

    /// A package with its documents.
    fn deb(&self, env: &Env, name: &'static str, dir: &Path) -> Result<Deb> {
        let mut deb = Deb::new(name, dir)?;
        deb.compressed(&format!("usr/share/doc/{name}/changelog.gz"), self.changelog.as_bytes())?;
        let copyright = fs::read_to_string(env.root.join("xtask/packaging/copyright"))?;
        deb.file(&format!("usr/share/doc/{name}/copyright"), 0o644, self.fill(&copyright).as_bytes())?;
        Ok(deb)
    }
}

/// Makes both packages in `out` and returns where they are.
pub fn build(env: &Env, out: &Path) -> Result<Vec<PathBuf>> {
    make(env, &Release::new(env)?, out)
}

fn make(env: &Env, release: &Release, out: &Path) -> Result<Vec<PathBuf>> {
    let object = object::build(env)?;
    let work = env.target().join("package");
    let _lock = env.lock(&format!("package-{}", key(&[&work.to_string_lossy()])))?;
    fs::create_dir_all(out)?;
    let made = ui::step("hsave-dkms and hsave-tools", || {
        Ok(vec![
            dkms(env, release, &object, &work)?.finish(release, out)?,
            tools(env, release, &work)?.finish(release, out)?,
        ])
    })?;
    for path in &made {
        ui::note(&format!("{}", path.display()));
    }
    Ok(made)
}

/// The modules' source for dkms, with the Rust object ready made and all that it was made from beside it.
fn dkms(env: &Env, release: &Release, object: &Path, work: &Path) -> Result<Deb> {
    let mut deb = release.deb(env, "hsave-dkms", work)?;
    let place = format!("usr/src/hsave-{}", release.version);
    module::assemble(env, &deb.path(&place), object)?;
    deb.plain_modes(&place)?;
    for name in ["dkms.conf", "Makefile"] {
        let text = fs::read_to_string(env.root.join("xtask/packaging").join(name))?;
        deb.file(&format!("{place}/{name}"), 0o644, release.fill(&text).as_bytes())?;
    }
    let script = fs::read(env.root.join("xtask/packaging/keep-stock"))?;
    deb.file(&format!("{place}/keep-stock"), 0o755, &script)?;
    source::archive(env, &release.version, release.epoch, &deb.path(&format!("{place}.tar.xz")))?;
    // dkms would compare versions with the stock modules', which have none, and install nothing.
    deb.file("usr/share/dkms/modules_to_force_install/hsave-dkms", 0o644, b"hsave_version-override\n")?;
    let readme = fs::read(env.root.join("xtask/packaging/README.Debian"))?;
    deb.file("usr/share/doc/hsave-dkms/README.Debian", 0o644, &readme)?;
    for (name, text) in MAINTAINER_SCRIPTS {
        deb.script(name, &release.fill(text))?;
    }
    deb.field("Depends", "dkms (>= 3.0), kmod");
    deb.field("Recommends", &format!("hsave-tools (= {})", release.version));
    deb.field("Section", "kernel");
    deb.field(
        "Description",
        "KVM for AMD processors, as modules beside the kernel's own\n \
         The modules kvm and kvm-amd of hsave serve /dev/kvm in place of the kernel's\n \
         own, for QEMU, libvirt and whatever else uses KVM. They are written in Rust.\n .\n \
         This package has them as an object that is compiled already and a thin layer\n \
         in C that dkms compiles for each kernel.",
    );
    Ok(deb)
}

/// The operator's command.
fn tools(env: &Env, release: &Release, work: &Path) -> Result<Deb> {
    let program = command(env)?;
    let [major, minor] = deb::glibc(&fs::read(&program)?)?;
    ensure!(
        [major, minor] <= GLIBC,
        "hsavectl as linked here wants glibc {major}.{minor}, which Debian 12 does not have: build the packages there"
    );
    let mut deb = release.deb(env, "hsave-tools", work)?;
    deb.file("usr/sbin/hsavectl", 0o755, &fs::read(&program)?)?;
    let data = |name: &str| fs::read_to_string(env.root.join("hsavectl/data").join(name));
    deb.file("usr/share/bash-completion/completions/hsavectl", 0o644, data("hsavectl.bash")?.as_bytes())?;
    let page = release.fill(&data("hsave.7")?).replace("@PARAMETERS@", &parameters::page(env)?);
    deb.compressed("usr/share/man/man7/hsave.7.gz", page.as_bytes())?;
    deb.compressed("usr/share/man/man8/hsavectl.8.gz", release.fill(&data("hsavectl.8")?).as_bytes())?;
    // The manual page names them.
    for page in ["operator.md", "upgrade.md"] {
        let text = fs::read(env.root.join("docs").join(page))?;
        deb.file(&format!("usr/share/doc/hsave-tools/{page}"), 0o644, &text)?;
    }
    deb.script("postrm", TOOLS_POSTRM)?;
    deb.field("Depends", &format!("libc6 (>= {major}.{minor}), libgcc-s1 (>= 4.2), kmod"));
    deb.field("Recommends", &format!("hsave-dkms (= {})", release.version));
    deb.field("Section", "admin");
    deb.field(
        "Description",
        "command to choose and observe the modules that serve /dev/kvm\n \
         hsavectl changes over between the kernel's own KVM modules and those of\n \
         hsave, says which of them serve which VMs, hands running VMs over to another\n \
         engine of hsave's, and collects what a bug report needs.",
    );
    Ok(deb)
}

/// Builds `hsavectl` as it is shipped.
pub fn command(env: &Env) -> Result<PathBuf> {
    let target = env.target().join("package-tools");
    let registry =
        std::env::var("CARGO_HOME").unwrap_or_else(|_| std::env::var("HOME").unwrap_or_default() + "/.cargo");
    let mut cargo = env.cargo();
    cargo.args(["build", "--release", "--package", "hsavectl"]).arg("--target-dir").arg(&target);
    let flags =
        [format!("--remap-path-prefix={}/=", env.root.display()), format!("--remap-path-prefix={registry}=/cargo")];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).env_remove("RUSTFLAGS");
    for (option, value) in [("STRIP", "symbols"), ("LTO", "true"), ("CODEGEN_UNITS", "1"), ("OPT_LEVEL", "s")] {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{option}"), value);
    }
    proc::run(&mut cargo)?;
    Ok(target.join("release/hsavectl"))
}
