//! The two commands of the README, as they are typed, on a plain Debian 12 and 13: a chroot of either that debootstrap makes, with
//! nothing in it but the base system and the sources of this checkout.
//!
//! Of this machine they have `/dev`, what it needs to reach the network (the resolver's configuration, proxies, certificates
//! that its owner has added) and the Debian packages that the cache holds already.

use crate::{
    debs::{BOOKWORM, Suite, TRIXIE},
    env::{Env, key},
    foreign::Libraries,
    job, proc, ui,
};
use anyhow::{Context, Result, ensure};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use walkdir::WalkDir;

/// The releases that the README promises.
pub const SUITES: [Suite; 2] = [BOOKWORM, TRIXIE];

/// The commands that it gives to try hsave. Neither has a terminal.
pub const COMMANDS: [&str; 2] = ["./x run", "./x test"];

/// Where the checkout is in a chroot.
const CHECKOUT: &str = "root/hsave";

/// What of the checkout is no source.
const NOT_SOURCES: [&str; 3] = ["target", ".cache", ".git"];

/// What chroots need and this machine lacks.
pub fn lacking() -> Option<&'static str> {
    if !proc::is_root() {
        return Some("root, to make a chroot and to mount file systems in it");
    }
    let mut namespace = Command::new("unshare");
    if !proc::output(namespace.args(["--mount", "--pid", "--fork", "true"])).is_ok_and(|output| output.status.success())
    {
        return Some("leave to make name spaces of mounts and processes (unshare)");
    }
    None
}

/// One release, ready for commands; gone when dropped.
pub struct Chroot<'e> {
    env: &'e Env,
    suite: Suite,
    root: PathBuf,
}

impl<'e> Chroot<'e> {
    pub fn new(env: &'e Env, suite: Suite) -> Result<Self> {
        Self::named(env, suite, suite.0)
    }

    /// One beside others of the same release.
    pub fn named(env: &'e Env, suite: Suite, name: &str) -> Result<Self> {
        let pristine = pristine(env, suite)?;
        let root = env.target().join("chroots").join(name);
        proc::remove_dir(&root)?;
        fs::create_dir_all(root.parent().context("the target directory is no root")?)?;
        ui::step(&format!("a chroot of Debian {}", suite.0), || {
            proc::run(Command::new("cp").arg("--archive").arg(pristine).arg(&root))?;
            fs::write(root.join("etc/apt/sources.list"), suite.own_sources()?)?;
            fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))?;
            let certificates = Path::new("usr/local/share/ca-certificates");
            if Path::new("/").join(certificates).is_dir() {
                copy_files(&Path::new("/").join(certificates), &root.join(certificates), &[])?;
            }
            copy_files(&env.root, &root.join(CHECKOUT), &NOT_SOURCES)?;
            fs::create_dir_all(root.join(CHECKOUT).join(".cache/debs"))?;
            fs::create_dir_all(env.cache.join("debs"))?;
            Ok(Self { env, suite, root })
        })
    }

    /// Puts files into a directory of the checkout.
    pub fn put(&self, files: &[PathBuf], directory: &str) -> Result<()> {
        let directory = self.root.join(CHECKOUT).join(directory);
        fs::create_dir_all(&directory)?;
        for file in files {
            fs::copy(file, directory.join(file.file_name().context("a file has a name")?))?;
        }
        Ok(())
    }

    /// Where it is on this machine.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// From here on there are no sources in it, and nothing can be run.
    pub fn remove_checkout(&self) -> Result<()> {
        proc::remove_dir(&self.root.join(CHECKOUT))
    }

    /// Runs a command in the checkout, with a system's directories mounted for as long as it takes.
    pub fn run(&self, command: &str) -> Result<()> {
        let debs = self.root.join(CHECKOUT).join(".cache/debs");
        let script = format!(
            "mount --make-rprivate / && mount --bind '{cache}/debs' '{debs}' && mount -t proc proc '{root}/proc' && \
             mount --rbind /dev '{root}/dev' && exec chroot '{root}' sh -c 'cd /{CHECKOUT} && exec {command}'",
            cache = self.env.cache.display(),
            debs = debs.display(),
            root = self.root.display(),
        );
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &script]).env_clear();
        shell.env("HOME", "/root").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(proxies());
        let words: String = command.chars().map(|c| if c.is_alphanumeric() || c == '.' { c } else { '-' }).collect();
        let log = job::failure(self.env, &format!("chroot {} {}", self.suite.0, words.trim_start_matches(['.', '-'])));
        fs::create_dir_all(log.parent().context("the log lies in a directory")?)?;
        let file = fs::File::create(&log)?;
        shell.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        ui::step(&format!("{command} on a plain Debian {}; what it says is in {}", self.suite.0, log.display()), || {
            let status = shell.status().context("cannot start unshare")?;
            let text = fs::read_to_string(&log)?;
            ensure!(status.success(), "{}\n`{command}` failed: {status}", proc::tail(&text));
            fs::remove_file(&log)?;
            Ok(())
        })
    }
}

impl Drop for Chroot<'_> {
    fn drop(&mut self) {
        // What was mounted in it was mounted in a name space of its own, which has ended.
        if let Err(error) = proc::remove_dir(&self.root) {
            ui::note(&format!("{error:#}"));
        }
    }
}

/// The release as debootstrap leaves it, in the cache.
pub fn pristine(env: &Env, suite: Suite) -> Result<PathBuf> {
    let packages = BOOKWORM.closure(env, &["debootstrap"])?;
    let key = key(&[&packages.join(" ")]);
    let tools = env.artifact(&format!("tools/debootstrap-{key}"), |dir| BOOKWORM.unpack(env, &packages, dir))?;
    {
        // Its wget, which a machine may lack, with the libraries that belong to it.
        let _lock = env.lock("debootstrap")?;
        Libraries::new(&tools).wrap(&tools.join("usr/bin"))?;
    }
    let mut path = OsString::from(tools.join("usr/bin"));
    path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    env.artifact(&format!("chroots/{}-{key}", suite.0), |dir| {
        ui::step(&format!("Debian {} by debootstrap into the cache", suite.0), || {
            // It mounts file systems in the tree, which must not outlive it.
            let mut debootstrap = Command::new("unshare");
            debootstrap
                .args(["--mount", "--pid", "--fork", "--kill-child", "sh"])
                .arg(tools.join("usr/sbin/debootstrap"))
                .args(["--variant=minbase", "--arch=amd64"]);
            debootstrap.arg(format!("--keyring={}", crate::debs::KEYRING)).arg(suite.0).arg(dir).arg(suite.mirror()?);
            debootstrap.env("DEBOOTSTRAP_DIR", tools.join("usr/share/debootstrap")).env("PATH", path);
            proc::run(&mut debootstrap).map(drop)
        })
    })
}

/// How this machine reaches the network.
pub fn proxies() -> impl Iterator<Item = (String, String)> {
    std::env::vars().filter(|(name, _)| name.to_ascii_lowercase().ends_with("_proxy"))
}

/// Copies what lies in a directory but for some of its entries.
fn copy_files(from: &Path, to: &Path, without: &[&str]) -> Result<()> {
    let wanted =
        |entry: &walkdir::DirEntry| entry.depth() != 1 || !without.iter().any(|name| entry.file_name() == *name);
    for entry in WalkDir::new(from).into_iter().filter_entry(wanted) {
        let entry = entry?;
        let place = to.join(entry.path().strip_prefix(from)?);
        if entry.file_type().is_dir() {
            fs::create_dir_all(&place)?;
        } else if entry.path().is_file() {
            fs::copy(entry.path(), &place).with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}
