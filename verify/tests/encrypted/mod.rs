//! The SEV-ES variant and what is broken on purpose in it. No module contains it: it is assembled here with pieces of its own.

use super::{PIECES, caught, object, text_with};
use verify::{ENCRYPTED, Layout, check};

/// The offsets that this variant alone uses; the registers' are counted from the host state's start, as in the text.
pub fn numbers() -> [(&'static str, i64); 10] {
    const HOST: i64 = 0x400;
    let gpr = |n: usize| Layout::HOST_GPRS[n].expect("a place in the area") - HOST;
    [
        ("hsave_va", Layout::HSAVE_VA),
        ("host", HOST),
        ("rbx", gpr(3)),
        ("rbp", gpr(5)),
        ("rsi", gpr(6)),
        ("rdi", gpr(7)),
        ("r12", gpr(12)),
        ("r13", gpr(13)),
        ("r14", gpr(14)),
        ("r15", gpr(15)),
    ]
}

/// The pieces of both variants.
pub fn pieces() -> String {
    let names = ["hsave_mitigate_entry", "hsave_mitigate_exit_rsb", "hsave_mitigate_exit_untrain", "hsave_fast"];
    let own = names.iter().fold(PIECES.to_owned(), |text, name| text.replace(name, &format!("{name}_es")));
    format!("{PIECES}{own}")
}

#[test]
fn the_variant_itself_keeps_to_the_rules() {
    let text = text_with(1);
    assert!(text.contains(&format!("{ENCRYPTED}:")));
    let report = check(&object(&text, &pieces())).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!(report.variants.len(), 4, "each of the two, with and without the patch");
}

/// What is changed, by what, and the finding.
const BROKEN: &[(&str, &str, &str)] = &[
    ("    mov [rax + 1024 + 792], rbx\n", "", "register 3 is not in the host save area"),
    ("    mov [rax + 1024 + 888], r15\n", "", "register 15 is not in the host save area"),
    ("    mov [rax + 1024 + 824], rdi\n", "", "argument 7 is not in the host save area"),
    ("    mov [rax + 1024 + 816], rsi\n", "", "argument 6 is not in the host save area"),
    (
        "    mov [rax + 1024 + 864], r12\n    mov [rax + 1024 + 872], r13\n",
        "    mov [rax + 1024 + 872], r12\n    mov [rax + 1024 + 864], r13\n",
        "something else than register 13 at 0x768",
    ),
    (
        "    mov [rax + 1024 + 792], rbx\n",
        "    mov [rax + 1024 + 784], rbx\n",
        "something else than register 2 at 0x710",
    ),
    (
        "    mov [rax + 1024 + 792], rbx\n",
        "    mov [rax + 792], rbx\n",
        "offset 0x318 of the host save area is written",
    ),
    (
        "    mov rax, qword ptr gs:[rip + hsave_cpu_data + HSAVE_VA]\n",
        "    mov rax, qword ptr gs:[rip + hsave_cpu_data + 8]\n",
        "memory that is not the vCPU's is written",
    ),
    (
        ".Lhsave_run_es:\n    vmrun rax\n",
        ".Lhsave_run_es:\n    vmload rax\n    vmrun rax\n",
        "where the processor swaps the state",
    ),
    (
        "    jmp hsave_mitigate_entry_es\n",
        "    ret\n    jmp hsave_mitigate_entry_es\n",
        "RET while prediction is the guest's",
    ),
    (".Lhsave_run_done_es:\n", ".Lhsave_run_done_es:\n    ret\n", "RET before the host's state is back"),
    ("    jmp hsave_mitigate_exit_untrain_es\n", "    jmp __x86_return_thunk\n", "RET before the host's state is back"),
    ("    jmp hsave_mitigate_exit_rsb_es\n", "", "this mitigation comes too early"),
    ("    jmp hsave_mitigate_entry_es\n", "", "VMRUN without clearing of CPU buffers"),
    ("    jne .Lhsave_guest_spec_ctrl_es\n", "", "VMRUN before SPEC_CTRL is the guest's"),
    ("    jne .Lhsave_host_spec_ctrl_es\n", "", "RET before SPEC_CTRL is the host's"),
    ("    hsave_extable .Lhsave_run_es, 779f\n", "", "has no entry in the exception table"),
    (
        "    mov rax, [rdi + VMCB]\n    jmp hsave_mitigate_entry_es\n",
        "    mov rax, [rdi + VMCB01]\n    jmp hsave_mitigate_entry_es\n",
        "the current VMCB",
    ),
    (
        ".Lhsave_run_done_es:\n",
        ".Lhsave_run_done_es:\n    mov [rdi + 0 + 8 * 3], rbx\n",
        "the guest's registers gets something else",
    ),
    (
        "    xor r11d, r11d\n    jmp __x86_return_thunk\n    int3\n",
        "    jmp __x86_return_thunk\n    int3\n",
        "guest's value in register 11",
    ),
    (".Lhsave_run_done_es:\n", ".Lhsave_run_done_es:\n    call helper\n", "a call"),
    ("hsave_es_vcpu_run:\n    endbr64\n", "hsave_es_vcpu_run:\n    endbr64\n1:  push rax\n    jmp 1b\n", "bytes deep"),
    (
        "hsave_es_vcpu_run:\n    endbr64\n",
        "hsave_es_vcpu_run:\n    endbr64\n    mov rax, rcx\n",
        "a fourth argument is read",
    ),
];

#[test]
fn each_broken_variant_is_found() {
    let (good, pieces) = (text_with(1), pieces());
    let put = |text: &str| {
        let numbers = [("HSAVE_VA", Layout::HSAVE_VA), ("VMCB01", Layout::VMCB01), ("VMCB", Layout::VMCB)];
        numbers.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, &value.to_string()))
    };
    for (from, to, finding) in BROKEN {
        let (from, to) = (put(from), put(to));
        // The last place: the plain variant comes first and has some of the same lines.
        let at = good.rfind(&from).unwrap_or_else(|| panic!("the assembly has changed, {from:?} is not in it"));
        let broken = format!("{}{to}{}", &good[..at], &good[at + from.len()..]);
        let report = check(&object(&broken, &pieces)).unwrap();
        let change = [&from, &to].map(|text| text.lines().map(str::trim).collect::<Vec<_>>().join("; "));
        caught(&format!("SEV-ES: `{}` to `{}`", change[0], change[1]), &report, finding, "_es");
    }
}
