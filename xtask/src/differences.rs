//! `docs/vmm.md`: what differs from stock, as the tests know it ([`crate::expected`]).

use crate::{
    env::Env,
    expected::{self, Expected},
};
use anyhow::{Context, Result};
use std::{collections::BTreeMap, fmt::Write as _, fs};

const PAGE: &str = "docs/vmm.md";
/// Where the capabilities have their names.
const CAPABILITIES: &str = "abi/src/uapi/cap.rs";
const MARKS: [&str; 2] = ["<!-- written by `./x tidy --write` -->", "<!-- end of what `./x tidy` has written -->"];

/// A program of the tests, and what its lines are.
const TABLES: &[(&str, &[Expected])] = &[
    ("Capabilities, CPUID, MSRs (program `policy`)", expected::POLICY),
    ("State of a vCPU, and exits (program `state`)", expected::STATE),
    ("Interrupt controllers (program `chips`)", expected::CHIPS),
    ("Instructions at a device (program `emulated`)", expected::EMULATED),
    ("Parameters of the modules", expected::PARAMETERS),
    ("What Linux says as a guest of Hyper-V's", expected::HYPERV),
    ("Trace events (program `trace`)", expected::TRACE),
    ("What perf and trace-cmd print", expected::PERF),
    ("Statistics in debugfs, and uevents (program `trace`)", expected::DEBUGFS),
];

/// What is wrong with the page, for `./x tidy`.
pub fn check(env: &Env) -> Result<Vec<String>> {
    let page = fs::read_to_string(env.root.join(PAGE)).with_context(|| format!("reading {PAGE}"))?;
    let shown = verify::block(&page, MARKS).with_context(|| format!("{PAGE} has no place for the differences"))?;
    let right = shown == render(&capabilities(env)?)?.trim_matches('\n');
    let finding = || format!("{PAGE}: it is not what xtask/src/expected.rs says; run `./x tidy --write`");
    Ok(if right { Vec::new() } else { vec![finding()] })
}

/// Writes the differences into the page.
pub fn write(env: &Env) -> Result<()> {
    let file = env.root.join(PAGE);
    let page = fs::read_to_string(&file).with_context(|| format!("reading {PAGE}"))?;
    let page = verify::with_block(&page, MARKS, &render(&capabilities(env)?)?);
    fs::write(&file, page.with_context(|| format!("{PAGE} has no place for the differences"))?)?;
    Ok(())
}

/// Those that hsave does not know, and so has no names for.
const UNKNOWN: &[(u32, &str)] = &[
    (38, "XEN_HVM"),
    (157, "NESTED_STATE"),
    (173, "PMU_EVENT_FILTER"),
    (196, "SGX_ATTRIBUTE"),
    (197, "VM_COPY_ENC_CONTEXT_FROM"),
    (206, "VM_MOVE_ENC_CONTEXT_FROM"),
    (220, "VM_DISABLE_NX_HUGE_PAGES"),
    (226, "PMU_EVENT_MASKED_EVENTS"),
    (235, "VM_TYPES"),
    (238, "X86_GUEST_MODE"),
];

/// Names by number.
fn capabilities(env: &Env) -> Result<BTreeMap<u32, String>> {
    let text = fs::read_to_string(env.root.join(CAPABILITIES)).with_context(|| format!("reading {CAPABILITIES}"))?;
    let named = |line: &str| {
        let (name, number) = line.trim().strip_suffix(';')?.split_once(" = ")?;
        Some((number.parse().ok()?, format!("KVM_CAP_{name}")))
    };
    let unknown = UNKNOWN.iter().map(|(number, name)| (*number, format!("KVM_CAP_{name}")));
    Ok(text.lines().filter_map(named).chain(unknown).collect())
}

fn render(names: &BTreeMap<u32, String>) -> Result<String> {
    let mut page = String::new();
    for (title, table) in TABLES {
        writeln!(
            page,
            "\n### {title}\n\n| what differs | where; what the program prints is in code font |\n|---|---|"
        )?;
        let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
        for line in *table {
            match (reasons.iter_mut().find(|(why, _)| *why == line.why), line.text) {
                (Some(_), Some(_)) => {}
                (Some((_, lines)), None) => lines.push(shown(line.line, names)),
                (None, Some(text)) => reasons.push((line.why, vec![text.to_owned()])),
                (None, None) => reasons.push((line.why, vec![shown(line.line, names)])),
            }
        }
        for (why, lines) in reasons {
            writeln!(page, "| {why} | {} |", lines.join(", "))?;
        }
    }
    Ok(page)
}

/// A capability by its name, where it has one here, a trace event or a file by its own; anything else as the program prints it.
fn shown(line: &str, names: &BTreeMap<u32, String>) -> String {
    let named = line.strip_prefix("event ").or_else(|| line.strip_prefix("file "));
    if let Some(name) = named {
        return format!("`{}`", name.trim_end_matches([':', ' ']));
    }
    let number = line.strip_prefix("cap ").and_then(|rest| rest.strip_suffix(':')?.parse().ok());
    let name =
        |number: u32| names.get(&number).map_or(format!("capability {number}"), |name| format!("{name} ({number})"));
    number.map_or_else(|| format!("`{}`", line.trim()), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_their_names() {
        let names = BTreeMap::from([(38, "KVM_CAP_XEN_HVM".to_owned())]);
        assert_eq!(shown("cap 38:", &names), "KVM_CAP_XEN_HVM (38)");
        assert_eq!(shown("cap 999:", &names), "capability 999");
        assert_eq!(shown("0f10 f2 ", &names), "`0f10 f2`");
        assert_eq!(shown("event kvm_skinit:", &names), "`kvm_skinit`");
        assert_eq!(shown("file VM/vcpu0/pid ", &names), "`VM/vcpu0/pid`");
    }

    #[test]
    fn each_reason_is_one_row() {
        let page = render(&BTreeMap::new()).unwrap();
        assert_eq!(page.matches("| nested virtualisation |").count(), 4, "one per table that has it");
        assert!(page.contains("| Xen | KVM_CAP_XEN_HVM (38): 511 on stock, 0 here |"));
        assert!(page.contains("| only Intel's processors have it | `kvm_fast_mmio`, "));
        // A text stands once, however many lines it is for.
        assert_eq!(page.matches("KVM_CAP_SGX_ATTRIBUTE").count(), 1);
    }
}
