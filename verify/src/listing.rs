//! The world switch as it runs nearly always, for people to read.

use crate::Report;
use crate::module::{Module, Place, Target};
use crate::patches::{Features, Patches};
use anyhow::Result;
use iced_x86::{FlowControl, Mnemonic};

/// The way that is nearly always taken: no patch, no fault, no SPEC_CTRL write.
pub fn listing(module: &Module, patches: &Patches, entry: Place, report: &mut Report) -> Result<()> {
    let (mut at, mut resume, features) = (entry, Vec::new(), Features::new());
    for _ in 0..1000 {
        if let Some((end, to)) = resume.last().copied() {
            if at == end {
                resume.pop();
                at = to;
                continue;
            }
        }
        if let Some(a) = patches.at(at, &features) {
            let after = at.after(a.site_len);
            if a.replacement_len != 0 {
                resume.push((a.replacement.after(a.replacement_len), after));
            }
            at = if a.replacement_len == 0 { after } else { a.replacement };
            continue;
        }
        let d = module.decode(at)?;
        let i = &d.insn;
        let mut text = format!("{i}").to_lowercase();
        if let Some(Target::Extern(name)) = &d.branch {
            text = format!("{} {name}", text.split(' ').next().unwrap_or_default());
        } else if let Some(Target::Here(to)) = &d.branch {
            let name = module.name_at(*to).map_or_else(|| module.describe(*to), str::to_owned);
            text = format!("{} {name}", text.split(' ').next().unwrap_or_default());
        } else if let Some((Target::Extern(name), by)) = &d.memory {
            text = format!("{text} ; {name}{by:+}");
        }
        if let Some(name) = module.name_at(at) {
            report.listing.push(format!("{name}:"));
        }
        report.listing.push(format!("    {text}"));
        if let Some(name) = costly(i) {
            *report.costs.entry(name).or_default() += 1;
        }
        at = match (i.flow_control(), d.branch) {
            (FlowControl::UnconditionalBranch, Some(Target::Here(to))) => to,
            (FlowControl::Next | FlowControl::ConditionalBranch, _) => at.after(i.len() as u64),
            (FlowControl::Call, Some(Target::Here(to))) => to,
            (FlowControl::Call, _) => at.after(i.len() as u64),
            _ => return Ok(()),
        };
    }
    // A loop, which the walk has met as well.
    Ok(())
}

fn costly(i: &iced_x86::Instruction) -> Option<&'static str> {
    Some(match i.mnemonic() {
        Mnemonic::Vmload => "VMLOAD",
        Mnemonic::Vmsave => "VMSAVE",
        Mnemonic::Vmrun => "VMRUN",
        Mnemonic::Wrmsr => "WRMSR",
        Mnemonic::Rdmsr => "RDMSR",
        Mnemonic::Verw => "VERW",
        Mnemonic::Lfence => "LFENCE",
        _ => return None,
    })
}
