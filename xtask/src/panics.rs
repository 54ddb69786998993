//! What can still panic in the module: references into the panic machinery, counted in the one object.
//!
//! A panic in the kernel kills the task and pins the module, so the aim is none (invariant 5). Calls
//! within a section carry no relocation, so the code is disassembled as well.

use crate::{env::Env, object};
use ::object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind};
use anyhow::{Context, Result, ensure};
use iced_x86::{Decoder, DecoderOptions, FlowControl, OpKind};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::Path,
    process::ExitCode,
};

/// Callers that may keep panicking code: part of their name, how many references, and why.
const ALLOWED: &[(&str, u32, &str)] = &[
    // `try_box` has asked for the room; the compiler does not see that the vector has it and keeps the paths on which it
    // would grow or shrink.
    ("RawVec<vm::cpuid::guest::GuestCpuid>>::grow_one", 1, "room was reserved"),
    ("RawVec<vm::msr::state::MsrState>>::grow_one", 1, "room was reserved"),
    ("RawVec<vm::vcpu::Core<linux::machine::Linux>>>::grow_one", 1, "room was reserved"),
    // Two of it: of the crate mmu, and of its generic types.
    ("RawVecInner<_>>::reserve::do_reserve_and_handle", 4, "room was reserved"),
    ("host::fallible::try_box::<vm::cpuid::guest::GuestCpuid", 1, "the capacity is exact"),
    ("host::fallible::try_box::<vm::mmio::MmioFragments", 1, "the capacity is exact"),
    ("host::fallible::try_box::<vm::msr::state::MsrState", 1, "the capacity is exact"),
    ("host::fallible::try_box::<vm::vcpu::Core", 1, "the capacity is exact"),
    ("host::fallible::try_box::<vm::vm::Vm<", 1, "the capacity is exact"),
];

/// Where panics end up. Callers that are part of this are not counted.
const MACHINERY: &[&str] = &[
    "core::panicking::",
    "core::option::unwrap_failed",
    "core::option::expect_failed",
    "core::result::unwrap_failed",
    "core::cell::panic_already",
    "core::slice::index::slice_",
    "core::slice::copy_from_slice_impl::len_mismatch_fail",
    "core::str::slice_error_fail",
    "alloc::alloc::handle_alloc_error",
    "alloc::raw_vec::handle_error",
    "alloc::raw_vec::capacity_overflow",
    "rust_begin_unwind",
    "len_mismatch_fail",
];

fn is_machinery(name: &str) -> bool {
    MACHINERY.iter().any(|part| name.contains(part))
}

/// References into the panic machinery: (caller, callee) and how many.
pub fn count(object: &[u8]) -> Result<BTreeMap<(String, String), u32>> {
    let file = ::object::File::parse(object)?;
    let mut names: HashMap<_, String> = HashMap::new();
    for symbol in file.symbols() {
        names.insert(symbol.index(), demangle(symbol.name().unwrap_or("")));
    }
    let mut found = BTreeMap::new();
    let mut add = |caller: &str, callee: &str| {
        if is_machinery(callee) && !is_machinery(caller) {
            *found.entry((caller.to_owned(), callee.to_owned())).or_default() += 1;
        }
    };
    for section in file.sections() {
        let functions: BTreeMap<u64, &str> = file
            .symbols()
            .filter(|symbol| symbol.section_index() == Some(section.index()) && symbol.kind() == SymbolKind::Text)
            .filter_map(|symbol| Some((symbol.address(), names.get(&symbol.index())?.as_str())))
            .collect();
        let at = |address: u64| functions.range(..=address).next_back().map_or("?", |(_, name)| *name);
        let mut relocated = HashSet::new();
        for (offset, relocation) in section.relocations() {
            relocated.insert(offset);
            if let RelocationTarget::Symbol(symbol) = relocation.target() {
                let callee = names.get(&symbol).map_or("", String::as_str);
                let caller = if functions.is_empty() { section.name().unwrap_or("?") } else { at(offset) };
                add(caller, callee);
            }
        }
        if section.kind() != ::object::SectionKind::Text {
            continue;
        }
        for (caller, callee) in direct_branches(section.data()?, &relocated) {
            if let Some(name) = functions.get(&callee) {
                add(at(caller), name);
            }
        }
    }
    Ok(found)
}

/// Branches whose operand no relocation covers: (from, to) within the section.
fn direct_branches(code: &[u8], relocated: &HashSet<u64>) -> Vec<(u64, u64)> {
    let mut branches = Vec::new();
    for instruction in &mut Decoder::with_ip(64, code, 0, DecoderOptions::NONE) {
        let branch = matches!(
            instruction.flow_control(),
            FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
        );
        // A relocated near branch has its displacement in the last four bytes.
        let operand = instruction.next_ip().wrapping_sub(4);
        if branch && instruction.op0_kind() == OpKind::NearBranch64 && !relocated.contains(&operand) {
            branches.push((instruction.ip(), instruction.near_branch_target()));
        }
    }
    branches
}

fn demangle(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

/// Fails if there are more than [`ALLOWED`] says.
pub fn gate(_env: &Env, object: &Path) -> Result<()> {
    let found = count(&fs::read(object).with_context(|| format!("cannot read {}", object.display()))?)?;
    let mut left: Vec<u32> = ALLOWED.iter().map(|(_, most, _)| *most).collect();
    let mut wrong = Vec::new();
    for ((caller, callee), mut references) in found {
        for ((name, _, _), left) in ALLOWED.iter().zip(&mut left) {
            if caller.contains(name) {
                let taken = references.min(*left);
                (*left, references) = (*left - taken, references - taken);
            }
        }
        if references > 0 {
            wrong.push(format!("{references} x {caller} -> {callee}"));
        }
    }
    ensure!(wrong.is_empty(), "{} places can panic in the module:\n  {}", wrong.len(), wrong.join("\n  "));
    Ok(())
}

/// `./x panics`: shows them all.
pub fn command(env: &Env) -> Result<ExitCode> {
    let path = object::build(env)?;
    let found = count(&fs::read(path)?)?;
    for ((caller, callee), references) in &found {
        println!("{references:4} {caller}\n       -> {callee}");
    }
    let total: u32 = found.values().sum();
    println!("{total} references to the panic machinery from {} callers", found.len());
    Ok(if total == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
