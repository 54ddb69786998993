//! The world switch of i386 in a 32-bit process: `switch/src/tests/i386/main.rs`, with a `core` for i686 that is built as the
//! module's is. The same program with a broken text has to fail.

use crate::{env::Env, proc, rust_src::Rustc, sysroot, ui};
use anyhow::{Result, ensure};
use std::{
    fs,
    path::Path,
    process::{Command, ExitStatus},
};

const TARGET: &str = "i686-unknown-linux-gnu";
const SOURCE: &str = "switch/src/tests/i386/main.rs";

/// Changes of the text that have to be noticed.
const BROKEN: [(&str, &str); 8] = [
    ("    pop ebx\n    pop esi\n", "    pop esi\n    pop ebx\n"),
    ("    xor ecx, ecx\n", ""),
    ("    jnz .Lhsave_read_spec_ctrl\\v\n", ""),
    ("    vmsave \\ax\n", "    mov \\cx, \\percpu:[x86_spec_ctrl_current]\n    vmsave \\ax\n"),
    ("    jne .Lhsave_guest_spec_ctrl\\v\n", "    jmp .Lhsave_guest_spec_ctrl\\v\n"),
    ("    hsave_extable .Lhsave_run, .Lhsave_run_fault\n", ""),
    ("    je .Lhsave_bug\n    mov dword ptr [\\vcpu", "    mov dword ptr [\\vcpu"),
    ("    je .Lhsave_bug\n    mov dword ptr [\\ax", "    mov dword ptr [\\ax"),
];

/// Builds and runs the program with the text as it is, and with each broken one.
pub fn run(env: &Env) -> Result<()> {
    let rustc = Rustc::new(env)?;
    let core = sysroot::core(env, &rustc, TARGET)?;
    let text = fs::read_to_string(env.root.join("switch/src/entry.s"))?;
    let dir = env.target().join("i386");
    fs::create_dir_all(&dir)?;
    ui::step("the world switch in a 32-bit process", || {
        let Some(status) = one(env, &rustc, &core, &dir, &text)? else {
            ui::note("this kernel runs no 32-bit programs: built, not run");
            return Ok(());
        };
        ensure!(status.success(), "{SOURCE}: {status}; the check is above");
        for (from, to) in BROKEN {
            ensure!(text.contains(from), "{from:?} is not in switch/src/entry.s any more");
            let status = one(env, &rustc, &core, &dir, &text.replace(from, to))?;
            ensure!(status.is_some_and(|status| !status.success()), "not noticed: {from:?} -> {to:?}");
        }
        Ok(())
    })
}

/// Clippy over the program: it belongs to no crate.
pub fn clippy(env: &Env, lints: &[&str]) -> Result<()> {
    let rustc = Rustc::new(env)?;
    let core = sysroot::core(env, &rustc, TARGET)?;
    let driver = Rustc { program: "clippy-driver".into(), ..rustc };
    let dir = env.target().join("i386");
    fs::create_dir_all(&dir)?;
    let mut command = compile(env, &driver, &core, &env.root.join("switch/src/entry.s"));
    command.args(["--emit=metadata", "--out-dir"]).arg(&dir).args(lints);
    ui::step("clippy for the 32-bit process", || proc::run(&mut command)).map(drop)
}

/// Checks how the program is formatted; `cargo fmt` does not know it.
pub fn formatted(env: &Env) -> Result<()> {
    proc::run(Command::new("rustfmt").args(["--check", "-l", "--edition", "2024", SOURCE]).current_dir(&env.root))?;
    Ok(())
}

/// The compiler, or one that takes its arguments, with those that the program needs and the text in the file `entry`.
fn compile(env: &Env, rustc: &Rustc, core: &Path, entry: &Path) -> Command {
    let mut command = rustc.command(env);
    command.env("ENTRY", entry).args(["--target", TARGET, "--crate-name", "world_switch_i386", "--edition", "2024"]);
    command.args(["-Copt-level=1", "-Cpanic=abort", "-Crelocation-model=static", "-Clinker=cc"]);
    command.arg("-Clink-args=-m32 -nostdlib -nostartfiles -static -no-pie -z noexecstack");
    command.arg("--sysroot").arg(core).arg(SOURCE);
    command
}

/// The program's end with this text, or None where this kernel runs no 32-bit programs.
fn one(env: &Env, rustc: &Rustc, core: &Path, dir: &Path, text: &str) -> Result<Option<ExitStatus>> {
    let (entry, program) = (dir.canonicalize()?.join("entry.s"), dir.canonicalize()?.join("world-switch"));
    fs::write(&entry, text)?;
    proc::run(compile(env, rustc, core, &entry).arg("-o").arg(&program))?;
    match Command::new(&program).output() {
        Ok(output) => {
            if !output.status.success() {
                ui::note(&format!("{}, {}", output.status, String::from_utf8_lossy(&output.stderr)));
            }
            Ok(Some(output.status))
        }
        // ENOEXEC.
        Err(error) if error.raw_os_error() == Some(8) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
