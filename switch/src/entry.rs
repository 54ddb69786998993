//! The assembly: from the host into the guest and back (APM 15.5, 15.6).
//!
//! Called with GIF clear and RFLAGS.IF set. In order:
//!
//! 1. Push what the host keeps in registers, then the flag, the physical address of the host save area and the vCPU
//!    pointer, in the inverse order of need. The address comes through GS, so it has to be fetched now: after
//!    #VMEXIT GS is the guest's.
//! 2. SPEC_CTRL, if the guest's differs from the host's. From here to VMRUN no RET and no indirect branch.
//! 3. VMLOAD, general registers, clearing of CPU buffers, VMRUN.
//! 4. On #VMEXIT RAX is the only free register (the hardware saved the guest's): the vCPU pointer goes there. Store
//!    the general registers, VMSAVE, VMLOAD of the host: from here GS is the host's again.
//! 5. Return stack, SPEC_CTRL, branch predictor; then every register that held a guest value is zeroed; then the
//!    first RET.
//!
//! The common case takes no conditional jump: bodies that are seldom needed stand behind the return. The mitigations
//! are the kernel's own macros, whose encoding differs per kernel; they live in the shim and are reached by direct
//! jumps (docs/decisions/0006-mitigations-by-direct-jump.md).
//!
//! An SVM instruction that faults while the machine reboots (SVM was switched off under us) is skipped and noted in
//! the vCPU; any other fault is a bug and meets UD2.
//!
//! The same text is linked into user-space tests, whose signal handler plays the processor; GS has base 0 there.

use crate::{CpuData, VcpuCtx, ctx::SPEC_CTRL_NOT_INTERCEPTED, extable::extable};
use core::mem::offset_of;

// SAFETY: defined by the assembly of this file, with this signature and the C calling convention.
unsafe extern "C" {
    /// Runs the guest once. `flags`: [`SPEC_CTRL_NOT_INTERCEPTED`] or 0.
    ///
    /// # Safety
    /// GIF is clear and RFLAGS.IF is set; this CPU is enabled, its host save area holds this thread's VMSAVE state;
    /// the addresses in `vcpu` are those of VMCBs that nobody else uses.
    pub fn hsave_vcpu_run(vcpu: *mut VcpuCtx, flags: u32);
}

core::arch::global_asm!(
    // Register names and the exception table, in one place for the variants that share this text.
    ".macro hsave_extable from, to",
    extable!(),
    "    .balign 4",
    "    .long \\from - .",
    "    .long \\to - .",
    "    .long 1", // EX_TYPE_DEFAULT: continue at `to`.
    "    .popsection",
    ".endm",
    // A fault at `from`: on at `back` if the machine is rebooting; `vcpu` is the register with the vCPU pointer.
    ".macro hsave_tolerate from, back, vcpu",
    "    hsave_extable \\from, 779f",
    "779:",
    "    cmp byte ptr [rip + hsave_rebooting], 0",
    "    je .Lhsave_bug",
    "    mov dword ptr [\\vcpu + {faulted}], 1",
    "    jmp \\back",
    ".endm",
    "",
    ".pushsection .noinstr.text, \"ax\"",
    ".balign 16",
    ".skip 16, 0x90",
    ".globl hsave_vcpu_run",
    ".type hsave_vcpu_run, @function",
    "hsave_vcpu_run:",
    "    endbr64",
    "    push rbp",
    "    push r15",
    "    push r14",
    "    push r13",
    "    push r12",
    "    push rbx",
    "    push rsi",
    "    push qword ptr gs:[rip + hsave_cpu_data + {hsave_pa}]",
    "    push rdi",
    "",
    "    mov rax, qword ptr [rdi + {spec_ctrl}]",
    "    cmp rax, qword ptr gs:[rip + x86_spec_ctrl_current]",
    "    jne .Lhsave_guest_spec_ctrl",
    ".Lhsave_guest_spec_ctrl_done:",
    "    mov rax, [rdi + {vmcb01}]",
    ".Lhsave_load_guest:",
    "    vmload rax",
    ".Lhsave_load_guest_done:",
    "    mov rax, [rdi + {vmcb}]",
    "    mov rcx, [rdi + {regs} + 1 * 8]",
    "    mov rdx, [rdi + {regs} + 2 * 8]",
    "    mov rbx, [rdi + {regs} + 3 * 8]",
    "    mov rbp, [rdi + {regs} + 5 * 8]",
    "    mov rsi, [rdi + {regs} + 6 * 8]",
    "    mov r8,  [rdi + {regs} + 8 * 8]",
    "    mov r9,  [rdi + {regs} + 9 * 8]",
    "    mov r10, [rdi + {regs} + 10 * 8]",
    "    mov r11, [rdi + {regs} + 11 * 8]",
    "    mov r12, [rdi + {regs} + 12 * 8]",
    "    mov r13, [rdi + {regs} + 13 * 8]",
    "    mov r14, [rdi + {regs} + 14 * 8]",
    "    mov r15, [rdi + {regs} + 15 * 8]",
    "    mov rdi, [rdi + {regs} + 7 * 8]",
    "    jmp hsave_mitigate_entry", // Clobbers flags only.
    ".globl hsave_mitigate_entry_done",
    "hsave_mitigate_entry_done:",
    ".Lhsave_run:",
    "    vmrun rax",
    ".Lhsave_run_done:",
    "",
    "    pop rax",
    "    mov [rax + {regs} + 1 * 8], rcx",
    "    mov [rax + {regs} + 2 * 8], rdx",
    "    mov [rax + {regs} + 3 * 8], rbx",
    "    mov [rax + {regs} + 5 * 8], rbp",
    "    mov [rax + {regs} + 6 * 8], rsi",
    "    mov [rax + {regs} + 7 * 8], rdi",
    "    mov [rax + {regs} + 8 * 8], r8",
    "    mov [rax + {regs} + 9 * 8], r9",
    "    mov [rax + {regs} + 10 * 8], r10",
    "    mov [rax + {regs} + 11 * 8], r11",
    "    mov [rax + {regs} + 12 * 8], r12",
    "    mov [rax + {regs} + 13 * 8], r13",
    "    mov [rax + {regs} + 14 * 8], r14",
    "    mov [rax + {regs} + 15 * 8], r15",
    "    mov rdi, rax",
    "    mov rax, [rdi + {vmcb01}]",
    ".Lhsave_save_guest:",
    "    vmsave rax",
    ".Lhsave_save_guest_done:",
    "    pop rax",
    ".Lhsave_load_host:",
    "    vmload rax",
    ".Lhsave_load_host_done:",
    "    jmp hsave_mitigate_exit_rsb", // Clobbers RAX and flags.
    ".globl hsave_mitigate_exit_rsb_done",
    "hsave_mitigate_exit_rsb_done:",
    "    pop rsi",
    "    test esi, {not_intercepted}",
    "    jnz .Lhsave_read_spec_ctrl",
    ".Lhsave_read_spec_ctrl_done:",
    "    mov rax, qword ptr gs:[rip + x86_spec_ctrl_current]",
    "    cmp rax, qword ptr [rdi + {spec_ctrl}]",
    "    jne .Lhsave_host_spec_ctrl",
    ".Lhsave_host_spec_ctrl_done:",
    "    jmp hsave_mitigate_exit_untrain", // Clobbers RAX, RCX, RDX and flags.
    ".globl hsave_mitigate_exit_untrain_done",
    "hsave_mitigate_exit_untrain_done:",
    "    xor eax, eax",
    "    xor ecx, ecx",
    "    xor edx, edx",
    "    xor ebx, ebx",
    "    xor ebp, ebp",
    "    xor esi, esi",
    "    xor edi, edi",
    "    xor r8d, r8d",
    "    xor r9d, r9d",
    "    xor r10d, r10d",
    "    xor r11d, r11d",
    "    xor r12d, r12d",
    "    xor r13d, r13d",
    "    xor r14d, r14d",
    "    xor r15d, r15d",
    "    pop rbx",
    "    pop r12",
    "    pop r13",
    "    pop r14",
    "    pop r15",
    "    pop rbp",
    "    jmp __x86_return_thunk",
    "    int3", // No straight-line speculation into what follows.
    "",
    ".Lhsave_guest_spec_ctrl:", // RAX is the guest's value.
    "    mov rdx, rax",
    "    shr rdx, 32",
    "    mov ecx, {msr}",
    "    wrmsr",
    "    jmp .Lhsave_guest_spec_ctrl_done",
    "",
    ".Lhsave_read_spec_ctrl:",
    "    mov ecx, {msr}",
    "    rdmsr",
    "    mov [rdi + {spec_ctrl}], eax",
    "    mov [rdi + {spec_ctrl} + 4], edx",
    "    jmp .Lhsave_read_spec_ctrl_done",
    "",
    ".Lhsave_host_spec_ctrl:", // RAX is the host's value.
    "    mov rdx, rax",
    "    shr rdx, 32",
    "    mov ecx, {msr}",
    "    wrmsr",
    "    jmp .Lhsave_host_spec_ctrl_done",
    "",
    "    hsave_tolerate .Lhsave_load_guest, .Lhsave_load_guest_done, rdi",
    "    hsave_extable .Lhsave_run, .Lhsave_run_fault",
    ".Lhsave_run_fault:", // Every register but RAX is the guest's; RAX is in the VMCB.
    "    mov rax, [rsp]",
    "    cmp byte ptr [rip + hsave_rebooting], 0",
    "    je .Lhsave_bug",
    "    mov dword ptr [rax + {faulted}], 1",
    "    jmp .Lhsave_run_done",
    "    hsave_tolerate .Lhsave_save_guest, .Lhsave_save_guest_done, rdi",
    "    hsave_tolerate .Lhsave_load_host, .Lhsave_load_host_done, rdi",
    ".Lhsave_bug:",
    "    ud2",
    ".size hsave_vcpu_run, . - hsave_vcpu_run",
    ".popsection",
    "",
    // The frame changes in ways that objtool cannot follow; it looks at no instruction of this function. What it
    // would have checked, a test checks on the module.
    ".pushsection .discard.func_stack_frame_non_standard, \"aw\"",
    "    .quad hsave_vcpu_run",
    ".popsection",
    hsave_pa = const offset_of!(CpuData, hsave_pa),
    regs = const offset_of!(VcpuCtx, regs),
    vmcb01 = const offset_of!(VcpuCtx, vmcb01),
    vmcb = const offset_of!(VcpuCtx, vmcb),
    spec_ctrl = const offset_of!(VcpuCtx, spec_ctrl),
    faulted = const offset_of!(VcpuCtx, faulted),
    not_intercepted = const SPEC_CTRL_NOT_INTERCEPTED,
    msr = const arch::msr::SPEC_CTRL,
);
