//! `hsave_fast`: compiled code that runs while the guest's segments and SPEC_CTRL are loaded and return prediction is the
//! guest's. Every instruction that it can reach is looked at.

use crate::module::{Module, Place, Target};
use crate::patches::Patches;
use crate::rules::{FAST, FAST_AGAIN, FAST_LEAVE, MOST_FAST};
use crate::{Finding, Report};
use anyhow::{Context, Result, ensure};
use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register};
use std::collections::HashMap;

struct Code<'a> {
    module: &'a Module,
    patches: &'a Patches,
    report: &'a mut Report,
    /// Instructions of the longest way out from here. None: this one is on the path that is being followed.
    longest: HashMap<Place, Option<usize>>,
}

/// Checks the function, if the assembly jumps there.
pub fn check(module: &Module, patches: &Patches, report: &mut Report) -> Result<()> {
    let entry = module.symbol(FAST).with_context(|| format!("there is no {FAST}"))?;
    let mut code = Code { module, patches, report, longest: HashMap::new() };
    let longest = code.follow(entry)?;
    let all = code.longest.len();
    report.fast = (all, longest);
    if longest > MOST_FAST {
        let what = format!("{longest} instructions with GIF clear, {MOST_FAST} are the most");
        report.findings.push(Finding { place: module.describe(entry), what });
    }
    Ok(())
}

impl Code<'_> {
    fn finding(&mut self, at: Place, what: &str) {
        self.report.findings.push(Finding { place: self.module.describe(at), what: what.to_owned() });
    }

    /// Follows all ways from `at`; how many instructions the longest has.
    fn follow(&mut self, at: Place) -> Result<usize> {
        match self.longest.get(&at) {
            Some(Some(known)) => return Ok(*known),
            Some(None) => {
                self.finding(at, "a loop");
                return Ok(0);
            }
            None => {}
        }
        ensure!(self.longest.len() < 10 * MOST_FAST, "{FAST} does not end");
        self.longest.insert(at, None);
        let d = self.module.decode(at)?;
        self.look(at, &d.insn);
        if d.memory.is_some() {
            self.finding(at, "memory that is not the vCPU's is used");
        }
        let next = at.after(d.insn.len() as u64);
        let ways = match (d.insn.flow_control(), d.branch) {
            (FlowControl::Next, _) => vec![next],
            (FlowControl::UnconditionalBranch, Some(target)) => self.target(at, target).into_iter().collect(),
            (FlowControl::ConditionalBranch, Some(target)) => {
                self.target(at, target).into_iter().chain([next]).collect()
            }
            (FlowControl::Call | FlowControl::IndirectCall, _) => {
                self.finding(at, "a call");
                vec![]
            }
            (FlowControl::Return, _) => {
                self.finding(at, "RET while prediction is the guest's");
                vec![]
            }
            (FlowControl::IndirectBranch, _) => {
                self.finding(at, "an indirect branch");
                vec![]
            }
            _ => {
                self.finding(at, "the path ends");
                vec![]
            }
        };
        let mut longest = 0;
        for way in ways {
            longest = longest.max(self.follow(way)?);
        }
        self.longest.insert(at, Some(longest + 1));
        Ok(longest + 1)
    }

    /// Where a branch leads, unless that is a way out.
    fn target(&mut self, at: Place, target: Target) -> Option<Place> {
        let Target::Here(place) = target else {
            self.finding(at, "a jump out of the module");
            return None;
        };
        match self.module.name_at(place) {
            Some(FAST_AGAIN | FAST_LEAVE) => None,
            // Not one of its own labels.
            Some(name) if !name.starts_with(FAST) => {
                self.finding(at, "a jump to another function");
                None
            }
            _ => Some(place),
        }
    }

    fn look(&mut self, at: Place, i: &Instruction) {
        if let Some(why) = self.patches.live(at) {
            self.finding(at, &format!("may be rewritten while the kernel runs ({why})"));
        }
        if self.patches.features_at(at).next().is_some() {
            self.finding(at, "an alternative");
        }
        if matches!(i.segment_prefix(), Register::GS | Register::FS) {
            self.finding(at, "a segment is used while it is the guest's");
        }
        let up = i.is_stack_instruction() && i.stack_pointer_increment() > 0;
        if i.is_privileged() || matches!(i.mnemonic(), Mnemonic::Rdmsr | Mnemonic::Sti | Mnemonic::Cli) || up {
            self.finding(at, "a privileged instruction, or one that moves the stack pointer up");
        }
        if i.has_rep_prefix() || i.has_repne_prefix() || i.has_lock_prefix() {
            self.finding(at, "a repeated or locked instruction");
        }
        let mut factory = InstructionInfoFactory::new();
        for used in factory.info(i).used_registers() {
            let written = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
            let r = used.register();
            if written && r.full_register() == Register::RDI {
                self.finding(at, "RDI does not stay the vCPU pointer");
            }
            if r.is_vector_register() || r.is_st() || r.is_mm() || r.is_k() {
                self.finding(at, "a register of the guest's FPU is used");
            }
        }
    }
}
