//! Every path through the assembly, in every combination of patches.

use crate::listing;
use crate::module::{Module, Place, Target};
use crate::patches::{Features, Patches};
use crate::rules::{
    ARGUMENTS, CLEAR_BUFFERS, CPU_DATA, ENCRYPTED_SUFFIX, MOST_STACK, RSB, TOO_MANY_ARGUMENTS, UNTRAIN,
};
use crate::state::{Stage, State, Value};
use crate::step::gpr;
use crate::{Finding, Report};
use anyhow::{Result, ensure};
use iced_x86::{FlowControl, InstructionInfoFactory, Mnemonic, OpAccess};
use std::collections::{HashMap, HashSet};

/// States on all paths of one variant: far more than there are, far less than would take long.
const MOST_STATES: usize = 100_000;

/// One variant's walk.
pub struct Walk<'a> {
    pub module: &'a Module,
    pub patches: &'a Patches,
    pub features: Features,
    pub fixups: &'a HashMap<Place, (Place, u32)>,
    pub cpu_data: Option<Place>,
    pub report: &'a mut Report,
    pub seen: HashSet<State>,
    pub todo: Vec<State>,
    /// Features met that are decided by a patch.
    pub met: Features,
    /// Mitigations that do something, in this variant or another.
    pub did: &'a mut HashSet<&'static str>,
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
    let suffix = if encrypted { ENCRYPTED_SUFFIX } else { "" };
    for piece in [CLEAR_BUFFERS, RSB, UNTRAIN].into_iter().filter(|piece| !did.contains(piece)) {
        let what = format!("{piece}{suffix} does nothing in any variant");
        report.findings.push(Finding { place: module.describe(entry), what });
    }
    let named = [CLEAR_BUFFERS, RSB, UNTRAIN].into_iter().filter(|piece| did.contains(piece));
    report.pieces.extend(named.filter_map(|piece| Some((module.symbol(&format!("{piece}{suffix}"))?, piece))));
    if encrypted { Ok(()) } else { listing::listing(module, patches, entry, report) }
}

/// The kernel's exception table: where execution goes on after a fault, and how.
pub fn fixups(module: &Module) -> HashMap<Place, (Place, u32)> {
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

    pub fn finding(&mut self, at: Place, what: impl Into<String>) {
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
        if s.piece.is_none() {
            let facts = if s.encrypted { &mut self.report.encrypted_facts } else { &mut self.report.facts };
            facts.entry(at).or_default().note(&s);
        }
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
}
