//! All code of the module: it returns by the kernel's return thunk alone, goes nowhere indirectly but by the kernel's thunks,
//! and no function takes more of the stack than the kernel's own may.

use crate::module::{Decoded, Module, Place, Target};
use crate::patches::Patches;
use crate::rules::{INDIRECT_THUNK, PARAVIRT_OPS, RETURN_THUNK};
use crate::{Finding, Text};
use anyhow::Result;
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

/// Most bytes of stack that a function may take at once: what the kernel is compiled with (CONFIG_FRAME_WARN on x86-64). A
/// kernel stack has 16 KiB.
const MOST_STACK: u64 = 2048;

/// Looks at every instruction of every section with code, replacements of alternatives included.
pub fn check(module: &Module, patches: &Patches) -> Result<Text> {
    let mut text = Text::default();
    for (start, len) in module.code() {
        let (mut at, end) = (start, start.after(len));
        let (mut function, mut stack) = (start, 0);
        while at.offset < end.offset {
            if module.is_function(at) {
                frame(module, &mut text, function, stack);
                (function, stack) = (at, 0);
            }
            // Bytes that are no instruction would hide what comes behind them.
            let Ok(d) = module.decode(at) else {
                finding(module, &mut text, at, "no instruction");
                break;
            };
            text.instructions += 1;
            one(module, patches, at, &d, &mut text);
            // Probes take a large frame page by page.
            match stack_taken(&d.insn) {
                Some(bytes) => stack += bytes,
                None => finding(module, &mut text, at, "takes who knows how much stack"),
            }
            at = at.after(d.insn.len() as u64);
        }
        frame(module, &mut text, function, stack);
    }
    Ok(text)
}

/// Bytes that the instruction takes for local variables; None: it is not in its bytes how many.
fn stack_taken(insn: &Instruction) -> Option<u64> {
    if insn.mnemonic() != Mnemonic::Sub || insn.op0_register() != Register::RSP {
        return Some(0);
    }
    let constant = !matches!(insn.op1_kind(), OpKind::Register | OpKind::Memory);
    // A small one may be written as the addition of its negative.
    constant.then(|| (insn.immediate(1) as i64).max(0) as u64)
}

fn frame(module: &Module, text: &mut Text, function: Place, stack: u64) {
    if stack > text.stack.0 {
        text.stack = (stack, module.describe(function));
    }
    if stack > MOST_STACK {
        finding(module, text, function, &format!("takes {stack} bytes of stack; {MOST_STACK} are the most"));
    }
}

fn finding(module: &Module, text: &mut Text, at: Place, what: &str) {
    text.findings.push(Finding { place: module.describe(at), what: what.to_owned() });
}

fn one(module: &Module, patches: &Patches, at: Place, d: &Decoded, text: &mut Text) {
    // For the host VMRUN is an instruction like others, whatever the decoder's tables say.
    if d.insn.mnemonic() == iced_x86::Mnemonic::Vmrun {
        return;
    }
    match (d.insn.flow_control(), &d.branch, &d.memory) {
        (FlowControl::Return, ..) => finding(module, text, at, "a plain RET"),
        (FlowControl::IndirectCall, _, Some((Target::Extern(name), _)))
            if name == PARAVIRT_OPS && patches.is_site(at) =>
        {
            text.paravirtual += 1;
        }
        (FlowControl::IndirectBranch | FlowControl::IndirectCall, ..) => {
            finding(module, text, at, "goes somewhere indirectly, and not by a thunk of the kernel's");
        }
        (_, Some(Target::Extern(name)), _) if name == RETURN_THUNK => text.returns += 1,
        (_, Some(Target::Extern(name)), _) if name.starts_with(INDIRECT_THUNK) => text.indirect += 1,
        _ => {}
    }
}
