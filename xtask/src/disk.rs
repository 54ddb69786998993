//! `./x run --disk`: whatever is on somebody's disk, as a guest with the options that Proxmox gives QEMU (`scripts/boot-disk.sh`).

use crate::{
    drive::{Access, Drive},
    env::Env,
    host::{self, Boot, Flavour, Machine},
    kernels::Kernel,
    run,
    strict::Processor,
    ui,
};
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use std::{
    ffi::OsString,
    fs::File,
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

/// What the guest has for a firmware.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Firmware {
    Seabios,
    Ovmf,
}

/// What its disk and its network card are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Bus {
    /// AHCI and e1000, for which Windows has drivers.
    Sata,
    Virtio,
}

/// What is to be booted, and how.
#[derive(Args)]
pub struct DiskArgs {
    /// Boot what is on this disk image instead (raw, qcow2, vmdk, vdi, vhdx or vpc), as a guest that may be Windows; it is written to
    #[arg(long, value_name = "IMAGE")]
    pub disk: Option<PathBuf>,
    /// A CD-ROM for it, from which it is booted if the disk cannot be
    #[arg(long, value_name = "ISO", requires = "disk")]
    iso: Option<PathBuf>,
    /// What is written to the disk is forgotten at the end
    #[arg(long, requires = "disk")]
    snapshot: bool,
    /// Its firmware, if not what the disk's partition table asks for
    #[arg(long, requires = "disk")]
    firmware: Option<Firmware>,
    /// Its disk and network card
    #[arg(long, requires = "disk", default_value = "sata")]
    bus: Bus,
    /// Its processors
    #[arg(long, requires = "disk", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Its memory in megabytes
    #[arg(long, requires = "disk", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(16..))]
    memory: u32,
    /// Show its screen by VNC at this port of 127.0.0.1, 5900 or more
    #[arg(long, requires = "disk", value_name = "PORT", value_parser = clap::value_parser!(u16).range(5900..))]
    vnc: Option<u16>,
}

/// The first port of VNC, which QEMU calls 0.
const VNC: u16 = 5900;

/// A week: nobody waits for a guest that somebody else uses.
const FOR_EVER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Memory of the emulated host's own, in megabytes.
const HOST_MEMORY: u32 = 2048;

impl DiskArgs {
    /// The environment of `boot-disk`, beside where the disk and the screen are.
    fn environment(&self) -> Vec<(&'static str, String)> {
        let firmware = self.firmware.map_or("", |firmware| match firmware {
            Firmware::Seabios => "seabios",
            Firmware::Ovmf => "ovmf",
        });
        let bus = if self.bus == Bus::Virtio { "virtio" } else { "sata" };
        vec![
            ("FIRMWARE", firmware.to_owned()),
            ("BUS", bus.to_owned()),
            ("CPUS", self.cpus.to_string()),
            ("MEMORY", self.memory.to_string()),
        ]
    }

    /// In the emulated AMD host.
    pub fn emulated(
        &self,
        env: &Env,
        processor: Processor,
        kernel: Kernel,
        flavour: Flavour,
        disk: &Path,
    ) -> Result<ExitCode> {
        let access = if self.snapshot { Access::Forgotten } else { Access::Kept };
        let mut drives = vec![Drive { path: existing(disk)?, format: format(disk)?, access }];
        if let Some(iso) = &self.iso {
            drives.push(Drive { path: existing(iso)?, format: "raw", access: Access::ReadOnly });
        }
        let machine = Machine::new(env, processor)?;
        let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let mut script = String::from(
            "ifconfig lo 127.0.0.1; ifconfig eth0 10.0.2.15 2>/dev/null && route add default gw 10.0.2.2; \
             echo nameserver 10.0.2.3 >/etc/resolv.conf; ",
        );
        for (name, value) in self.environment() {
            script += &format!("{name}={value} ");
        }
        let screen = self.vnc.map(|port| format!(",hostfwd=tcp:127.0.0.1:{port}-:{VNC}"));
        let vnc = if self.vnc.is_some() { "VNC=:0 " } else { "" };
        script += &format!("{vnc}boot-disk /dev/sda{}", if self.iso.is_some() { " /dev/sr0" } else { "" });
        let mut boot = Boot::new(kernel, flavour, &script);
        if flavour == Flavour::Ours {
            boot.ours = Some(host::our_modules(env, kernel)?);
        }
        (boot.smp, boot.memory) = (self.cpus.max(2), self.memory.saturating_add(HOST_MEMORY));
        (boot.interactive, boot.show, boot.timeout) = (interactive, true, FOR_EVER);
        boot.drives = drives;
        // The strict processor's emulator has no network card.
        if machine.is_strict() {
            ensure!(self.vnc.is_none(), "--vnc takes `--processor plain`");
        } else {
            boot.loaded = vec!["virtio_pci".to_owned(), "virtio_net".to_owned()];
            boot.qemu = ["-netdev".to_owned(), format!("user,id=net{}", screen.unwrap_or_default())].into();
            boot.qemu.extend(["-device", "virtio-net-pci,netdev=net,romfile="].map(str::to_owned));
        }
        ui::note(&format!("emulating an AMD machine with Debian's kernel {kernel}, in which {} boots", disk.display()));
        ui::note("Its first serial port is this terminal. Ctrl-A x leaves at any time, as if its power failed.");
        run::finished(&machine.boot(env, &boot)?, interactive)
    }

    /// On this machine.
    pub fn here(&self, env: &Env, disk: &Path) -> Result<ExitCode> {
        let disk = existing(disk)?;
        let native = run::Native::new(env)?;
        let work = env.cache.join("guest/work");
        std::fs::create_dir_all(&work)?;
        let mut shell = Command::new("sh");
        shell.arg(env.root.join("xtask/scripts/boot-disk.sh")).arg(escaped(&disk)?);
        if let Some(iso) = &self.iso {
            shell.arg(escaped(&existing(iso)?)?);
        }
        shell.envs(self.environment()).env("FORMAT", format(&disk)?).env("QEMU", &native.qemu).env("WORK", work);
        shell.env("SNAPSHOT", if self.snapshot { "yes" } else { "" });
        shell.env("VNC", self.vnc.map(|port| format!("127.0.0.1:{}", port - VNC)).unwrap_or_default());
        let status = shell.status()?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn existing(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("cannot open {}", path.display()))
}

/// A path that the script can put into QEMU's `file=`.
fn escaped(path: &Path) -> Result<OsString> {
    let text = path.to_str().context("a path that is no text")?;
    ensure!(!text.contains(','), "{text}: QEMU takes no path with a comma from a script");
    Ok(text.into())
}

/// What a disk image is, by how it begins. Whatever is nothing else is raw, as QEMU's `format=raw` takes it.
fn format(path: &Path) -> Result<&'static str> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(8).read_to_end(&mut start))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let known: [(&[u8], &str); 5] =
        [(b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx"), (b"conectix", "vpc"), (b"<<< ", "vdi")];
    Ok(known.into_iter().find(|(magic, _)| start.starts_with(magic)).map_or("raw", |(_, name)| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_how_they_begin() {
        let path = std::env::temp_dir().join(format!("format-{}", std::process::id()));
        for (content, name) in [(&b"QFI\xfb\0\0\0\x03"[..], "qcow2"), (b"KDMV", "vmdk"), (b"", "raw"), (b"vhdx", "raw")]
        {
            std::fs::write(&path, content).unwrap();
            assert_eq!(format(&path).unwrap(), name);
        }
        std::fs::remove_file(&path).unwrap();
        assert!(format(&path).is_err());
        assert!(escaped(Path::new("/a,b")).is_err());
    }
}
