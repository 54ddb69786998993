//! Scenarios that are a file each: `xtask/scenarios/NAME.sh`, a script for the emulated host that begins by saying what it is, and then
//! in lines that begin with `#:` how it is to be run.
//!
//! | line | |
//! |---|---|
//! | `#: kernels 6.12 7.3` | on these instead of all that everything is tested on |
//! | `#: slow all` or kernels | on these only with `--all`, or when asked for by name |
//! | `#: compare` | on stock's modules too; the same has to be printed |
//! | `#: payloads NAME...` | programs of the crate `tests`, as /payload/NAME |
//! | `#: modules NAME...` | further modules of the kernel's own, as /modules/NAME.ko |
//! | `#: load NAME...` | the same, loaded before the script |
//! | `#: file PATH SUITE PACKAGE FILE` | in /PATH what a package has as FILE, which may end in `*` |
//! | `#: debian PACKAGE...` | Debian 13 with these packages installed, as a disk, /dev/sda, which takes root where the tests run |
//! | `#: i386-guests` | kernels for 32-bit processors, as `boot-guest` takes them, in /guest-686 and /guest-686-pae |
//! | `#: qemu-backports` | QEMU of Debian 13's backports, in /backports |
//! | `#: memory 6144` | megabytes of the host's |
//! | `#: vmlinux`, `#: secure-boot` | what is in /guest/vmlinux, in /secure |
//! | `#: engines` | a second engine, /modules/hsave_0_2.ko, one that was made for another base, /modules/stranger.ko, and hsavectl |
//! | `#: installed` | no module is loaded: stock's and ours lie where packages put them, with kmod's programs and hsavectl |
//! | `#: here` | what `./x test --here` does, /payload/test-here |
//! | `#: unloaded` | the script loads the modules itself |
//! | `#: plain` | its emulator is Debian's, which has every device |
//! | `#: virtual-time` | its processors take turns |
//! | `#: smp 1`, `#: cpu EPYC,...`, `#: strict`, `#: cmdline WORD...`, `#: qemu WORD...` | the host |
//! | `#: timeout 600`, `#: seconds 150` | how long it may take, and does |

use crate::{
    kernels::{self, Kernel},
    packaged::Packaged,
    scenarios::{Scenario, scenario},
};
use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

/// All of them, read once. A file that cannot be read as a scenario ends the run: it would silently not be there.
pub fn scenarios() -> Result<&'static [Scenario]> {
    static ALL: OnceLock<std::result::Result<Vec<Scenario>, String>> = OnceLock::new();
    let read = || all(&directory()).map_err(|error| format!("{error:#}"));
    ALL.get_or_init(read).as_deref().map_err(|error| anyhow!("{error}"))
}

fn directory() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    // Another package's, where its tests run us.
    let own = Path::new(&package).join("scenarios");
    if own.is_dir() { own } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios") }
}

fn all(directory: &Path) -> Result<Vec<Scenario>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "sh"));
    paths.sort();
    let scenario = |path: PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path)?;
        read(name, text).with_context(|| format!("{}", path.display()))
    };
    paths.into_iter().map(scenario).collect()
}

/// Kept for as long as the program runs, as what is in tables is.
fn kept(text: impl Into<String>) -> &'static str {
    Box::leak(text.into().into_boxed_str())
}

fn list(words: &[&str]) -> &'static [&'static str] {
    Box::leak(words.iter().map(|&word| kept(word)).collect())
}

fn kernels(words: &[&str]) -> Result<&'static [Kernel]> {
    if words == ["all"] {
        return Ok(&kernels::ALL);
    }
    let kernel = |word: &&str| Kernel::from_str(word, false).map_err(|_| anyhow!("there is no kernel {word}"));
    let kernels: Vec<Kernel> = words.iter().map(kernel).collect::<Result<_>>()?;
    Ok(Box::leak(kernels.into_boxed_slice()))
}

fn read(name: String, text: String) -> Result<Scenario> {
    let text = kept(text);
    let mut scenario = scenario(kept(name), text);
    let mut packaged = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("#:")) {
        let all: Vec<&str> = line.split_whitespace().collect();
        let (what, words) = all.split_first().context("a line `#:` says nothing")?;
        let one = || match words {
            [word] => Ok(*word),
            _ => Err(anyhow!("`#: {what}` takes one word")),
        };
        let number = || -> Result<u32> { one()?.parse().with_context(|| format!("`#: {what}` takes a number")) };
        if words.is_empty()
            != [
                "plain",
                "i386-guests",
                "qemu-backports",
                "compare",
                "vmlinux",
                "secure-boot",
                "engines",
                "installed",
                "here",
                "unloaded",
                "virtual-time",
                "strict",
            ]
            .contains(what)
        {
            bail!("`#:{line}` has too many words, or too few");
        }
        match *what {
            "kernels" => scenario.kernels = kernels(words)?,
            "slow" => scenario.slow = kernels(words)?,
            "compare" => scenario.compare = true,
            "payloads" => scenario.payloads = list(words),
            "modules" => scenario.modules = list(words),
            "load" => scenario.loaded = list(words),
            "debian" => scenario.debian = list(words),
            "file" => packaged.push(Packaged::read(list(words))?),
            "i386-guests" => scenario.i386_guests = true,
            "qemu-backports" => scenario.qemu_backports = true,
            "memory" => scenario.memory = number()?,
            "vmlinux" => scenario.vmlinux = true,
            "engines" => scenario.engines = true,
            "installed" => scenario.installed = true,
            "here" => scenario.here = true,
            "secure-boot" => scenario.secure_boot = true,
            "unloaded" => scenario.load = false,
            "virtual-time" => scenario.icount = true,
            "plain" => scenario.plain = true,
            "strict" => scenario.strict = true,
            "smp" => scenario.smp = number()?,
            "cpu" => scenario.cpu = kept(one()?),
            "cmdline" => scenario.cmdline = kept(words.join(" ")),
            "qemu" => scenario.qemu = list(words),
            "timeout" => scenario.timeout = Duration::from_secs(number()?.into()),
            "seconds" => scenario.seconds = number()?,
            _ => bail!("`#: {what}` is nothing that is known: see xtask/src/files.rs"),
        }
    }
    scenario.packaged = Box::leak(packaged.into_boxed_slice());
    Ok(scenario)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Scenario> {
        super::read("name".to_owned(), text.to_owned())
    }

    #[test]
    fn lines_say_how_it_is_run() {
        let text = "# Says.\n#: kernels 6.12 7.3\n#: slow all\n#: compare\n#: payloads exits policy\n#: smp 1\n#: virtual-time\n\
                    #: qemu -rtc clock=host\n#: timeout 600\ntrue\n";
        let scenario = read(text).unwrap();
        assert_eq!((scenario.kernels, scenario.slow), (&[Kernel::V6_12, Kernel::V7_3][..], &kernels::ALL[..]));
        assert!(scenario.compare && scenario.icount && scenario.load && scenario.script == text);
        assert_eq!((scenario.payloads, scenario.qemu), (&["exits", "policy"][..], &["-rtc", "clock=host"][..]));
        assert_eq!((scenario.smp, scenario.timeout.as_secs()), (1, 600));
        let scenario =
            read("#: load vfat\n#: file a/b trixie ipxe usr/lib/x*\n#: file c trixie ipxe d\n#: memory 6144\n")
                .unwrap();
        assert_eq!((scenario.loaded, scenario.packaged.len(), scenario.memory), (&["vfat"][..], 2, 6144));
        for wrong in [
            "#: file a trixie ipxe",
            "#: file a sid ipxe b",
            "#: memory",
            "#: kernels 9.9",
            "#: smp x",
            "#: smp",
            "#: compare yes",
            "#: fast",
            "#:",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn those_that_are_there_can_be_read() {
        let names: Vec<&str> = scenarios().unwrap().iter().map(|scenario| scenario.name).collect();
        assert!(names.contains(&"suspend") && names.contains(&"secure-boot"), "{names:?}");
    }
}
