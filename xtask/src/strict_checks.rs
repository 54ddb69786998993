//! The strict processor's checks, each made to fire by a small hypervisor that breaks one rule on purpose
//! (`strict/checks/checks.S`), so that a check that cannot fire is noticed.

use crate::{
    env::Env,
    image::Tools,
    proc,
    strict::{self, FEATURES},
    verdict::reports,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What is broken, and how each report of it begins; nothing is reported where that is empty.
const CHECKS: &[(&str, &str)] = &[
    ("nothing", ""),
    ("stale_page", "stale translation 1: cpu 0"),
    ("stale_rights", "stale translation 1: cpu 0"),
    ("clean_bit", "clean bits 1: cpu 0"),
    ("asid_0", "rule 1: cpu 0"),
    ("gif", "rule 1: cpu 0"),
    ("asid_reused", "rule 1: cpu 0"),
    ("no_hsave", "rule 1: cpu 0"),
    ("no_such_asid", "rule 1: cpu 0"),
    ("shadow", "interrupt shadow 1: cpu 0"),
    ("reserved", "vmcb 1: cpu 0"),
    ("first_ret", "left-over 1: cpu 0"),
    ("untrained", ""),
    ("second_ret", "left-over 1: cpu 0"),
    ("msr_in_user", "left-over 1: cpu 0"),
    ("fpu_in_user", "left-over 1: cpu 0"),
    ("no_barrier", "prediction 1: cpu 0"),
    ("exit_lme", ""),
    ("pae_entries", ""),
    ("refused_flush", "stale translation 1: cpu 0"),
    ("at_nmi", "left-over 1: cpu 0"),
    ("at_switch", "left-over 1: cpu 0"),
];

/// What the programs leave the emulator with when the guest did what it should: it is half the value, and odd.
const PASSED: i32 = 1;

/// Runs them all, if there is a strict processor: where there is none, it has been said.
pub fn run(env: &Env) -> Result<()> {
    let Some(emulator) = strict::fetch(env)? else { return Ok(()) };
    let tools = Tools::fetch(env)?;
    let dir = env.target().join("strict-checks");
    fs::create_dir_all(&dir)?;
    for (name, expected) in CHECKS {
        let program = assemble(env, &dir, name)?;
        let said = start(tools.emulator(&emulator), &program, "")?;
        let found = reports(&said);
        ensure!(found.is_empty() == expected.is_empty(), "{name} is reported so: {found:?}");
        ensure!(found.first().is_none_or(|line| line.starts_with(expected)), "{name} is reported so: {found:?}");
        // The checks can be switched off; the features stay.
        let quiet = start(tools.emulator(&emulator), &program, ",svm-checks=0")?;
        ensure!(reports(&quiet).is_empty(), "{name} is reported though the checks are off: {quiet}");
    }
    Ok(())
}

fn assemble(env: &Env, dir: &Path, name: &str) -> Result<PathBuf> {
    let (object, program) = (dir.join(format!("{name}.o")), dir.join(format!("{name}.bin")));
    let mut cc = Command::new("cc");
    cc.args(["-c", "-x", "assembler-with-cpp"]).arg(format!("-DCHECK={name}")).arg("-o").arg(&object);
    proc::run(cc.arg(env.root.join("strict/checks/checks.S")))?;
    let mut ld = Command::new("ld");
    ld.args(["-Ttext=0x100000", "--oformat=binary", "--entry=start", "-o"]).arg(&program).arg(&object);
    proc::run(&mut ld)?;
    Ok(program)
}

/// What the emulator said; fails unless the program passed.
fn start(mut qemu: Command, program: &Path, more: &str) -> Result<String> {
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-m", "64", "-cpu"]);
    qemu.arg(format!("EPYC,+svm,+npt,{FEATURES}{more}"));
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4", "-kernel"]).arg(program);
    // A program that lost its way stays in a loop.
    let mut timeout = Command::new("timeout");
    timeout.arg("60").arg(qemu.get_program()).args(qemu.get_args());
    let output = proc::output(&mut timeout)?;
    let said = proc::both(&output);
    ensure!(
        output.status.code().context("no exit status")? == PASSED,
        "{} ended with {}: {said}",
        program.display(),
        output.status
    );
    Ok(said)
}
