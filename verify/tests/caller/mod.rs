//! The code from CLGI to STGI, and what is broken on purpose in it.

use super::{PIECES, caught, object, text};
use verify::{Report, check};

/// Code around the assembly as it is compiled, in short.
const CALLER: &str = r#"
.section .noinstr.text, "ax"
.globl hsave_guest_enter, hsave_guest_exit
.type hsave_guest_enter, @function
hsave_guest_enter:
    jmp __x86_return_thunk
.size hsave_guest_enter, . - hsave_guest_enter
.type hsave_guest_exit, @function
hsave_guest_exit:
    jmp __x86_return_thunk
.size hsave_guest_exit, . - hsave_guest_exit
.section .text, "ax"
.type traced, @function
traced:
    jmp __x86_return_thunk
.size traced, . - traced
.type caller, @function
caller:
    mov ecx, 0xc0000104
    wrmsr
    clgi
    mov ecx, 0x1d9
    wrmsr
    xsetbv
    wrpkru
    sti
    call hsave_guest_enter
    call hsave_vcpu_run
    call hsave_guest_exit
    cli
    mov ecx, 0xda0
    wrmsr
    stgi
    jmp __x86_return_thunk
.size caller, . - caller
"#;

fn report(caller: &str) -> Report {
    check(&object(&text(), &format!("{PIECES}{caller}"))).expect("a world switch")
}

#[test]
fn code_that_calls_the_assembly_alone_is_fine() {
    let report = report(CALLER);
    assert_eq!((report.findings, report.callers), (vec![], 1));
}

#[test]
fn each_mistake_around_the_assembly_is_found() {
    for (what, from, to, finding) in [
        ("a call", "    cli\n", "    call helper\n    cli\n", "calls helper with GIF clear"),
        ("a call of compiled code", "    cli\n", "    call traced\n    cli\n", "calls traced with GIF clear"),
        (
            "an indirect call",
            "    cli\n",
            "    call __x86_indirect_thunk_rax\n    cli\n",
            "calls __x86_indirect_thunk_rax with GIF clear",
        ),
        ("a return", "    cli\n", "    ret\n", "leaves with GIF clear"),
        ("the return thunk", "    cli\n", "    jz __x86_return_thunk\n    cli\n", "leaves with GIF clear"),
        (
            "a section that can be traced",
            ".section .noinstr.text, \"ax\"\n.globl hsave_guest",
            ".section .text, \"ax\"\n.globl hsave_guest",
            "hsave_guest_enter can be traced",
        ),
        ("interrupts off in the guest", "    sti\n", "", "is called with RFLAGS.IF clear"),
        ("interrupts on at STGI", "    cli\n", "", "STGI with RFLAGS.IF set"),
        ("no guest", "    call hsave_vcpu_run\n", "", "STGI without the guest having run"),
        (
            "the assembly twice",
            "    call hsave_guest_exit\n",
            "    call hsave_vcpu_run\n",
            "the assembly is called twice",
        ),
    ] {
        assert!(CALLER.contains(from), "{from:?}");
        caught(&format!("{what} between CLGI and STGI"), &report(&CALLER.replacen(from, to, 1)), finding, "caller");
    }
}

#[test]
fn what_an_nmi_must_not_find_is_switched_with_gif_clear() {
    const FINDING: &str = "where an NMI can come";
    for (what, text) in [
        ("XCR0", "    xsetbv\n"),
        ("PKRU", "    wrpkru\n"),
        ("DEBUGCTL", "    mov ecx, 0x1d9\n    wrmsr\n"),
        ("XSS", "    mov ecx, 0xda0\n    wrmsr\n"),
    ] {
        for (place, from, to) in [
            ("before CLGI", "    clgi\n", format!("{text}    clgi\n")),
            ("behind STGI", "    stgi\n", format!("    stgi\n{text}")),
            ("elsewhere", "traced:\n", format!("traced:\n{text}")),
        ] {
            caught(&format!("{what} {place}"), &report(&CALLER.replacen(from, &to, 1)), FINDING, "");
        }
    }
}
