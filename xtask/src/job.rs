//! One scenario on one kernel: run on ours, and compared with stock where that is asked for.

use crate::{
    backports,
    compare::{about_time, differences},
    debian, debug, engines,
    env::{Env, key},
    expected, here,
    host::{self, Boot, Flavour, Machine},
    i386_guests, image,
    kernels::{self, Kernel},
    observe,
    package::installed,
    packaged, payload, proc,
    scenarios::{self, Scenario},
    secure_boot,
    strict::Processor,
    tally, ui,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// One scenario on one kernel, waiting for a host.
pub struct Job {
    pub scenario: &'static Scenario,
    pub kernel: Kernel,
}

impl Job {
    pub fn name(&self) -> String {
        format!("{} {}", self.scenario.name, self.kernel)
    }
}

/// What is worth knowing of a job that passed.
pub struct Ran {
    /// How often the emulator failed by itself.
    pub retries: u32,
    /// Seconds from the host's power-on to its power-off, without the starts that the emulator aborted.
    ours: f32,
    /// The same on stock kvm-amd, whenever that was measured.
    stock: Option<f32>,
    /// How many lines said that something was slow, of the host and its guests: with ours, and what is kept of stock.
    pub about_time: [usize; 2],
}

impl Ran {
    pub fn took(&self) -> String {
        let stock = self.stock.map(|seconds| format!(", on stock {seconds:.0} s"));
        format!("{:.0} s{}", self.ours, stock.unwrap_or_default())
    }
}

/// Runs one job. `again`: what it does on stock is looked at anew, too.
pub fn run(
    env: &Env,
    machine: &Machine,
    payloads: &Path,
    modules: Option<&PathBuf>,
    job: &Job,
    again: bool,
) -> Result<Ran> {
    let modules = modules.context("the module was not built")?;
    let boot = boot(env, payloads, modules, job)?;
    let plain = if job.scenario.plain { Some(Machine::new(env, Processor::Plain)?) } else { None };
    let machine = plain.as_ref().unwrap_or(machine);
    let outcome = machine.boot(env, &debug::with_checks(&boot))?;
    tally::judge(env, &job.name(), &outcome)?;
    let said = about_time(&outcome.output) + about_time(&outcome.log);
    let ran = Ran { retries: outcome.retries, ours: outcome.seconds, stock: None, about_time: [said, 0] };
    if !job.scenario.compare {
        return Ok(ran);
    }
    let (stock, seconds, retries) = on_stock(env, machine, &boot, payloads, job, again)?;
    let mut differences = differences(&stock, &outcome.output);
    for taken in expected::take_out(job.scenario.expected, &mut differences) {
        ui::note(&format!("{}: differs as expected: {taken}", job.name()));
    }
    if !differences.is_empty() {
        tally::keep(env, &job.name(), &outcome)?;
        let beside = failure(env, &format!("{} stock", job.name()));
        proc::write_if_changed(&beside, stock.as_bytes())?;
        bail!(
            "not the same as on stock kvm-amd (-):\n  {}\nall that ours printed: {}, and stock: {}",
            differences.iter().take(40).cloned().collect::<Vec<_>>().join("\n  "),
            failure(env, &job.name()).display(),
            beside.display()
        );
    }
    Ok(Ran { retries: ran.retries + retries, stock: seconds, about_time: [said, about_time(&stock)], ..ran })
}

/// The host of a job, with our modules; and what its script finds there.
pub fn boot(env: &Env, payloads: &Path, modules: &Path, job: &Job) -> Result<Boot> {
    let mut boot = Boot::new(job.kernel, Flavour::Ours, job.scenario.script);
    (boot.ours, boot.load) = (Some(modules.to_owned()), job.scenario.load);
    boot.timeout = job.scenario.timeout * job.kernel.slowness();
    (boot.smp, boot.cpu, boot.icount) = (job.scenario.smp, job.scenario.cpu.to_owned(), job.scenario.icount);
    (boot.cmdline, boot.unchecked) = (job.scenario.cmdline.to_owned(), job.scenario.unchecked);
    boot.qemu = job.scenario.qemu.iter().map(|&word| word.to_owned()).collect();
    boot.memory = job.scenario.memory;
    boot.loaded = job.scenario.loaded.iter().map(|&name| name.to_owned()).collect();
    boot.modules = job.scenario.modules.iter().map(|&name| name.to_owned()).collect();
    for name in job.scenario.payloads.iter().chain(&["heartbeat"]) {
        boot.files.push(payload::file(payloads, name)?);
    }
    if job.scenario.engines {
        boot.files.extend(engines::files(env, job.kernel)?);
    }
    if job.scenario.installed {
        (boot.flavour, boot.ours) = (Flavour::None, None);
        boot.files.extend(installed::files(env, job.kernel, modules)?);
    }
    boot.files.extend(packaged::files(env, job.scenario.packaged)?);
    if job.scenario.i386_guests {
        boot.files.extend(i386_guests::files(env)?);
    }
    if job.scenario.qemu_backports {
        boot.files.extend(backports::files(env)?);
    }
    if !job.scenario.debian.is_empty() {
        boot.loaded.extend(debian::MODULES.map(str::to_owned));
        boot.drives.push(debian::disk(env, job.scenario.debian)?);
    }
    if job.scenario.vmlinux {
        boot.files.push(("guest/vmlinux".to_owned(), image::vmlinux(env)?));
    }
    if job.scenario.secure_boot {
        boot.files.extend(secure_boot::files(env)?);
    }
    if job.scenario.observe {
        boot.files.extend(observe::files(env)?);
    }
    if job.scenario.here {
        boot.files.push(("payload/test-here".to_owned(), here::script(env)));
    }
    Ok(boot)
}

/// The host of the scenario of that name, for `./x host`. `modules` are ours, built already.
pub fn alone(env: &Env, name: &str, kernel: Kernel, flavour: Flavour, modules: Option<PathBuf>) -> Result<Boot> {
    let scenario = scenarios::every()?.find(|scenario| scenario.name == name);
    let job = Job { scenario: scenario.with_context(|| format!("there is no scenario {name}"))?, kernel };
    let modules = match (modules, flavour) {
        (Some(modules), _) => modules,
        (None, Flavour::Ours) => host::our_modules(env, kernel)?,
        (None, _) => PathBuf::new(),
    };
    let boot = boot(env, &payload::build(env)?, &modules, &job)?;
    let ours = boot.ours.filter(|_| flavour == Flavour::Ours);
    Ok(Boot { flavour, ours, show: true, ..boot })
}

/// What the same script prints on stock kvm-amd, and how many seconds it took. That does not change, so it is kept in
/// the cache.
fn on_stock(
    env: &Env,
    machine: &Machine,
    boot: &Boot,
    payloads: &Path,
    job: &Job,
    again: bool,
) -> Result<(String, Option<f32>, u32)> {
    // Other flavours are not what is compared but where a scenario is for them, and stock refuses PREEMPT_RT where the TSC's rate is not constant.
    let kernel = if job.scenario.kernels.contains(&job.kernel) { job.kernel } else { job.kernel.series() };
    let release = kernels::fetch(env, kernel)?.release;
    let mut identity = vec![release, machine.identity(), boot.script.clone(), boot.smp.to_string(), boot.cpu.clone()];
    if !boot.cmdline.is_empty() {
        identity.push(boot.cmdline.clone());
    }
    if boot.icount {
        identity.push("icount".to_owned());
    }
    for name in job.scenario.payloads {
        identity.push(key(&[&format!("{:?}", fs::read(payload::file(payloads, name)?.1)?)]));
    }
    // Whatever else it has is named after its content.
    let files = boot.files.iter().map(|(_, path)| path).chain(boot.drives.iter().map(|drive| &drive.path));
    identity.extend(files.filter(|path| path.starts_with(&env.cache)).map(|path| path.display().to_string()));
    let identity = key(&identity.iter().map(String::as_str).collect::<Vec<_>>());
    let name = format!("{}-{kernel}-{identity}", job.scenario.name);
    let path = env.cache.join("stock").join(&name);
    let seconds = env.cache.join("stock").join(format!("{name}-seconds"));
    if let (false, Ok(known)) = (again, fs::read_to_string(&path)) {
        return Ok((known, fs::read_to_string(&seconds).ok().and_then(|text| text.parse().ok()), 0));
    }
    let mut boot = boot.clone();
    (boot.kernel, boot.flavour, boot.ours) = (kernel, Flavour::Stock, None);
    // Stock itself fails now and then on a loaded machine; once more, and counted.
    let mut retries = 0;
    let outcome = loop {
        let outcome = machine.boot(env, &boot)?;
        retries += outcome.retries;
        if outcome.passed() {
            break outcome;
        }
        ensure!(retries == 0, "stock kvm-amd itself failed: {}\n{}", outcome.explain(), proc::tail(&outcome.log));
        retries += 1;
    };
    proc::write_if_changed(&seconds, outcome.seconds.to_string().as_bytes())?;
    proc::write_if_changed(&path, outcome.output.as_bytes())?;
    Ok((outcome.output, Some(outcome.seconds), retries))
}

/// Where all is kept that a scenario printed when it failed.
pub fn failure(env: &Env, name: &str) -> PathBuf {
    env.target().join("failed").join(name.replace(' ', "-"))
}
