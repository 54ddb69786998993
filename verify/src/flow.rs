//! Where a path goes on: faults, branches, calls, the kernel's mitigations, compiled code, and the return.

use crate::module::{Place, Target};
use crate::rules::{
    CALLEE_SAVED, CLEAR_BUFFERS, DONE, ENCRYPTED_SUFFIX, FAST, FAST_AGAIN, FAST_LEAVE, INDIRECT_THUNK, RETURN_THUNK,
    RSB, UNTRAIN, UNTRAINING,
};
use crate::state::{Flags, SpecCtrl, Stage, State, Value};
use crate::walk::Walk;
use iced_x86::ConditionCode;

/// EX_TYPE_DEFAULT.
const FIXUP: u32 = 1;

impl Walk<'_> {
    /// Entering and leaving the kernel's mitigations.
    pub fn pieces(&mut self, s: &mut State) {
        let Some(name) = self.module.name_at(s.at) else { return };
        let suffix = if s.encrypted { ENCRYPTED_SUFFIX } else { "" };
        for piece in [CLEAR_BUFFERS, RSB, UNTRAIN] {
            let Some(rest) = name.strip_prefix(piece).and_then(|rest| rest.strip_prefix(suffix)) else { continue };
            if rest.is_empty() {
                s.piece = Some(piece);
                let early = match piece {
                    CLEAR_BUFFERS if s.encrypted => s.spec_ctrl != SpecCtrl::Guest,
                    CLEAR_BUFFERS => s.stage != Stage::GuestLoaded && !s.faulted,
                    RSB => s.stage < Stage::HostLoaded && !s.faulted,
                    _ => s.stage < Stage::RsbClean || s.spec_ctrl != SpecCtrl::Back,
                };
                if early {
                    self.finding(s.at, "this mitigation comes too early");
                }
            } else if rest == DONE && s.piece == Some(piece) {
                s.piece = None;
                match piece {
                    CLEAR_BUFFERS => s.buffers_clear = true,
                    RSB => s.stage = Stage::RsbClean,
                    _ => s.stage = Stage::Untrained,
                }
            }
        }
    }

    /// The instruction faults: its entry in the exception table.
    pub fn fault(&mut self, s: &State) {
        match self.fixups.get(&s.at) {
            Some((to, FIXUP)) => {
                let mut s = s.clone();
                (s.faulted, s.at) = (true, *to);
                // As if it had been done: the host's state was never given up.
                s.stage = match s.stage {
                    _ if s.encrypted => Stage::HostLoaded,
                    Stage::Entry => Stage::GuestLoaded,
                    Stage::GuestLoaded => Stage::Ran,
                    Stage::Ran => Stage::Saved,
                    _ => Stage::HostLoaded,
                };
                if s.stage == Stage::Ran || s.encrypted {
                    s.spec_ctrl = SpecCtrl::Dirty;
                }
                self.todo.push(s);
            }
            Some(_) => self.finding(s.at, "its entry in the exception table is of another kind"),
            None => self.finding(s.at, "has no entry in the exception table"),
        }
    }

    /// Compiled code handles the exit ([`crate::fast`]): it comes back in one of two ways, with the vCPU pointer.
    fn lend(&mut self, s: &State) {
        if s.no_fast {
            return;
        }
        let stored = (0..16u16).filter(|n| ![0, 4].contains(n)).all(|n| s.stored & 1 << n != 0);
        if s.stage != Stage::Ran || s.faulted || !stored {
            self.finding(s.at, "compiled code is entered with the guest's registers in use");
        }
        if s.regs[7] != Value::Initial(7) || s.stack_noted != Some(s.stack.len()) {
            self.finding(s.at, "compiled code is entered without vCPU pointer or way back");
        }
        // What it leaves in registers and flags may come from the guest's.
        let mut back = State { regs: [Value::Tainted; 16], flags: Flags::Guest, stack_lost: true, ..s.clone() };
        (back.regs[4], back.regs[7], back.buffers_clear) = (Value::Initial(4), Value::Initial(7), false);
        let again = State { stage: Stage::GuestLoaded, spec_ctrl: SpecCtrl::Guest, stored: 0, ..back.clone() };
        for (name, mut state) in [(FAST_LEAVE, back), (FAST_AGAIN, again)] {
            match self.module.symbol(name) {
                Some(place) => {
                    state.at = place;
                    self.todo.push(state);
                }
                None => self.finding(s.at, format!("there is no {name}")),
            }
        }
    }

    pub fn jump(&mut self, mut s: State, to: Option<Target>) {
        match to {
            Some(Target::Here(place)) if self.module.name_at(place) == Some(FAST) => self.lend(&s),
            Some(Target::Here(place)) => {
                s.at = place;
                self.todo.push(s);
            }
            Some(Target::Extern(name)) if name == RETURN_THUNK => self.ret(&s),
            Some(Target::Extern(name)) if name.starts_with(INDIRECT_THUNK) => self.finding(s.at, "an indirect branch"),
            _ => self.finding(s.at, "a jump out of the module"),
        }
    }

    /// A conditional branch tells something about SPEC_CTRL.
    pub fn condition(&mut self, at: Place, taken: &mut State, not: &mut State, condition: ConditionCode) {
        let flags = std::mem::take(&mut taken.flags);
        not.flags = Flags::Other;
        let (set, clear) = match condition {
            ConditionCode::e => (taken, not),
            ConditionCode::ne => (not, taken),
            _ if flags == Flags::Guest => return self.finding(at, "a branch on a value of the guest's"),
            _ => return,
        };
        match flags {
            Flags::SpecCtrl => {
                if set.spec_ctrl == SpecCtrl::Dirty && !set.asked {
                    self.finding(at, "SPEC_CTRL is compared before the flag was asked");
                }
                let (equal, differs) = match set.spec_ctrl {
                    SpecCtrl::Host => (SpecCtrl::Guest, SpecCtrl::WriteDue),
                    SpecCtrl::Dirty => (SpecCtrl::Back, SpecCtrl::RestoreDue),
                    other => {
                        self.finding(at, "SPEC_CTRL is compared twice");
                        (other, other)
                    }
                };
                (set.spec_ctrl, clear.spec_ctrl) = (equal, differs);
            }
            Flags::ReadBack => {
                (set.asked, clear.asked) = (true, true);
                clear.read_back = 3;
            }
            Flags::Guest => self.finding(at, "a branch on a value of the guest's"),
            Flags::Other => {}
        }
    }

    pub fn call(&mut self, mut s: State, next: Place, to: Option<Target>) {
        match (to, s.piece) {
            // Return stack stuffing: the call only pushes.
            (Some(Target::Here(place)), Some(RSB)) => {
                self.did.insert(RSB);
                s.stack.push(Value::Unknown);
                s.at = place;
                self.todo.push(s);
            }
            (Some(Target::Extern(name)), Some(UNTRAIN)) if UNTRAINING.contains(&name.as_str()) => {
                self.did.insert(UNTRAIN);
                for clobbered in [0, 1, 2] {
                    s.regs[clobbered] = Value::Unknown;
                }
                s.at = next;
                self.todo.push(s);
            }
            _ => self.finding(s.at, "a call"),
        }
    }

    pub fn ret(&mut self, s: &State) {
        let mut must = |ok: bool, what: String| {
            if !ok {
                self.finding(s.at, what);
            }
        };
        must(!s.prediction_is_restricted(), "RET while prediction is the guest's".to_owned());
        must(s.stage == Stage::Untrained, "RET before the host's state is back".to_owned());
        must(s.spec_ctrl == SpecCtrl::Back, "RET before SPEC_CTRL is the host's".to_owned());
        must(s.read_back == 0, "the guest's SPEC_CTRL is not read back".to_owned());
        must(s.stack.is_empty(), "RET with something on the stack".to_owned());
        for n in (0..16u8).filter(|n| *n != 4) {
            let value = s.regs[usize::from(n)];
            must(!State::is_the_guests(value), format!("RET with the guest's value in register {n}"));
            if CALLEE_SAVED.contains(&n) {
                must(value == Value::Initial(n), format!("register {n} is not given back to the caller"));
            }
            must(n == 0 || s.encrypted || s.stored & 1 << n != 0, format!("the guest's register {n} is not stored"));
        }
    }
}
