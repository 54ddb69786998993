//! All code of a module: what returns or branches past the kernel's thunks is found wherever it is, and so is what takes too
//! much stack.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use verify::{Text, text};

/// A function like those of a compiled module, with one place to put something at, and a call that the kernel patches.
const GOOD: &str = r#"
.intel_syntax noprefix
.section .text, "ax"
.type function, @function
function:
    push rbx
    mov rbx, [rdi]
    sub rsp, 16
    call __x86_indirect_thunk_rbx
1:  call qword ptr [rip + pv_ops + 16]
2:  test eax, eax
    jz 3f
    call helper
3:  pop rbx
    jmp __x86_return_thunk
    int3
.size function, . - function
.section .init.text, "ax"
    jmp __x86_return_thunk
.section .altinstr_replacement, "ax"
4:  call helper
5:
.section .altinstructions, "a"
    .long 1b - .
    .long 4b - .
    .word 1
    .word 0
    .byte 2b - 1b
    .byte 5b - 4b
"#;

fn check(assembly: &str) -> Text {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let name = format!("verify-text-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let dir = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("t.s"), assembly).unwrap();
    let done = Command::new("as").args(["--64", "-o"]).arg(dir.join("t.o")).arg(dir.join("t.s")).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let bytes = std::fs::read(dir.join("t.o")).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    text(&bytes).expect("an object")
}

#[test]
fn thunks_and_patched_calls_are_fine() {
    let text = check(GOOD);
    assert_eq!(text.findings, []);
    assert_eq!((text.returns, text.indirect, text.paravirtual), (2, 1, 1));
    assert_eq!(text.instructions, 13);
}

#[test]
fn everything_else_is_found_in_each_section() {
    let plain = "a plain RET";
    let indirect = "goes somewhere indirectly, and not by a thunk of the kernel's";
    for (from, to, place, what) in [
        ("3:  pop rbx\n    jmp __x86_return_thunk\n", "3:  pop rbx\n    ret\n", "function+0x1d", plain),
        ("3:  pop rbx\n", "3:  ret 8\n", "function+0x1c", plain),
        ("3:  pop rbx\n", "3:  iretq\n", "function+0x1c", plain),
        (".section .init.text, \"ax\"\n", ".section .init.text, \"ax\"\n    ret\n", ".init.text+0x0", plain),
        ("4:  call helper\n", "4:  ret\n    .skip 4, 0x90\n", ".altinstr_replacement+0x0", plain),
        ("    call __x86_indirect_thunk_rbx\n", "    call rbx\n", "function+0x8", indirect),
        ("    call __x86_indirect_thunk_rbx\n", "    jmp rbx\n", "function+0x8", indirect),
        ("    call __x86_indirect_thunk_rbx\n", "    notrack jmp [rbx]\n", "function+0x8", indirect),
        ("    call __x86_indirect_thunk_rbx\n", "    call qword ptr [rip + table]\n", "function+0x8", indirect),
        // The kernel's table, at a place that the kernel does not patch.
        ("    call __x86_indirect_thunk_rbx\n", "    call qword ptr [rip + pv_ops]\n", "function+0x8", indirect),
        // Another table at a place that it does.
        ("1:  call qword ptr [rip + pv_ops + 16]\n", "1:  call qword ptr [rip + table]\n", "function+0xd", indirect),
        ("3:  pop rbx\n", "3:  .byte 6\n", "function+0x1c", "no instruction"),
    ] {
        assert!(GOOD.contains(from), "{from:?}");
        let findings = check(&GOOD.replacen(from, to, 1)).findings;
        let found = findings.iter().find(|f| f.place == place && f.what == what);
        let found = found.unwrap_or_else(|| panic!("{to:?}: {findings:#?}"));
        println!("caught: `{}` in a module -> {found}", to.trim().replace("\n    ", "; "));
    }
}

#[test]
fn large_frames_are_found() {
    assert_eq!(check(GOOD).stack, (16, "function".to_owned()));
    let too_much = |bytes: u64| format!("takes {bytes} bytes of stack; 2048 are the most");
    for (to, place, what) in [
        ("sub rsp, 2056", "function", too_much(2056)),
        // As the compiler touches each page of a frame that has more than one.
        ("sub rsp, 4096\n    mov qword ptr [rsp], 0\n    sub rsp, 24", "function", too_much(4120)),
        ("sub rsp, rax", "function+0x4", "takes who knows how much stack".to_owned()),
    ] {
        let findings = check(&GOOD.replacen("sub rsp, 16", to, 1)).findings;
        let found = findings.iter().find(|f| f.place == place && f.what == what);
        println!("caught: `{to}` -> {}", found.unwrap_or_else(|| panic!("{to:?}: {findings:#?}")));
    }
    for (to, taken) in [("sub rsp, 2048", 2048), ("sub rsp, -128", 0), ("sub rsp, 2000\n    sub rsp, 48", 2048)] {
        let text = check(&GOOD.replacen("sub rsp, 16", to, 1));
        assert_eq!((text.stack.0, &text.findings[..]), (taken, &[][..]), "{to}");
    }
}
