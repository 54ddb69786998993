//! `./x verify MODULE.ko`: the rules of the world switch, proved on the binary.

use crate::env::Env;
use anyhow::{Context, Result, ensure};
use std::{collections::BTreeSet, fs, path::Path};
use verify::{Finding, Layout, Report, Text};

/// Checks a module with the world switch in it. Errors: the rules that it breaks.
pub fn module(file: &Path) -> Result<Report> {
    let report = verify::check(&read(file)?).with_context(|| format!("{}", file.display()))?;
    nothing_broken(file, &report.findings)?;
    ensure!(report.callers > 0, "{}: nobody enters the world switch with GIF clear", file.display());
    Ok(report)
}

/// The page that shows what is found at each instruction.
const DOCUMENT: &str = "docs/world-switch.md";

/// Checks that the page shows what is found in this module. Errors: it shows something else.
pub fn document(env: &Env, report: &Report) -> Result<()> {
    let page = fs::read_to_string(env.root.join(DOCUMENT))?;
    let shown = verify::block(&page, verify::MARKS).with_context(|| format!("{DOCUMENT} has no place for it"))?;
    let found = report.document.trim_matches('\n');
    ensure!(shown == found, "{DOCUMENT} does not show what was found: ./x verify MODULE.ko --document writes it");
    Ok(())
}

/// Writes what is found at each instruction into the page.
pub fn write_document(env: &Env, file: &Path) -> Result<()> {
    let report = module(file)?;
    let page = env.root.join(DOCUMENT);
    let text = verify::with_block(&fs::read_to_string(&page)?, verify::MARKS, &report.document);
    fs::write(&page, text.with_context(|| format!("{DOCUMENT} has no place for it"))?)?;
    Ok(())
}

/// Checks the code of any module. Errors: where it returns or branches past the kernel's thunks.
pub fn text(file: &Path) -> Result<Text> {
    let text = verify::text(&read(file)?).with_context(|| format!("{}", file.display()))?;
    nothing_broken(file, &text.findings)?;
    Ok(text)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("reading {}", file.display()))
}

fn nothing_broken(file: &Path, findings: &[Finding]) -> Result<()> {
    let broken: Vec<String> = findings.iter().map(Finding::to_string).collect();
    ensure!(broken.is_empty(), "{} breaks the rules of the world switch:\n{}", file.display(), broken.join("\n"));
    Ok(())
}

/// Checks and says what was proved; with `listing` also the common path, with `costs` its costly instructions.
pub fn command(file: &Path, listing: bool, costs: bool) -> Result<()> {
    if !verify::has_world_switch(&read(file)?)? {
        println!("{}: there is no world switch in it", file.display());
        say_text(&text(file)?);
        return Ok(());
    }
    let report = module(file)?;
    let features: BTreeSet<&String> = report.variants.iter().flat_map(|(features, _)| features).collect();
    let features: Vec<&str> = features.into_iter().map(String::as_str).collect();
    println!(
        "{}: on every path, with every fault, in each of the {} variants that the kernel makes of it\n(CPU features {}):",
        file.display(),
        report.variants.len(),
        features.join(", ")
    );
    for fact in [
        "no RET, indirect branch or call between the guest's SPEC_CTRL and the end of untraining, but the kernel's own; \
         buffers, return stack and prediction are cleaned where the kernel's macros do so on some CPU",
        "every register is the guest's at VMRUN, stored behind it, and cleared or the caller's at the first RET",
        "SPEC_CTRL is written only where it differs, read back where the guest may write it, and the host's at the first RET",
        "GS is not used while it is the guest's; the host save area is fetched before",
        "VMLOAD, VMRUN and VMSAVE have entries in the exception table, and their fixups keep to the same rules",
        "the order is: SPEC_CTRL, VMLOAD, buffers, VMRUN, VMSAVE, VMLOAD, return stack, SPEC_CTRL, untraining, RET",
        "no address and no branch depends on the guest; no segment, control or debug register is written",
    ] {
        println!("  {fact}");
    }
    println!("  the stack is at most {} bytes deep", report.stack);
    let (all, longest) = report.fast;
    println!(
        "  hsave_fast: none of its {all} instructions calls, returns, loops, branches indirectly or uses a segment;"
    );
    println!("  at most {longest} of them come between #VMEXIT and what follows");
    println!("  {} arguments are read, and no register that would carry a fourth", report.arguments.len());
    println!("  offsets are those of the Rust types: {}", offsets(&report));
    println!("  {} place(s) from CLGI to STGI call nothing that can be traced", report.callers);
    say_text(&report.text);
    if costs {
        for (name, count) in &report.costs {
            println!("  {count} {name} on the common path");
        }
    }
    if listing {
        println!("\nThe common path:\n{}", report.listing.join("\n"));
    }
    Ok(())
}

fn say_text(text: &Text) {
    println!(
        "  in all of its {} instructions: no plain RET ({} jumps to the kernel's return thunk), nothing indirect but {} by \
         the kernel's thunks and {} paravirtual calls that the kernel makes direct; no function takes more than {} bytes of \
         stack ({})",
        text.instructions, text.returns, text.indirect, text.paravirtual, text.stack.0, text.stack.1
    );
}

/// The fields that are used, by name; the registers' array is one.
fn offsets(report: &Report) -> String {
    let field = |at: i64| format!("{} at {at}", Layout::name_of(at).unwrap_or("?"));
    let registers = report.fields.iter().filter(|at| Layout::is_register(**at)).count();
    let fields = report.fields.iter().filter(|at| !Layout::is_register(**at)).map(|at| field(*at));
    let own =
        report.cpu_fields.iter().map(|at| format!("{} of the CPU at {at}", Layout::cpu_name_of(*at).unwrap_or("?")));
    format!("{registers} registers from {}, {}", Layout::REGS, fields.chain(own).collect::<Vec<_>>().join(", "))
}
