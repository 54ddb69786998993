# The world switch (APM 15.5, 15.6, 15.35): entry.rs says what it is called with, docs/world-switch.md why each step is
# where it is.
#
# One text for three functions. Register names are arguments, so that it assembles for x86-64 and for i386; the two
# variants, plain and SEV-ES, share the macros, and `v` is what tells their labels apart: nothing, or `_es`.
.macro hsave_switch ax, cx, dx, bx, sp, bp, si, di, word, percpu, rip

# SPEC_CTRL of the guest, where it differs. Clobbers AX, and CX and DX where it does.
.macro hsave_spec_ctrl_in v
    mov \ax, \word ptr [\di + {spec_ctrl}]
    cmp \ax, \word ptr \percpu:[\rip x86_spec_ctrl_current]
    jne .Lhsave_guest_spec_ctrl\v
.Lhsave_guest_spec_ctrl_done\v:
.endm

# What comes before VMRUN with every register the guest's: clears CPU buffers. Clobbers flags only.
.macro hsave_run v, done=_done
    jmp hsave_mitigate_entry\v
.globl hsave_mitigate_entry\v\done
hsave_mitigate_entry\v\done:
.Lhsave_run\v:
    vmrun \ax
.Lhsave_run_done\v:
.endm

# The host's per-CPU segment is back: no return prediction of the guest's. Clobbers AX and flags.
.macro hsave_clean_returns v, done=_done
    jmp hsave_mitigate_exit_rsb\v
.globl hsave_mitigate_exit_rsb\v\done
hsave_mitigate_exit_rsb\v\done:
.endm

# SPEC_CTRL of the host, then untraining: after this a RET is safe. Flags are in SI. Clobbers AX, CX, DX.
.macro hsave_spec_ctrl_out v, done=_done
    test esi, {not_intercepted}
    jnz .Lhsave_read_spec_ctrl\v
.Lhsave_read_spec_ctrl_done\v:
    mov \ax, \word ptr \percpu:[\rip x86_spec_ctrl_current]
    cmp \ax, \word ptr [\di + {spec_ctrl}]
    jne .Lhsave_host_spec_ctrl\v
.Lhsave_host_spec_ctrl_done\v:
    jmp hsave_mitigate_exit_untrain\v
.globl hsave_mitigate_exit_untrain\v\done
hsave_mitigate_exit_untrain\v\done:
.endm

# The bodies of the jumps above. SPEC_CTRL has no bit in its high half today; i386 writes zero there.
.macro hsave_spec_ctrl_bodies v
.Lhsave_guest_spec_ctrl\v: # AX is the guest's value.
    hsave_write_spec_ctrl
    jmp .Lhsave_guest_spec_ctrl_done\v

.Lhsave_read_spec_ctrl\v:
    mov ecx, {msr}
    rdmsr
    mov [\di + {spec_ctrl}], eax
    mov [\di + {spec_ctrl} + 4], edx
    jmp .Lhsave_read_spec_ctrl_done\v

.Lhsave_host_spec_ctrl\v: # AX is the host's value.
    hsave_write_spec_ctrl
    jmp .Lhsave_host_spec_ctrl_done\v
.endm

.macro hsave_write_spec_ctrl
.if {i386}
    xor edx, edx
.else
    mov \dx, \ax
    shr \dx, 32
.endif
    mov ecx, {msr}
    wrmsr
.endm

# A fault at `from`: on at `back` if the machine is rebooting; `vcpu` is the register with the vCPU pointer.
.macro hsave_tolerate from, back, vcpu
    hsave_extable \from, 779f
779:
    cmp byte ptr [\rip hsave_rebooting], 0
    je .Lhsave_bug
    mov dword ptr [\vcpu + {faulted}], 1
    jmp \back
.endm

.pushsection .noinstr.text, "ax"
.balign 16
.skip 16, 0x90
.globl hsave_vcpu_run
.type hsave_vcpu_run, @function
hsave_vcpu_run:
.if {i386}
    endbr32
    push ebp
    push edi
    push esi
    push ebx
    mov edi, eax # The arguments, early: WRMSR takes the registers that they came in.
    mov esi, edx
.else
    endbr64
    push rbp
    push r15
    push r14
    push r13
    push r12
    push rbx
.endif
    push \si
    push \word ptr \percpu:[\rip hsave_cpu_data + {hsave_pa}]
    push \di

    hsave_spec_ctrl_in
    mov \ax, [\di + {vmcb01}]
.Lhsave_load_guest:
    vmload \ax
.Lhsave_load_guest_done:
    mov \ax, [\di + {vmcb}]
    mov \cx, [\di + {regs} + 1 * 8]
    mov \dx, [\di + {regs} + 2 * 8]
    mov \bx, [\di + {regs} + 3 * 8]
    mov \bp, [\di + {regs} + 5 * 8]
    mov \si, [\di + {regs} + 6 * 8]
.if !{i386}
    mov r8,  [rdi + {regs} + 8 * 8]
    mov r9,  [rdi + {regs} + 9 * 8]
    mov r10, [rdi + {regs} + 10 * 8]
    mov r11, [rdi + {regs} + 11 * 8]
    mov r12, [rdi + {regs} + 12 * 8]
    mov r13, [rdi + {regs} + 13 * 8]
    mov r14, [rdi + {regs} + 14 * 8]
    mov r15, [rdi + {regs} + 15 * 8]
.endif
    mov \di, [\di + {regs} + 7 * 8]
    hsave_run

    pop \ax # The only free register: the hardware saved the guest's.
    mov [\ax + {regs} + 1 * 8], \cx
    mov [\ax + {regs} + 2 * 8], \dx
    mov [\ax + {regs} + 3 * 8], \bx
    mov [\ax + {regs} + 5 * 8], \bp
    mov [\ax + {regs} + 6 * 8], \si
    mov [\ax + {regs} + 7 * 8], \di
.if !{i386}
    mov [rax + {regs} + 8 * 8], r8
    mov [rax + {regs} + 9 * 8], r9
    mov [rax + {regs} + 10 * 8], r10
    mov [rax + {regs} + 11 * 8], r11
    mov [rax + {regs} + 12 * 8], r12
    mov [rax + {regs} + 13 * 8], r13
    mov [rax + {regs} + 14 * 8], r14
    mov [rax + {regs} + 15 * 8], r15
.endif
    mov \di, \ax
.if !{i386}
    mov [rdi + {stack}], rsp
    cmp qword ptr [rdi + {fast}], 0
    jne hsave_fast
.globl hsave_fast_leave
hsave_fast_leave: # RDI is the vCPU pointer, as below at hsave_fast_again; no other register counts.
    mov rsp, [rdi + {stack}]
.endif
    mov \ax, [\di + {vmcb01}]
.Lhsave_save_guest:
    vmsave \ax
.Lhsave_save_guest_done:
    pop \ax
.Lhsave_load_host:
    vmload \ax
.Lhsave_load_host_done:
    hsave_clean_returns
    pop \si
    hsave_spec_ctrl_out
    xor eax, eax
    xor ecx, ecx
    xor edx, edx
    xor ebx, ebx
    xor ebp, ebp
    xor esi, esi
    xor edi, edi
.if {i386}
    pop ebx
    pop esi
    pop edi
    pop ebp
.else
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
    pop rbx
    pop r12
    pop r13
    pop r14
    pop r15
    pop rbp
.endif
    jmp __x86_return_thunk
    int3 # No straight-line speculation into what follows.

.if !{i386}
.globl hsave_fast_again
hsave_fast_again: # SPEC_CTRL and what VMLOAD loads are the guest's still.
    mov rsp, [rdi + {stack}]
    push rdi
    jmp .Lhsave_load_guest_done
.endif

    hsave_spec_ctrl_bodies
    hsave_tolerate .Lhsave_load_guest, .Lhsave_load_guest_done, \di
    hsave_extable .Lhsave_run, .Lhsave_run_fault
.Lhsave_run_fault: # Every register but AX is the guest's; AX is in the VMCB.
    mov \ax, [\sp]
    cmp byte ptr [\rip hsave_rebooting], 0
    je .Lhsave_bug
    mov dword ptr [\ax + {faulted}], 1
.if !{i386}
    mov qword ptr [rax + {fast}], 0 # There was no exit.
.endif
    jmp .Lhsave_run_done
    hsave_tolerate .Lhsave_save_guest, .Lhsave_save_guest_done, \di
    hsave_tolerate .Lhsave_load_host, .Lhsave_load_host_done, \di
.Lhsave_bug:
    ud2
.size hsave_vcpu_run, . - hsave_vcpu_run
.popsection

# SEV-ES. VMRUN takes the guest's registers from its VMSA; #VMEXIT puts them back there and takes the host's from the
# host save area (APM 15.35, table B-4: swap type B): segments and system-call MSRs, which VMSAVE left there, and
# general registers, which are stored here: what a callee preserves, and the arguments. RAX, RSP, RFLAGS and RIP the
# hardware saves by itself. So there is nothing to push, load, store or VMLOAD.
.if {sev_es}
.pushsection .noinstr.text, "ax"
.balign 16
.skip 16, 0x90
.globl hsave_es_vcpu_run
.type hsave_es_vcpu_run, @function
hsave_es_vcpu_run:
    endbr64
    mov rax, qword ptr gs:[rip + hsave_cpu_data + {hsave_va}]
    mov [rax + {host} + {rbx}], rbx
    mov [rax + {host} + {rbp}], rbp
    mov [rax + {host} + {rsi}], rsi
    mov [rax + {host} + {rdi}], rdi
    mov [rax + {host} + {r12}], r12
    mov [rax + {host} + {r13}], r13
    mov [rax + {host} + {r14}], r14
    mov [rax + {host} + {r15}], r15

    hsave_spec_ctrl_in _es
    mov rax, [rdi + {vmcb}]
    hsave_run _es
    hsave_clean_returns _es
    hsave_spec_ctrl_out _es
    xor eax, eax
    xor ecx, ecx
    xor edx, edx
    xor esi, esi
    xor edi, edi
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    jmp __x86_return_thunk
    int3

    hsave_spec_ctrl_bodies _es
    hsave_tolerate .Lhsave_run_es, .Lhsave_run_done_es, rdi
.size hsave_es_vcpu_run, . - hsave_es_vcpu_run
.popsection
.endif
.endm

.if {i386}
    hsave_switch eax, ecx, edx, ebx, esp, ebp, esi, edi, dword, fs, ""
.else
    hsave_switch rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, qword, gs, "rip +"
.endif

# The frame changes in ways that objtool cannot follow; it looks at no instruction of these functions. What it would
# have checked, a checker of the module and the tests check.
.pushsection .discard.func_stack_frame_non_standard, "aw"
.if !{i386}
    .quad hsave_vcpu_run
    .quad hsave_fast
.endif
.if {sev_es}
    .quad hsave_es_vcpu_run
.endif
.popsection
