//! What the inputs reach, crate by crate; and which of them are worth to be kept in the tree.

use super::{Place, Target, command};
use crate::{proc, ui};
use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::ExitCode,
};

/// The crates of the hypervisor that targets reach.
const CRATES: [&str; 8] = ["abi", "arch", "emulator", "host", "irqchip", "mmu", "state", "vm"];

/// Edges that were passed and edges that there are, by crate.
pub fn report(place: &Place, targets: &[Target]) -> Result<ExitCode> {
    let program = fs::read(&place.driver)?;
    let crates = crates_of_edges(&program)?;
    let mut passed: BTreeSet<usize> = BTreeSet::new();
    for target in targets {
        let scratch = place.findings.with_file_name("scratch");
        let edges = ui::step(&target.name, || merge(place, target, &scratch))?;
        proc::remove_dir(&scratch)?;
        passed.extend(edges);
    }
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (edge, name) in crates.iter().enumerate() {
        if let Some(name) = CRATES.into_iter().find(|known| known == name) {
            let (of, all) = counts.entry(name).or_default();
            *of += usize::from(passed.contains(&edge));
            *all += 1;
        }
    }
    println!("| crate | edges | of | |\n|---|---|---|---|");
    for (name, (of, all)) in counts {
        println!("| `{name}` | {of} | {all} | {:.0} % |", 100.0 * of as f64 / all as f64);
    }
    Ok(ExitCode::SUCCESS)
}

/// Replaces the inputs in the tree by the smallest that pass all edges that are passed.
pub fn keep(place: &Place, target: &Target) -> Result<()> {
    let scratch = place.findings.with_file_name("scratch");
    merge(place, target, &scratch)?;
    let kept = place.kept.join(&target.name);
    let before = fs::read_dir(&kept)?.count();
    for file in fs::read_dir(&kept)? {
        fs::remove_file(file?.path())?;
    }
    let mut bytes = 0;
    let mut files = 0;
    for file in fs::read_dir(&scratch)? {
        let content = fs::read(file?.path())?;
        // A name that says what is in it, as short as can be.
        let name = crate::env::key(&[&content.iter().map(|b| format!("{b:02x}")).collect::<String>()]);
        bytes += content.len();
        files += 1;
        fs::write(kept.join(name), content)?;
    }
    proc::remove_dir(&scratch)?;
    println!("{}: {files} inputs of {bytes} bytes, before {before}", target.name);
    Ok(())
}

/// Puts the smallest inputs that pass all edges into `scratch`. Returns the edges.
fn merge(place: &Place, target: &Target, scratch: &Path) -> Result<BTreeSet<usize>> {
    proc::remove_dir(scratch)?;
    fs::create_dir_all(scratch)?;
    let control = scratch.with_extension("control");
    // It would be gone on with.
    fs::remove_file(&control).ok();
    let found = place.corpus.join(&target.name);
    fs::create_dir_all(&found)?;
    let mut command = command(place, target);
    command.args(["-merge=1", "-use_counters=0"]).arg(format!("-merge_control_file={}", control.display()));
    command.arg(scratch).arg(place.kept.join(&target.name)).arg(found);
    proc::run(&mut command)?;
    let text = fs::read_to_string(&control)?;
    fs::remove_file(&control).ok();
    let lines = text.lines().filter_map(|line| line.strip_prefix("COV "));
    // The first number is the input's.
    Ok(lines.flat_map(|line| line.split(' ').skip(1).filter_map(|n| n.parse().ok())).collect())
}

/// For each edge, in the order of the program's table, the crate of the function that it is in.
fn crates_of_edges(program: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(program)?;
    let table = file.section_by_name("__sancov_pcs").context("the driver has no table of edges")?.data()?;
    let mut functions: Vec<(u64, String)> = file
        .symbols()
        .filter(|symbol| symbol.kind() == object::SymbolKind::Text)
        .filter_map(|symbol| Some((symbol.address(), crate_of(symbol.name().ok()?))))
        .collect();
    functions.sort();
    let edges: Vec<String> = table
        .chunks_exact(16)
        .filter_map(|entry| entry.first_chunk::<8>())
        .map(|pc| {
            let pc = u64::from_le_bytes(*pc);
            let at = functions.partition_point(|(start, _)| *start <= pc);
            functions.get(at.wrapping_sub(1)).map_or(String::new(), |(_, name)| name.clone())
        })
        .collect();
    ensure!(edges.iter().any(|name| name == "vm"), "no edge is in the hypervisor");
    Ok(edges)
}

/// The first path in a mangled name: of the function, or of the type that has it.
fn crate_of(mangled: &str) -> String {
    let name = format!("{:#}", rustc_demangle::demangle(mangled));
    let name = name.trim_start_matches(['<', '&', '*', '(', '[']).trim_start_matches("mut ").trim_start_matches("dyn ");
    name.split("::").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crate_of_a_function() {
        assert_eq!(crate_of("_ZN2vm3run4next17h0123456789abcdefE"), "vm");
        assert_eq!(crate_of("_ZN50_$LT$vm..guest..X$u20$as$u20$emulator..Machine$GT$4read17h0123456789abcdefE"), "vm");
    }
}
