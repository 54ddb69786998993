//! What one instruction does to the abstract state, and which rules it breaks.

use crate::module::{Decoded, Place, Target};
use crate::rules::{CPU_DATA, HOST_SPEC_CTRL, Layout, SPEC_CTRL};
use crate::state::{Flags, SpecCtrl, Stage, State, Value};
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedMemory};

/// RAX, RCX, RDX, RSP by encoding.
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RSP: u8 = 4;
/// The vCPU pointer: the first argument, in RDI. The flag: the second, in RSI.
pub const VCPU: Value = Value::Initial(7);
pub const FLAG: Value = Value::Initial(6);
/// The bit of it that is tested.
const NOT_INTERCEPTED: u64 = switch::SPEC_CTRL_NOT_INTERCEPTED as u64;

/// The encoding of a general register, whatever part of it is named.
pub fn gpr(r: Register) -> Option<u8> {
    r.is_gpr().then(|| r.full_register().number() as u8)
}

/// Where a memory operand lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Location {
    /// A field of the vCPU.
    Field(i64),
    /// So many bytes above RSP.
    Stack(u64),
    HostSpecCtrl,
    /// So many bytes into the host save area.
    HostArea(i64),
    Other,
}

/// The offset in our per-CPU data that a symbol and an offset from it mean, if it is there.
type CpuDataAt<'a> = &'a dyn Fn(&Target, i64) -> Option<i64>;

impl State {
    fn reg(&self, r: Register) -> Value {
        gpr(r).map_or(Value::Unknown, |n| self.regs[usize::from(n)])
    }

    fn set(&mut self, r: Register, v: Value) {
        if let Some(n) = gpr(r) {
            self.regs[usize::from(n)] = v;
        }
    }

    /// Has the register something of the guest's?
    pub fn is_the_guests(v: Value) -> bool {
        match v {
            Value::Guest(_) | Value::Tainted => true,
            Value::Field(at) => (Layout::REGS..Layout::VMCB01).contains(&at),
            _ => false,
        }
    }

    fn location(&self, d: &Decoded) -> Location {
        let i = &d.insn;
        let symbol = match &d.memory {
            Some((Target::Extern(name), by)) => Some((name.clone(), *by)),
            _ => None,
        };
        if i.segment_prefix() == Register::GS {
            return match symbol {
                Some((name, 0)) if name == HOST_SPEC_CTRL => Location::HostSpecCtrl,
                _ => Location::Other,
            };
        }
        if i.memory_index() != Register::None {
            return Location::Other;
        }
        let disp = i.memory_displacement64() as i64;
        match i.memory_base() {
            Register::RSP => Location::Stack(disp as u64),
            base if gpr(base).is_some() && self.reg(base) == VCPU => Location::Field(disp),
            base if gpr(base).is_some() && self.reg(base) == Value::HsaveVa => Location::HostArea(disp),
            _ => Location::Other,
        }
    }

    /// The field of the vCPU and that of the per-CPU data that an instruction's memory operand is.
    pub fn uses(&self, d: &Decoded, module_cpu_data: Option<Place>) -> (Option<i64>, Option<i64>) {
        let field = match self.location(d) {
            Location::Field(at) => Some(at),
            _ => None,
        };
        let cpu = d.memory.as_ref().filter(|_| d.insn.segment_prefix() == Register::GS);
        (field, cpu.and_then(|(target, by)| cpu_data_at(target, *by, module_cpu_data)))
    }

    fn load(&self, d: &Decoded, cpu_data: CpuDataAt) -> Value {
        if d.insn.segment_prefix() == Register::GS {
            match d.memory.as_ref().and_then(|(target, by)| cpu_data(target, *by)) {
                Some(Layout::HSAVE_PA) => return Value::HsavePa,
                Some(Layout::HSAVE_VA) => return Value::HsaveVa,
                _ => {}
            }
        }
        match self.location(d) {
            Location::Field(at) => Value::Field(at),
            Location::Stack(up) if up % 8 == 0 => {
                let n = self.stack.len().checked_sub(1 + (up / 8) as usize);
                n.map_or(Value::Unknown, |n| self.stack[n])
            }
            Location::HostSpecCtrl => Value::HostSpecCtrl,
            Location::Stack(_) | Location::HostArea(_) | Location::Other => Value::Unknown,
        }
    }

    fn source(&self, d: &Decoded, operand: u32, cpu_data: CpuDataAt) -> Value {
        let i = &d.insn;
        match i.op_kind(operand) {
            OpKind::Register => self.reg(i.op_register(operand)),
            OpKind::Memory => self.load(d, cpu_data),
            _ => i.try_immediate(operand).map_or(Value::Unknown, Value::Const),
        }
    }

    /// Carries out everything that is no branch. Returns the rules that it breaks.
    pub fn step(&mut self, d: &Decoded, module_cpu_data: Option<Place>) -> Vec<String> {
        let i = &d.insn;
        let mut wrong = Vec::new();
        let cpu_data = |target: &Target, by: i64| cpu_data_at(target, by, module_cpu_data);
        if uses_gs(i) && self.gs_is_the_guests() {
            wrong.push("GS is used while it is the guest's".to_owned());
        }
        let address = [i.memory_base(), i.memory_index()];
        if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
            && address.iter().any(|r| gpr(*r).is_some_and(|n| State::is_the_guests(self.regs[usize::from(n)])))
        {
            wrong.push("an address of the guest's is used".to_owned());
        }
        // What was cleared fills again with whatever is loaded.
        if !matches!(i.mnemonic(), Mnemonic::Vmrun | Mnemonic::Nop) {
            self.buffers_clear = false;
        }
        if self.restores_stack(d) {
            if self.stack_noted != Some(self.stack.len()) {
                wrong.push("the stack pointer is loaded, and was not stored here".to_owned());
            }
            self.stack_lost = false;
            return wrong;
        }
        if self.stack_lost {
            wrong.push("something comes before the stack pointer is back".to_owned());
        }
        match i.mnemonic() {
            Mnemonic::Push => {
                let v = self.source(d, 0, &cpu_data);
                self.stack.push(v);
            }
            Mnemonic::Pop => match self.stack.pop() {
                Some(v) => self.set(i.op0_register(), v),
                None => wrong.push("the stack holds nothing of ours to pop".to_owned()),
            },
            Mnemonic::Mov => self.mov(d, &cpu_data, &mut wrong),
            Mnemonic::Xor
                if i.op0_kind() == OpKind::Register
                    && i.op1_kind() == OpKind::Register
                    && i.op0_register() == i.op1_register() =>
            {
                self.set(i.op0_register(), Value::Const(0));
                self.flags = Flags::Other;
            }
            Mnemonic::Shr => {
                let high = match (self.reg(i.op0_register()), i.try_immediate(1)) {
                    (Value::HostSpecCtrl, Ok(32)) => Value::SpecCtrlHigh(true),
                    (Value::Field(at), Ok(32)) if at == Layout::SPEC_CTRL => Value::SpecCtrlHigh(false),
                    (v, _) => derived(v),
                };
                self.set(i.op0_register(), high);
                self.flags = Flags::Other;
            }
            Mnemonic::Cmp => {
                let (a, b) = (self.source(d, 0, &cpu_data), self.source(d, 1, &cpu_data));
                let guest = Value::Field(Layout::SPEC_CTRL);
                let specs = (a, b) == (Value::HostSpecCtrl, guest) || (a, b) == (guest, Value::HostSpecCtrl);
                self.flags = if specs { Flags::SpecCtrl } else { Flags::Other };
                if State::is_the_guests(a) || State::is_the_guests(b) {
                    self.flags = Flags::Guest;
                }
                if specs && self.read_back != 0 {
                    wrong.push("SPEC_CTRL is compared before the guest's value was read back".to_owned());
                }
            }
            Mnemonic::Test => {
                let (a, b) = (self.source(d, 0, &cpu_data), self.source(d, 1, &cpu_data));
                self.flags = match (a, b) {
                    (FLAG, Value::Const(NOT_INTERCEPTED)) => Flags::ReadBack,
                    _ if State::is_the_guests(a) || State::is_the_guests(b) => Flags::Guest,
                    _ => Flags::Other,
                };
            }
            Mnemonic::Rdmsr => {
                let read = match self.regs[RCX] {
                    Value::Const(SPEC_CTRL) => (Value::ReadBack(false), Value::ReadBack(true)),
                    _ => (Value::Unknown, Value::Unknown),
                };
                (self.regs[RAX], self.regs[RDX]) = read;
            }
            Mnemonic::Wrmsr => self.wrmsr(&mut wrong),
            Mnemonic::Add if i.op0_register() == Register::RSP => match i.try_immediate(1) {
                Ok(n) if n % 8 == 0 && n / 8 <= self.stack.len() as u64 => {
                    self.stack.truncate(self.stack.len() - (n / 8) as usize);
                }
                _ => wrong.push("the stack pointer is moved above our frame".to_owned()),
            },
            Mnemonic::Vmload | Mnemonic::Vmsave | Mnemonic::Vmrun => self.svm(i, &mut wrong),
            Mnemonic::Stgi | Mnemonic::Clgi => wrong.push("GIF is changed inside of the assembly".to_owned()),
            _ => self.other(i, &mut wrong),
        }
        wrong
    }

    fn restores_stack(&self, d: &Decoded) -> bool {
        let to_stack = d.insn.op0_kind() == OpKind::Register && d.insn.op0_register() == Register::RSP;
        d.insn.mnemonic() == Mnemonic::Mov && to_stack && self.location(d) == Location::Field(Layout::STACK)
    }

    fn mov(&mut self, d: &Decoded, cpu_data: CpuDataAt, wrong: &mut Vec<String>) {
        let i = &d.insn;
        let value = self.source(d, 1, cpu_data);
        if i.op0_kind() == OpKind::Register && gpr(i.op0_register()).is_none() {
            return wrong.push("a segment, control or debug register is written".to_owned());
        }
        if i.op0_kind() == OpKind::Register {
            let value = match value {
                // Half of a register that is loaded whole elsewhere.
                Value::Field(at) if i.op0_register().size() != 8 && at != Layout::FAULTED => derived(value),
                v => v,
            };
            return self.set(i.op0_register(), value);
        }
        match self.location(d) {
            Location::HostArea(at) => self.keep(at, value, wrong),
            Location::Field(at) if (Layout::REGS..Layout::VMCB01).contains(&at) => match value {
                Value::Guest(n) if at == Layout::REGS + 8 * i64::from(n) => self.stored |= 1 << n,
                // SVM is off: the guest did not run, and these are its registers still.
                Value::Field(from) if self.faulted && from == at => self.stored |= 1 << ((at - Layout::REGS) / 8),
                _ => wrong.push("a field of the guest's registers gets something else".to_owned()),
            },
            Location::Field(at) if at == Layout::SPEC_CTRL && value == Value::ReadBack(false) => self.read_back &= !1,
            Location::Field(at) if at == Layout::SPEC_CTRL + 4 && value == Value::ReadBack(true) => {
                self.read_back &= !2
            }
            Location::Field(at) if at == Layout::FAULTED && self.faulted => {}
            Location::Field(at) if at == Layout::FAST && self.faulted && value == Value::Const(0) => {
                self.no_fast = true
            }
            Location::Field(at) if at == Layout::STACK && value == Value::Initial(RSP) => {
                self.stack_noted = Some(self.stack.len());
            }
            Location::Field(at) => wrong.push(format!("offset {at:#x} of the vCPU is written")),
            Location::Stack(up) if up % 8 == 0 && up / 8 < self.stack.len() as u64 => {
                let n = self.stack.len() - 1 - (up / 8) as usize;
                self.stack[n] = value;
            }
            // The mitigations keep books of the call depth in the kernel's per-CPU data.
            _ if self.piece.is_some() && i.segment_prefix() == Register::GS => {}
            _ => wrong.push("memory that is not the vCPU's is written".to_owned()),
        }
    }

    fn wrmsr(&mut self, wrong: &mut Vec<String>) {
        if self.regs[RCX] != Value::Const(SPEC_CTRL) {
            wrong.push("an MSR other than SPEC_CTRL is written".to_owned());
            return;
        }
        let written = (self.regs[RAX], self.regs[RDX]);
        match self.spec_ctrl {
            SpecCtrl::WriteDue if written == (Value::Field(Layout::SPEC_CTRL), Value::SpecCtrlHigh(false)) => {
                self.spec_ctrl = SpecCtrl::Guest;
            }
            SpecCtrl::RestoreDue if written == (Value::HostSpecCtrl, Value::SpecCtrlHigh(true)) => {
                self.spec_ctrl = SpecCtrl::Back;
            }
            SpecCtrl::WriteDue | SpecCtrl::RestoreDue => wrong.push("SPEC_CTRL gets the wrong value".to_owned()),
            _ => wrong.push("SPEC_CTRL is written where the values do not differ".to_owned()),
        }
    }

    fn svm(&mut self, i: &Instruction, wrong: &mut Vec<String>) {
        if self.encrypted {
            return self.svm_encrypted(i, wrong);
        }
        let operand = self.regs[RAX];
        let mut must = |ok: bool, what: &str| {
            if !ok {
                wrong.push(what.to_owned());
            }
        };
        match i.mnemonic() {
            Mnemonic::Vmload if self.stage == Stage::Entry => {
                must(operand == Value::Field(Layout::VMCB01), "VMLOAD of something else than the vCPU's own VMCB");
                must(self.spec_ctrl == SpecCtrl::Guest, "VMLOAD before SPEC_CTRL is the guest's");
                self.stage = Stage::GuestLoaded;
            }
            Mnemonic::Vmrun => {
                must(self.stage == Stage::GuestLoaded, "VMRUN before the guest's VMLOAD");
                must(operand == Value::Field(Layout::VMCB), "VMRUN of something else than the current VMCB");
                must(self.buffers_clear, "VMRUN without clearing of CPU buffers before it");
                for n in (0..16u8).filter(|n| ![RAX as u8, RSP].contains(n)) {
                    let want = Value::Field(Layout::REGS + 8 * i64::from(n));
                    let ok = self.regs[usize::from(n)] == want;
                    must(ok, &format!("VMRUN with register {n} not the guest's"));
                    self.regs[usize::from(n)] = Value::Guest(n);
                }
                self.stage = Stage::Ran;
                self.spec_ctrl = SpecCtrl::Dirty;
            }
            Mnemonic::Vmsave => {
                must(self.stage == Stage::Ran, "VMSAVE elsewhere than right after the guest");
                must(operand == Value::Field(Layout::VMCB01), "VMSAVE to something else than the vCPU's own VMCB");
                self.stage = Stage::Saved;
            }
            _ => {
                must(self.stage == Stage::Saved, "VMLOAD of the host before the guest's state is saved");
                must(operand == Value::HsavePa, "VMLOAD of something else than the host save area");
                self.stage = Stage::HostLoaded;
            }
        }
    }

    /// Everything else changes what it writes; something of the guest's makes more of it.
    fn other(&mut self, i: &Instruction, wrong: &mut Vec<String>) {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(i);
        let reads = |a: OpAccess| !matches!(a, OpAccess::Write | OpAccess::CondWrite | OpAccess::NoMemAccess);
        let writes = |a: OpAccess| !matches!(a, OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
        let guests = info.used_registers().iter().any(|u| {
            reads(u.access()) && gpr(u.register()).is_some_and(|n| Self::is_the_guests(self.regs[n as usize]))
        });
        for u in info.used_registers() {
            if writes(u.access()) && gpr(u.register()).is_some_and(|n| n == RSP) {
                wrong.push("the stack pointer is changed".to_owned());
            } else if writes(u.access()) {
                self.set(u.register(), if guests { Value::Tainted } else { Value::Unknown });
            }
        }
        let stores = |m: &UsedMemory| writes(m.access());
        let system = |r: Register| r.is_segment_register() || r.is_cr() || r.is_dr();
        if info.used_registers().iter().any(|u| writes(u.access()) && system(u.register())) || uses_gs_base(i) {
            wrong.push("a segment, control or debug register is written".to_owned());
        }
        if info.used_memory().iter().any(stores) {
            wrong.push("memory is written in an unknown way".to_owned());
        }
        if i.rflags_modified() != 0 {
            self.flags = if guests { Flags::Guest } else { Flags::Other };
        }
    }
}

/// The offset in our per-CPU data, which the module defines at `start` or refers to by name.
fn cpu_data_at(target: &Target, by: i64, start: Option<Place>) -> Option<i64> {
    match target {
        Target::Extern(name) => (name == CPU_DATA).then_some(by),
        Target::Here(p) => {
            let start = start.filter(|start| start.section == p.section)?;
            Some(p.after(by as u64).offset.wrapping_sub(start.offset) as i64)
        }
    }
}

fn uses_gs_base(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Mnemonic::Swapgs | Mnemonic::Wrgsbase | Mnemonic::Wrfsbase)
}

fn derived(v: Value) -> Value {
    if State::is_the_guests(v) { Value::Tainted } else { Value::Unknown }
}

fn uses_gs(i: &Instruction) -> bool {
    i.segment_prefix() == Register::GS
        || matches!(i.mnemonic(), Mnemonic::Swapgs | Mnemonic::Rdgsbase | Mnemonic::Wrgsbase)
}
