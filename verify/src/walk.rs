//! Every path through the assembly, in every combination of patches.

use crate::listing;
use crate::module::{Module, Place, Target};
use crate::patches::{Features, Patches};
use crate::rules::{
    ARGUMENTS, CALLEE_SAVED, CLEAR_BUFFERS, CPU_DATA, DONE, ENCRYPTED_SUFFIX, FAST, FAST_AGAIN, FAST_LEAVE,
    INDIRECT_THUNK, MOST_STACK, RETURN_THUNK, RSB, TOO_MANY_ARGUMENTS, UNTRAIN, UNTRAINING,
};
use crate::state::{Flags, SpecCtrl, Stage, State, Value};
use crate::step::gpr;
use crate::{Finding, Report};
use anyhow::{Result, ensure};
use iced_x86::{ConditionCode, FlowControl, InstructionInfoFactory, Mnemonic, OpAccess};
use std::collections::{HashMap, HashSet};

/// States on all paths of one variant: far more than there are, far less than would take long.
const MOST_STATES: usize = 100_000;
/// EX_TYPE_DEFAULT.
const FIXUP: u32 = 1;

/// One variant's walk.
struct Walk<'a> {
    module: &'a Module,
    patches: &'a Patches,
    features: Features,
    fixups: &'a HashMap<Place, (Place, u32)>,
    cpu_data: Option<Place>,
    report: &'a mut Report,
    seen: HashSet<State>,
    todo: Vec<State>,
    /// Features met that are decided by a patch.
    met: Features,
    /// Mitigations that do something, in this variant or another.
    did: &'a mut HashSet<&'static str>,
}

/// Walks all variants.
pub fn walk(module: &Module, patches: &Patches, entry: Place, encrypted: bool, report: &mut Report) -> Result<()> {
    let fixups = fixups(module);
    // A variant may meet features that others do not: go on until there are no new ones.
    let (mut done, mut met): (HashSet<Features>, Features) = (HashSet::new(), Features::new());
    let mut did = HashSet::new();
    loop {
        let mut progress = false;
        ensure!(met.len() <= 10, "too many features patch the world switch");
        for choice in 0..1u32 << met.len() {
            let chosen = met.iter().enumerate().filter(|(n, _)| choice >> n & 1 != 0).map(|(_, f)| *f);
            let features: Features = chosen.collect();
            if !done.insert(features.clone()) {
                continue;
            }
            progress = true;
            let mut walk = Walk {
                module,
                patches,
                features,
                fixups: &fixups,
                cpu_data: module.symbol(CPU_DATA),
                report: &mut *report,
                seen: HashSet::new(),
                todo: vec![State::new(entry, encrypted)],
                met: Features::new(),
                did: &mut did,
            };
            walk.run()?;
            let new = walk.met.clone();
            if !new.is_subset(&met) {
                met.extend(new);
                break;
            }
        }
        if !progress {
            break;
        }
    }
    // A CPU that needs none of them is one variant; that no CPU gets one is a mistake.
    for piece in [CLEAR_BUFFERS, RSB, UNTRAIN].into_iter().filter(|piece| !did.contains(piece)) {
        let what = format!("{piece}{} does nothing in any variant", if encrypted { ENCRYPTED_SUFFIX } else { "" });
        report.findings.push(Finding { place: module.describe(entry), what });
    }
    if encrypted { Ok(()) } else { listing::listing(module, patches, entry, report) }
}

/// The kernel's exception table: where execution goes on after a fault, and how.
fn fixups(module: &Module) -> HashMap<Place, (Place, u32)> {
    let mut all = HashMap::new();
    for (section, data) in module.sections_named("__ex_table") {
        for (n, entry) in data.chunks_exact(12).enumerate() {
            let at = Place { section, offset: 12 * n as u64 };
            let kind = u32::from_le_bytes([entry[8], entry[9], entry[10], entry[11]]);
            if let (Some(Target::Here(from)), Some(Target::Here(to))) =
                (module.pointer(at), module.pointer(at.after(4)))
            {
                all.insert(from, (to, kind));
            }
        }
    }
    all
}

impl Walk<'_> {
    fn run(&mut self) -> Result<()> {
        let mut instructions = HashSet::new();
        while let Some(state) = self.todo.pop() {
            if !self.seen.insert(state.clone()) {
                continue;
            }
            ensure!(self.seen.len() < MOST_STATES, "the paths do not end");
            instructions.insert(state.at);
            self.step(state)?;
        }
        let names = self.features.iter().map(|f| format!("{}*32+{}", f / 32, f % 32)).collect();
        self.report.variants.push((names, instructions.len()));
        Ok(())
    }

    fn finding(&mut self, at: Place, what: impl Into<String>) {
        self.report.findings.push(Finding { place: self.module.describe(at), what: what.into() });
    }

    fn step(&mut self, mut s: State) -> Result<()> {
        // The end of a replacement.
        if let Some((end, to)) = s.resume.last().copied() {
            if s.at == end {
                s.resume.pop();
                s.at = to;
                self.todo.push(s);
                return Ok(());
            }
        }
        self.pieces(&mut s);
        self.met.extend(self.patches.features_at(s.at));
        if let Some(a) = self.patches.at(s.at, &self.features) {
            let after = s.at.after(a.site_len);
            match a.replacement_len {
                0 => s.at = after,
                len => {
                    s.resume.push((a.replacement.after(len), after));
                    s.at = a.replacement;
                }
            }
            self.todo.push(s);
            return Ok(());
        }
        let at = s.at;
        if let Some(why) = self.patches.live(at).filter(|_| s.stage > Stage::Entry) {
            self.finding(at, format!("may be rewritten while the kernel runs ({why})"));
        }
        let d = self.module.decode(at)?;
        self.arguments(&s, &d.insn);
        let (field, cpu_field) = s.uses(&d, self.cpu_data);
        self.report.fields.extend(field);
        self.report.cpu_fields.extend(cpu_field);
        let next = at.after(d.insn.len() as u64);
        // The decoder's tables have VMRUN among the calls; for the host it is an instruction like others.
        let flow = if d.insn.mnemonic() == Mnemonic::Vmrun { FlowControl::Next } else { d.insn.flow_control() };
        match flow {
            FlowControl::Next => {
                if matches!(d.insn.mnemonic(), Mnemonic::Vmload | Mnemonic::Vmsave | Mnemonic::Vmrun) {
                    self.fault(&s);
                    if s.faulted {
                        return Ok(());
                    }
                }
                if d.insn.mnemonic() == Mnemonic::Verw && s.piece == Some(CLEAR_BUFFERS) {
                    self.did.insert(CLEAR_BUFFERS);
                }
                for what in s.step(&d, self.cpu_data) {
                    self.finding(at, what);
                }
                let depth = 8 * (1 + s.stack.len());
                self.report.stack = self.report.stack.max(depth);
                if depth > MOST_STACK {
                    self.finding(at, format!("the stack is {depth} bytes deep"));
                    return Ok(());
                }
                s.at = next;
                self.todo.push(s);
            }
            FlowControl::UnconditionalBranch => self.jump(s, d.branch),
            FlowControl::ConditionalBranch => {
                let (mut taken, mut not) = (s.clone(), s);
                not.at = next;
                self.condition(at, &mut taken, &mut not, d.insn.condition_code());
                self.jump(taken, d.branch);
                self.todo.push(not);
            }
            FlowControl::Call => self.call(s, next, d.branch),
            FlowControl::Return => self.ret(&s),
            FlowControl::IndirectBranch | FlowControl::IndirectCall => {
                self.finding(at, "an indirect branch");
            }
            // UD2 behind a fault that is a bug, INT3 where nothing gets.
            _ if s.faulted || d.insn.mnemonic() == Mnemonic::Int3 => {}
            _ => self.finding(at, "the path ends"),
        }
        Ok(())
    }

    /// Entering and leaving the kernel's mitigations.
    fn pieces(&mut self, s: &mut State) {
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

    /// Which arguments are read: a register that holds what it held at the entry, saving and restoring apart.
    fn arguments(&mut self, s: &State, insn: &iced_x86::Instruction) {
        if s.stage == Stage::Untrained || matches!(insn.mnemonic(), Mnemonic::Push | Mnemonic::Pop) {
            return;
        }
        let mut factory = InstructionInfoFactory::new();
        for u in factory.info(insn).used_registers() {
            let reads = !matches!(u.access(), OpAccess::Write | OpAccess::CondWrite);
            if let Some(n) = gpr(u.register()).filter(|n| reads && s.regs[usize::from(*n)] == Value::Initial(*n)) {
                if TOO_MANY_ARGUMENTS.contains(&n) {
                    self.finding(s.at, "a fourth argument is read");
                }
                if ARGUMENTS.contains(&n) {
                    self.report.arguments.insert(n);
                }
            }
        }
    }

    /// The instruction faults: its entry in the exception table.
    fn fault(&mut self, s: &State) {
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
        let mut back = State { regs: [Value::Unknown; 16], flags: Flags::Other, stack_lost: true, ..s.clone() };
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

    fn jump(&mut self, mut s: State, to: Option<Target>) {
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
    fn condition(&mut self, at: Place, taken: &mut State, not: &mut State, condition: ConditionCode) {
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

    fn call(&mut self, mut s: State, next: Place, to: Option<Target>) {
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

    fn ret(&mut self, s: &State) {
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
