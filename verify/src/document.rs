//! The assembly with what the walk found at each instruction: a block of `docs/world-switch.md`. The mitigations and
//! `hsave_fast` are left out, which are not the same in each build.

use crate::facts::{Facts, HEAD};
use crate::module::{Decoded, Module, Place, Target};
use crate::rules::{CLEAR_BUFFERS, DONE, ENCRYPTED_SUFFIX, ENTRY, FAST, FAST_LEAVE, RETURN_THUNK, RSB, UNTRAIN};
use crate::{Layout, Report, order};
use anyhow::{Context, Result};
use iced_x86::{FlowControl, Formatter, IntelFormatter, Mnemonic};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The lines around the block of the plain variant, and around that of SEV-ES, which no module contains.
pub const MARKS: [&str; 2] =
    ["<!-- written by `./x verify MODULE.ko --document` -->", "<!-- end of what `./x verify` has written -->"];
pub const ENCRYPTED_MARKS: [&str; 2] = [
    "<!-- written by `WRITE_DOCUMENT=1 cargo test -p verify document` -->",
    "<!-- end of what `cargo test` has written -->",
];

/// The block of the variant that begins at the symbol `entry`, without the lines around it.
pub fn document(module: &Module, report: &Report, entry: &str) -> Result<String> {
    let facts = if entry == ENTRY { &report.facts } else { &report.encrypted_facts };
    let text = Text::read(module, facts)?;
    let mut out = format!("```text\n{HEAD}\n");
    for (at, d) in &text.insns {
        let facts = facts.get(at).context("an instruction that was walked")?;
        let name = module.name_at(*at).map(str::to_owned).or_else(|| text.labels.get(at).cloned());
        if let Some(name) = name {
            writeln!(out, "{name}:")?;
        }
        let why = text.comment(d, report);
        writeln!(
            out,
            "{}{}{}",
            facts.columns(),
            text.show(module, d),
            why.map_or(String::new(), |w| format!(" ; {w}"))
        )?;
    }
    writeln!(out, "```\n")?;
    let faults = facts.values().filter(|f| f.only_after_a_fault()).count();
    let stack = facts.values().map(|f| f.stack()).max().unwrap_or(0);
    let (before, after) = text.longest(module, entry)?;
    writeln!(
        out,
        "{} instructions, {faults} of them after faults only (`!`). The stack is at most {stack} bytes deep, without what the\n\
         mitigations and `hsave_fast` use. Longest ways without a fault, mitigations apart: {before} instructions to VMRUN, {after} from\n\
         there to the return.",
        text.insns.len()
    )?;
    writeln!(out, "\n{}", order::table(module, &text, facts, entry)?)?;
    if entry != ENTRY {
        return Ok(out);
    }
    let fields = report.fields.iter().filter(|at| !Layout::is_register(**at));
    let fields: Vec<String> =
        fields.map(|at| format!("{} at {at}", Layout::name_of(*at).unwrap_or("an unknown one"))).collect();
    writeln!(
        out,
        "Fields of the vCPU that are used: {} registers from {},\n{}.",
        register_count(report),
        Layout::REGS,
        fields.join(", ")
    )?;
    Ok(out)
}

fn register_count(report: &Report) -> usize {
    report.fields.iter().filter(|at| Layout::is_register(**at)).count()
}

/// The instructions that were walked, in the order of their places.
pub struct Text {
    pub insns: BTreeMap<Place, Decoded>,
    /// Numbers of places without a name that are jumped to.
    labels: BTreeMap<Place, String>,
}

impl Text {
    fn read(module: &Module, facts: &BTreeMap<Place, Facts>) -> Result<Self> {
        let insns: BTreeMap<Place, Decoded> =
            facts.keys().map(|at| Ok((*at, module.decode(*at)?))).collect::<Result<_>>()?;
        let targets: BTreeSet<Place> = insns
            .values()
            .filter_map(|d| match &d.branch {
                Some(Target::Here(to)) if module.name_at(*to).is_none() => Some(*to),
                _ => None,
            })
            .collect();
        let labels = targets.into_iter().enumerate().map(|(n, at)| (at, format!(".L{}", n + 1))).collect();
        Ok(Self { insns, labels })
    }

    /// An instruction with names in place of what relocations fill in.
    fn show(&self, module: &Module, d: &Decoded) -> String {
        let mut formatter = IntelFormatter::new();
        formatter.options_mut().set_hex_prefix("0x");
        formatter.options_mut().set_hex_suffix("");
        formatter.options_mut().set_uppercase_hex(false);
        formatter.options_mut().set_space_after_operand_separator(true);
        let mut text = String::new();
        formatter.format(&d.insn, &mut text);
        let word = text.split(' ').next().unwrap_or_default();
        match (&d.branch, &d.memory) {
            (Some(Target::Extern(name)), _) => format!("{word} {name}"),
            (Some(Target::Here(to)), _) => {
                let name = module.name_at(*to).map(str::to_owned).or_else(|| self.labels.get(to).cloned());
                format!("{word} {}", name.unwrap_or_else(|| module.describe(*to)))
            }
            (None, Some((target, by))) => {
                let (name, by) = match target {
                    Target::Extern(name) => (name.clone(), *by),
                    Target::Here(place) => module.nearest(place.after(*by as u64)),
                };
                let operand = if by == 0 { name } else { format!("{name}{by:+}") };
                match (text.find('['), text.find(']')) {
                    (Some(from), Some(to)) => format!("{}[{operand}{}", &text[..from], &text[to..]),
                    _ => text,
                }
            }
            (None, None) => text,
        }
    }

    /// What the checker knows of a jump that leaves the text.
    fn comment(&self, d: &Decoded, report: &Report) -> Option<&'static str> {
        let name = match &d.branch {
            Some(Target::Extern(name)) if name == RETURN_THUNK => {
                return Some("the first RET; becomes what the CPU needs");
            }
            Some(Target::Here(to)) => report.pieces.get(to)?,
            _ => return None,
        };
        Some(match *name {
            CLEAR_BUFFERS => "VERW on some CPUs",
            RSB => "calls that fill the return stack on some CPUs",
            UNTRAIN => "the kernel's untraining or IBPB on some CPUs",
            _ => return None,
        })
    }

    /// Most instructions on the ways from the entry to VMRUN, it included, and from there to the return.
    fn longest(&self, module: &Module, entry: &str) -> Result<(usize, usize)> {
        let entry = module.symbol(entry).context("the entry")?;
        let (vmrun, d) =
            self.insns.iter().find(|(_, d)| d.insn.mnemonic() == Mnemonic::Vmrun).context("VMRUN in the text")?;
        let behind = vmrun.after(d.insn.len() as u64);
        Ok((self.way(module, entry, &mut BTreeMap::new()), self.way(module, behind, &mut BTreeMap::new())))
    }

    fn way(&self, module: &Module, at: Place, known: &mut BTreeMap<Place, usize>) -> usize {
        if let Some(n) = known.get(&at) {
            return *n;
        }
        let Some(d) = self.insns.get(&at) else { return 0 };
        // Where the walk has found a loop this ends it.
        known.insert(at, 0);
        let ways = if d.insn.mnemonic() == Mnemonic::Vmrun { vec![] } else { self.next(module, at, d) };
        let n = 1 + ways.into_iter().map(|to| self.way(module, to, known)).max().unwrap_or(0);
        known.insert(at, n);
        n
    }

    /// Where the instruction at `at` goes on, mitigations and compiled code left out.
    pub fn next(&self, module: &Module, at: Place, d: &Decoded) -> Vec<Place> {
        let next = at.after(d.insn.len() as u64);
        let to = match &d.branch {
            Some(Target::Here(to)) => Some(match module.name_at(*to) {
                Some(FAST) => module.symbol(FAST_LEAVE).unwrap_or(*to),
                Some(piece) if is_piece(piece) => module.symbol(&format!("{piece}{DONE}")).unwrap_or(*to),
                _ => *to,
            }),
            _ => None,
        };
        match d.insn.flow_control() {
            _ if d.insn.mnemonic() == Mnemonic::Vmrun => vec![next],
            FlowControl::Next => vec![next],
            FlowControl::ConditionalBranch => to.into_iter().chain([next]).collect(),
            _ => to.into_iter().collect(),
        }
    }
}

fn is_piece(name: &str) -> bool {
    [CLEAR_BUFFERS, RSB, UNTRAIN].contains(&name.strip_suffix(ENCRYPTED_SUFFIX).unwrap_or(name))
}

/// The block between these lines as a document has it. None: there is none.
pub fn block<'a>(document: &'a str, [begin, end]: [&str; 2]) -> Option<&'a str> {
    let (_, rest) = document.split_once(begin)?;
    Some(rest.split_once(end)?.0.trim_matches('\n'))
}

/// The document with `block` in place of its own. None: it has no place for one.
pub fn with_block(document: &str, [begin, end]: [&str; 2], block: &str) -> Option<String> {
    let (before, rest) = document.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n\n{}\n\n{end}{after}", block.trim_matches('\n')))
}
