// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * One small hypervisor per check of the strict processor, each breaking one rule on purpose.
 *
 * The emulator starts it by multiboot; CHECK, given to the preprocessor, is one of the names below and chooses what is broken. It sets up long mode with the first
 * gigabyte mapped, a VMCB and nested tables, and runs a guest in 64-bit mode that reads one word and says VMMCALL. It leaves
 * through the emulator's exit device (port F4h) with 1 if the guest did what it should, else 2.
 *
 * Long because: what is set up is the same for all, and each breaks its rule in the middle of it.
 */
#define nothing 1
#define stale_page 2
#define clean_bit 3
#define asid_0 4
#define gif 5
#define asid_reused 6
#define no_hsave 7
#define no_such_asid 8
#define reserved 9
#define shadow 10
#define stale_rights 11
#define first_ret 12
#define no_barrier 13
#define untrained 14
#define second_ret 15
#define msr_in_user 16
#define fpu_in_user 17
#define exit_lme 18
#define pae_entries 19
#define refused_flush 20
#define at_nmi 21
#define at_switch 22

        .set PAGE, 0x1000
        .set LOAD, 0x100000

/* Memory that this uses, each a page, zeroed by whoever starts it. */
        .set PML4, 0x200000             // the host's tables, which the guest uses as well
        .set PDPT, 0x201000
        .set PD, 0x202000
        .set NPML4, 0x203000            // nested tables: 2 MiB pages, but 4 KiB ones for the third 2 MiB
        .set NPDPT, 0x204000
        .set NPD, 0x205000
        .set NPT, 0x206000
        .set OTHER, 0x207000            // a second root with the same contents as NPML4
        .set HSAVE, 0x208000
        .set VMCB, 0x209000
        .set IOPM, 0x20a000             // 12 KiB
        .set MSRPM, 0x20d000            // 8 KiB
        .set STACK, 0x211000
        .set SECOND, 0x212000           // another guest's VMCB
        .set PAE, 0x213000              // what CR3 points to in PAE paging
        .set APIC_PD, 0x214000          // the page directory of the fourth gigabyte, where the local APIC is
        .set IDT, 0x215000
        .set DATA, 0x400000             // what the guest reads, and where it is moved to
        .set MOVED, 0x401000

        .set VMMCALL_EXIT, 0x81

        .macro vmcb8 offset, value
        movq    $\value, VMCB + \offset
        .endm
        .macro vmcb4 offset, value
        movl    $\value, VMCB + \offset
        .endm
        /* Runs the guest; it has to come back with VMMCALL. */
        .macro run
        mov     $VMCB, %eax
        vmload  %rax
        clgi
        vmrun   %rax
        stgi
        cmpq    $VMMCALL_EXIT, VMCB + 0x70
        jne     failed
        .endm
        /* The same, starting again at the beginning. */
        .macro again
        movq    $guest, VMCB + 0x578
        run
        .endm

        /* To user space and back. */
        .macro user
        mov     $0xc0000082, %ecx       // LSTAR
        mov     $9f, %eax
        xor     %edx, %edx
        wrmsr
        mov     $in_user, %ecx
        mov     $2, %r11d
        sysretq
9:
        .endm

        /* User space is left with what it has, and the guest leaves something in a register that is not switched by itself. */
        .macro guest_leaves guest
        mov     $0xc0000080, %ecx       // EFER.SCE
        rdmsr
        or      $1, %eax
        wrmsr
        mov     $0xc0000081, %ecx       // STAR
        xor     %eax, %eax
        mov     $0x00100008, %edx
        wrmsr
        user
        movq    $\guest, VMCB + 0x578
        run
        .endm

        .code32
        .section .text
        .globl  start
header:
        .align  4
        .long   0x1badb002              // multiboot, with addresses
        .long   0x10000
        .long   -(0x1badb002 + 0x10000)
        .long   header, LOAD, 0, 0, start
start:
        cli
        mov     $PDPT + 7, %eax
        mov     %eax, PML4
        mov     $PD + 7, %eax
        mov     %eax, PDPT
        mov     $NPDPT + 7, %eax
        mov     %eax, NPML4
        mov     %eax, OTHER
        mov     $NPD + 7, %eax
        mov     %eax, NPDPT
        mov     $0, %ecx
        mov     $0x87, %eax
1:      mov     %eax, PD(,%ecx,8)
        mov     %eax, NPD(,%ecx,8)
        add     $0x200000, %eax
        inc     %ecx
        cmp     $512, %ecx
        jne     1b
        movl    $NPT + 7, NPD + 2 * 8
        mov     $0, %ecx
        mov     $DATA + 0x67, %eax
1:      mov     %eax, NPT(,%ecx,8)
        add     $PAGE, %eax
        inc     %ecx
        cmp     $512, %ecx
        jne     1b
        movl    $0x1111, DATA
        movl    $0x2222, MOVED

        mov     $0x220, %eax            // PAE and SSE
        mov     %eax, %cr4
        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx
        mov     $0x1100, %eax           // EFER: SVME and LME
        xor     %edx, %edx
        wrmsr
        mov     $0x80000011, %eax
        mov     %eax, %cr0
        lgdt    pointer
        ljmp    $8, $long

        .align  8
gdt:    .quad   0, 0x00af9b000000ffff, 0x00cf93000000ffff
pointer:
        .word   . - gdt - 1
        .long   gdt

        .code64
long:
        mov     $16, %eax
        mov     %eax, %ss
        mov     %eax, %ds
        mov     %eax, %es
        mov     $STACK, %esp

#if CHECK != no_hsave
        mov     $0xc0010117, %ecx       // VM_HSAVE_PA
        mov     $HSAVE, %eax
        xor     %edx, %edx
        wrmsr
#endif

        vmcb4   0x0c, 0x1f              // INTR, NMI, SMI, INIT, VINTR
        vmcb4   0x10, 0x3               // VMRUN, VMMCALL
        vmcb8   0x40, IOPM
        vmcb8   0x48, MSRPM
        vmcb4   0x58, 1                 // ASID
        vmcb4   0x5c, 1                 // flush everything
        vmcb4   0x60, 0x01000000        // V_INTR_MASKING
        vmcb8   0x90, 1                 // nested paging
        vmcb8   0xb0, NPML4
        vmcb4   0x410, 0x029b0008       // CS
        vmcb4   0x414, 0xffffffff
        vmcb4   0x420, 0x0c930010       // SS
        vmcb4   0x424, 0xffffffff
        vmcb8   0x4d0, 0x1500           // EFER with LMA
        vmcb8   0x548, 0x220            // CR4
        vmcb8   0x550, PML4             // CR3
        mov     $0x80000011, %eax
        mov     %rax, VMCB + 0x558      // CR0
        vmcb8   0x560, 0x400            // DR7
        mov     $0xffff0ff0, %eax
        mov     %rax, VMCB + 0x568      // DR6
        vmcb8   0x570, 2                // RFLAGS
        vmcb8   0x578, guest
        vmcb8   0x5d8, STACK
        movabs  $0x0007040600070406, %rax
        mov     %rax, VMCB + 0x668      // G_PAT

#if CHECK == asid_0  // ASID 0
        vmcb4   0x58, 0
        mov     $VMCB, %eax
        clgi
        vmrun   %rax
        stgi
        cmpl    $-1, VMCB + 0x70        // which is refused
        jne     failed
        jmp     passed
#endif
#if CHECK == gif  // VMRUN with GIF set
        mov     $VMCB, %eax
        vmrun   %rax
        jmp     passed
#endif
#if CHECK == reserved  // a reserved field
        vmcb4   0x20, 1
#endif

        run
        cmp     $0x1111, %ebx
        jne     failed
        vmcb4   0x5c, 0                 // nothing is flushed from here on

#if CHECK == nothing  // nothing wrong: the page moves and the ASID is flushed; a dirty group is changed
        movl    $MOVED + 0x67, NPT
        vmcb4   0x5c, 3
        movl    $0x43, VMCB + 0x10
        movl    $0x3fe, VMCB + 0xc0
        again
        cmp     $0x2222, %ebx
        jne     failed
#endif
#if CHECK == stale_page  // the page moves, and the ASID is not flushed
        movl    $MOVED + 0x67, NPT
        again
        cmp     $0x1111, %ebx
        jne     failed
#endif
#if CHECK == clean_bit  // an intercept changes under a clean bit
        movl    $0x40000, VMCB + 0x0c   // no CPUID intercept after all: bit 18
        movl    $0x1, VMCB + 0xc0
        again
#endif
#if CHECK == asid_reused  // other tables under the same ASID
        vmcb8   0xb0, OTHER
        again
#endif
#if CHECK == no_such_asid  // an ASID that does not exist
        mov     $DATA, %eax
        mov     $0x12345, %ecx
        invlpga %rax, %ecx
#endif
#if CHECK == shadow  // the shadow of STI after the instruction that it covered
        movq    $guest_sti, VMCB + 0x578
        run
        addq    $3, VMCB + 0x578
        run
#endif
#if CHECK == stale_rights  // fewer rights, and the ASID is not flushed
        movl    $DATA + 0x65, NPT
        again                           // suspected
        again                           // nobody else is there to ask for the flush
        again
#endif

#if CHECK == exit_lme                   // nothing wrong: a guest without paging and PAE, with EFER.LME
        vmcb8   0x558, 0x11
        vmcb8   0x548, 0
        vmcb8   0x4d0, 0x1100
        vmcb4   0x410, 0x0c9b0008       // 32 bits
        vmcb4   0x5c, 3
        movq    $guest_32 + 6, VMCB + 0x578     // its VMMCALL
        run
        mov     %cr0, %rax
        bt      $31, %eax               // the host still has paging
        jnc     failed
#endif
#if CHECK == pae_entries                // nothing wrong: the four entries of PAE stay as they are
        movq    $PD + 1, PAE
        vmcb8   0x550, PAE
        vmcb8   0x4d0, 0x1000
        vmcb4   0x410, 0x0c9b0008
        vmcb4   0x5c, 3
        xor     %ebx, %ebx
        movq    $guest_32, VMCB + 0x578
        run
        cmp     $0x1111, %ebx
        jne     failed
        cmpq    $PD + 1, PAE
        jne     failed
#endif
#if CHECK == refused_flush              // a flush is taken for done that VMRUN refused
        movl    $MOVED + 0x67, NPT
        vmcb4   0x5c, 3
        vmcb4   0xa8, 0x80000100        // EVENTINJ of a type that there is not
        mov     $VMCB, %eax
        clgi
        vmrun   %rax
        stgi
        cmpl    $-1, VMCB + 0x70
        jne     failed
        vmcb4   0x5c, 0
        vmcb4   0xa8, 0
        again
        cmp     $0x1111, %ebx
        jne     failed
#endif
#if CHECK == at_nmi                     // an NMI comes while something of the guest's is there
        movl    $APIC_PD + 7, PDPT + 3 * 8
        movl    $0xfee00097, APIC_PD + 0x1f7 * 8
        mov     $nmi, %eax
        mov     %ax, IDT + 2 * 16
        movw    $8, IDT + 2 * 16 + 2
        shr     $16, %eax
        mov     %ax, IDT + 2 * 16 + 6
        movw    $0x8e00, IDT + 2 * 16 + 4
        lidt    idt_pointer
        guest_leaves guest_msr
        mov     $0xfee00000, %ebx
        movl    $0, 0x310(%rbx)
        movl    $0x4400, 0x300(%rbx)    // an NMI to the processor with ID 0
1:      pause
        cmpb    $0, nmi_came
        je      1b
        jmp     passed
nmi:    movb    $1, nmi_came
        iretq
        .align  8
idt_pointer:
        .word   3 * 16 - 1
        .quad   IDT
nmi_came:
        .byte   0
#endif
#if CHECK == at_switch                  // another task's tables are loaded meanwhile
        guest_leaves guest_msr
        mov     %cr3, %rax
        mov     %rax, %cr3
        jmp     passed
#endif

#if CHECK == first_ret                  // R8 is the guest's, and the return stack is as the guest left it
        call    1f
        jmp     passed
1:      ret
#endif
#if CHECK == msr_in_user || CHECK == fpu_in_user
#if CHECK == msr_in_user
        guest_leaves guest_msr
#else
        guest_leaves guest_fpu
#endif
        user
        jmp     passed
#endif
#if CHECK == untrained || CHECK == second_ret
        /* The return stack is refilled. */
        mov     $32, %ecx
1:      call    2f
        int3
2:      add     $8, %rsp
        dec     %ecx
        jnz     1b
        /* The RET of the sequence that untrains return prediction, with R8 the guest's still. */
        call    untrain
#if CHECK == untrained                  // nothing wrong: it is cleared before the next one
        xor     %r8d, %r8d
#endif
        call    1f
        jmp     passed
1:      ret
untrain:
        lfence
        jmp     1f
        int3
1:      ret
#endif
#if CHECK == no_barrier                 // another guest, without IBPB
        mov     $VMCB, %esi
        mov     $SECOND, %edi
        mov     $PAGE, %ecx
        cld
        rep     movsb
        movl    $2, SECOND + 0x58
        movq    $OTHER, SECOND + 0xb0
        movq    $guest, SECOND + 0x578
        movl    $0, SECOND + 0xc0
        mov     $SECOND, %eax
        clgi
        vmrun   %rax
        stgi
        cmpq    $VMMCALL_EXIT, SECOND + 0x70
        jne     failed
#endif

passed:
        mov     $0, %eax                // 2 * 0 + 1
        jmp     1f
failed:
        mov     $1, %eax
1:      out     %eax, $0xf4
        hlt

guest:
        mov     $0x12345678, %r8d
        mov     DATA, %ebx
        vmmcall
guest_sti:
        sti
        vmmcall
        vmmcall
guest_msr:
        mov     $0xc0000102, %ecx       // KernelGSBase
        mov     $0x12345678, %eax
        xor     %edx, %edx
        wrmsr
        vmmcall
guest_fpu:
        mov     $0x12345678, %eax
        movq    %rax, %xmm0
        vmmcall
in_user:
        syscall
        .code32
guest_32:
        movl    DATA, %ebx
        vmmcall
