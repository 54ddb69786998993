//! What the SEV-ES variant does differently: the processor swaps all registers, and software has to have stored the host's
//! in the host save area (APM 15.35.8, table B-4: swap type B).

use crate::rules::{CALLEE_SAVED, Layout};
use crate::state::{SpecCtrl, Stage, State, Value};
use crate::step::{FLAG, VCPU};
use iced_x86::{Instruction, Mnemonic};

/// RAX, RSP, RSI and RDI by encoding.
const RAX: u8 = 0;
const RSP: u8 = 4;
const RSI: u8 = 6;
const RDI: u8 = 7;

impl State {
    /// A store into the host save area, `at` bytes from its start: each register to its own place.
    pub fn keep(&mut self, at: i64, value: Value, wrong: &mut Vec<String>) {
        if !self.encrypted || self.stage != Stage::Entry {
            return wrong.push("the host save area is written".to_owned());
        }
        match Layout::HOST_GPRS.iter().position(|offset| *offset == Some(at)) {
            Some(n) if value == Value::Initial(n as u8) => self.area[n] = value,
            Some(n) => wrong.push(format!("the host save area gets something else than register {n} at {at:#x}")),
            None => wrong.push(format!("offset {at:#x} of the host save area is written")),
        }
    }

    /// VMRUN; VMLOAD and VMSAVE have no place here.
    pub fn svm_encrypted(&mut self, i: &Instruction, wrong: &mut Vec<String>) {
        let mut must = |ok: bool, what: &str| {
            if !ok {
                wrong.push(what.to_owned());
            }
        };
        if i.mnemonic() != Mnemonic::Vmrun {
            return must(false, "VMLOAD or VMSAVE where the processor swaps the state");
        }
        must(self.stage == Stage::Entry, "VMRUN twice");
        must(self.spec_ctrl == SpecCtrl::Guest, "VMRUN before SPEC_CTRL is the guest's");
        must(
            self.regs[usize::from(RAX)] == Value::Field(Layout::VMCB),
            "VMRUN of something else than the current VMCB",
        );
        must(self.buffers_clear, "VMRUN without clearing of CPU buffers before it");
        for n in CALLEE_SAVED {
            must(self.area[usize::from(n)] == Value::Initial(n), &format!("register {n} is not in the host save area"));
        }
        for (n, argument) in [(RDI, VCPU), (RSI, FLAG)] {
            must(self.area[usize::from(n)] == argument, &format!("argument {n} is not in the host save area"));
        }
        for n in (0..16).filter(|n| ![RAX, RSP].contains(n)) {
            self.regs[usize::from(n)] = self.area[usize::from(n)];
        }
        // The segments as well: GS is the host's right behind it.
        self.stage = Stage::HostLoaded;
        self.spec_ctrl = SpecCtrl::Dirty;
    }
}
