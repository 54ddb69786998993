//! A proof on the binary: what the world switch has to keep to, checked on every path through the linked module.
//!
//! [`module`] reads the object with its relocations; [`patches`] knows the alternatives that the kernel patches into it;
//! [`walk`] and [`flow`] follow every path through the assembly, in every combination of the patches, with the abstract state
//! of [`state`] that [`step`] changes ([`encrypted`] has what differs for SEV-ES); [`fast`] looks at the compiled code that runs
//! in the middle of it, and [`caller`] at the code around it, from CLGI to STGI; [`document`] shows what
//! was found, and [`order`] in which order things may happen. What breaks a rule is a [`Finding`] with its place.
//!
//! The rules are those of WORLD-SWITCH in `docs/world-switch.md`. What a walk cannot prove: that the kernel's own macros do
//! what their names say, and whatever depends on values that only run time knows.
#![forbid(unsafe_code)]

mod caller;
mod document;
mod encrypted;
mod facts;
mod fast;
mod flow;
mod listing;
pub mod module;
mod order;
mod patches;
mod rules;
mod state;
mod step;
mod text;
mod walk;

use anyhow::{Context, Result};
use facts::Facts;
use module::{Module, Place};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use document::{ENCRYPTED_MARKS, MARKS, block, with_block};
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
    /// What was found at each instruction of the assembly itself.
    facts: BTreeMap<Place, Facts>,
    /// The same of the SEV-ES variant.
    encrypted_facts: BTreeMap<Place, Facts>,
    /// Where the mitigations are that do something on some CPU.
    pieces: BTreeMap<Place, &'static str>,
    /// The block of `docs/world-switch.md` that shows the assembly with these facts.
    pub document: String,
    /// The same of the SEV-ES variant, where there is one.
    pub encrypted_document: String,
    /// Costly instructions on that path, and how many there are.
    pub costs: BTreeMap<&'static str, usize>,
    /// Instructions of `hsave_fast`, and those on the longest way through it.
    pub fast: (usize, usize),
    /// Registers whose values at the entry it uses, of those that carry arguments, by encoding.
    pub arguments: BTreeSet<u8>,
    /// Offsets in bytes of the fields of the vCPU that it uses, and of those of the per-CPU data.
    pub fields: BTreeSet<i64>,
    pub cpu_fields: BTreeSet<i64>,
    /// All code of the module.
    pub text: Text,
    /// Places from which the assembly is entered with GIF clear.
    pub callers: usize,
    /// Broken rules, without repetition.
    pub findings: Vec<Finding>,
}

/// All code of a module.
#[derive(Debug, Default)]
pub struct Text {
    /// Instructions, replacements of alternatives included.
    pub instructions: usize,
    /// Jumps to the kernel's return thunk.
    pub returns: usize,
    /// Calls and jumps by the kernel's thunks for indirect ones.
    pub indirect: usize,
    /// Calls that the kernel makes direct when it loads the module.
    pub paravirtual: usize,
    /// The most bytes of stack that one function takes for its variables, and which.
    pub stack: (u64, String),
    /// Where it returns or branches otherwise, or takes too much stack.
    pub findings: Vec<Finding>,
}

/// Is the world switch in this ELF object? Errors: it is no such object.
pub fn has_world_switch(bytes: &[u8]) -> Result<bool> {
    Ok(Module::parse(bytes)?.symbol(ENTRY).is_some())
}

/// Checks all code of an ELF object, with a world switch in it or without. Errors: it is no such object.
pub fn text(bytes: &[u8]) -> Result<Text> {
    let module = Module::parse(bytes)?;
    let mut text = text::check(&module, &patches::Patches::read(&module)?)?;
    caller::callees(&module, &mut text.findings);
    Ok(text)
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
    let strange = report.fields.iter().filter(|at| !Layout::is_register(**at) && Layout::name_of(**at).is_none());
    let strange_cpu = report.cpu_fields.iter().filter(|at| Layout::cpu_name_of(**at).is_none());
    for at in strange.chain(strange_cpu) {
        let what = format!("offset {at:#x} is none of the fields that the world switch may use");
        report.findings.push(Finding { place: ENTRY.to_owned(), what });
    }
    caller::check(&module, &mut report)?;
    if report.findings.is_empty() {
        // Of a text that breaks the rules there is no more to say.
        report.document = document::document(&module, &report, ENTRY)?;
        if module.symbol(ENCRYPTED).is_some() {
            report.encrypted_document = document::document(&module, &report, ENCRYPTED)?;
        }
    }
    report.text = text::check(&module, &patches)?;
    report.findings.append(&mut report.text.findings);
    report.findings.sort();
    report.findings.dedup();
    Ok(report)
}
