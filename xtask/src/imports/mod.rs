//! What the stock pair of modules takes of the kernel and ours does not: each symbol needs a reason in [`table`].
//!
//! A feature of the host that KVM has to support (machine checks, perf, suspend, mitigations that rely on it) shows as a
//! symbol that stock imports. So a kernel that adds one fails the test until somebody has decided, and a decision that
//! no longer applies fails it, too.

mod table;

use crate::{
    env::Env,
    image::Tools,
    kernels::{self, Flavour, Kernel},
    module::MODULES,
    modules,
};
use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSymbol};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

type Symbols = BTreeSet<String>;

/// Compares the modules in `built`, one directory for each kernel, with the stock ones. Each flavour has options of its own that
/// stock asks for: 6.1's cloud flavour has no machine checks, for example, and the generic one has. What is stale can only be
/// said when all kernels are there.
pub fn check(env: &Env, built: &BTreeMap<Kernel, PathBuf>) -> Result<()> {
    let tools = Tools::fetch(env)?;
    let (mut cloud, mut others) = (BTreeMap::new(), BTreeMap::new());
    let known: BTreeSet<&str> = symbols(table::WITHOUT).collect();
    // The kernel that checks is not among them: what it adds is its own business.
    for (&kernel, dir) in built.iter().filter(|(kernel, _)| kernel.flavour() != Flavour::Debug) {
        let unpacked = kernels::fetch(env, kernel)?;
        let stock = MODULES.map(|name| modules::stock(&tools, &unpacked, name.trim_end_matches(".ko")));
        let ours = MODULES.map(|name| read(&dir.join(name)));
        let [(first, second), (our_first, our_second)] = [stock, ours].map(|[first, second]| (first, second));
        let mut without = missing(&imports(&[first?, second?])?, &imports(&[our_first?, our_second?])?);
        if kernels::ALL.contains(&kernel) {
            cloud.insert(kernel.name(), without);
        } else {
            without.retain(|symbol| !known.contains(symbol.as_str()));
            others.insert(kernel.name(), without);
        }
    }
    let checked = |kernel: &&Kernel| kernel.flavour() != Flavour::Debug;
    let mut complaints = judge(table::WITHOUT, &cloud, kernels::ALL.iter().all(|kernel| built.contains_key(kernel)));
    let all_others = kernels::OTHERS.iter().filter(checked).all(|kernel| built.contains_key(kernel));
    complaints.extend(judge(table::WITHOUT_ELSEWHERE, &others, all_others));
    ensure!(complaints.is_empty(), "{}\nxtask/src/imports/table.rs is where this is decided", complaints.join("\n"));
    Ok(())
}

fn symbols<'a>(table: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a str> {
    table.iter().flat_map(|(_, symbols)| symbols.split_whitespace())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What a pair of modules takes of the kernel: undefined in one of them and not defined in the other.
fn imports(pair: &[Vec<u8>]) -> Result<Symbols> {
    let (mut undefined, mut defined) = (Symbols::new(), Symbols::new());
    for module in pair {
        for symbol in object::File::parse(module.as_slice())?.symbols() {
            let name = symbol.name()?.to_owned();
            if symbol.is_undefined() {
                undefined.insert(name)
            } else {
                defined.insert(name)
            };
        }
    }
    undefined.remove("");
    Ok(missing(&undefined, &defined))
}

fn missing(all: &Symbols, of: &Symbols) -> Symbols {
    all.difference(of).cloned().collect()
}

/// What is undecided, decided twice or, if `all` kernels are in `without`, decided in vain.
fn judge(table: &[(&str, &str)], without: &BTreeMap<&str, Symbols>, all: bool) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut decided = BTreeSet::new();
    for symbol in symbols(table) {
        if !decided.insert(symbol) {
            complaints.push(format!("{symbol} is decided twice"));
        }
        if all && !without.values().any(|symbols| symbols.contains(symbol)) {
            complaints.push(format!(
                "{symbol} is decided, but stock does without it on every kernel, or ours has it wherever stock has"
            ));
        }
    }
    let undecided: BTreeSet<&String> =
        without.values().flatten().filter(|symbol| !decided.contains(symbol.as_str())).collect();
    for symbol in undecided {
        let kernels: Vec<&str> =
            without.iter().filter(|(_, symbols)| symbols.contains(symbol)).map(|(kernel, _)| *kernel).collect();
        complaints
            .push(format!("stock imports {symbol} on {}; ours does not, and no reason is given", kernels.join(", ")));
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kernels: &[(&'static str, &str)]) -> BTreeMap<&'static str, Symbols> {
        let symbols = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        kernels.iter().map(|(kernel, text)| (*kernel, symbols(text))).collect()
    }

    #[test]
    fn every_symbol_is_decided_once_and_none_in_vain() {
        let table = [("old", "a b"), ("new", "c")];
        assert!(judge(&table, &of(&[("1", "a b"), ("2", "a c")]), true).is_empty());
        let undecided = judge(&table, &of(&[("1", "a b"), ("2", "a c d")]), true);
        assert!(undecided.len() == 1 && undecided[0].contains("imports d on 2"), "{undecided:?}");
        let stale = judge(&table, &of(&[("1", "a b"), ("2", "a")]), true);
        assert!(stale.len() == 1 && stale[0].starts_with("c is decided"), "{stale:?}");
        // With one kernel only, nothing is stale.
        assert!(judge(&table, &of(&[("2", "a")]), false).is_empty());
        assert_eq!(judge(&[("x", "a"), ("y", "a")], &of(&[("1", "a")]), true), ["a is decided twice"]);
    }

    #[test]
    fn every_reason_says_something() {
        for (reason, symbols) in table::WITHOUT.iter().chain(table::WITHOUT_ELSEWHERE) {
            assert!(reason.len() > 10 && !symbols.trim().is_empty(), "{reason}");
        }
    }
}
