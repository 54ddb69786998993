//! What docs/operator.md has an operator do, done in the emulated AMD host: a Debian 13 on a disk, with libvirt and a guest, onto which
//! the packages are installed. Its programs then look at the guest, on hsave and on stock.

use crate::{
    chroots::{self, Chroot},
    debs::TRIXIE,
    env::{Env, key},
    foreign::Libraries,
    host::{Boot, Flavour, Machine},
    image::Tools,
    kernels::{self, Kernel, Unpacked},
    modules::Modules,
    package, proc,
    selection::Selection,
    tally::{self, Tally},
    ui,
};
use anyhow::Result;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The kernel of Debian 13.
pub const KERNEL: Kernel = Kernel::V6_12;

/// What of the kernel's source is `kvm_stat`, which Debian has no package of.
const KVM_STAT: &str = "tools/kvm/kvm_stat/kvm_stat";

/// Where the packages are installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Installed {
    /// On the disk, by this machine: quick.
    Here,
    /// In the emulated host, where dkms compiles for minutes.
    There,
}

impl Installed {
    pub const ALL: [Self; 2] = [Self::Here, Self::There];

    pub fn name(self) -> String {
        format!("{} {KERNEL}", self.scenario())
    }

    fn scenario(self) -> &'static str {
        match self {
            Self::Here => "operator",
            Self::There => "operator-whole",
        }
    }

    /// It is dear: with all, or when it is asked for by its name.
    pub fn is_wanted(self, selection: &Selection) -> bool {
        let name = self.scenario();
        (selection.names(name) || selection.all && selection.wants(name)) && selection.kernels().contains(&KERNEL)
    }
}

/// Those that are wanted.
pub fn all(env: &Env, selection: &Selection, tally: &mut Tally) {
    for installed in Installed::ALL.into_iter().filter(|installed| installed.is_wanted(selection)) {
        let name = installed.name();
        match chroots::lacking() {
            Some(needed) => ui::note(&format!("{name} is not run: it needs {needed}")),
            None => drop(tally.check(&name, || run(env, selection, installed))),
        }
    }
}

fn run(env: &Env, selection: &Selection, installed: Installed) -> Result<()> {
    let kernel = kernels::fetch(env, KERNEL)?;
    let mut disk = disk(env, &kernel)?;
    let mut packages = package::build(env, &env.target().join("operator"))?;
    if installed == Installed::Here {
        disk = install(env, &disk, &packages)?;
        packages.clear();
    }
    let machine = Machine::new(env, selection.processor)?.held(selection.slow);
    // The strict processor's board has no other disk.
    let drivers = ["ata_piix", "sd_mod"];
    let order = Modules::of(&Tools::fetch(env)?, &kernel, drivers)?.names().collect::<Vec<_>>().join(" ");
    let script = format!("modules='{order}'\n{}", include_str!("../scripts/operator-host.sh"));
    let mut boot = Boot::new(KERNEL, Flavour::None, &script);
    boot.timeout = Duration::from_secs(2400);
    boot.memory = 6144;
    boot.modules = drivers.map(str::to_owned).to_vec();
    // What is written to it is gone with the host.
    boot.qemu = vec!["-drive".into(), format!("file={},format=raw,if=ide,snapshot=on", disk.display())];
    boot.files.push(("kvm_stat".into(), kvm_stat(env)?));
    let steps = env.target().join("operator/operator.sh");
    fs::write(&steps, include_str!("../scripts/operator.sh"))?;
    boot.files.push(("operator.sh".into(), steps));
    for package in packages {
        let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        boot.files.push((format!("packages/{name}"), package));
    }
    let outcome = machine.boot(env, &boot)?;
    let seen = env.target().join("operator/seen");
    fs::write(&seen, format!("{}\n--- host\n{}", outcome.output, outcome.log))?;
    ui::note(&format!("what they have shown is in {}", seen.display()));
    tally::judge(env, &installed.name(), &outcome)
}

/// A copy of the disk onto which the packages were installed, with stock's modules chosen.
fn install(env: &Env, disk: &Path, packages: &[PathBuf]) -> Result<PathBuf> {
    let work = env.target().join("operator");
    let (copy, root) = (work.join("disk"), work.join("root"));
    fs::create_dir_all(&root)?;
    ui::step("the packages onto the disk", || {
        proc::run(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(disk).arg(&copy))?;
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-ec"]);
        shell.arg(include_str!("../scripts/operator-install.sh")).arg(&copy).arg(&root).args(packages);
        proc::run(&mut shell)
    })?;
    Ok(copy)
}

/// A file system with a Debian 13 in it, as `operator-disk.sh` leaves it.
fn disk(env: &Env, kernel: &Unpacked) -> Result<PathBuf> {
    let key = key(&[&kernel.release, include_str!("../scripts/operator-disk.sh")]);
    let packages = TRIXIE.closure(env, &["e2fsprogs"])?;
    let dir = env.artifact(&format!("operator/{key}"), |dir| {
        let chroot = Chroot::named(env, TRIXIE, "operator")?;
        chroot.run(&format!("sh xtask/scripts/operator-disk.sh {}", kernel.release))?;
        ui::step("a disk with a Debian 13 that runs guests", || {
            chroot.remove_checkout()?;
            let tools = dir.join("tools");
            TRIXIE.unpack(env, &packages, &tools)?;
            let program = ["usr/sbin/mke2fs", "sbin/mke2fs"].map(|path| tools.join(path));
            let program = program.iter().find(|path| path.is_file()).unwrap_or(&program[0]);
            let mut mke2fs = Libraries::new(&tools).command(program);
            mke2fs.args(["-q", "-t", "ext4", "-d"]).arg(chroot.root()).arg(dir.join("disk")).arg("6G");
            proc::run(&mut mke2fs)?;
            proc::remove_dir(&tools)
        })
    })?;
    Ok(dir.join("disk"))
}

/// The program, out of the source of Debian's kernel.
fn kvm_stat(env: &Env) -> Result<PathBuf> {
    let mut packages = TRIXIE.closure(env, &["linux-source-6.12"])?;
    packages.retain(|package| package.starts_with("linux-source-"));
    let dir = env.artifact(&format!("kvm-stat/{}", key(&[&packages.join(" ")])), |dir| {
        ui::step("kvm_stat out of the kernel's source", || {
            let packed = dir.join("packed");
            TRIXIE.unpack(env, &packages, &packed)?;
            extract(&Tools::fetch(env)?, &packed, dir)?;
            proc::remove_dir(&packed)
        })
    })?;
    Ok(dir.join("kvm_stat"))
}

fn extract(tools: &Tools, packed: &Path, to: &Path) -> Result<()> {
    let archive = proc::find_entry(&packed.join("usr/src"), |name| name.ends_with(".tar.xz"))?;
    let mut tar = Command::new("tar");
    tar.arg(format!("--use-compress-program={} xz", tools.busybox().display()));
    tar.args(["--extract", "--strip-components=4", "--wildcards", "--file"]).arg(&archive).arg("-C").arg(to);
    proc::run(tar.arg(format!("linux-source-*/{KVM_STAT}"))).map(drop)
}
