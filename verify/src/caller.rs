//! The code around the assembly: from CLGI to STGI.

use crate::module::{Module, Place, Target};
use crate::rules::{ENTRY, WITH_GIF_CLEAR};
use crate::{Finding, Report};
use anyhow::Result;
use arch::msr;
use iced_x86::{FlowControl, Mnemonic, OpKind, Register};
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

/// What a function has that this is about.
#[derive(Default)]
struct Function {
    clgis: Vec<Place>,
    /// Writes of registers that VMRUN does not switch and a handler of NMIs uses, XCR0, XSS, PKRU and DEBUGCTL: an NMI must not
    /// find the guest's.
    switches: Vec<Place>,
}

/// Checks every CLGI of the module; an object without one (the assembly alone) has nothing to check.
pub fn check(module: &Module, report: &mut Report) -> Result<()> {
    let functions: Vec<(Place, Option<Place>)> = {
        let all: Vec<Place> = module.functions().map(|(place, _)| place).collect();
        all.iter().enumerate().map(|(n, p)| (*p, all.get(n + 1).filter(|q| q.section == p.section).copied())).collect()
    };
    let (mut switches, mut inside) = (Vec::new(), HashSet::new());
    for (start, end) in functions {
        let function = find(module, start, end);
        switches.extend(function.switches);
        for clgi in function.clgis {
            report.callers += 1;
            walk(module, clgi.after(CLGI.len() as u64), &mut inside, report)?;
        }
    }
    for place in switches.into_iter().filter(|place| !inside.contains(place)) {
        let what = "a register of the guest's is loaded, or one of the host's, where an NMI can come".to_owned();
        report.findings.push(Finding { place: module.describe(place), what });
    }
    Ok(())
}

/// What an engine calls with GIF clear is in another module, the base: nothing instruments it there either.
pub fn callees(module: &Module, findings: &mut Vec<Finding>) {
    for name in WITH_GIF_CLEAR {
        if module.symbol(name).is_some_and(|place| module.section_name(place.section) != NOINSTR) {
            let what = "can be traced, and engines call it with GIF clear".to_owned();
            findings.push(Finding { place: (*name).to_owned(), what });
        }
    }
}

/// Looks through a function.
fn find(module: &Module, start: Place, end: Option<Place>) -> Function {
    let (mut found, mut at) = (Function::default(), start);
    // What ECX holds, as far as an instruction right before says.
    let mut ecx = None;
    while end.is_none_or(|end| at < end) {
        let Ok(d) = module.decode(at) else { break };
        match d.insn.mnemonic() {
            Mnemonic::Clgi => found.clgis.push(at),
            Mnemonic::Xsetbv | Mnemonic::Wrpkru => found.switches.push(at),
            Mnemonic::Wrmsr if matches!(ecx, Some(msr::DEBUGCTL | msr::XSS)) => found.switches.push(at),
            Mnemonic::Mov if d.insn.op0_register() == Register::ECX => {
                ecx = (d.insn.op1_kind() == OpKind::Immediate32).then(|| d.insn.immediate32());
            }
            _ => {}
        }
        at = at.after(d.insn.len() as u64);
    }
    found
}

fn walk(module: &Module, from: Place, inside: &mut HashSet<Place>, report: &mut Report) -> Result<()> {
    let mut todo = vec![At { place: from, open: false, ran: false }];
    let mut seen = HashSet::new();
    while let Some(mut at) = todo.pop() {
        if !seen.insert(at) {
            continue;
        }
        inside.insert(at.place);
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
