//! Dependency arrows: a crate may name only the crates below it.

use super::Findings;
use crate::env::Env;
use anyhow::Result;
use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// The house: who may depend on whom. ARCHITECTURE.md draws it.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("state", &[]),
    ("arch", &["state"]),
    ("host", &["state", "arch"]),
    ("switch", &["state", "arch", "host"]),
    ("mmu", &["state", "arch", "host"]),
    ("emulator", &["state", "arch"]),
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

/// Compares the manifests with the table; a crate that is not in it is a finding.
pub fn check(env: &Env) -> Result<Findings> {
    let metadata = MetadataCommand::new().manifest_path(env.root.join("Cargo.toml")).no_deps().exec()?;
    let ours: Vec<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    Ok(metadata.packages.iter().flat_map(|package| of_package(package, &ours)).collect())
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
