//! The code around the assembly: from CLGI to STGI.

use crate::module::{Module, Place, Target};
use crate::rules::{ENTRY, WITH_GIF_CLEAR};
use crate::{Finding, Report};
use anyhow::Result;
use iced_x86::{FlowControl, Mnemonic};
use std::collections::HashSet;

/// CLGI.
const CLGI: [u8; 3] = [0x0f, 0x01, 0xdd];
/// Code that nothing instruments.
const NOINSTR: &str = ".noinstr.text";

/// Where a path between CLGI and STGI is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct At {
    place: Place,
    /// RFLAGS.IF is set.
    open: bool,
    /// The guest has run.
    ran: bool,
}

/// Checks every CLGI of the module; an object without one (the assembly alone) has nothing to check.
pub fn check(module: &Module, report: &mut Report) -> Result<()> {
    let functions: Vec<(Place, Option<Place>)> = {
        let all: Vec<Place> = module.functions().map(|(place, _)| place).collect();
        all.iter().enumerate().map(|(n, p)| (*p, all.get(n + 1).filter(|q| q.section == p.section).copied())).collect()
    };
    for (start, end) in functions {
        for clgi in find(module, start, end) {
            report.callers += 1;
            walk(module, clgi.after(CLGI.len() as u64), report)?;
        }
    }
    Ok(())
}

/// The CLGIs in a function.
fn find(module: &Module, start: Place, end: Option<Place>) -> Vec<Place> {
    let (mut found, mut at) = (Vec::new(), start);
    while end.is_none_or(|end| at < end) {
        let Ok(d) = module.decode(at) else { break };
        if d.insn.mnemonic() == Mnemonic::Clgi {
            found.push(at);
        }
        at = at.after(d.insn.len() as u64);
    }
    found
}

fn walk(module: &Module, from: Place, report: &mut Report) -> Result<()> {
    let mut todo = vec![At { place: from, open: false, ran: false }];
    let mut seen = HashSet::new();
    while let Some(mut at) = todo.pop() {
        if !seen.insert(at) {
            continue;
        }
        let mut finding = |what: String| {
            report.findings.push(Finding { place: module.describe(at.place), what });
        };
        let d = module.decode(at.place)?;
        let next = at.place.after(d.insn.len() as u64);
        match d.insn.mnemonic() {
            Mnemonic::Sti => at.open = true,
            Mnemonic::Cli => at.open = false,
            Mnemonic::Stgi => {
                if !at.ran {
                    finding("STGI without the guest having run".to_owned());
                }
                if at.open {
                    finding("STGI with RFLAGS.IF set".to_owned());
                }
                continue;
            }
            _ => {}
        }
        match d.insn.flow_control() {
            FlowControl::Next => todo.push(At { place: next, ..at }),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => match d.branch {
                Some(Target::Here(to)) => {
                    todo.push(At { place: to, ..at });
                    if d.insn.flow_control() == FlowControl::ConditionalBranch {
                        todo.push(At { place: next, ..at });
                    }
                }
                _ => finding("leaves with GIF clear".to_owned()),
            },
            FlowControl::Call => {
                let name = match &d.branch {
                    Some(Target::Here(to)) => module.describe(*to),
                    Some(Target::Extern(name)) => name.clone(),
                    None => String::new(),
                };
                if !WITH_GIF_CLEAR.contains(&name.as_str()) {
                    finding(format!("calls {name} with GIF clear"));
                }
                if let Some(Target::Here(to)) = d.branch {
                    if module.section_name(to.section) != NOINSTR {
                        finding(format!("{name} can be traced, and is called with GIF clear"));
                    }
                }
                if name == ENTRY {
                    if !at.open {
                        finding("the assembly is called with RFLAGS.IF clear".to_owned());
                    }
                    if at.ran {
                        finding("the assembly is called twice".to_owned());
                    }
                    at.ran = true;
                }
                todo.push(At { place: next, ..at });
            }
            _ => finding("leaves with GIF clear".to_owned()),
        }
    }
    Ok(())
}
