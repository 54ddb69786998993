//! The text assembled for i386, in a 32-bit process: every combination of `matrix.rs`, by `i386.c`, where a C compiler
//! is all that is needed. No 32-bit C library, and no `core` for another target: the text itself is what is tested.

use crate::{CpuData, SPEC_CTRL_NOT_INTERCEPTED, VcpuCtx};
use core::mem::offset_of;
use std::{env, format, fs, path::Path, process::Command, string::String};

/// The offsets, which a 32-bit build would take from its own types; the layout of the vCPU is the same there.
fn offsets() -> [(&'static str, usize); 6] {
    [
        ("regs", offset_of!(VcpuCtx, regs)),
        ("vmcb01", offset_of!(VcpuCtx, vmcb01)),
        ("vmcb", offset_of!(VcpuCtx, vmcb)),
        ("spec_ctrl", offset_of!(VcpuCtx, spec_ctrl)),
        ("faulted", offset_of!(VcpuCtx, faulted)),
        ("hsave_pa", offset_of!(CpuData, hsave_pa)),
    ]
}

/// The text as the compiler hands it to the assembler, for i386.
fn text() -> String {
    let extable = ".intel_syntax noprefix\n.macro hsave_extable from, to\n.pushsection __ex_table, \"a\"\n.balign 4\n\
                   .long \\from - .\n.long \\to - .\n.long 1\n.popsection\n.endm\n";
    let mut text = format!("{extable}{}", include_str!("../entry.s"));
    let fixed = [("i386", 1), ("sev_es", 0), ("not_intercepted", SPEC_CTRL_NOT_INTERCEPTED as usize), ("msr", 0x48)];
    for (name, value) in offsets().into_iter().chain(fixed) {
        text = text.replace(&format!("{{{name}}}"), &format!("{value}"));
    }
    text
}

/// Builds the process with this text; its exit status, or None where this kernel runs no 32-bit programs.
fn run(name: &str, text: &str) -> Option<i32> {
    let dir = env::temp_dir().join(format!("hsave-i386-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let (assembly, program) = (dir.join("entry.s"), dir.join("model"));
    fs::write(&assembly, text).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-m32", "-nostdlib", "-static", "-no-pie", "-fno-pie", "-ffreestanding", "-O1", "-mregparm=3"]);
    cc.args(["-fno-stack-protector", "-mgeneral-regs-only", "-fcf-protection=none", "-Wall", "-Wextra", "-Werror"]);
    cc.args(offsets().map(|(name, value)| format!("-D{}={value}", name.to_uppercase())));
    cc.args(["-z", "noexecstack", "-o"]).arg(&program);
    let built = cc.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/i386.c")).arg(&assembly).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let ran = Command::new(&program).output();
    fs::remove_dir_all(&dir).unwrap();
    match ran {
        Ok(ran) => Some(ran.status.code().unwrap_or(-1)),
        // ENOEXEC.
        Err(error) if error.raw_os_error() == Some(8) => {
            std::eprintln!("this kernel runs no 32-bit programs: assembled, not run");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_text_holds_in_a_32_bit_process() {
    assert!(matches!(run("good", &text()), Some(0) | None));
}

#[test]
fn a_broken_text_is_noticed_there() {
    let good = text();
    for (n, (from, to)) in [
        ("    pop ebx\n    pop esi\n", "    pop esi\n    pop ebx\n"),
        ("    xor ecx, ecx\n", ""),
        ("    jnz .Lhsave_read_spec_ctrl\\v\n", ""),
        ("    vmsave \\ax\n", "    mov \\cx, \\percpu:[x86_spec_ctrl_current]\n    vmsave \\ax\n"),
        ("    jne .Lhsave_guest_spec_ctrl\\v\n", "    jmp .Lhsave_guest_spec_ctrl\\v\n"),
        ("    hsave_extable .Lhsave_run, .Lhsave_run_fault\n", ""),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(good.contains(from), "{from:?} is not in the text any more");
        let status = run(&format!("broken{n}"), &good.replace(from, to));
        assert!(status != Some(0), "not noticed: {from:?} -> {to:?}");
    }
}
