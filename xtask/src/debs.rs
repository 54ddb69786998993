//! Debian packages, fetched through a private apt configuration and unpacked beside the system.
//!
//! Nothing is installed and the system's own apt lists, sources and preferences are not touched:
//! sources, lists, state and archives lie in the cache (docs/decisions/0004). The package mirror is
//! the one the machine itself uses, read from its sources.

use crate::{
    env::{Env, key},
    proc, ui,
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A Debian suite, with its updates and security updates; backports stand on their release.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Suite(pub &'static str);

pub const BOOKWORM: Suite = Suite("bookworm");
/// The last release with kernels for 32-bit processors.
pub const BOOKWORM_I386: Suite = Suite("bookworm-i386");
pub const TRIXIE: Suite = Suite("trixie");
pub const TRIXIE_BACKPORTS: Suite = Suite("trixie-backports");
/// Debian 13's source packages, whose lists are larger than all others and seldom wanted.
pub const TRIXIE_SOURCES: Suite = Suite("trixie-sources");

/// The keys of all releases of Debian.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Suite {
    fn release(self) -> &'static str {
        ["-backports", "-sources", "-i386"].iter().find_map(|end| self.0.strip_suffix(end)).unwrap_or(self.0)
    }

    fn architecture(self) -> &'static str {
        if self.0.ends_with("-i386") { "i386" } else { "amd64" }
    }

    fn is_backports(self) -> bool {
        self.0.ends_with("-backports")
    }

    fn dir(self, env: &Env) -> PathBuf {
        env.cache.join("apt").join(self.0)
    }

    /// apt's `tool` under the private configuration.
    fn apt(self, env: &Env, tool: &str) -> Command {
        let dir = self.dir(env);
        let mut apt = Command::new(tool);
        let at = |name: &str| dir.join(name).display().to_string();
        for (option, value) in [
            ("Dir::Etc::sourcelist", at("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::Etc::preferences", "/dev/null".into()),
            ("Dir::Etc::preferencesparts", "/dev/null".into()),
            ("Dir::State", at("state")),
            ("Dir::State::lists", at("lists")),
            ("Dir::State::status", at("status")),
            ("Dir::Cache", at("cache")),
            ("APT::Sandbox::User", "root".into()),
            ("APT::Architecture", self.architecture().into()),
            ("Acquire::Retries", "3".into()),
        ] {
            apt.arg("-o").arg(format!("{option}={value}"));
        }
        if self.is_backports() {
            apt.args(["-t", self.0]);
        }
        apt
    }

    /// Fetches the package lists unless they are there.
    fn prepare(self, env: &Env) -> Result<()> {
        let dir = self.dir(env);
        let _lock = env.lock(&format!("apt-{}", self.0))?;
        if dir.join("ready").exists() {
            return Ok(());
        }
        for part in ["state", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        fs::write(dir.join("status"), "")?;
        fs::write(dir.join("sources.list"), self.sources(&fs_sources())?)?;
        ui::step(&format!("package lists of Debian {}", self.0), || {
            proc::run(self.apt(env, "apt-get").arg("update"))
                .context("cannot fetch Debian's package lists: is the network there?")
        })?;
        Ok(fs::write(dir.join("ready"), "")?)
    }

    /// The private sources list, from the mirrors in the machine's own sources.
    fn sources(self, own: &[(String, String)]) -> Result<String> {
        let of = |security: bool| {
            own.iter().find(|(_, suite)| suite.contains("-security") == security).map(|(uri, _)| uri.as_str())
        };
        let Some(main) = of(false) else {
            bail!("no Debian mirror found in /etc/apt: this needs Debian 12 or 13 with its usual sources")
        };
        let release = self.release();
        let kind = match self.architecture() {
            _ if self.0.ends_with("-sources") => "deb-src [",
            "i386" => "deb [arch=i386 ",
            _ => "deb [arch=amd64 ",
        };
        let mut list = String::new();
        let mut add = |uri: &str, suite: &str| {
            list += &format!("{kind}signed-by={KEYRING}] {uri} {suite} main\n");
        };
        add(main, release);
        add(main, &format!("{release}-updates"));
        if self.is_backports() {
            add(main, self.0);
        }
        // Of i386 only kernels for guests are taken, and those of the release will do.
        if let Some(security) = of(true).filter(|_| self.architecture() == "amd64") {
            add(security, &format!("{release}-security"));
        }
        Ok(list)
    }

    /// The sources of a machine that has this release, from the same mirrors as this machine's own.
    pub fn own_sources(self) -> Result<String> {
        self.sources(&fs_sources())
    }

    /// The mirror that this machine uses.
    pub fn mirror(self) -> Result<String> {
        let main = fs_sources().into_iter().find(|(_, suite)| !suite.contains("-security"));
        Ok(main.context("no Debian mirror found in /etc/apt")?.0)
    }

    /// What installing `packages` on an empty system would install, as `name=version`.
    pub fn closure(self, env: &Env, packages: &[&str]) -> Result<Vec<String>> {
        self.prepare(env)?;
        // The answer changes only with the package lists.
        let known = self.dir(env).join(format!("closure-{}", key(&[&packages.join(" ")])));
        if let Ok(text) = fs::read_to_string(&known) {
            return Ok(text.lines().map(str::to_owned).collect());
        }
        let text = proc::run(
            self.apt(env, "apt-get").args(["--simulate", "--no-install-recommends", "install"]).args(packages),
        )?;
        let closure: Vec<String> = text
            .lines()
            .filter_map(|line| {
                let mut words = line.strip_prefix("Inst ")?.split(' ');
                let name = words.next()?;
                Some(format!("{name}={}", words.next()?.strip_prefix('(')?))
            })
            .collect();
        fs::write(known, closure.join("\n"))?;
        Ok(closure)
    }

    /// All versions of `package`, the newest first.
    fn versions(self, env: &Env, package: &str) -> Result<Vec<String>> {
        self.prepare(env)?;
        let text = proc::run(self.apt(env, "apt-cache").args(["madison", package]))?;
        Ok(text.lines().filter_map(|line| line.split('|').nth(1)).map(|version| version.trim().to_owned()).collect())
    }

    /// The newest version of `package` that starts with `prefix`.
    pub fn version(self, env: &Env, package: &str, prefix: &str) -> Result<Option<String>> {
        Ok(self.versions(env, package)?.into_iter().find(|version| {
            version.strip_prefix(prefix).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        }))
    }

    /// The oldest version of `package`: that of the release, where its updates have newer ones.
    pub fn oldest(self, env: &Env, package: &str) -> Result<Option<String>> {
        Ok(self.versions(env, package)?.pop())
    }

    /// Downloads packages given as `name=version` into the cache and unpacks them under `root`.
    pub fn unpack(self, env: &Env, packages: &[String], root: &Path) -> Result<()> {
        self.prepare(env)?;
        let dir = env.cache.join("debs").join(self.0).join(key(&[&packages.join(" ")]));
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(root)?;
        proc::run(self.apt(env, "apt-get").arg("download").args(packages).current_dir(&dir))
            .context("cannot download from the Debian mirror; `./x fetch --refresh` looks for the newest packages")?;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ext| ext == "deb") {
                proc::run(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(root))?;
            }
        }
        Ok(())
    }

    /// Downloads a source package into `dir`: the version asked for, or if the mirror no longer has it the newest. Apt checks
    /// the files against Debian's signed lists. Returns the version.
    pub fn source(self, env: &Env, package: &str, version: &str, dir: &Path) -> Result<String> {
        self.prepare(env)?;
        fs::create_dir_all(dir)?;
        let get = |what: &str| {
            let mut apt = self.apt(env, "apt-get");
            proc::run(apt.args(["source", "--download-only", "--only-source", what]).current_dir(dir))
        };
        if get(&format!("{package}={version}")).is_err() {
            get(package).context("cannot download the source package from the Debian mirror")?;
        }
        let dsc = fs::read_to_string(proc::find_entry(dir, |name| name.ends_with(".dsc"))?)?;
        let version = dsc.lines().find_map(|line| line.strip_prefix("Version: "));
        Ok(version.context("the source package names its version")?.to_owned())
    }

    /// Forgets the package lists, so that the next use fetches new ones.
    pub fn forget(self, env: &Env) -> Result<()> {
        proc::remove_dir(&self.dir(env))
    }
}

/// All (URI, suite) pairs of Debian's own release in the machine's sources.
fn fs_sources() -> Vec<(String, String)> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    let code_name = code_name();
    let ours = |suite: &str| {
        let suite = suite.split('/').next().unwrap_or(suite);
        suite.strip_suffix("-security").or(suite.strip_suffix("-updates")).unwrap_or(suite) == code_name
    };
    let mut pairs = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|ext| ext.to_str()) {
            Some("list") => pairs.extend(one_line_sources(&text)),
            Some("sources") => pairs.extend(deb822_sources(&text)),
            _ => {}
        }
    }
    pairs.retain(|(_, suite)| ours(suite));
    pairs
}

/// `deb [options] URI SUITE COMPONENT...` lines.
fn one_line_sources(text: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
        let mut words = rest.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

/// The stanzas of a deb822 `.sources` file.
fn deb822_sources(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            stanza.lines().filter(|line| !line.starts_with('#')).find_map(|line| line.strip_prefix(name)).unwrap_or("")
        };
        for uri in field("URIs:").split_whitespace() {
            pairs.extend(field("Suites:").split_whitespace().map(|suite| (uri.to_owned(), suite.to_owned())));
        }
    }
    pairs
}

/// The suite of the machine's own release. Errors: it is another than those that `x` works on.
pub fn own() -> Result<Suite> {
    let name = code_name();
    let known = [BOOKWORM, TRIXIE].into_iter().find(|suite| suite.0 == name);
    known.with_context(|| format!("this needs Debian 12 or 13, not {name}"))
}

/// The machine's Debian release, such as `bookworm`.
pub fn code_name() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.unwrap_or("").trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_both_forms_are_read() {
        let deb822 =
            "Types: deb\n# URIs: no\nURIs: mirror:a\nSuites: x x-updates\n\nURIs: mirror:s\nSuites: x-security\n";
        let pairs = deb822_sources(deb822);
        assert_eq!(pairs.len(), 3);
        assert_eq!(pairs[2], ("mirror:s".to_owned(), "x-security".to_owned()));
        let list = "# deb no no\ndeb [signed-by=/k a=b] mirror:a x main\n";
        assert_eq!(one_line_sources(list), [("mirror:a".to_owned(), "x".to_owned())]);
    }

    #[test]
    fn private_list_has_backports_on_top_of_the_release() {
        let own = [("m".to_owned(), "bookworm".to_owned()), ("s".to_owned(), "bookworm-security".to_owned())];
        let list = TRIXIE_BACKPORTS.sources(&own).unwrap();
        assert!(list.contains(" m trixie main") && list.contains(" m trixie-backports main"));
        assert!(list.contains(" s trixie-security main"));
        assert!(TRIXIE.sources(&[]).is_err());
        let list = TRIXIE_SOURCES.sources(&own).unwrap();
        assert!(list.lines().all(|line| line.starts_with("deb-src [signed-by=")) && list.contains(" m trixie main"));
        let list = BOOKWORM_I386.sources(&own).unwrap();
        assert!(
            list.lines().all(|line| line.starts_with("deb [arch=i386 signed-by=")) && list.contains(" m bookworm main")
        );
    }
}
