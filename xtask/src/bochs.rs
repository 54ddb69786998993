//! A second opinion: Debian's Bochs is another implementation of SVM than QEMU's, with next RIP, flush by ASID, decode assists and
//! pause filter. It boots an emulated host, where `exits` runs on stock's modules and on ours (docs/strict.md).

use crate::{
    debs::TRIXIE,
    env::{Env, key},
    foreign::Libraries,
    host::{self, Boot, Flavour, Machine},
    kernels::{self, Kernel},
    payload, proc,
    selection::Selection,
    strict::Processor,
    ui,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The kernel that it is looked at on.
pub const KERNEL: Kernel = Kernel::V6_12;
/// The emulator, and what makes a medium that it can boot from: it takes no kernel by itself.
const PACKAGES: [&str; 6] = ["bochs", "bochsbios", "vgabios", "isolinux", "syslinux-common", "xorriso"];
/// Of Bochs' models the latest of AMD's.
const MODEL: &str = "ryzen";
/// Millions of instructions after which it has hung: a boot with the script takes some 5,000.
const PATIENCE: u32 = 40_000;
/// On stock's modules as on ours.
const SCRIPT: &str = "/payload/exits";

/// Debian's Bochs with its loader, unpacked.
struct Bochs {
    root: PathBuf,
}

impl Bochs {
    fn fetch(env: &Env) -> Result<Self> {
        let packages = TRIXIE.closure(env, &PACKAGES)?;
        let root = env.artifact(&format!("bochs/{}", key(&[&packages.join(" ")])), |dir| {
            ui::step("Debian's Bochs into the cache", || TRIXIE.unpack(env, &packages, dir))
        })?;
        Ok(Self { root })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Libraries::new(&self.root).command(&self.root.join(program));
        let library = self.root.join("usr/lib/x86_64-linux-gnu/bochs/plugins");
        command.env("LTDL_LIBRARY_PATH", library).env("BXSHARE", self.root.join("usr/share/bochs"));
        command
    }

    /// A CD with kernel and initial file system.
    fn medium(&self, dir: &Path, kernel: &Path, initrd: &[u8]) -> Result<PathBuf> {
        let (tree, image) = (dir.join("tree"), dir.join("cd"));
        fs::create_dir_all(tree.join("isolinux"))?;
        for (from, to) in [
            ("usr/lib/ISOLINUX/isolinux.bin", "isolinux/isolinux.bin"),
            ("usr/lib/syslinux/modules/bios/ldlinux.c32", "isolinux/ldlinux.c32"),
        ] {
            fs::copy(self.root.join(from), tree.join(to)).with_context(|| format!("copying {from}"))?;
        }
        fs::copy(kernel, tree.join("vmlinuz"))?;
        fs::write(tree.join("initrd"), initrd)?;
        let append = format!("initrd=/initrd {} {}", host::CONSOLE, host::NO_WATCHDOGS);
        let menu = format!("default host\nprompt 0\nlabel host\n kernel /vmlinuz\n append {append}\n");
        fs::write(tree.join("isolinux/isolinux.cfg"), menu)?;
        let mut xorriso = self.command("usr/bin/xorriso");
        xorriso.args(["-as", "mkisofs", "-quiet", "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"]);
        xorriso.args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-o"]).arg(&image).arg(&tree);
        proc::run(&mut xorriso)?;
        fs::remove_dir_all(tree)?;
        Ok(image)
    }

    /// Bochs' configuration: the serial ports are those that the host's init knows.
    fn configuration(&self, dir: &Path, image: &Path) -> String {
        let (share, dir) = (self.root.join("usr/share/bochs"), dir.display());
        let (share, image) = (share.display(), image.display());
        let ports: String = ["console", "output", "report", "heartbeat"]
            .iter()
            .enumerate()
            .map(|(n, name)| format!("com{}: enabled=1, mode=file, dev={dir}/{name}\n", n + 1))
            .collect();
        format!(
            "display_library: rfb, options=\"timeout=0\"\n\
             cpu: model={MODEL}, count=1, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1\n\
             memory: guest=2048, host=2048\n\
             romimage: file={share}/BIOS-bochs-latest, options=fastboot\n\
             vgaromimage: file={share}/VGABIOS-lgpl-latest\n\
             pci: enabled=1, chipset=i440fx\n\
             ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
             ata0-master: type=cdrom, path={image}, status=inserted\n\
             boot: cdrom\nclock: sync=none, time0=local\nlog: {dir}/log\n\
             panic: action=fatal\nerror: action=report\ninfo: action=ignore\ndebug: action=ignore\n\
             sound: driver=dummy\nspeaker: enabled=0\n{ports}"
        )
    }
}

/// With `--all`, or when asked for by name.
pub fn is_wanted(selection: &Selection) -> bool {
    let asked = selection.only.as_deref() == Some("bochs") || selection.all && selection.wants("bochs");
    asked && selection.kernels().contains(&KERNEL)
}

/// `exits` in Bochs, on stock's modules and on ours. The emulated host's power-off ends Bochs with a panic of its own.
pub fn run(env: &Env, ours: Option<&PathBuf>) -> Result<()> {
    let ours = ours.context("the module was not built")?;
    let (bochs, machine) = (Bochs::fetch(env)?, Machine::new(env, Processor::Plain)?);
    let program = payload::file(&payload::build(env)?, "exits")?;
    let both = [Flavour::Stock, Flavour::Ours].map(|flavour| {
        let mut boot = Boot::new(KERNEL, flavour, SCRIPT);
        boot.ours = (flavour == Flavour::Ours).then(|| ours.clone());
        boot.files.push(program.clone());
        boot
    });
    for boot in both {
        let name = format!("{:?} in Bochs", boot.flavour);
        ui::step(&name, || one(env, &bochs, &machine, &boot)).with_context(|| name.clone())?;
    }
    Ok(())
}

fn one(env: &Env, bochs: &Bochs, machine: &Machine, boot: &Boot) -> Result<()> {
    let dir = env.cache.join("runs").join(format!("{}-bochs-{:?}", std::process::id(), boot.flavour));
    fs::create_dir_all(&dir)?;
    let result = boot_in(env, bochs, machine, boot, &dir);
    proc::remove_dir(&dir)?;
    result
}

fn boot_in(env: &Env, bochs: &Bochs, machine: &Machine, boot: &Boot, dir: &Path) -> Result<()> {
    let kernel = kernels::fetch(env, boot.kernel)?;
    let initrd = machine.initrd(boot, &kernel)?;
    let image = bochs.medium(dir, &kernel.image, &initrd)?;
    let configuration = dir.join("bochsrc");
    fs::write(&configuration, bochs.configuration(dir, &image))?;
    let mut command = bochs.command("usr/bin/bochs-bin");
    command.args(["-q", "-benchmark", &PATIENCE.to_string(), "-f"]).arg(&configuration);
    let log = fs::File::create(dir.join("own"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // It ends with the host's power-off, however it calls that.
    command.status().context("cannot start Bochs")?;
    let outcome = host::outcome(dir, host::text(dir, "output"), "");
    ensure!(
        outcome.log.contains(host::STARTED),
        "the host did not come up:\n{}\n{}",
        proc::tail(&outcome.log),
        proc::tail(&host::text(dir, "log"))
    );
    if !outcome.passed() {
        bail!(
            "{}\n--- output\n{}\n--- log\n{}",
            outcome.explain(),
            proc::tail(&outcome.output),
            proc::tail(&outcome.log)
        );
    }
    Ok(())
}
