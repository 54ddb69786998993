//! `./x run`: a Linux guest on hsave, in the emulated AMD host or (`--here`) on this machine.

use crate::{
    engines,
    env::Env,
    host::{self, Boot, Flavour, Machine},
    image, kernels,
    kernels::Kernel,
    module, proc,
    strict::Processor,
    ui,
    verdict::{Outcome, Verdict},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// In the emulated host: an interactive shell in the guest, or without a terminal a short scripted one.
pub fn emulated(
    env: &Env,
    processor: Processor,
    kernel: Kernel,
    flavour: Flavour,
    machine_type: &str,
) -> Result<ExitCode> {
    let machine = Machine::new(env, processor)?;
    let (ours, whose) = match flavour {
        Flavour::Ours => (Some(host::our_modules(env, kernel)?), "our"),
        Flavour::Stock | Flavour::None => (None, "its own"),
    };
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mode = if interactive { "shell" } else { "demo" };
    let mut boot = Boot::new(kernel, flavour, &format!("exec boot-guest {machine_type} {mode}"));
    (boot.ours, boot.interactive, boot.show) = (ours, interactive, true);
    ui::note(&format!(
        "emulating an AMD machine with Debian's kernel {kernel}; it loads {whose} kvm.ko and kvm-amd.ko and"
    ));
    ui::note(&format!("starts a Linux guest with qemu-system-x86_64 -accel kvm -M {machine_type}. About 20 seconds."));
    if interactive {
        ui::note("To leave: `exit` in the guest's shell, or Ctrl-A x at any time.");
    }
    finished(&machine.boot(env, &boot)?, interactive)
}

/// What came of an emulated host in which somebody used a guest.
pub fn finished(outcome: &Outcome, interactive: bool) -> Result<ExitCode> {
    match &outcome.verdict {
        // Ctrl-A x.
        Verdict::Died(_) if interactive => ui::note("left"),
        Verdict::Exit(0) => ui::note("the guest powered off, the modules were unloaded, the host powered off"),
        _ => bail!("{}\n--- host kernel log\n{}", outcome.explain(), proc::tail(&outcome.log)),
    }
    Ok(ExitCode::SUCCESS)
}

/// A guest that counts, in the emulated host, and another engine under it again and again.
pub fn upgrade(env: &Env, processor: Processor, kernel: Kernel) -> Result<ExitCode> {
    let machine = Machine::new(env, processor)?;
    let mut boot = Boot::new(kernel, Flavour::Ours, include_str!("../scripts/upgrade-demo.sh"));
    (boot.ours, boot.show) = (Some(host::our_modules(env, kernel)?), true);
    boot.files = engines::files(env, kernel)?;
    ui::note(&format!(
        "emulating an AMD machine with Debian's kernel {kernel}; a Linux guest works there and says how long its clock was"
    ));
    ui::note(
        "not seen to move, while kvm-amd.ko and another build of it, hsave_0_2.ko, take turns under it. About two minutes.",
    );
    let outcome = machine.boot(env, &boot)?;
    ensure!(
        outcome.verdict == Verdict::Exit(0),
        "{}\n--- host kernel log\n{}",
        outcome.explain(),
        proc::tail(&outcome.log)
    );
    Ok(ExitCode::SUCCESS)
}

/// Refuses where `--here` cannot work: no root, no AMD processor with SVM and nested paging.
pub fn can_be_here() -> Result<()> {
    ensure!(proc::is_root(), "--here loads kernel modules, which takes root");
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or("");
    let has = |flag: &str| flags.split_whitespace().any(|known| known == flag);
    ensure!(
        has("svm") && has("npt"),
        "this machine has no SVM with nested paging (an AMD processor, virtualisation enabled in the firmware); \
         without --here one is emulated"
    );
    Ok(())
}

/// Builds our modules for the running kernel. Its release, and where they are.
pub fn modules_for_here(env: &Env) -> Result<(String, PathBuf)> {
    let release = proc::run(Command::new("uname").arg("-r"))?.trim().to_owned();
    let kdir = Path::new("/lib/modules").join(&release).join("build");
    ensure!(kdir.exists(), "the running kernel's headers are missing: `apt install linux-headers-{release}`");
    let out = module::default_out(env, &release);
    module::build(env, &kdir, &out)?;
    Ok((release, out))
}

fn ensure_unloaded() -> Result<()> {
    let loaded = fs::read_to_string("/proc/modules")?;
    if let Some(name) = ["kvm_amd", "kvm_intel", "kvm"].iter().find(|name| loaded.contains(&format!("{name} "))) {
        bail!("{name} is loaded: stop what uses /dev/kvm, then `rmmod kvm_amd kvm`, and try again");
    }
    Ok(())
}

/// This machine, which has to be an AMD one, with our modules in place of none.
pub struct Native {
    /// Its own QEMU.
    pub qemu: PathBuf,
    _loaded: Loaded,
}

impl Native {
    /// Builds our modules and loads them until it is dropped.
    pub fn new(env: &Env) -> Result<Self> {
        can_be_here()?;
        ensure_unloaded()?;
        let (_, out) = modules_for_here(env)?;
        let qemu = proc::which("qemu-system-x86_64").context("`apt install qemu-system-x86` first")?;
        let loaded = Loaded::load(&out)?;
        ui::note("our kvm.ko and kvm-amd.ko are loaded");
        Ok(Self { qemu, _loaded: loaded })
    }
}

/// A Linux guest on this machine.
pub fn here(env: &Env, machine_type: &str) -> Result<ExitCode> {
    let native = Native::new(env)?;
    let guest = guest_files(env)?;
    let interactive = std::io::stdin().is_terminal();
    let mode = if interactive { "shell" } else { "demo" };
    ui::note("starting a Linux guest. `exit` in its shell ends it.");
    let work = guest.join("work");
    fs::create_dir_all(&work)?;
    let status = Command::new("sh")
        .arg(env.root.join("xtask/scripts/boot-guest.sh"))
        .args([machine_type, mode])
        .env("QEMU", &native.qemu)
        .env("GUEST", &guest)
        .env("WORK", work)
        .status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Our modules in the running kernel, taken out again at the end.
struct Loaded;

impl Loaded {
    fn load(dir: &Path) -> Result<Self> {
        // What kvm.ko depends on comes first; where it is built in, this does nothing.
        let _ = proc::output(Command::new("modprobe").arg("irqbypass"));
        proc::run(Command::new("insmod").arg(dir.join("kvm.ko")))?;
        let loaded = Self;
        proc::run(Command::new("insmod").arg(dir.join("kvm-amd.ko")))?;
        Ok(loaded)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        for module in ["kvm_amd", "kvm"] {
            if let Err(error) = proc::run(Command::new("rmmod").arg(module)) {
                ui::note(&format!("{error:#}"));
            }
        }
    }
}

/// The guest's kernel, initial file system and pattern as files here.
fn guest_files(env: &Env) -> Result<PathBuf> {
    let tools = image::Tools::fetch(env)?;
    let dir = env.cache.join("guest");
    let guest = kernels::fetch(env, image::GUEST_KERNEL)?;
    proc::write_if_changed(&dir.join("vmlinuz"), &fs::read(&guest.image)?)?;
    proc::write_if_changed(&dir.join("initrd"), &image::guest_initrd(&tools, &guest, &tools.busybox())?)?;
    proc::write_if_changed(&dir.join("pattern"), &image::pattern())?;
    Ok(dir)
}
