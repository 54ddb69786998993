//! `./x test`: everything, from cheap to dear; ends with `N passed, N failed` alone on a line.

use crate::{
    bochs,
    chroots::{self, Chroot},
    env::Env,
    files,
    host::Machine,
    i386, imports,
    job::{self, Job},
    kernels::{self, Kernel},
    listing, miri, module, object, oldest, operator, package, panicking, panics, payload, proc,
    progress::Progress,
    rust_src, scenarios,
    selection::Selection,
    selftests,
    strict::Processor,
    strict_checks,
    tally::Tally,
    tidy, ui, verify,
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

/// GiB that a run of all that is quick writes from nothing: into the cache, and into cargo's target directory.
const ON_DISK: [u64; 2] = [12, 6];

/// Runs what is selected, and writes what came of it as JUnit XML, too, if that is asked for.
pub fn run(env: &Env, selection: &Selection, junit: Option<&Path>) -> Result<ExitCode> {
    let start = Instant::now();
    let mut tally = Tally::default();
    if selection.only.is_none() {
        env.tell_of_a_full_disk(ON_DISK)?;
    }
    cheap(env, selection, &mut tally);
    for (suite, packages) in oldest::suites(selection) {
        tally.check(&format!("oldest-rust {}", suite.0), || oldest::build(env, suite, packages));
    }
    if selection.processor == Processor::Strict && selection.wants("strict-checks") {
        tally.check("strict-checks", || strict_checks::run(env));
    }
    let built = if selection.needs_modules() { modules(env, selection, &mut tally) } else { BTreeMap::new() };
    in_the_host(env, selection, &built, &mut tally)?;
    kernel_selftests(env, selection, &built, &mut tally)?;
    panicking(env, selection, &mut tally)?;
    if bochs::is_wanted(selection) {
        tally.check("bochs", || bochs::run(env, built.get(&bochs::KERNEL)));
    }
    packages(env, selection, &mut tally);
    operator::all(env, selection, &mut tally);
    plain_machines(env, selection, &mut tally);

    if selection.only.is_none() {
        let missing = listing::missing(selection, tally.names())?.join(", ");
        tally.check("test-list", || {
            ensure!(missing.is_empty(), "xtask/src/listing.rs does not know {missing}");
            Ok(())
        });
    }

    println!(
        "\n{:.0} minutes; the emulator failed by itself {} times",
        start.elapsed().as_secs_f32() / 60.0,
        tally.retries
    );
    if let Some(path) = junit {
        tally.write_junit(path, start.elapsed())?;
        ui::note(&format!("JUnit XML is in {}", path.display()));
    }
    tally.sum_up(env);
    Ok(if tally.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
        tally.check("cargo-test", || cargo(&["test", "--quiet", "--no-fail-fast"]));
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

/// The module for each kernel, and its object.
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
            if object::has_lockdep(&unpacked.headers) {
                module::build(env, &unpacked.headers, &out)?;
            } else {
                module::build_with(env, &unpacked.headers, &out, &object)?;
            }
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
    verify::text(&out.join("kvm.ko"))?;
    verify::document(env, &verify::module(&out.join("kvm-amd.ko"))?)
}

/// The scenarios that are selected, each with each of its kernels.
pub fn jobs(selection: &Selection) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for scenario in scenarios::every()? {
        for kernel in selection.kernels() {
            let quick = !scenario.slow.contains(&kernel.series());
            // What is slow is not run anew for each flavour, but the generic one has a list of its own (`runs_on`).
            let listed = kernel == kernel.series() || kernel.flavour() == kernels::Flavour::Generic;
            let wanted =
                selection.wants(scenario.name) && (quick || selection.all && listed || selection.names(scenario.name));
            if scenario.runs_on(kernel) && wanted {
                jobs.push(Job { scenario, kernel });
            }
        }
    }
    Ok(jobs)
}

fn in_the_host(env: &Env, selection: &Selection, built: &BTreeMap<Kernel, PathBuf>, tally: &mut Tally) -> Result<()> {
    let mut jobs = jobs(selection)?;
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
                    if tally.done(&name, took, result).is_none() {
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
            let start = Instant::now();
            let result = job::run(env, &machine, &payloads, built.get(&job.kernel), &job, true);
            tally.again(&job.name(), start.elapsed(), result.map(drop));
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
                    let start = Instant::now();
                    let outcome = modules
                        .context("the module was not built")
                        .and_then(|modules| selftests::run(env, &machine, &programs, modules, &group));
                    let Ok(mut tally) = tally.lock() else { return };
                    match outcome {
                        Ok((results, retries)) => {
                            tally.retries += retries;
                            // They shared a boot.
                            let took = start.elapsed() / u32::try_from(results.len().max(1)).unwrap_or(1);
                            for (name, result) in results {
                                match result {
                                    Ok(Some(why)) => tally.skipped(&name, &why),
                                    other => drop(tally.done(&name, took, other)),
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

/// The Debian packages, installed where they are for.
fn packages(env: &Env, selection: &Selection, tally: &mut Tally) {
    for suite in chroots::SUITES {
        let name = format!("packages-{}", suite.0);
        if !selection.wants_packages(&name) {
            continue;
        }
        match chroots::lacking() {
            Some(needed) => ui::note(&format!("{name} is not run: it needs {needed}")),
            None => drop(tally.check(&name, || package::test::in_chroot(env, suite))),
        }
    }
}

/// The README's commands on plain machines; as long as all that stands above, and more, for each.
fn plain_machines(env: &Env, selection: &Selection, tally: &mut Tally) {
    for suite in chroots::SUITES {
        let name = |command: &str| format!("chroot-{} {command}", suite.0);
        let commands = chroots::COMMANDS.map(name);
        if !selection.wants_chroots() || !commands.iter().any(|name| selection.wants(name)) {
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
        let used =
            scenarios::ALL.iter().chain(files::scenarios()?).any(|scenario| scenario.payloads.contains(&name.as_str()));
        ensure!(
            used || scenarios::NOT_SCENARIOS.contains(&name.as_str()),
            "tests/src/bin/{name}.rs is in no scenario of xtask/src/scenarios.rs and xtask/scenarios"
        );
    }
    Ok(())
}
