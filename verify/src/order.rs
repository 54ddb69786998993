//! In which order the operations of the world switch may come: a table of `docs/world-switch.md`.

use crate::document::Text;
use crate::facts::Facts;
use crate::module::{Decoded, Module, Place, Target};
use crate::rules::{CLEAR_BUFFERS, ENCRYPTED_SUFFIX, FAST, FAST_AGAIN, RETURN_THUNK, RSB, UNTRAIN};
use crate::walk::fixups;
use anyhow::{Context, Result};
use iced_x86::Mnemonic;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Each operation, what may come next, and what after a fault of it.
pub fn table(module: &Module, text: &Text, facts: &BTreeMap<Place, Facts>, entry: &str) -> Result<String> {
    let entry = module.symbol(entry).context("the entry")?;
    let fixups = fixups(module);
    let show = |from: &[Place]| {
        let names: Vec<_> =
            next(module, text, facts, from).into_iter().filter_map(|at| name(module, text, facts, at)).collect();
        let mut once = Vec::new();
        for name in names {
            if !once.contains(&name) {
                once.push(name);
            }
        }
        once.join(", ")
    };
    let mut out = String::from("| operation | next | after a fault |\n|---|---|---|\n");
    writeln!(out, "| entry | {} | |", show(&[entry]))?;
    for (at, d) in &text.insns {
        let Some(name) = name(module, text, facts, *at) else { continue };
        let fault = fixups.get(at).map_or(String::new(), |(to, _)| show(&[*to]));
        let mut from = text.next(module, *at, d);
        if target(module, d) == Some(FAST) {
            from.extend(module.symbol(FAST_AGAIN));
        }
        writeln!(out, "| {name} | {} | {fault} |", show(&from))?;
    }
    Ok(out)
}

/// The operations that come first on the ways from these places, in the order of the text.
fn next(module: &Module, text: &Text, facts: &BTreeMap<Place, Facts>, from: &[Place]) -> BTreeSet<Place> {
    let (mut seen, mut todo, mut found) = (BTreeSet::new(), from.to_vec(), BTreeSet::new());
    while let Some(at) = todo.pop() {
        let Some(d) = text.insns.get(&at).filter(|_| seen.insert(at)) else { continue };
        if name(module, text, facts, at).is_some() {
            found.insert(at);
            // It is not always taken.
            if target(module, d) != Some(FAST) {
                continue;
            }
        }
        todo.extend(text.next(module, at, d));
    }
    found
}

/// What the instruction at `at` is called, if it is an operation.
fn name(module: &Module, text: &Text, facts: &BTreeMap<Place, Facts>, at: Place) -> Option<&'static str> {
    let (d, facts) = (text.insns.get(&at)?, facts.get(&at)?);
    Some(match d.insn.mnemonic() {
        Mnemonic::Vmload if facts.gs_is_the_guests() => "VMLOAD of the host",
        Mnemonic::Vmload => "VMLOAD of the guest",
        Mnemonic::Vmsave => "VMSAVE of the guest",
        Mnemonic::Vmrun => "VMRUN",
        Mnemonic::Rdmsr => "RDMSR of the guest's SPEC_CTRL",
        Mnemonic::Wrmsr if facts.spec_ctrl_is_the_guests() => "WRMSR of the host's SPEC_CTRL",
        Mnemonic::Wrmsr => "WRMSR of the guest's SPEC_CTRL",
        Mnemonic::Ud2 => "UD2",
        _ => match target(module, d)? {
            CLEAR_BUFFERS => "buffers",
            RSB => "return stack",
            UNTRAIN => "untraining",
            RETURN_THUNK => "RET",
            FAST => "`hsave_fast`",
            _ => return None,
        },
    })
}

/// The symbol that is jumped to, without what tells variants apart.
fn target<'a>(module: &'a Module, d: &'a Decoded) -> Option<&'a str> {
    let name = match d.branch.as_ref()? {
        Target::Here(to) => module.name_at(*to)?,
        Target::Extern(name) => name,
    };
    Some(name.strip_suffix(ENCRYPTED_SUFFIX).unwrap_or(name))
}
