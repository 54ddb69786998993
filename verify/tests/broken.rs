//! The checker against the assembly itself and against variants of it that are broken on purpose: each has to be found, and
//! for its own reason.

mod encrypted;
mod text;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use verify::{Layout, Report, check};

/// The kernel's mitigations, in short.
const PIECES: &str = r#"
.section .noinstr.text, "ax"
.globl hsave_mitigate_entry
.type hsave_mitigate_entry, @function
hsave_mitigate_entry:
    verw word ptr [rip + x86_verw_sel]
    jmp hsave_mitigate_entry_done
.size hsave_mitigate_entry, . - hsave_mitigate_entry
.globl hsave_mitigate_exit_rsb
.type hsave_mitigate_exit_rsb, @function
hsave_mitigate_exit_rsb:
    mov rax, 16
1:  call 2f
    int3
2:  call 3f
    int3
3:  add rsp, 16
    dec rax
    jnz 1b
    lfence
    jmp hsave_mitigate_exit_rsb_done
.size hsave_mitigate_exit_rsb, . - hsave_mitigate_exit_rsb
.globl hsave_mitigate_exit_untrain
.type hsave_mitigate_exit_untrain, @function
hsave_mitigate_exit_untrain:
5:  .byte 0x0f, 0x1f, 0x44, 0, 0
6:  jmp hsave_mitigate_exit_untrain_done
.size hsave_mitigate_exit_untrain, . - hsave_mitigate_exit_untrain
.section .altinstr_replacement, "ax"
7:  call entry_untrain_ret
8:
.section .altinstructions, "a"
    .long 5b - .
    .long 7b - .
    .word 491
    .word 0
    .byte 6b - 5b
    .byte 8b - 7b
"#;

/// The text of the world switch, from its source.
fn text() -> String {
    text_with(0)
}

/// The same, with the SEV-ES variant if `sev_es` is 1.
fn text_with(sev_es: i64) -> String {
    let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../switch/src/entry.rs")).unwrap();
    let (_, body) = source.split_once("global_asm!(").expect("the assembly");
    let mut text = String::from(".intel_syntax noprefix\n");
    for line in body.lines().map(str::trim) {
        if line.starts_with("extable!()") {
            text += ".pushsection __ex_table, \"a\"\n";
        } else if let Some(rest) = line.strip_prefix('"') {
            let end = rest.rfind("\",").expect("a string ends");
            text += &rest[..end].replace("\\\"", "\"").replace("\\\\", "\\");
            text.push('\n');
        } else if line.contains("= const") {
            break;
        }
    }
    text += include_str!("../../switch/src/entry.s");
    let numbers = [
        ("i386", 0),
        ("sev_es", sev_es),
        ("regs", Layout::REGS),
        ("vmcb01", Layout::VMCB01),
        ("vmcb", Layout::VMCB),
        ("spec_ctrl", Layout::SPEC_CTRL),
        ("faulted", Layout::FAULTED),
        ("hsave_pa", Layout::HSAVE_PA),
        ("not_intercepted", 1),
        ("msr", 0x48),
    ];
    for (name, value) in numbers.into_iter().chain(encrypted::numbers()) {
        text = text.replace(&format!("{{{name}}}"), &value.to_string());
    }
    let (extable, rest) = text.split_once("# The world switch").expect("the title of the text");
    format!("{extable}{}", text::expand(&format!("#{rest}")))
}

fn run(command: &mut Command) {
    let done = command.output().expect("the tools of a C compiler");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Assembles and links as a module is.
fn object(assembly: &str, pieces: &str) -> Vec<u8> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let name = format!("verify-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let dir: PathBuf = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let assemble = |name: &str, text: &str| {
        let (from, to) = (dir.join(name).with_extension("s"), dir.join(name).with_extension("o"));
        std::fs::write(&from, text).unwrap();
        run(Command::new("as").args(["--64", "-o"]).arg(&to).arg(&from));
        to
    };
    let entry = assemble("entry", assembly);
    let pieces = assemble("pieces", &format!(".intel_syntax noprefix\n{pieces}"));
    let out: &Path = &dir.join("module.o");
    run(Command::new("ld").args(["-r", "-o"]).arg(out).args([entry, pieces]));
    let bytes = std::fs::read(out).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    bytes
}

fn findings(assembly: &str) -> Report {
    check(&object(assembly, PIECES)).expect("a world switch")
}

#[test]
fn the_assembly_itself_keeps_to_the_rules() {
    let report = findings(&text());
    assert_eq!(report.findings, []);
    let patched: Vec<_> = report.variants.iter().map(|(features, _)| features.join(",")).collect();
    assert_eq!(patched, ["", "15*32+11"], "with and without the patch");
    assert!(report.stack <= 120, "{}", report.stack);
    assert!(report.listing.iter().any(|line| line.contains("vmrun")));
}

/// A change, and what has to be found for it.
struct Broken {
    what: &'static str,
    from: &'static str,
    to: &'static str,
    finding: &'static str,
}

const BROKEN: &[Broken] = &[
    Broken {
        what: "a register that is not cleared",
        from: "    xor r11d, r11d\n",
        to: "",
        finding: "RET with the guest's value in register 11",
    },
    Broken {
        what: "a stray RET before the host's state is back",
        from: "    pop rsi\n    test esi",
        to: "    jnz 1f\n    ret\n1:  pop rsi\n    test esi",
        finding: "RET while prediction is the guest's",
    },
    Broken {
        what: "a register stored at another's place",
        from: "[rax + 0 + 2 * 8], rdx",
        to: "[rax + 0 + 3 * 8], rdx",
        finding: "a field of the guest's registers gets something else",
    },
    Broken {
        what: "a register that the guest does not get",
        from: "    mov r9,  [rdi + 0 + 9 * 8]\n",
        to: "",
        finding: "VMRUN with register 9 not the guest's",
    },
    Broken {
        what: "a wrong offset of the VMCB",
        from: "    mov rax, [rdi + 136]\n",
        to: "    mov rax, [rdi + 144]\n",
        finding: "VMRUN of something else than the current VMCB",
    },
    Broken {
        what: "no entry in the exception table",
        from: "    hsave_extable .Lhsave_run, .Lhsave_run_fault\n",
        to: "",
        finding: "has no entry in the exception table",
    },
    Broken {
        what: "an entry of another kind",
        from: "    .long 1\n",
        to: "    .long 3\n",
        finding: "its entry in the exception table is of another kind",
    },
    Broken {
        what: "GS while it is the guest's",
        from: ".Lhsave_save_guest:\n",
        to: "    mov rcx, qword ptr gs:[rip + x86_spec_ctrl_current]\n.Lhsave_save_guest:\n",
        finding: "GS is used while it is the guest's",
    },
    Broken {
        what: "the save area fetched after the guest",
        from: "    vmsave rax\n.Lhsave_save_guest_done:\n    pop rax\n",
        to: "    vmsave rax\n.Lhsave_save_guest_done:\n    mov rax, qword ptr gs:[rip + hsave_cpu_data + 8]\n    add rsp, 8\n",
        finding: "GS is used while it is the guest's",
    },
    Broken {
        what: "an indirect branch",
        from: "    vmload rax\n.Lhsave_load_guest_done:\n",
        to: "    vmload rax\n.Lhsave_load_guest_done:\n    jz 1f\n    jmp rax\n1:\n",
        finding: "an indirect branch",
    },
    Broken {
        what: "an indirect branch through a retpoline",
        from: "    pop rsi\n    test esi",
        to: "    jz __x86_indirect_thunk_rax\n    pop rsi\n    test esi",
        finding: "an indirect branch",
    },
    Broken {
        what: "a call",
        from: "    pop rsi\n    test esi",
        to: "    call helper\n    pop rsi\n    test esi",
        finding: "a call",
    },
    Broken {
        what: "prediction untrained before SPEC_CTRL is the host's",
        from: "    jne .Lhsave_host_spec_ctrl\n",
        to: "    jmp hsave_mitigate_exit_untrain\n    jne .Lhsave_host_spec_ctrl\n",
        finding: "this mitigation comes too early",
    },
    Broken {
        what: "SPEC_CTRL not given back",
        from: "    jne .Lhsave_host_spec_ctrl\n",
        to: "",
        finding: "RET before SPEC_CTRL is the host's",
    },
    Broken {
        what: "SPEC_CTRL written whether it differs or not",
        from: "    jne .Lhsave_guest_spec_ctrl\n",
        to: "    jmp .Lhsave_guest_spec_ctrl\n",
        finding: "SPEC_CTRL is written where the values do not differ",
    },
    Broken {
        what: "half of SPEC_CTRL",
        from: ".Lhsave_host_spec_ctrl:\n    mov rdx, rax\n    shr rdx, 32\n",
        to: ".Lhsave_host_spec_ctrl:\n    xor edx, edx\n",
        finding: "SPEC_CTRL gets the wrong value",
    },
    Broken {
        what: "the guest's SPEC_CTRL not read back",
        from: "    mov ecx, 72\n    rdmsr\n",
        to: "",
        finding: "SPEC_CTRL is compared before the guest's value was read back",
    },
    Broken {
        what: "return stack not stuffed",
        from: "    jmp hsave_mitigate_exit_rsb\n",
        to: "",
        finding: "this mitigation comes too early",
    },
    Broken {
        what: "buffers not cleared",
        from: "    jmp hsave_mitigate_entry\n",
        to: "",
        finding: "VMRUN without clearing of CPU buffers before it",
    },
    Broken {
        what: "return stack stuffed before GS is the host's",
        from: "    vmload rax\n.Lhsave_load_host_done:\n    jmp hsave_mitigate_exit_rsb\n.globl hsave_mitigate_exit_rsb_done\nhsave_mitigate_exit_rsb_done:\n",
        to: "    jmp hsave_mitigate_exit_rsb\n.globl hsave_mitigate_exit_rsb_done\nhsave_mitigate_exit_rsb_done:\n    vmload rax\n.Lhsave_load_host_done:\n",
        finding: "this mitigation comes too early",
    },
    Broken {
        what: "a stack without end",
        from: "    push rdi\n",
        to: "    push rdi\n1:  push rdi\n    jmp 1b\n",
        finding: "bytes deep",
    },
    Broken {
        what: "a fourth argument",
        from: "    push rdi\n",
        to: "    push rdi\n    mov rax, rcx\n",
        finding: "a fourth argument is read",
    },
    Broken {
        what: "callee-saved registers exchanged",
        from: "    pop r12\n    pop r13\n",
        to: "    pop r13\n    pop r12\n",
        finding: "register 12 is not given back to the caller",
    },
    Broken {
        what: "another MSR",
        from: ".Lhsave_guest_spec_ctrl:\n    mov rdx, rax\n    shr rdx, 32\n    mov ecx, 72\n",
        to: ".Lhsave_guest_spec_ctrl:\n    mov rdx, rax\n    shr rdx, 32\n    mov ecx, 73\n",
        finding: "an MSR other than SPEC_CTRL is written",
    },
    Broken {
        what: "GIF set inside",
        from: "    xor eax, eax\n",
        to: "    stgi\n    xor eax, eax\n",
        finding: "GIF is changed inside of the assembly",
    },
    Broken {
        what: "the low half of SPEC_CTRL not stored",
        from: "    mov [rdi + 144], eax\n",
        to: "",
        finding: "SPEC_CTRL is compared before the guest's value was read back",
    },
    Broken {
        what: "the high half of SPEC_CTRL not stored",
        from: "    mov [rdi + 144 + 4], edx\n",
        to: "",
        finding: "SPEC_CTRL is compared before the guest's value was read back",
    },
    Broken {
        what: "the wrong half stored",
        from: "    mov [rdi + 144], eax\n",
        to: "    mov [rdi + 144], edx\n",
        finding: "offset 0x90 of the vCPU is written",
    },
    Broken {
        what: "another bit of the flag",
        from: "    test esi, 1\n",
        to: "    test esi, 2\n",
        finding: "SPEC_CTRL is compared before the flag was asked",
    },
    Broken {
        what: "GS loaded while it is the guest's",
        from: ".Lhsave_save_guest:\n",
        to: "    mov gs, ecx\n.Lhsave_save_guest:\n",
        finding: "a segment, control or debug register is written",
    },
    Broken {
        what: "a load through a pointer of the guest's",
        from: "    pop rax\n    mov [rax + 0 + 1 * 8], rcx\n",
        to: "    pop rax\n    mov [rax + 0 + 1 * 8], rcx\n    mov rcx, [rcx]\n",
        finding: "an address of the guest's is used",
    },
    Broken {
        what: "a branch on a value of the guest's",
        from: "    pop rax\n    mov [rax + 0 + 1 * 8], rcx\n",
        to: "    pop rax\n    mov [rax + 0 + 1 * 8], rcx\n    test rcx, rcx\n    jz 1f\n1:\n",
        finding: "a branch on a value of the guest's",
    },
    Broken {
        what: "a load between the clearing of buffers and VMRUN",
        from: ".Lhsave_run:\n    vmrun",
        to: "    mov rcx, [rsp]\n.Lhsave_run:\n    vmrun",
        finding: "VMRUN without clearing of CPU buffers before it",
    },
];

#[test]
fn each_broken_variant_is_found() {
    let good = text();
    for Broken { what, from, to, finding } in BROKEN {
        assert!(good.contains(from), "{what}: the assembly has changed, {from:?} is not in it");
        let report = findings(&good.replacen(from, to, 1));
        let found = report.findings.iter().any(|f| f.what.contains(finding));
        assert!(found, "{what}: not found, but {:#?}", report.findings);
    }
}

#[test]
fn a_variant_that_only_some_cpus_run_is_found() {
    let pieces = PIECES.replace("7:  call entry_untrain_ret\n8:", "7:  call hsave_other\n8:");
    let report = check(&object(&text(), &pieces)).unwrap();
    assert!(report.findings.iter().any(|f| f.what == "a call"), "{:#?}", report.findings);
}

#[test]
fn mitigations_that_do_nothing_on_any_cpu_are_found() {
    let emptied = [
        ("    verw word ptr [rip + x86_verw_sel]\n", "", "hsave_mitigate_entry does nothing"),
        ("7:  call entry_untrain_ret\n8:", "7:  nop\n8:", "hsave_mitigate_exit_untrain does nothing"),
    ];
    let stuffing = PIECES.find("    mov rax, 16").unwrap()..PIECES.find("    lfence").unwrap();
    let without_stuffing = format!("{}{}", &PIECES[..stuffing.start], &PIECES[stuffing.end..]);
    let mut broken: Vec<(String, &str)> =
        emptied.iter().map(|(from, to, finding)| (PIECES.replace(from, to), *finding)).collect();
    broken.push((without_stuffing, "hsave_mitigate_exit_rsb does nothing"));
    for (pieces, finding) in broken {
        let report = check(&object(&text(), &pieces)).unwrap();
        assert!(report.findings.iter().any(|f| f.what.contains(finding)), "{finding}: {:#?}", report.findings);
    }
}

#[test]
fn something_else_is_refused() {
    assert!(check(b"no object").is_err());
    assert!(check(&object("nop\n", "nop\n")).is_err(), "no world switch in it");
}
