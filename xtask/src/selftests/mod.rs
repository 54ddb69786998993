//! The kernel's own KVM selftests in the emulated AMD host, test by test against what they do on stock
//! kvm-amd.
//!
//! [`sources`] builds them from Debian's kernel source, [`table`] says what each is expected to do. The
//! quick ones share one boot and are part of every `./x test`; the others, a boot each, of `--all`.

mod sources;
mod table;

use crate::{
    env::Env,
    host::{Boot, Flavour, Machine},
    kernels::Kernel,
    proc,
    verdict::Verdict,
};
use anyhow::{Result, anyhow, bail, ensure};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use table::{Expect, Speed, TESTS, Test};

/// The kernel whose selftests these are, and which the host runs.
pub const KERNEL: Kernel = Kernel::V6_12;

/// How long the host takes to start and end.
const BOOT: Duration = Duration::from_secs(60);

/// Runs what /payload/selftests lists and prints a line for each: the name, its exit status, and the end
/// of what it said, in one line. Status 4 is "skipped", 143 "stopped after its time".
const SCRIPT: &str = "cd /tmp || exit 1; while read -r name seconds; do \
     timeout -s TERM -k 10 $((seconds * SLOW)) \"/payload/$name\" >/tmp/said 2>&1 </dev/null; status=$?; \
     echo \"selftest $name $status $(tail -n 8 /tmp/said | tr '\\n' '|')\"; \
     done </payload/selftests";

/// Tests that share a boot.
pub type Group = Vec<&'static Test>;

/// Names, and what came of each: for a test that did not pass, as expected, the reason.
pub type Results = Vec<(String, Result<Option<String>>)>;

/// The boots to do: those of the quick tests whose name `wants` takes share one, each of the slow ones that
/// `wants_slow` takes as well has its own.
pub fn groups(wants: impl Fn(&str) -> bool, wants_slow: impl Fn(&str) -> bool) -> Vec<Group> {
    let (quick, slow): (Group, Group) = TESTS
        .iter()
        .filter(|test| test.speed != Speed::Never && wants(&test.label()))
        .partition(|test| test.speed == Speed::Quick);
    let mut groups = if quick.is_empty() { Vec::new() } else { vec![quick] };
    groups.extend(slow.into_iter().filter(|test| wants_slow(&test.label())).map(|test| vec![test]));
    groups
}

/// The built selftests; each of them is in the table.
pub fn build(env: &Env) -> Result<PathBuf> {
    let dir = sources::build(env)?;
    for entry in fs::read_dir(&dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(
            TESTS.iter().any(|test| test.name == name),
            "the selftest {name} is not in xtask/src/selftests/table.rs"
        );
    }
    Ok(dir)
}

/// One boot. For each test of the group its name and what came of it; the second number counts boots
/// that were repeated.
pub fn run(
    env: &Env,
    machine: &Machine,
    programs: &Path,
    modules: &Path,
    group: &[&'static Test],
) -> Result<(Results, u32)> {
    let mut boot = Boot::new(KERNEL, Flavour::Ours, SCRIPT);
    boot.ours = Some(modules.to_owned());
    boot.timeout = BOOT + group.iter().map(|test| test.seconds()).sum::<Duration>();
    let list: String = group.iter().map(|test| format!("{} {}\n", test.name, test.seconds().as_secs())).collect();
    let path = env.target().join(format!("selftests-{}", group.first().map_or("none", |test| test.name)));
    proc::write_if_changed(&path, list.as_bytes())?;
    boot.files.push(("payload/selftests".to_owned(), path));
    boot.files.extend(group.iter().map(|test| (format!("payload/{}", test.name), programs.join(test.name))));
    let outcome = machine.boot(env, &boot)?;
    let lines = results(&outcome.output);
    // What ended the host is the business of the test that did not end.
    let ended = match &outcome.verdict {
        Verdict::Exit(0) => "it did not run".to_owned(),
        _ => format!("{}\n--- host kernel log\n{}\n---", outcome.explain(), proc::tail(&outcome.log)),
    };
    let mut results = Results::new();
    for test in group {
        let result = match lines.get(test.name) {
            Some((status, said)) => test.judge(*status).map_err(|why| anyhow!("{why}\n{said}")),
            None if results.len() == lines.len() => Err(anyhow!("{ended}")),
            None => Err(anyhow!("the host ended before it")),
        };
        results.push((format!("{} {KERNEL}", test.label()), result));
    }
    if lines.len() == group.len() && !outcome.passed() {
        bail!("after the selftests: {ended}");
    }
    Ok((results, outcome.retries))
}

/// Exit status and last words by name.
fn results(output: &str) -> BTreeMap<&str, (i32, String)> {
    output
        .lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("selftest ")?.splitn(3, ' ');
            let (name, status) = (words.next()?, words.next()?.parse().ok()?);
            Some((name, (status, words.next().unwrap_or("").replace('|', "\n  "))))
        })
        .collect()
}

impl Test {
    /// What it is called among all tests.
    pub fn label(&self) -> String {
        format!("selftest-{}", self.name)
    }

    /// How long it may take.
    fn seconds(&self) -> Duration {
        match self.speed {
            Speed::Quick => Duration::from_secs(60),
            Speed::Slow(seconds) => Duration::from_secs(seconds),
            Speed::Never => Duration::ZERO,
        }
    }

    /// Is this exit status what the table says? Ok: why the test did not pass, if it did not. Err: why not.
    fn judge(&self, status: i32) -> Result<Option<String>, String> {
        let took_too_long = matches!(status, 124 | 137 | 143);
        match (self.expect, status) {
            (Expect::Pass | Expect::PassWith(_), 0) => Ok(None),
            (Expect::Skip(needs) | Expect::PassWith(needs), 4) => {
                Ok(Some(format!("skipped as on stock, needs {needs}")))
            }
            (Expect::Fail(why), 1..) if !took_too_long => Ok(Some(format!("fails as on stock: {why}"))),
            (Expect::Lacks(what), 1..) if !took_too_long => Ok(Some(format!("needs what is not implemented: {what}"))),
            (Expect::Pass, 4) => Err("skipped; on stock kvm-amd it passes".to_owned()),
            (Expect::Pass, _) if took_too_long => Err("took too long".to_owned()),
            (Expect::Pass, _) => Err(format!("failed with status {status}; on stock kvm-amd it passes")),
            (other, _) => Err(format!("status {status}, but xtask/src/selftests/table.rs says: {other:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_and_judged() {
        let text = "noise\nselftest a_test 0 fine|\nselftest b_test 254 ==== Test|broken|\n";
        let all = results(text);
        assert_eq!(all.get("a_test").map(|r| r.0), Some(0));
        assert!(all.get("b_test").is_some_and(|r| r.0 == 254 && r.1.contains("\n  broken")));
        let test = |expect| Test { name: "a_test", expect, speed: Speed::Quick };
        assert_eq!(test(Expect::Pass).judge(0), Ok(None));
        for bad in [1, 4, 143, 254] {
            assert!(test(Expect::Pass).judge(bad).is_err());
        }
        let skips = test(Expect::Skip("a PMU"));
        assert!(skips.judge(4).is_ok_and(|why| why.is_some()) && skips.judge(0).is_err());
        let either = test(Expect::PassWith("a feature"));
        assert!(
            either.judge(0) == Ok(None) && either.judge(4).is_ok_and(|why| why.is_some()) && either.judge(254).is_err()
        );
        let lacks = test(Expect::Lacks("nested"));
        assert!(lacks.judge(4).is_ok() && lacks.judge(254).is_ok());
        assert!(lacks.judge(0).is_err(), "what works now has to leave the list");
        assert!(lacks.judge(143).is_err());
    }

    #[test]
    fn each_test_is_in_the_table_once_and_slow_ones_run_alone() {
        for (n, test) in TESTS.iter().enumerate() {
            assert!(TESTS.iter().skip(n + 1).all(|other| other.name != test.name), "{}", test.name);
        }
        let (some, all) = (groups(|_| true, |_| false), groups(|_| true, |_| true));
        assert_eq!(some.len(), 1);
        assert!(all.len() > 1 && all.iter().skip(1).all(|group| group.len() == 1));
        assert!(groups(|_| false, |_| true).is_empty());
    }
}
