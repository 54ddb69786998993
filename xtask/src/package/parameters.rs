//! The modules' parameters as their sources describe them, for the manual page, and that each is described.

use crate::env::Env;
use anyhow::{Context, Result, ensure};
use std::{collections::BTreeMap, fs, path::Path};
use walkdir::WalkDir;

/// Macros that declare a parameter, whose name is their first argument.
const DECLARE: [&str; 5] = ["module_param(", "module_param_cb(", "module_param_named(", "module_param_hw(", "ABSENT("];
const DESCRIBE: &str = "MODULE_PARM_DESC(";

/// One parameter.
#[derive(Default, PartialEq, Eq, Debug)]
struct Parameter {
    description: Option<String>,
    /// It can be changed while the module is loaded.
    writable: bool,
    /// It is there for the sake of files that name it.
    absent: bool,
}

/// The section of the manual page: a paragraph for each parameter of each module.
pub fn page(env: &Env) -> Result<String> {
    let mut page = String::new();
    for module in ["kvm", "kvm-amd"] {
        let parameters = of_module(&env.root.join("linux/shim").join(module))?;
        let mut absent = Vec::new();
        page += &format!("\n.SS {}.ko", escaped(module));
        for (name, parameter) in &parameters {
            let text =
                parameter.description.as_deref().with_context(|| format!("{module}.{name} has no description"))?;
            if parameter.absent {
                absent.push(name.as_str());
                continue;
            }
            let when = if parameter.writable { " Can be changed at any time." } else { "" };
            page += &format!("\n.TP\n.B {}\n{}.{when}", escaped(name), escaped(text));
        }
        if !absent.is_empty() {
            let names: Vec<String> = absent.into_iter().map(escaped).collect();
            page += &format!("\n.PP\nOf what is not available:\n.IR {} .", names.join(", "));
        }
    }
    Ok(page)
}

/// Fails if a parameter is not described, which modinfo would show without a word.
pub fn check(env: &Env) -> Result<Vec<String>> {
    let mut without = Vec::new();
    for module in ["kvm", "kvm-amd"] {
        let parameters = of_module(&env.root.join("linux/shim").join(module))?;
        ensure!(!parameters.is_empty(), "no parameter of {module} was found: is linux/shim/{module} still its place?");
        let bare = parameters.into_iter().filter(|(_, parameter)| parameter.description.is_none());
        without
            .extend(bare.map(|(name, _)| format!("linux/shim/{module}: the parameter {name} has no MODULE_PARM_DESC")));
    }
    Ok(without)
}

fn of_module(directory: &Path) -> Result<BTreeMap<String, Parameter>> {
    let mut all = BTreeMap::new();
    for entry in WalkDir::new(directory).sort_by_file_name() {
        let entry = entry?;
        if entry.path().extension().is_some_and(|ext| ext == "c") {
            read(&fs::read_to_string(entry.path())?, &mut all);
        }
    }
    Ok(all)
}

fn read(text: &str, all: &mut BTreeMap<String, Parameter>) {
    // A statement may go on over lines.
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for mark in DECLARE {
        for rest in uses(&flat, mark) {
            let arguments: Vec<&str> = rest.split(')').next().unwrap_or_default().split(',').map(str::trim).collect();
            let Some(name) = arguments.first() else { continue };
            let parameter = all.entry((*name).to_owned()).or_default();
            parameter.writable |= arguments.last().is_some_and(|mode| mode.starts_with("06"));
            if mark == "ABSENT(" {
                parameter.absent = true;
                parameter.description = quoted(rest);
            }
        }
    }
    for rest in uses(&flat, DESCRIBE) {
        let name = rest.split(',').next().unwrap_or_default().trim().to_owned();
        let parameter = all.entry(name).or_default();
        parameter.description = quoted(rest);
        parameter.absent |= parameter.description.as_ref().is_some_and(|text| text.contains("; not available"));
    }
}

/// What follows each use of a macro.
fn uses<'t>(text: &'t str, mark: &'t str) -> impl Iterator<Item = &'t str> {
    text.match_indices(mark).filter_map(move |(at, _)| {
        let inside = text.get(..at)?.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if inside { None } else { text.get(at + mark.len()..) }
    })
}

fn quoted(text: &str) -> Option<String> {
    Some(text.split('"').nth(1)?.to_owned())
}

/// As troff reads it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_with_and_without_description() {
        let text = "static bool a;\nmodule_param(a, bool, 0444);\nMODULE_PARM_DESC(a, \"Says a; 0: not\");\n\
                    module_param(b, uint,\n\t0644);\nABSENT(c, bool, \"Is c\");\n\
                    module_param_cb(d, &ops, &d, 0444);\n__MODULE_PARM_TYPE(d, \"bool\");\n\
                    MODULE_PARM_DESC(d, \"D; not available, stays off\");";
        let mut all = BTreeMap::new();
        read(text, &mut all);
        let names: Vec<&str> = all.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        assert_eq!(all["a"].description.as_deref(), Some("Says a; 0: not"));
        assert!(all["b"].description.is_none() && all["b"].writable && !all["a"].writable);
        assert!(all["c"].absent && all["d"].absent && all["c"].description.as_deref() == Some("Is c"));
    }
}
