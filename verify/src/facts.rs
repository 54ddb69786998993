//! What all states of all variants have in common at an instruction, for people to read.

use crate::state::{SpecCtrl, State};
use std::collections::BTreeSet;

/// What was seen at one instruction of the assembly.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// On paths without a fault, and after one.
    plain: BTreeSet<Seen>,
    faulted: BTreeSet<Seen>,
}

/// One state, as far as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    /// Bytes, the caller's return address included; None: the stack pointer is that of compiled code.
    stack: Option<usize>,
    gs: &'static str,
    spec_ctrl: &'static str,
    ret: &'static str,
    /// Registers that may hold something of the guest's.
    registers: usize,
}

impl Facts {
    /// A path comes here with this state.
    pub fn note(&mut self, s: &State) {
        let seen = Seen {
            stack: (!s.stack_lost).then(|| 8 * (1 + s.stack.len())),
            gs: if s.gs_is_the_guests() { "guest" } else { "host" },
            spec_ctrl: match s.spec_ctrl {
                SpecCtrl::Host | SpecCtrl::WriteDue | SpecCtrl::Back => "host",
                SpecCtrl::Guest | SpecCtrl::Dirty | SpecCtrl::RestoreDue => "guest",
            },
            ret: if s.prediction_is_restricted() { "no" } else { "may" },
            registers: s.regs.iter().filter(|v| State::is_the_guests(**v)).count(),
        };
        if s.faulted { &mut self.faulted } else { &mut self.plain }.insert(seen);
    }

    /// No path comes here but after a fault.
    pub fn only_after_a_fault(&self) -> bool {
        self.plain.is_empty()
    }

    /// GS is the guest's on all ways here without a fault, or, where there is none, after one.
    pub fn gs_is_the_guests(&self) -> bool {
        self.seen().iter().all(|s| s.gs == "guest")
    }

    /// SPEC_CTRL is, likewise.
    pub fn spec_ctrl_is_the_guests(&self) -> bool {
        self.seen().iter().all(|s| s.spec_ctrl == "guest")
    }

    fn seen(&self) -> &BTreeSet<Seen> {
        if self.only_after_a_fault() { &self.faulted } else { &self.plain }
    }

    /// Deepest stack in bytes.
    pub fn stack(&self) -> usize {
        self.plain.iter().chain(&self.faulted).filter_map(|s| s.stack).max().unwrap_or(0)
    }

    /// The columns, as [`HEAD`] names them.
    pub fn columns(&self) -> String {
        let seen = self.seen();
        let all = |f: &dyn Fn(&Seen) -> String| {
            let different: BTreeSet<String> = seen.iter().map(f).collect();
            different.into_iter().collect::<Vec<_>>().join("|")
        };
        let mark = if self.only_after_a_fault() { "!" } else { " " };
        format!(
            "{mark}{:>8}  {:<5}  {:<9}  {:<3}  {:>5}  ",
            all(&|s| s.stack.map_or("lent".to_owned(), |n| n.to_string())),
            all(&|s| s.gs.to_owned()),
            all(&|s| s.spec_ctrl.to_owned()),
            all(&|s| s.ret.to_owned()),
            seen.iter().map(|s| s.registers).max().unwrap_or(0),
        )
    }
}

/// What the columns are.
pub const HEAD: &str = "    stack  GS     SPEC_CTRL  RET  guest";
