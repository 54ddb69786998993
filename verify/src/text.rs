//! All code of the module: it returns by the kernel's return thunk alone, and goes nowhere indirectly but by the kernel's thunks.

use crate::module::{Decoded, Module, Place, Target};
use crate::patches::Patches;
use crate::rules::{INDIRECT_THUNK, PARAVIRT_OPS, RETURN_THUNK};
use crate::{Finding, Text};
use anyhow::Result;
use iced_x86::FlowControl;

/// Looks at every instruction of every section with code, replacements of alternatives included.
pub fn check(module: &Module, patches: &Patches) -> Result<Text> {
    let mut text = Text::default();
    for (start, len) in module.code() {
        let (mut at, end) = (start, start.after(len));
        while at.offset < end.offset {
            // Bytes that are no instruction would hide what comes behind them.
            let Ok(d) = module.decode(at) else {
                finding(module, &mut text, at, "no instruction");
                break;
            };
            text.instructions += 1;
            one(module, patches, at, &d, &mut text);
            at = at.after(d.insn.len() as u64);
        }
    }
    Ok(text)
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
