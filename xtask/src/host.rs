//! The emulated AMD host: QEMU's TCG with SVM boots a stock Debian kernel, loads the modules under
//! test and runs a script in it.
//!
//! What came of it is told apart in [`verdict`](crate::verdict); what the emulator alone did wrong is tried again and
//! counted.

use crate::{
    drive::Drive,
    env::Env,
    guest_time::{self, GuestTime},
    image::{self, Tools},
    initrd,
    kernels::{self, Kernel, Unpacked},
    strict::{self, Processor},
    ui,
    verdict::{Outcome, Verdict, emulator_failure, is_complaint, reports},
    wait::{Holder, wait},
};
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Whose modules the host loads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Flavour {
    Ours,
    Stock,
    /// None: the script loads what it wants from /modules.
    None,
}

/// One boot to do.
#[derive(Clone)]
pub struct Boot {
    pub kernel: Kernel,
    pub flavour: Flavour,
    /// Where our kvm.ko and kvm-amd.ko for that kernel are.
    pub ours: Option<PathBuf>,
    /// Further modules of the kernel's, with what they need, which are only there.
    pub modules: Vec<String>,
    /// Further modules of the kernel's, with what they need, which are loaded first.
    pub loaded: Vec<String>,
    /// Disks of its own, /dev/sda and so on.
    pub drives: Vec<Drive>,
    /// Load kvm.ko and kvm-amd.ko before the script; if not, they are only there.
    pub load: bool,
    /// Processors for the script and its guests. If there are several, Debian's emulator has one more, where nothing of the
    /// script's runs (docs/decisions/0018).
    pub smp: u32,
    /// Megabytes.
    pub memory: u32,
    /// Count instructions: virtual time is the number of instructions that all processors execute, exactly repeatable. They take
    /// turns on one thread, and time in which none has anything to do passes at once.
    pub icount: bool,
    /// The processor model, as QEMU's `-cpu` takes it.
    pub cpu: String,
    /// Checks of the strict processor that are off, as bits (docs/strict.md).
    pub unchecked: u32,
    /// Further words of the kernel's command line.
    pub cmdline: String,
    /// Further arguments of QEMU.
    pub qemu: Vec<String>,
    pub script: String,
    /// Files to add: path in the host, path here.
    pub files: Vec<(String, PathBuf)>,
    /// How long it may take, in the emulated host's time.
    pub timeout: Duration,
    /// Show the script's output while it runs.
    pub show: bool,
    /// Give the script the terminal.
    pub interactive: bool,
}

/// The processor that TCG can emulate best.
pub const CPU: &str = "EPYC,+svm,+npt";

impl Boot {
    pub fn new(kernel: Kernel, flavour: Flavour, script: &str) -> Self {
        Self {
            kernel,
            flavour,
            ours: None,
            modules: Vec::new(),
            loaded: Vec::new(),
            drives: Vec::new(),
            load: true,
            smp: 2,
            memory: 4096,
            icount: false,
            cpu: CPU.to_owned(),
            unchecked: 0,
            cmdline: String::new(),
            qemu: Vec::new(),
            script: script.to_owned(),
            files: Vec::new(),
            timeout: Duration::from_secs(300),
            show: false,
            interactive: false,
        }
    }
}

/// What init logs before it loads the modules.
pub const STARTED: &str = "hsave: modules";

/// The console, and the ports that init knows. On a loaded machine the emulated timer may miss the kernel's check of it, which then panics.
pub const CONSOLE: &str = "no_timer_check console=ttyS0 panic=-1 oops=panic quiet loglevel=5 8250.nr_uarts=4 ";

/// For hosts whose time is that of this machine: where it is slow, watchdogs bark at nothing.
pub const NO_WATCHDOGS: &str = "nowatchdog nosoftlockup rcupdate.rcu_cpu_stall_suppress=1 workqueue.watchdog_thresh=0 \
     sysctl.kernel.hung_task_timeout_secs=0 tsc=nowatchdog ";

/// How often a run is tried again after a failure of the emulator's own: on a loaded machine, several in a row are seen.
const RETRIES: u32 = 12;

/// Fetched once, used for many boots.
pub struct Machine {
    tools: Tools,
    base: PathBuf,
    /// The strict processor's emulator, in place of Debian's.
    strict: Option<PathBuf>,
    /// Each host is to run for a quarter of the time only.
    held: bool,
}

impl Machine {
    pub fn new(env: &Env, processor: Processor) -> Result<Self> {
        remove_stale_runs(env);
        let tools = Tools::fetch(env)?;
        let base = image::base(env, &tools)?;
        let strict = match processor {
            Processor::Strict => strict::fetch(env)?,
            Processor::Plain => None,
        };
        Ok(Self { tools, base, strict, held: false })
    }

    /// Whether it is the strict processor, which there may be none of.
    pub fn is_strict(&self) -> bool {
        self.strict.is_some()
    }

    /// Whether each host is to run for a quarter of the time only.
    pub fn held(self, held: bool) -> Self {
        Self { held, ..self }
    }

    /// Changes with everything that every boot has in common.
    pub fn identity(&self) -> String {
        let strict = self.strict.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        format!("{} {} {strict}", self.base.display(), include_str!("../scripts/host-init.sh"))
    }

    /// The initial file system of a boot, for another emulator than QEMU.
    pub fn initrd(&self, boot: &Boot, kernel: &Unpacked) -> Result<Vec<u8>> {
        let mut all = fs::read(&self.base)?;
        all.extend(initrd::own_part(&self.tools, boot, kernel, false)?);
        Ok(all)
    }

    fn qemu(&self) -> Command {
        match &self.strict {
            Some(program) => self.tools.emulator(program),
            None => self.tools.qemu(),
        }
    }

    fn cpu(&self, boot: &Boot) -> String {
        if self.is_strict() { strict::cpu(&boot.cpu, &boot.cmdline, boot.unchecked) } else { boot.cpu.clone() }
    }

    /// Whether nothing of the script's runs on the first processor (docs/decisions/0018).
    fn spares_one(&self, boot: &Boot) -> bool {
        !self.is_strict() && boot.smp > 1 && !boot.icount
    }

    /// Boots, runs the script and reports; what the emulator alone did wrong is tried again.
    pub fn boot(&self, env: &Env, boot: &Boot) -> Result<Outcome> {
        let kernel = kernels::fetch(env, boot.kernel)?;
        let mut retries = 0;
        loop {
            let run = Run::new(env, self, boot, &kernel)?;
            let start = Instant::now();
            let (mut outcome, emulator) = run.go(boot, self.held)?;
            outcome.seconds = start.elapsed().as_secs_f32();
            if let Some(failure) = emulator.filter(|_| retries < RETRIES) {
                ui::note(&format!("once more, because the emulator failed after {:.0} s: {failure}", outcome.seconds));
                retries += 1;
                continue;
            }
            outcome.retries = retries;
            return Ok(outcome);
        }
    }
}

/// One run's files; removed with it.
struct Run {
    dir: PathBuf,
    qemu: Command,
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A run that was interrupted left its files; its directory begins with the process id.
fn remove_stale_runs(env: &Env) {
    for entry in fs::read_dir(env.cache.join("runs")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let running = name.split('-').next().is_some_and(|pid| Path::new("/proc").join(pid).exists());
        if !running {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

static RUNS: AtomicU32 = AtomicU32::new(0);

impl Run {
    fn new(env: &Env, machine: &Machine, boot: &Boot, kernel: &Unpacked) -> Result<Self> {
        let number = RUNS.fetch_add(1, Ordering::Relaxed);
        let dir = env.cache.join("runs").join(format!("{}-{number}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let mut run = Self { qemu: machine.qemu(), dir };
        let initrd = run.dir.join("initrd");
        let mut file = fs::File::create(&initrd)?;
        std::io::copy(&mut fs::File::open(&machine.base)?, &mut file)?;
        file.write_all(&initrd::own_part(&machine.tools, boot, kernel, machine.spares_one(boot))?)?;

        let mut append = CONSOLE.to_owned();
        if !boot.icount {
            append += NO_WATCHDOGS;
        }
        append += &boot.cmdline;
        let qemu = &mut run.qemu;
        qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-cpu", &machine.cpu(boot)]);
        qemu.args(["-m", &boot.memory.to_string()]);
        if boot.icount {
            qemu.args(["-icount", "shift=0,sleep=off", "-accel", "tcg,thread=single"]);
            // What RDRAND gives.
            qemu.args(["-seed", "1"]);
        } else {
            qemu.args(["-accel", "tcg,thread=multi"]);
        }
        qemu.args(["-smp", &(boot.smp + u32::from(machine.spares_one(boot))).to_string()]);
        let file = |name: &str| format!("file:{}", run.dir.join(name).display());
        qemu.args(["-serial", &file("console")]);
        if boot.interactive {
            // Ctrl-A x leaves, whatever the guest does.
            qemu.args(["-chardev", "stdio,id=terminal,mux=on,signal=off", "-serial", "chardev:terminal"]);
            qemu.args(["-mon", "chardev=terminal"]);
        } else {
            qemu.args(["-serial", "stdio"]);
        }
        for (number, drive) in boot.drives.iter().enumerate() {
            qemu.args(drive.words(number));
        }
        qemu.args(["-serial", &file("report")]).args(guest_time::arguments(&run.dir));
        qemu.arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", append.as_str()])
            .args(&boot.qemu);
        Ok(run)
    }

    /// What came of it, and what the emulator did wrong.
    fn go(mut self, boot: &Boot, held: bool) -> Result<(Outcome, Option<&'static str>)> {
        let mut time = GuestTime::new(&self.dir)?;
        if boot.interactive {
            let errors = self.dir.join("errors");
            let status = self.qemu.stderr(fs::File::create(&errors)?).status().context("cannot start QEMU")?;
            let mut errors = fs::read_to_string(&errors)?;
            if status.success() {
                errors = reports(&errors).join("\n");
            }
            return Ok((self.outcome(String::new(), &errors), None));
        }
        self.qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.qemu.spawn().context("cannot start QEMU")?;
        let stdout = child.stdout.take().context("QEMU has an output")?;
        let stderr = child.stderr.take().context("QEMU has an output")?;
        let show = boot.show;
        let reader = std::thread::spawn(move || drain(stdout, show));
        let errors = std::thread::spawn(move || drain(stderr, false));
        let holder = if held { Some(Holder::new(&child, boot.icount)?) } else { None };
        let status = wait(&mut child, boot, &mut time, || self.log().contains(STARTED))?;
        drop(holder);
        let output = reader.join().unwrap_or_default();
        let mut errors = errors.join().unwrap_or_default();
        let Some(status) = status else {
            let mut outcome = self.outcome(output, &errors);
            if !matches!(outcome.verdict, Verdict::Processor(_)) {
                outcome.verdict = Verdict::Timeout;
            }
            let emulator = emulator_failure(&outcome.verdict, &errors, &outcome.log);
            return Ok((outcome, emulator));
        };
        if !status.success() {
            errors += &format!("QEMU: {status}");
        }
        let outcome = self.outcome(output, &errors);
        let emulator = emulator_failure(&outcome.verdict, &errors, &outcome.log);
        Ok((outcome, emulator))
    }

    fn log(&self) -> String {
        log(&self.dir)
    }

    fn outcome(&self, output: String, errors: &str) -> Outcome {
        outcome(&self.dir, output, errors)
    }
}

/// What came over a serial port, whose file is in `dir`.
pub fn text(dir: &Path, port: &str) -> String {
    String::from_utf8_lossy(&fs::read(dir.join(port)).unwrap_or_default()).replace('\r', "")
}

fn log(dir: &Path) -> String {
    text(dir, "console") + &text(dir, "report")
}

/// What a host reported whose serial ports are files in `dir`; `errors` is what its emulator said.
pub fn outcome(dir: &Path, output: String, errors: &str) -> Outcome {
    // Of the processor's features that TCG does not emulate there is a warning each.
    let errors: Vec<&str> = errors.lines().filter(|line| !line.contains("warning: TCG doesn't support")).collect();
    let log = log(dir);
    let complaints: Vec<String> = log.lines().filter(|line| is_complaint(line)).map(str::to_owned).collect();
    let status = log.lines().find_map(|line| line.strip_prefix("hsave: exit ")?.parse().ok());
    let reports = reports(&errors.join("\n"));
    let verdict = match status {
        _ if !reports.is_empty() => Verdict::Processor(reports),
        _ if !complaints.is_empty() => Verdict::HostKernel(complaints),
        Some(status) => Verdict::Exit(status),
        None if errors.is_empty() => Verdict::Died("it left before the script ended".to_owned()),
        None => Verdict::Died(errors.join("\n")),
    };
    Outcome { verdict, output, log, retries: 0, seconds: 0.0 }
}

/// Reads to the end, showing it on the way if asked to.
fn drain(mut from: impl Read, show: bool) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        all.extend_from_slice(&buffer[..count]);
        if show {
            let _ = std::io::stdout().write_all(&buffer[..count]);
            let _ = std::io::stdout().flush();
        }
    }
    String::from_utf8_lossy(&all).replace('\r', "")
}

/// Our modules for a stock kernel, built where every command finds them.
pub fn our_modules(env: &Env, kernel: Kernel) -> Result<PathBuf> {
    let unpacked = kernels::fetch(env, kernel)?;
    let out = crate::module::default_out(env, &unpacked.release);
    crate::module::build(env, &unpacked.headers, &out)?;
    Ok(out)
}

/// The hidden command `./x host`: one boot with a script from a file or the command line.
pub fn command(env: &Env, mut boot: Boot, processor: Processor, words: &[String]) -> Result<std::process::ExitCode> {
    boot.script = match words {
        [only] if Path::new(only).is_file() => fs::read_to_string(only)?,
        _ => words.join(" "),
    };
    if boot.flavour == Flavour::Ours && boot.ours.is_none() {
        boot.ours = Some(our_modules(env, boot.kernel)?);
    }
    self::boot(env, &boot, processor)
}

/// One boot, whose output is shown.
pub fn boot(env: &Env, boot: &Boot, processor: Processor) -> Result<std::process::ExitCode> {
    let outcome = Machine::new(env, processor)?.boot(env, boot)?;
    if !outcome.passed() {
        eprintln!("--- host kernel log\n{}---", outcome.log);
    }
    eprintln!("x host: {}", outcome.explain());
    Ok(match outcome.verdict {
        Verdict::Exit(status) => std::process::ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Verdict::Timeout => std::process::ExitCode::from(122),
        _ => std::process::ExitCode::from(123),
    })
}
