//! A proof on the binary: what the world switch has to keep to, checked on every path through the linked module.
//!
//! [`module`] reads the object with its relocations; [`patches`] knows the alternatives that the kernel patches into it;
//! [`walk`] follows every path through the assembly, in every combination of the patches, with the abstract state of
//! [`state`] that [`step`] changes ([`encrypted`] has what differs for SEV-ES); [`fast`] looks at the compiled code that runs
//! in the middle of it, and [`caller`] at the code around it, from CLGI to STGI. What breaks a rule is a
//! [`Finding`] with its place.
//!
//! The rules are those of WORLD-SWITCH in `docs/world-switch.md`. What a walk cannot prove: that the kernel's own macros do
//! what their names say, and whatever depends on values that only run time knows.
#![forbid(unsafe_code)]

mod caller;
mod encrypted;
mod fast;
mod listing;
pub mod module;
mod patches;
mod rules;
mod state;
mod step;
mod walk;

use anyhow::{Context, Result};
use module::Module;
use std::collections::BTreeMap;
use std::fmt;

pub use rules::{ENCRYPTED, ENTRY, Layout};

/// A rule that is broken somewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Symbol and offset.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// What was looked at, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Report {
    /// Combinations of CPU features that patch the code between the marks: their numbers, and instructions walked.
    pub variants: Vec<(Vec<String>, usize)>,
    /// Deepest stack of the assembly in bytes, its caller's return address included.
    pub stack: usize,
    /// The path without fault and without SPEC_CTRL writes, an instruction per line, in the variant without any feature.
    pub listing: Vec<String>,
    /// Costly instructions on that path, and how many there are.
    pub costs: BTreeMap<&'static str, usize>,
    /// Instructions of `hsave_fast`, and those on the longest way through it.
    pub fast: (usize, usize),
    /// Places from which the assembly is entered with GIF clear.
    pub callers: usize,
    /// Broken rules, without repetition.
    pub findings: Vec<Finding>,
}

/// Checks the world switch in an ELF object. Errors: it is no such object, or has no world switch.
pub fn check(bytes: &[u8]) -> Result<Report> {
    let module = Module::parse(bytes)?;
    let entry = module.symbol(ENTRY).with_context(|| format!("there is no {ENTRY}"))?;
    let patches = patches::Patches::read(&module)?;
    let mut report = Report::default();
    walk::walk(&module, &patches, entry, false, &mut report)?;
    if let Some(entry) = module.symbol(ENCRYPTED) {
        walk::walk(&module, &patches, entry, true, &mut report)?;
    }
    fast::check(&module, &patches, &mut report)?;
    caller::check(&module, &mut report)?;
    report.findings.sort();
    report.findings.dedup();
    Ok(report)
}
