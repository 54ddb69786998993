//! What came of each test of a run: said while it goes on, summed up at its end, and as JUnit XML for who reads that.

use crate::{env::Env, job, kernels::Kernel, proc, verdict::Outcome};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// How many of the slowest are named.
const SLOWEST: usize = 10;

/// One test.
struct Case {
    name: String,
    took: Duration,
    came: Came,
}

enum Came {
    Passed,
    /// At the second attempt.
    PassedThen,
    /// Why.
    Failed(String),
    /// Why not.
    NotRun(String),
}

/// All tests of a run.
#[derive(Default)]
pub struct Tally {
    cases: Vec<Case>,
    /// How often the emulator failed by itself.
    pub retries: u32,
    /// Lines about time, of ours and of stock's.
    pub about_time: [usize; 2],
}

impl Tally {
    /// Does a test here and now.
    pub fn check<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        let start = Instant::now();
        let result = work();
        self.done(name, start.elapsed(), result)
    }

    /// A test was done elsewhere, and took so long.
    pub fn done<T>(&mut self, name: &str, took: Duration, result: Result<T>) -> Option<T> {
        let (came, value) = match result {
            Ok(value) => {
                println!("PASS {name}");
                (Came::Passed, Some(value))
            }
            Err(error) => {
                println!("FAIL {name}\n{error:#}");
                (Came::Failed(format!("{error:#}")), None)
            }
        };
        self.cases.push(Case { name: name.to_owned(), took, came });
        value
    }

    /// What failed before was tried again: this is its result.
    pub fn again(&mut self, name: &str, took: Duration, result: Result<()>) {
        self.cases.retain(|case| case.name != name);
        if self.done(name, took, result).is_some() {
            if let Some(case) = self.cases.last_mut() {
                case.came = Came::PassedThen;
            }
        }
    }

    /// A test was not run, and why: it counts as neither passed nor failed.
    pub fn skipped(&mut self, name: &str, why: &str) {
        println!("     {name}: {why}");
        self.cases.push(Case { name: name.to_owned(), took: Duration::ZERO, came: Came::NotRun(why.to_owned()) });
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.cases.iter().map(|case| case.name.as_str())
    }

    pub fn passed(&self) -> usize {
        self.cases.iter().filter(|case| matches!(case.came, Came::Passed | Came::PassedThen)).count()
    }

    pub fn failed(&self) -> usize {
        self.cases.iter().filter(|case| matches!(case.came, Came::Failed(_))).count()
    }

    /// The slowest, what did not go well with how to repeat it, and the counts alone on the last line.
    pub fn sum_up(&self, env: &Env) {
        let mut slowest: Vec<&Case> = self.cases.iter().filter(|case| case.took.as_secs() > 0).collect();
        slowest.sort_by_key(|case| std::cmp::Reverse(case.took));
        if slowest.len() > 1 {
            println!("the slowest:");
        }
        for case in slowest.iter().take(SLOWEST).filter(|_| slowest.len() > 1) {
            println!("  {:5} s  {}", case.took.as_secs(), case.name);
        }
        let [ours, stock] = self.about_time;
        if ours + stock > 0 {
            println!(
                "{ours} lines on time (lockups, clocks, slow interrupts) with ours, {stock} with stock; they are no difference"
            );
        }
        for case in &self.cases {
            let log = job::failure(env, &case.name);
            let place = if log.exists() { log.display().to_string() } else { "what it said is above".to_owned() };
            match &case.came {
                Came::PassedThen => println!("failed once, passed once: {}   (the first time: {place})", case.name),
                Came::Failed(_) => {
                    println!("failed: {}   (again, alone: {})\n        log: {place}", case.name, repeat(&case.name));
                }
                Came::Passed | Came::NotRun(_) => {}
            }
        }
        println!("{} passed, {} failed", self.passed(), self.failed());
    }

    /// Writes all of it as JUnit XML.
    pub fn write_junit(&self, path: &Path, took: Duration) -> Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(path, self.junit(took)).with_context(|| format!("cannot write {}", path.display()))
    }

    fn junit(&self, took: Duration) -> String {
        let skipped = self.cases.iter().filter(|case| matches!(case.came, Came::NotRun(_))).count();
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <testsuite name=\"hsave\" tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"{skipped}\" time=\"{:.1}\">\n",
            self.cases.len(),
            self.failed(),
            took.as_secs_f32()
        );
        for Case { name, took, came } in &self.cases {
            let (test, kernel) = name.split_once(' ').unwrap_or((name, "all"));
            let (test, kernel, took) = (escaped(test), escaped(kernel), took.as_secs_f32());
            xml += &format!("  <testcase classname=\"{kernel}\" name=\"{test}\" time=\"{took:.1}\"");
            xml += &match came {
                Came::Passed => "/>\n".to_owned(),
                Came::PassedThen => {
                    ">\n    <system-out>failed once, passed once</system-out>\n  </testcase>\n".to_owned()
                }
                Came::NotRun(why) => format!(">\n    <skipped message=\"{}\"/>\n  </testcase>\n", escaped(why)),
                Came::Failed(why) => {
                    let first = escaped(why.lines().next().unwrap_or_default());
                    let (repeat, why) = (escaped(&repeat(name)), escaped(why));
                    format!(
                        ">\n    <failure message=\"{first}\">again, alone: {repeat}\n{why}</failure>\n  </testcase>\n"
                    )
                }
            };
        }
        xml + "</testsuite>\n"
    }
}

/// The command that runs a test again, alone.
fn repeat(name: &str) -> String {
    let (test, rest) = name.split_once(' ').unwrap_or((name, ""));
    if Kernel::from_str(rest, false).is_ok() {
        return format!("./x test --only {test} --kernel {rest}");
    }
    // A name of several words.
    if rest.contains(' ') || rest.contains('/') {
        return format!("./x test --only '{name}'");
    }
    format!("./x test --only {test}")
}

/// As XML has it. What it cannot have at all becomes a question mark.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\n' | '\t' => out.push(c),
            c if c < ' ' || c == '\u{fffe}' || c == '\u{ffff}' => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

/// Keeps what a test said when it failed, where the last lines of a run say it is.
pub fn keep(env: &Env, name: &str, outcome: &Outcome) -> Result<()> {
    let text = format!("{}\n--- host\n{}", outcome.output, outcome.log);
    proc::write_if_changed(&job::failure(env, name), text.as_bytes())
}

/// What an emulated host has come to: kept for `name`, and an error, unless it passed.
pub fn judge(env: &Env, name: &str, outcome: &Outcome) -> Result<()> {
    if outcome.passed() {
        return Ok(());
    }
    keep(env, name, outcome)?;
    let (output, log) = (proc::tail(&outcome.output), proc::tail(&outcome.log));
    bail!("{}\n--- output\n{output}\n--- host kernel log\n{log}\n---", outcome.explain())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    fn tally() -> Tally {
        let mut tally = Tally::default();
        tally.check("tidy", || Ok(()));
        tally.done::<()>("exits 6.12", Duration::from_secs(3), Err(anyhow!("a < b & \u{1b}[1m\"c\"\nmore")));
        tally.skipped("selftest-x 6.12", "not here");
        tally
    }

    #[test]
    fn what_is_counted() {
        let mut tally = tally();
        assert_eq!((tally.passed(), tally.failed()), (1, 1));
        tally.again("exits 6.12", Duration::from_secs(2), Ok(()));
        assert_eq!((tally.passed(), tally.failed(), tally.cases.len()), (2, 0, 3));
        tally.again("tidy", Duration::ZERO, Err(anyhow!("no")));
        assert_eq!((tally.passed(), tally.failed(), tally.cases.len()), (1, 1, 3));
    }

    #[test]
    fn junit_is_well_formed_whatever_was_said() {
        let xml = tally().junit(Duration::from_secs(4));
        assert!(xml.contains("tests=\"3\" failures=\"1\" errors=\"0\" skipped=\"1\" time=\"4.0\""), "{xml}");
        assert!(xml.contains("<testcase classname=\"all\" name=\"tidy\" time=\"0.0\"/>"), "{xml}");
        assert!(xml.contains("<testcase classname=\"6.12\" name=\"exits\" time=\"3.0\">"), "{xml}");
        assert!(
            xml.contains("<failure message=\"a &lt; b &amp; ?[1m&quot;c&quot;\">again, alone: ./x test --only exits")
        );
        assert!(xml.contains("<skipped message=\"not here\"/>"));
    }

    #[test]
    fn commands_that_repeat() {
        assert_eq!(repeat("exits 6.12-rt"), "./x test --only exits --kernel 6.12-rt");
        assert_eq!(repeat("tidy"), "./x test --only tidy");
        assert_eq!(repeat("oldest-rust trixie"), "./x test --only oldest-rust");
        assert_eq!(repeat("chroot-trixie ./x run"), "./x test --only 'chroot-trixie ./x run'");
    }
}
