//! The last table of `./x bench`: which functions the instructions are in, of those exits for which more is aimed at.

use crate::trace::Counts;
use std::collections::{BTreeMap, BTreeSet};

/// Functions that take fewer instructions a round in all kinds are added up.
const LEAST: f64 = 15.0;
const HEAD: &str = "\n## Where the instructions go\n\nOf the exits above that miss what is aimed at, on hsave, by function; `[kvm]` is ours.\n\n";

/// Does a function belong to it?
type Part = fn(&str) -> bool;

/// Sums by who can do something about them.
const PARTS: [(&str, Part); 4] = [
    ("**the guest, and the client in user space**", |f| f.starts_with('(')),
    ("**mitigations of the host kernel**", is_mitigation),
    ("**the rest of the host kernel**", |f| !is_ours(f) && !is_mitigation(f) && !f.starts_with('(')),
    ("**hsave**", |f| is_ours(f) && !is_mitigation(f)),
];

fn is_ours(function: &str) -> bool {
    function.ends_with("[kvm]")
}

fn is_mitigation(function: &str) -> bool {
    ["hsave_mitigate_", "srso_", "entry_untrain_ret", "retbleed_", "__x86_return_thunk"]
        .iter()
        .any(|prefix| function.starts_with(prefix))
}

/// A row per function, a column per kind. Empty if nothing was missed.
pub fn table(missed: &[&str], ours: &BTreeMap<String, Counts>) -> String {
    let kinds: Vec<(&str, &Counts)> = missed.iter().filter_map(|kind| Some((*kind, ours.get(*kind)?))).collect();
    if kinds.is_empty() {
        return String::new();
    }
    let row = |name: &str, of: &dyn Fn(&str) -> bool| {
        let sum = |c: &Counts| c.functions.iter().filter(|(f, _)| of(f)).map(|(_, n)| n).sum::<f64>();
        let cell = |(_, c): &(&str, &Counts)| match sum(c).round() {
            0.0 => " |".to_owned(),
            n => format!(" {n:.0} |"),
        };
        format!("| {name} |{}\n", kinds.iter().map(cell).collect::<String>())
    };
    let mut text = format!("{HEAD}| |{}\n", kinds.iter().map(|(kind, _)| format!(" {kind} |")).collect::<String>());
    text += &format!("|---|{}\n", "---:|".repeat(kinds.len()));
    for (name, part) in PARTS {
        text += &row(name, &part);
    }
    let most = |f: &str| kinds.iter().filter_map(|(_, c)| c.functions.get(f)).fold(0.0, |a: f64, n| a.max(*n));
    let mut functions: Vec<&str> = kinds
        .iter()
        .flat_map(|(_, c)| c.functions.keys())
        .map(String::as_str)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    functions.retain(|f| most(f) >= LEAST && !f.starts_with('('));
    functions.sort_by(|a, b| most(b).total_cmp(&most(a)));
    for function in functions {
        let name = match function.strip_suffix(" [kvm]") {
            Some(ours) => format!("`{ours}` [kvm]"),
            None => format!("`{function}`"),
        };
        text += &row(&name, &|f| f == function);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_functions() {
        let functions =
            [("(guest)", 3.0), ("srso_safe_ret", 60.0), ("vfs", 20.0), ("run [kvm]", 100.0), ("tiny [kvm]", 1.0)];
        let functions = functions.map(|(name, n)| (name.to_owned(), n)).into();
        let ours = BTreeMap::from([("pio".to_owned(), Counts { functions, ..Counts::default() })]);
        let text = table(&["pio", "never-traced"], &ours);
        for line in [
            "| **hsave** | 101 |",
            "| **mitigations of the host kernel** | 60 |",
            "| `vfs` | 20 |",
            "| `run` [kvm] | 100 |",
        ] {
            assert!(text.contains(line), "{line}:\n{text}");
        }
        assert!(!text.contains("tiny") && !text.contains("never-traced"));
        assert_eq!(table(&[], &ours), "");
    }
}
