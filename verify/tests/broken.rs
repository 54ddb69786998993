//! The checker against the assembly itself and against variants of it that are broken on purpose: each has to be found, and
//! for its own reason.

mod caller;
mod document;
mod encrypted;
mod text;
mod variants;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use variants::{BROKEN, Broken};
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
.globl hsave_fast
.type hsave_fast, @function
hsave_fast:
    push rbx
    mov rax, [rdi + 136]
    test rax, rax
    jz 8f
    jmp hsave_fast_again
8:  jmp hsave_fast_leave
.size hsave_fast, . - hsave_fast
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
        ("stack", Layout::STACK),
        ("fast", Layout::FAST),
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

/// The finding with these words among those of a variant; with `--nocapture` it is shown.
fn caught(what: &str, report: &Report, finding: &str, within: &str) {
    let found = report.findings.iter().find(|f| f.place.contains(within) && f.what.contains(finding));
    let found = found.unwrap_or_else(|| panic!("{what}: {finding:?} is not among {:#?}", report.findings));
    println!("caught: {what} -> {found}");
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
    assert_eq!(report.arguments.into_iter().collect::<Vec<_>>(), [6, 7], "RSI and RDI");
    let named = report.fields.iter().filter(|at| !Layout::is_register(**at)).filter_map(|at| Layout::name_of(*at));
    let named: Vec<_> = named.collect();
    assert_eq!(named, ["vmcb01", "vmcb", "spec_ctrl", "spec_ctrl's high half", "faulted", "stack", "fast"]);
    assert_eq!(report.fields.len() - named.len(), 14, "registers but RAX and RSP");
    assert_eq!(report.cpu_fields.into_iter().collect::<Vec<_>>(), [Layout::HSAVE_PA]);
    assert!(report.text.instructions > 100 && report.text.returns == 1, "{:?}", report.text);
    assert!(report.listing.iter().any(|line| line.contains("vmrun")));
}

#[test]
fn each_broken_variant_is_found() {
    let good = text();
    for Broken { what, from, to, finding } in BROKEN {
        assert!(good.contains(from), "{what}: the assembly has changed, {from:?} is not in it");
        caught(what, &findings(&good.replacen(from, to, 1)), finding, "");
    }
}

#[test]
fn each_mistake_in_compiled_code_is_found() {
    let text = text();
    let body = "    push rbx\n    mov rax, [rdi + 136]\n";
    assert!(PIECES.contains(body));
    for (broken, finding) in [
        ("    call helper\n", "a call"),
        ("    jz 1f\n    ret\n1:\n", "RET while prediction is the guest's"),
        ("    jmp rax\n", "an indirect branch"),
        ("1:  dec rax\n    jnz 1b\n", "a loop"),
        ("    mov rax, gs:[0]\n", "a segment is used"),
        ("    rdmsr\n", "a privileged instruction"),
        ("    sti\n", "a privileged instruction"),
        ("    pop rbx\n", "moves the stack pointer up"),
        ("    rep movsb\n", "a repeated or locked instruction"),
        ("    lock inc qword ptr [rdi]\n", "a repeated or locked instruction"),
        ("    mov rax, [rip + hsave_rebooting]\n", "memory that is not the vCPU's is used"),
        ("    mov rdi, rax\n", "RDI does not stay the vCPU pointer"),
        ("    movups xmm0, [rdi]\n", "a register of the guest's FPU is used"),
        ("    jz hsave_mitigate_entry\n", "a jump to another function"),
        ("    jz helper\n", "a jump out of the module"),
        ("    ud2\n", "the path ends"),
        (&"    nop\n".repeat(500), "instructions with GIF clear"),
    ] {
        let report = check(&object(&text, &PIECES.replace(body, &format!("{body}{broken}")))).unwrap();
        let line = broken.lines().next().unwrap_or_default().trim();
        caught(&format!("`{line}` in compiled code"), &report, finding, "");
    }
    assert_eq!(findings(&text).fast, (6, 5));
}

#[test]
fn a_variant_that_only_some_cpus_run_is_found() {
    let pieces = PIECES.replace("7:  call entry_untrain_ret\n8:", "7:  call hsave_other\n8:");
    let report = check(&object(&text(), &pieces)).unwrap();
    caught("a call in an alternative", &report, "a call", "");
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
        caught("a mitigation that is empty", &report, finding, "");
    }
}

#[test]
fn something_else_is_refused() {
    assert!(check(b"no object").is_err());
    assert!(check(&object("nop\n", "nop\n")).is_err(), "no world switch in it");
}
