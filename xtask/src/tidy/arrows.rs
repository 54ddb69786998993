//! Dependency arrows: a crate may name only the crates below it.

use super::Findings;
use crate::env::Env;
use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use std::fs;

/// Who may depend on whom. ARCHITECTURE.md shows the same table.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("state", &[]),
    ("arch", &["state"]),
    ("host", &["state", "arch"]),
    ("switch", &["state", "arch", "host"]),
    ("mmu", &["state", "arch", "host"]),
    ("emulator", &["state"]),
    ("irqchip", &["state", "arch"]),
    ("vm", &["state", "arch", "host", "mmu", "emulator", "irqchip"]),
    ("abi", &["arch", "host", "vm"]),
    ("linux", &["arch", "host", "switch", "abi", "vm"]),
    ("sim", &["state", "arch", "host", "switch"]),
    ("tests", &["state", "abi", "sim", "vm"]),
    ("fuzz", &["state", "arch", "mmu", "emulator", "irqchip", "abi", "sim", "tests"]),
    ("verify", &["arch", "switch"]),
    ("hsavectl", &[]),
    ("xtask", &["verify"]),
];

/// What the tests' processors have of `switch` and the module has not.
const MODEL: &str = "model";

/// Where the table is shown.
const MAP: &str = "ARCHITECTURE.md";

/// Compares the manifests and the map with the table; a crate that is not in it is a finding.
pub fn check(env: &Env) -> Result<Findings> {
    let metadata = MetadataCommand::new().manifest_path(env.root.join("Cargo.toml")).no_deps().exec()?;
    let ours: Vec<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let mut findings: Findings = metadata.packages.iter().flat_map(|package| of_package(package, &ours)).collect();
    let map = fs::read_to_string(env.root.join(MAP)).with_context(|| format!("reading {MAP}"))?;
    findings.extend(shown(&map));
    Ok(findings)
}

/// What the map shows otherwise. A remark may stand in parentheses behind the names.
fn shown(map: &str) -> Findings {
    let row = |name: &str| {
        let row = map.lines().find_map(|line| line.strip_prefix(&format!("| `{name}` | ")))?;
        let (_, cell) = row.strip_suffix(" |")?.rsplit_once(" | ")?;
        let (names, _) = cell.split_once(" (").unwrap_or((cell, ""));
        Some(names.split(", ").filter(|name| *name != "-").collect::<Vec<_>>())
    };
    let wrong = MAY_DEPEND_ON.iter().filter(|(name, allowed)| row(name).as_deref() != Some(*allowed));
    wrong.map(|(name, allowed)| format!("{MAP}: the row of `{name}` should end in {}", allowed.join(", "))).collect()
}

fn of_package(package: &Package, ours: &[&str]) -> Findings {
    let name = package.name.as_str();
    let Some((_, allowed)) = MAY_DEPEND_ON.iter().find(|(known, _)| *known == name) else {
        return vec![format!("{name}/Cargo.toml: this crate is not in the table of xtask/src/tidy/arrows.rs")];
    };
    let mut findings = Findings::new();
    for dependency in &package.dependencies {
        let to = dependency.name.as_str();
        if to == "switch" && dependency.features.iter().any(|feature| feature == MODEL) != (name == "sim") {
            findings.push(format!("{name}/Cargo.toml: the feature {MODEL} of switch is for sim, and for sim only"));
        }
        // Unit tests may run on `sim`; that arrow is not in what is shipped.
        let test_on_sim = dependency.kind == DependencyKind::Development && to == "sim";
        if ours.contains(&to) && !allowed.contains(&to) && !test_on_sim {
            findings.push(format!("{name}/Cargo.toml: the arrow {name} -> {to} is not declared"));
        }
        if dependency.path.as_ref().is_some_and(|path| !ours.iter().any(|crate_name| path.ends_with(crate_name))) {
            findings.push(format!("{name}/Cargo.toml: {to} is a path outside the workspace"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_shows_the_table() {
        let row = |(name, allowed): &(&str, &[&str])| {
            let names = if allowed.is_empty() { "-".to_owned() } else { allowed.join(", ") };
            format!("| `{name}` | what it does, | and why | {names} (remark) |")
        };
        let map: Vec<String> = MAY_DEPEND_ON.iter().map(row).collect();
        assert!(shown(&map.join("\n")).is_empty());
        let found = shown(&map.join("\n").replace("state, arch, host (", "arch, host ("));
        assert_eq!(found.len(), 2, "switch and mmu: {found:?}");
    }

    #[test]
    fn the_table_has_no_cycle() {
        // Rows come after what they may depend on, so arrows point up the table only.
        for (row, (name, allowed)) in MAY_DEPEND_ON.iter().enumerate() {
            for to in *allowed {
                let at = MAY_DEPEND_ON.iter().position(|(known, _)| known == to).unwrap();
                assert!(at < row, "{name} -> {to}");
            }
        }
    }
}
