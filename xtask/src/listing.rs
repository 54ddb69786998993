//! `./x test --list`: the names of what a run would do, without doing any of it. That a run does nothing else is looked at at its end.

use crate::{
    bochs, chroots, kernels, oldest, operator::Installed, panicking, selection::Selection, selftests,
    strict::Processor, test::jobs,
};
use anyhow::Result;
use std::collections::BTreeSet;

/// Prints them; what is only there with `--all` is counted.
pub fn print(selection: &Selection) -> Result<()> {
    let listed = names(selection)?;
    for name in &listed {
        println!("{name}");
    }
    if !selection.all && selection.only.is_none() {
        let all = names(&Selection { all: true, ..selection.clone() })?;
        eprintln!("   {} more with --all", all.len() - listed.len());
    }
    Ok(())
}

/// All names, in the order in which the tests run.
pub fn names(selection: &Selection) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: String| {
        if !names.contains(&name) {
            names.push(name);
        }
    };
    let plain = ["tidy", "clippy", "cargo-test", "miri", "world-switch-i386"];
    let wanted = |name: &&str| selection.wants(name) && (*name != "miri" || selection.all || selection.names("miri"));
    plain.iter().filter(|name| wanted(name)).for_each(|name| add((*name).to_owned()));
    oldest::suites(selection).for_each(|(suite, _)| add(format!("oldest-rust {}", suite.0)));
    if selection.processor == Processor::Strict && selection.wants("strict-checks") {
        add("strict-checks".to_owned());
    }
    if selection.needs_modules() {
        add("rust-object".to_owned());
        if selection.wants("panics") {
            add("panics".to_owned());
        }
        for kernel in selection.kernels() {
            add(format!("module {kernel}"));
            if selection.wants("verify") && kernel.flavour() != kernels::Flavour::Debug {
                add(format!("verify {kernel}"));
            }
        }
        if selection.wants("imports") {
            add("imports".to_owned());
        }
    }
    let jobs = jobs(selection)?;
    if !jobs.is_empty() {
        ["scenario-table", "test-programs"].iter().for_each(|name| add((*name).to_owned()));
    }
    jobs.iter().for_each(|job| add(job.name()));
    if selection.kernels().contains(&selftests::KERNEL) {
        let groups = selftests::groups(|name| selection.wants(name), |name| selection.all || selection.names(name));
        if !groups.is_empty() {
            add("selftests-build".to_owned());
        }
        for test in groups.iter().flatten() {
            add(format!("{} {}", test.label(), selftests::KERNEL));
        }
    }
    if selection.kernels().contains(&panicking::KERNEL)
        && (selection.only.as_deref() == Some("panicking") || selection.all && selection.wants("panicking"))
    {
        add("panicking".to_owned());
    }
    if bochs::is_wanted(selection) {
        add("bochs".to_owned());
    }
    for installed in Installed::ALL.into_iter().filter(|installed| installed.is_wanted(selection)) {
        add(installed.name());
    }
    for suite in chroots::SUITES {
        let name = format!("packages-{}", suite.0);
        if selection.wants_packages(&name) {
            add(name);
        }
    }
    for suite in chroots::SUITES {
        let commands = chroots::COMMANDS.map(|command| format!("chroot-{} {command}", suite.0));
        let wanted: Vec<&String> = commands.iter().filter(|name| selection.wants(name)).collect();
        if selection.wants_chroots() && !wanted.is_empty() {
            add(format!("chroot-{}", suite.0));
            wanted.into_iter().for_each(|name| add(name.clone()));
        }
    }
    Ok(names)
}

/// Tests that were run and are not in the list.
pub fn missing<'n>(selection: &Selection, run: impl Iterator<Item = &'n str>) -> Result<Vec<&'n str>> {
    let known: BTreeSet<String> = names(selection)?.into_iter().collect();
    Ok(run.filter(|name| !known.contains(*name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(all: bool, only: Option<&str>) -> Selection {
        let only = only.map(str::to_owned);
        Selection { all, only, kernel: None, processor: Processor::Strict, slow: false }
    }

    #[test]
    fn what_is_asked_for_is_listed() {
        let fast = names(&selection(false, None)).unwrap();
        let all = names(&selection(true, None)).unwrap();
        assert!(fast.iter().all(|name| all.contains(name)) && fast.len() < all.len());
        for name in ["tidy", "verify 6.12", "exits 6.1", "hsavectl 6.12", "scenario-table"] {
            assert!(fast.iter().any(|known| known == name), "{name}");
        }
        for name in
            ["miri", "packages-trixie", "chroot-bookworm ./x test", "panicking", "secure-boot 6.12", "operator 6.12"]
        {
            assert!(all.iter().any(|known| known == name) && !fast.iter().any(|known| known == name), "{name}");
        }
        assert_eq!(names(&selection(false, Some("tidy"))).unwrap(), ["tidy"]);
        assert_eq!(names(&selection(false, Some("packages-trixie"))).unwrap(), ["packages-trixie"]);
        assert_eq!(missing(&selection(false, None), ["tidy", "new"].into_iter()).unwrap(), ["new"]);
        // Docs/decisions/0021: a guest boots on each generic kernel, also where it is slow on the cloud flavour.
        for kernel in ["6.1-generic", "6.12-generic", "7.3-generic"] {
            let runs = |name: &str| all.contains(&format!("{name} {kernel}"));
            assert!(runs("boot-microvm") && runs("exits") && !runs("memory"), "{kernel}");
        }
    }

    /// Where docs/clients.md says "`NAME` (fast on KERNELS, ...)" or "`NAME` (--all, ...)".
    #[test]
    fn clients_page_says_where_a_scenario_is_fast() {
        let fast = names(&selection(false, None)).unwrap();
        let page = include_str!("../../docs/clients.md");
        let mut seen = 0;
        for (before, after) in page.match_indices("` (").map(|(at, mark)| (&page[..at], &page[at + mark.len()..])) {
            let name = before.rsplit('`').next().unwrap();
            let remark = after.split([')', ';']).next().unwrap();
            let said: Vec<&str> = match remark.strip_prefix("fast") {
                Some(on) => on.split([' ', ',']).filter(|word| word.contains('.')).collect(),
                None if remark.starts_with("--all") => Vec::new(),
                None => continue,
            };
            let is_fast = |kernel: &&kernels::Kernel| fast.contains(&format!("{name} {kernel}"));
            let right: Vec<&str> = kernels::ALL.iter().filter(is_fast).map(|kernel| kernel.name()).collect();
            assert_eq!(said, right, "{name}");
            seen += 1;
        }
        assert!(seen > 8, "{seen}");
    }
}
