//! `./x test`: everything, from cheap to dear; ends with `N passed, N failed` alone on a line.

use crate::{
    chroots::{self, Chroot},
    env::Env,
    host::Machine,
    i386, imports,
    job::{self, Job},
    kernels::{self, Kernel},
    miri, mitigations, module, object, oldest, panicking, panics, payload, proc,
    progress::Progress,
    rust_src, scenarios, selftests,
    strict::Processor,
    strict_checks, tidy, ui, verify, without,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
    time::Instant,
};

/// How many emulated hosts run at a time: as many as there are processors, within what memory allows.
fn parallel() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).clamp(2, 6)
}

/// So many scenarios that failed are run once more, alone, on stock as well: the emulator fails in ways that nothing tells
/// from a failure of ours. More of them are ours.
const SECOND_CHANCES: usize = 3;

/// Which of the tests to run.
pub struct Selection {
    /// What takes long as well.
    pub all: bool,
    /// Only what is called like one of these, which commas part.
    pub only: Option<String>,
    /// Only this kernel.
    pub kernel: Option<Kernel>,
    /// Who emulates the host.
    pub processor: Processor,
    /// Each emulated host runs for a quarter of the time only.
    pub slow: bool,
}

/// What needs no module, when it is asked for by name.
const WITHOUT_MODULES: [&str; 7] = ["tidy", "clippy", "cargo-test", "miri", "oldest-rust", "chroot", "strict-checks"];

impl Selection {
    fn needs_modules(&self) -> bool {
        let without = |only: &str| WITHOUT_MODULES.iter().any(|name| only.starts_with(name));
        self.only.as_ref().is_none_or(|only| !only.split(',').all(without))
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.split(',').any(|only| name.contains(only)))
    }

    /// Whether it is asked for by its whole name.
    fn names(&self, name: &str) -> bool {
        self.only.as_ref().is_some_and(|only| only.split(',').any(|only| name == only))
    }

    fn kernels(&self) -> Vec<Kernel> {
        let others = kernels::OTHERS.into_iter().filter(|other| self.all || self.kernel == Some(*other));
        kernels::ALL.into_iter().chain(others).filter(|kernel| self.kernel.is_none_or(|only| only == *kernel)).collect()
    }
}

/// Passed and failed so far.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: Vec<String>,
    /// Failed once, and passed the second time.
    unsteady: Vec<String>,
    retries: u32,
    /// Lines about time, of ours and of stock's.
    about_time: [usize; 2],
}

impl Tally {
    fn check<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        match work() {
            Ok(value) => {
                println!("PASS {name}");
                self.passed += 1;
                Some(value)
            }
            Err(error) => {
                println!("FAIL {name}\n{error:#}");
                self.failed.push(name.to_owned());
                None
            }
        }
    }
}

impl Tally {
    /// What failed before was tried again.
    fn again(&mut self, name: &str, result: Result<()>) {
        if self.check(name, || result).is_some() {
            self.failed.retain(|failed| failed != name);
            self.unsteady.push(name.to_owned());
        } else {
            // It is in the list twice.
            self.failed.pop();
        }
    }
}

pub fn run(env: &Env, selection: &Selection) -> Result<ExitCode> {
    let start = Instant::now();
    let mut tally = Tally::default();
    cheap(env, selection, &mut tally);
    if selection.wants("oldest-rust") {
        for (suite, packages) in oldest::SUITES {
            tally.check(&format!("oldest-rust {}", suite.0), || oldest::build(env, suite, packages));
        }
    }
    if selection.processor == Processor::Strict && selection.wants("strict-checks") {
        tally.check("strict-checks", || strict_checks::run(env));
    }
    let built = if selection.needs_modules() { modules(env, selection, &mut tally) } else { BTreeMap::new() };
    in_the_host(env, selection, &built, &mut tally)?;
    kernel_selftests(env, selection, &built, &mut tally)?;
    panicking(env, selection, &mut tally)?;
    plain_machines(env, selection, &mut tally);

    println!("\n{:.0} minutes; the emulator failed by itself {} times", minutes(start), tally.retries);
    let [ours, stock] = tally.about_time;
    if ours + stock > 0 {
        println!(
            "{ours} lines on time (lockups, clocks, slow interrupts) with ours, {stock} with stock; they are no difference"
        );
    }
    for name in &tally.unsteady {
        println!("failed once, passed once: {name}   (the first time is in {})", job::failure(env, name).display());
    }
    for name in &tally.failed {
        println!("failed: {name}   (again, alone: ./x test --only {})", name.split(' ').next().unwrap_or(name));
    }
    println!("{} passed, {} failed", tally.passed, tally.failed.len());
    Ok(if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn minutes(start: Instant) -> f32 {
    start.elapsed().as_secs_f32() / 60.0
}

/// What needs no kernel.
fn cheap(env: &Env, selection: &Selection, tally: &mut Tally) {
    let cargo = |words: &[&str]| -> Result<()> {
        ui::step(&format!("cargo {}", words.join(" ")), || proc::run(env.cargo().args(words))).map(drop)
    };
    if selection.wants("tidy") {
        tally.check("tidy", || tidy::run(env));
    }
    let clippy = if selection.wants("clippy") {
        rust_src::component(env, "cargo-clippy", "clippy", "rust-clippy")
    } else {
        Ok(false)
    };
    if selection.wants("clippy") && matches!(clippy, Ok(false)) {
        ui::note("clippy is not run: there is none of this compiler's release");
    } else if selection.wants("clippy") {
        tally.check("clippy", || {
            clippy?;
            let lints = lints(env)?;
            cargo(&[&["clippy", "--quiet", "--all-targets", "--"], lints].concat())?;
            object::clippy(env, lints)?;
            i386::clippy(env, lints)
        });
    }
    if selection.wants("cargo-test") {
        tally.check("cargo-test", || cargo(&["test", "--quiet"]));
    }
    if selection.wants("miri") && (selection.all || selection.names("miri")) {
        match miri::run(env) {
            Some(result) => drop(tally.check("miri", || result)),
            None => ui::note("there is no Miri here: `rustup toolchain install nightly --component miri,rust-src`"),
        }
    }
    if selection.wants("world-switch-i386") {
        tally.check("world-switch-i386", || i386::run(env));
    }
}

/// The release of clippy whose opinions on style count; others have others.
const CLIPPY: &str = "1.95.";

/// Every lint of that release; of another one only what it holds to be wrong.
fn lints(env: &Env) -> Result<&'static [&'static str]> {
    if rust_src::Rustc::new(env)?.release()?.starts_with(CLIPPY) {
        return Ok(&["-D", "warnings"]);
    }
    ui::note(&format!("clippy is not that of Rust {CLIPPY}x: only its lints on correctness count"));
    Ok(&["-D", "warnings", "-A", "clippy::all", "-D", "clippy::correctness"])
}

/// The module for each kernel, and what is demanded of its object.
fn modules(env: &Env, selection: &Selection, tally: &mut Tally) -> BTreeMap<Kernel, PathBuf> {
    let mut built = BTreeMap::new();
    let Some(object) = tally.check("rust-object", || object::build(env)) else { return built };
    if selection.wants("panics") {
        tally.check("panics", || panics::gate(env, &object));
    }
    for kernel in selection.kernels() {
        let build = || {
            let unpacked = kernels::fetch(env, kernel)?;
            let out = module::default_out(env, &unpacked.release);
            module::build_with(env, &unpacked.headers, &out, &object)?;
            Ok(out)
        };
        if let Some(out) = tally.check(&format!("module {kernel}"), build) {
            // What is proved is the code that users run, not what the compiler adds to it for a kernel that checks.
            if selection.wants("verify") && kernel.flavour() != kernels::Flavour::Debug {
                tally.check(&format!("verify {kernel}"), || proved(env, &out));
            }
            built.insert(kernel, out);
        }
    }
    if selection.wants("imports") {
        tally.check("imports", || imports::check(env, &built));
    }
    built
}

/// What is proved of both modules in this directory.
pub fn proved(env: &Env, out: &Path) -> Result<()> {
    verify::text(&out.join("kvm-amd.ko"))?;
    verify::document(env, &verify::module(&out.join("kvm.ko"))?)
}

fn in_the_host(env: &Env, selection: &Selection, built: &BTreeMap<Kernel, PathBuf>, tally: &mut Tally) -> Result<()> {
    let mut jobs = Vec::new();
    for scenario in scenarios::ALL.iter().chain(mitigations::ALL).chain(without::ALL).chain(scenarios::MATRIX) {
        for kernel in selection.kernels() {
            let quick = !scenario.slow.contains(&kernel.series());
            let wanted = selection.wants(scenario.name)
                && (quick || selection.all && kernel == kernel.series() || selection.names(scenario.name));
            if scenario.runs_on(kernel) && wanted {
                jobs.push(Job { scenario, kernel });
            }
        }
    }
    if jobs.is_empty() {
        return Ok(());
    }
    tally.check("scenario-table", || every_payload_is_used(env));
    let machine = Machine::new(env, selection.processor)?.held(selection.slow);
    jobs.retain(|job| !job.scenario.strict || machine.is_strict());
    let payloads = tally.check("test-programs", || payload::build(env)).unwrap_or_default();

    let progress = Progress::new(env, &jobs);
    ui::note(&progress.begin(parallel()));
    let progress = Mutex::new(progress);
    jobs.reverse();
    let (queue, tally, failed) = (Mutex::new(jobs), Mutex::new(tally), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..parallel() {
            scope.spawn(|| {
                while let Some(job) = queue.lock().ok().and_then(|mut queue| queue.pop()) {
                    let start = Instant::now();
                    let result = job::run(env, &machine, &payloads, built.get(&job.kernel), &job, false);
                    let (Ok(mut tally), Ok(mut failed)) = (tally.lock(), failed.lock()) else { return };
                    let name = job.name();
                    let ran = result.as_ref().ok().map(|ran| {
                        tally.retries += ran.retries;
                        for (sum, lines) in tally.about_time.iter_mut().zip(ran.about_time) {
                            *sum += lines;
                        }
                        format!(", the last start {}", ran.took())
                    });
                    let took = start.elapsed();
                    let Ok(mut progress) = progress.lock() else { return };
                    let left = progress.done(env, &job, took);
                    if tally.check(&name, || result).is_none() {
                        failed.push(job);
                    }
                    ui::note(&format!("{:.0} s{}; {left}", took.as_secs_f32(), ran.unwrap_or_default()));
                }
            });
        }
    });
    let (Ok(tally), Ok(failed)) = (tally.into_inner(), failed.into_inner()) else { bail!("a test's thread panicked") };
    if failed.len() <= SECOND_CHANCES {
        for job in failed {
            ui::note(&format!("{} once more", job.name()));
            let result = job::run(env, &machine, &payloads, built.get(&job.kernel), &job, true);
            tally.again(&job.name(), result.map(drop));
        }
    }
    Ok(())
}

/// The kernel's own tests of KVM; the quick ones, or with `all` each of them.
fn kernel_selftests(
    env: &Env,
    selection: &Selection,
    built: &BTreeMap<Kernel, PathBuf>,
    tally: &mut Tally,
) -> Result<()> {
    let mut groups = selftests::groups(|name| selection.wants(name), |name| selection.all || selection.names(name));
    if groups.is_empty() || !selection.kernels().contains(&selftests::KERNEL) {
        return Ok(());
    }
    let Some(programs) = tally.check("selftests-build", || selftests::build(env)) else { return Ok(()) };
    let modules = built.get(&selftests::KERNEL);
    let machine = Machine::new(env, selection.processor)?.held(selection.slow);
    groups.reverse();
    let (queue, tally) = (Mutex::new(groups), Mutex::new(tally));
    std::thread::scope(|scope| {
        for _ in 0..parallel() {
            scope.spawn(|| {
                while let Some(group) = queue.lock().ok().and_then(|mut queue| queue.pop()) {
                    let outcome = modules
                        .context("the module was not built")
                        .and_then(|modules| selftests::run(env, &machine, &programs, modules, &group));
                    let Ok(mut tally) = tally.lock() else { return };
                    match outcome {
                        Ok((results, retries)) => {
                            tally.retries += retries;
                            for (name, result) in results {
                                match result {
                                    // Not counted as passed.
                                    Ok(Some(why)) => println!("     {name}: {why}"),
                                    other => drop(tally.check(&name, || other)),
                                }
                            }
                        }
                        Err(error) => drop(tally.check::<()>("selftests", || Err(error))),
                    }
                }
            });
        }
    });
    Ok(())
}

/// Modules that panic when they are asked to: the build takes a while.
fn panicking(env: &Env, selection: &Selection, tally: &mut Tally) -> Result<()> {
    let asked = selection.only.as_deref() == Some("panicking");
    let kernel = panicking::KERNEL;
    let wanted = asked || selection.all && selection.wants("panicking");
    if !wanted || !selection.kernels().contains(&kernel) {
        return Ok(());
    }
    let machine = Machine::new(env, selection.processor)?.held(selection.slow);
    tally.check("panicking", || panicking::run(env, &machine));
    Ok(())
}

/// The README's commands on plain machines; as long as all that stands above, and more, for each.
fn plain_machines(env: &Env, selection: &Selection, tally: &mut Tally) {
    for suite in chroots::SUITES {
        let name = |command: &str| format!("chroot-{} {command}", suite.0);
        let asked =
            selection.only.as_deref().is_some_and(|only| only.split(',').any(|only| only.starts_with("chroot")));
        let commands = chroots::COMMANDS.map(name);
        if !(selection.all || asked) || !commands.iter().any(|name| selection.wants(name)) {
            continue;
        }
        if let Some(needed) = chroots::lacking() {
            ui::note(&format!("chroot-{} is not run: it needs {needed}", suite.0));
            continue;
        }
        let Some(chroot) = tally.check(&format!("chroot-{}", suite.0), || Chroot::new(env, suite)) else { continue };
        for command in chroots::COMMANDS.into_iter().filter(|command| selection.wants(&name(command))) {
            tally.check(&name(command), || chroot.run(command));
        }
    }
}

/// A test program that is in no scenario would silently not be run.
fn every_payload_is_used(env: &Env) -> Result<()> {
    for name in payload::names(env)? {
        let used = scenarios::ALL.iter().any(|scenario| scenario.payloads.contains(&name.as_str()));
        ensure!(
            used || scenarios::NOT_SCENARIOS.contains(&name.as_str()),
            "tests/src/bin/{name}.rs is in no scenario of xtask/src/scenarios.rs"
        );
    }
    Ok(())
}
