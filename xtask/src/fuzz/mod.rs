//! `./x fuzz`: the targets of the crate `fuzz`, guided by what their inputs reach, for as long as one likes (docs/fuzzing.md).
//!
//! The guide is LLVM's libFuzzer, which a crate brings as source; the compiler that is there counts edges with a pass of its own.

mod coverage;

use crate::{env::Env, payload::TARGET, proc, ui};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

/// How long a target is run at a time.
const SLICE: Duration = Duration::from_secs(300);
/// An input that takes longer is a finding, in seconds.
const SLOWEST: u32 = 30;
/// Megabytes that an input may take at once, and that all of it may.
const MEMORY: (u32, u32) = (600, 2500);
/// The passes that count edges and compare operands. Without PIE an address in the file is the address in memory.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Crelocation-model=static",
];

/// What is asked for.
pub struct Options {
    /// How long; 0 is until it is stopped.
    pub hours: f64,
    /// Only this one.
    pub target: Option<String>,
    /// Do what this file says, once.
    pub replay: Option<PathBuf>,
    /// Say what is reached, crate by crate.
    pub coverage: bool,
    /// Take what reaches more into the tree.
    pub keep: bool,
}

/// A target as the crate `fuzz` has it.
struct Target {
    name: String,
    longest: usize,
}

/// Where things are.
struct Place {
    driver: PathBuf,
    /// Inputs that were found, by target.
    corpus: PathBuf,
    findings: PathBuf,
    /// Those in the tree.
    kept: PathBuf,
}

pub fn run(env: &Env, options: &Options) -> Result<ExitCode> {
    let replay = ui::step("the targets", || program(env, &["--bin", "replay"]))?;
    let targets = targets(&replay, options.target.as_deref())?;
    if let Some(file) = &options.replay {
        return replay_one(&replay, &targets, file);
    }
    let driver = ui::step("the targets with counters", || driver(env))
        .context("libFuzzer is built from source by a C++ compiler: as root, apt-get install g++")?;
    let work = env.target().join("fuzz/found");
    let place = Place {
        driver,
        corpus: work.join("corpus"),
        findings: work.join("findings"),
        kept: env.root.join("fuzz/corpus"),
    };
    fs::create_dir_all(&place.findings)?;
    if options.coverage {
        return coverage::report(&place, &targets);
    }
    if options.keep {
        for target in &targets {
            coverage::keep(&place, target)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    guided(&place, &targets, options.hours)
}

/// Builds a program of the crate and says where it is.
fn program(env: &Env, words: &[&str]) -> Result<PathBuf> {
    let mut cargo = env.cargo();
    cargo.args(["build", "--quiet", "--package", "fuzz"]).args(words);
    proc::run(&mut cargo)?;
    Ok(env.target().join("debug/replay"))
}

fn driver(env: &Env) -> Result<PathBuf> {
    let dir = env.target().join("fuzz");
    let mut cargo = env.cargo();
    cargo.args(["build", "--quiet", "--package", "fuzz", "--bin", "guided", "--features", "guided"]);
    // With a target named, neither build scripts nor macros are counted.
    cargo.args(["--profile", "fuzz", "--target", TARGET]).arg("--target-dir").arg(&dir);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")).env_remove("RUSTFLAGS");
    proc::run(&mut cargo)?;
    Ok(dir.join(TARGET).join("fuzz/guided"))
}

/// What `replay` knows, or the one of them that is asked for.
fn targets(replay: &Path, only: Option<&str>) -> Result<Vec<Target>> {
    let listed = proc::run(Command::new(replay).arg("--list"))?;
    let of = |line: &str| {
        let (name, rest) = line.split_once('\t')?;
        let longest = rest.split('\t').next()?.parse().ok()?;
        Some(Target { name: name.to_owned(), longest })
    };
    let all: Vec<Target> = listed.lines().filter_map(of).collect();
    let names: Vec<String> = all.iter().map(|t| t.name.clone()).collect();
    let wanted: Vec<Target> = all.into_iter().filter(|t| only.is_none_or(|only| only == t.name)).collect();
    ensure!(!wanted.is_empty(), "there is no such target; there are {}", names.join(", "));
    Ok(wanted)
}

/// The name of a finding begins with that of its target.
fn replay_one(replay: &Path, targets: &[Target], file: &Path) -> Result<ExitCode> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = file.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let target = match targets {
        [one] => Some(one),
        all => all.iter().find(|t| name.starts_with(&format!("{}-", t.name)) || folder == t.name),
    };
    let Some(target) = target else { bail!("which target is {} for? Say it with --target", file.display()) };
    let mut command = Command::new(replay);
    command.arg(&target.name).arg(file).env("HSAVE_FUZZ_SHOW", "1").env("RUST_BACKTRACE", "1");
    let status = command.status().with_context(|| format!("cannot run {}", replay.display()))?;
    println!("{}", if status.success() { "nothing was found" } else { "it fails as above" });
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a target came to so far.
#[derive(Default)]
struct Sum {
    executions: u64,
    edges: u64,
    inputs: u64,
    time: Duration,
}

/// One run of the driver.
struct Slice {
    executions: u64,
    edges: u64,
    inputs: u64,
    /// What it said when it failed, and the file.
    finding: Option<(String, PathBuf)>,
}

fn guided(place: &Place, targets: &[Target], hours: f64) -> Result<ExitCode> {
    let start = Instant::now();
    let end = (hours > 0.0).then(|| Duration::from_secs_f64(hours * 3600.0));
    let slice = match end {
        // Each gets its turn.
        Some(end) => SLICE.min(end / targets.len() as u32),
        None => SLICE,
    };
    println!(
        "{} on one processor, {}; inputs are in {}, stop it with Ctrl-C",
        names(targets),
        end.map_or("until it is stopped".to_owned(), |end| format!("for {:.2} hours", end.as_secs_f64() / 3600.0)),
        place.corpus.display()
    );
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    let mut found: BTreeSet<String> = BTreeSet::new();
    'all: loop {
        for target in targets {
            if end.is_some_and(|end| start.elapsed() >= end) {
                break 'all;
            }
            one_slice(place, target, slice, &mut sums, &mut found)?;
        }
    }
    println!("\ntarget\thours\texecutions\tedges\tinputs");
    for (name, sum) in &sums {
        let hours = sum.time.as_secs_f64() / 3600.0;
        println!("{name}\t{hours:.2}\t{}\t{}\t{}", sum.executions, sum.edges, sum.inputs);
    }
    println!("{} findings, in {}", found.len(), place.findings.display());
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn names(targets: &[Target]) -> String {
    targets.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Runs one target for so long, again after each finding.
fn one_slice(
    place: &Place,
    target: &Target,
    slice: Duration,
    sums: &mut BTreeMap<String, Sum>,
    found: &mut BTreeSet<String>,
) -> Result<()> {
    let begin = Instant::now();
    let (mut executions, mut again) = (0, 0);
    while let Some(left) = slice.checked_sub(begin.elapsed()).filter(|left| left.as_secs() > 0) {
        let ran = drive(place, target, left)?;
        executions += ran.executions;
        let sum = sums.entry(target.name.clone()).or_default();
        (sum.edges, sum.inputs) = (sum.edges.max(ran.edges), ran.inputs);
        sum.executions += ran.executions;
        let Some((what, file)) = ran.finding else { break };
        if found.insert(format!("{}: {what}", target.name)) {
            println!("FOUND {}: {what}", target.name);
            println!("      again with: ./x fuzz --target {} --replay {}", target.name, file.display());
        } else {
            again += 1;
            // One reproducer of each is enough.
            fs::remove_file(&file).ok();
        }
    }
    let took = begin.elapsed();
    let sum = sums.entry(target.name.clone()).or_default();
    sum.time += took;
    println!(
        "{}: {executions} executions in {:.0} s ({:.0} a second), {} edges, {} inputs{}",
        target.name,
        took.as_secs_f64(),
        executions as f64 / took.as_secs_f64(),
        sum.edges,
        sum.inputs,
        if again > 0 { format!("; {again} times what was found before") } else { String::new() }
    );
    Ok(())
}

fn drive(place: &Place, target: &Target, time: Duration) -> Result<Slice> {
    let corpus = place.corpus.join(&target.name);
    fs::create_dir_all(&corpus)?;
    let mut command = command(place, target);
    command.arg(format!("-max_total_time={}", time.as_secs().max(1)));
    command.arg(format!("-artifact_prefix={}/{}-", place.findings.display(), target.name));
    command.args(["-print_final_stats=1", "-reload=0"]);
    command.arg(&corpus).arg(place.kept.join(&target.name));
    let output = proc::output(&mut command)?;
    let text = proc::both(&output);
    let number = |what: &str| last_number(&text, what);
    let finding = match output.status.success() {
        true => None,
        false => Some(finding(&text, target)?),
    };
    Ok(Slice {
        executions: number("stat::number_of_executed_units:").unwrap_or(0),
        edges: number(" cov:").unwrap_or(0),
        inputs: number(" corp:").unwrap_or(0),
        finding,
    })
}

/// The driver with what all of its runs have.
fn command(place: &Place, target: &Target) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(&place.driver);
    let (at_once, at_all) = MEMORY;
    command.arg(format!("-max_len={}", target.longest)).arg(format!("-timeout={SLOWEST}"));
    command.arg(format!("-malloc_limit_mb={at_once}")).arg(format!("-rss_limit_mb={at_all}"));
    // What `sim` is told by a signal is its own.
    command.args(["-handle_segv=0", "-handle_ill=0", "-handle_bus=0"]);
    command.env("HSAVE_FUZZ_TARGET", &target.name).env("RUST_BACKTRACE", "0");
    command
}

/// The number behind the last place where `what` stands.
fn last_number(text: &str, what: &str) -> Option<u64> {
    let behind = &text[text.rfind(what)? + what.len()..];
    behind.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// What the driver said when it stopped, in a line, and the file that it wrote.
fn finding(text: &str, target: &Target) -> Result<(String, PathBuf)> {
    let file =
        text.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, file)| PathBuf::from(file));
    let Some(file) = file else {
        bail!("{}\nthe driver of {} stopped by itself", proc::tail(text), target.name);
    };
    let mut lines = text.lines().skip_while(|line| !line.contains("panicked at"));
    let place =
        lines.next().and_then(|line| line.split("panicked at ").nth(1)).map(|p| p.trim_end_matches(':').to_owned());
    let what = match (place, lines.next()) {
        (Some(place), Some(why)) => format!("{place}: {why}"),
        // Too slow, too large.
        _ => text.lines().find_map(|line| line.split_once("SUMMARY: ")).map_or("it died", |(_, s)| s).to_owned(),
    };
    Ok((what, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "#4 NEW    cov: 12 ft: 30 corp: 2/5b\n#9 pulse  cov: 120 ft: 300 corp: 17/5Kb\n\
        thread '<unnamed>' (1) panicked at fuzz/src/a.rs:1:2:\nit broke\nnote: run\n\
        artifact_prefix='x'; Test unit written to x-crash-12\nstat::number_of_executed_units: 4321\n";

    #[test]
    fn what_the_driver_says_is_understood() {
        assert_eq!(last_number(SAID, " cov:"), Some(120));
        assert_eq!(last_number(SAID, " corp:"), Some(17));
        assert_eq!(last_number(SAID, "stat::number_of_executed_units:"), Some(4321));
        let target = Target { name: "a".to_owned(), longest: 1 };
        let (what, file) = finding(SAID, &target).unwrap();
        assert_eq!((what.as_str(), file.to_str()), ("fuzz/src/a.rs:1:2: it broke", Some("x-crash-12")));
        assert!(finding("killed", &target).is_err());
    }
}
