/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's own mitigations around VMRUN (docs/decisions/0006-mitigations-by-direct-jump.md).
 *
 * Which of them a CPU needs the kernel decides at boot and patches into the code (alternatives). The records of that
 * patching differ from kernel to kernel, so these pieces are compiled per kernel, unlike the world switch itself,
 * which jumps here and is jumped back to: between #VMEXIT and the last piece nothing may execute a RET.
 *
 * A piece has no frame, is entered with any stack alignment and needs no ENDBR (direct jumps only). objtool is told not
 * to follow it: it ends in the middle of another function.
 */
#include <linux/linkage.h>
#include <linux/objtool.h>
#include <asm/alternative.h>
#include <asm/asm.h>
#include <asm/cpufeatures.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>
#include <linux/version.h>

#if !defined(HSAVE_VENDOR) && LINUX_VERSION_CODE >= KERNEL_VERSION(7, 0, 0)
/* What the kernel keeps for modules named as the stock ones: the base passes the one on, and the other is a number. */
.set	write_ibpb, hsave_write_ibpb
.pushsection .rodata, "a"
.balign 2
.Lhsave_verw_sel:
	.word	__KERNEL_DS
.popsection
.set	x86_verw_sel, .Lhsave_verw_sel
#endif

.section .noinstr.text, "ax"

/*
 * Right before VMRUN, all registers hold guest values: clears CPU buffers. Clobbers flags.
 * The operand of VERW is relative to RIP and DS is the host's, so that nothing of the guest is needed.
 */
SYM_START(hsave_mitigate_entry, SYM_L_GLOBAL, SYM_A_ALIGN)
#if defined(VM_CLEAR_CPU_BUFFERS)
	VM_CLEAR_CPU_BUFFERS
#elif defined(X86_FEATURE_CLEAR_CPU_BUF_VM)
	ALTERNATIVE "", __CLEAR_CPU_BUFFERS, X86_FEATURE_CLEAR_CPU_BUF_VM
#elif defined(CLEAR_CPU_BUFFERS)
	CLEAR_CPU_BUFFERS
#endif
	jmp	hsave_mitigate_entry_done
SYM_END(hsave_mitigate_entry, SYM_T_FUNC)
STACK_FRAME_NON_STANDARD hsave_mitigate_entry

/* After the host's VMLOAD: no return prediction of the guest's is left. Clobbers RAX and flags. */
SYM_START(hsave_mitigate_exit_rsb, SYM_L_GLOBAL, SYM_A_ALIGN)
	FILL_RETURN_BUFFER %_ASM_AX, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT
	jmp	hsave_mitigate_exit_rsb_done
SYM_END(hsave_mitigate_exit_rsb, SYM_T_FUNC)
STACK_FRAME_NON_STANDARD hsave_mitigate_exit_rsb

/*
 * With the host's SPEC_CTRL, before the first RET: untrains return prediction, or an IBPB, where the CPU needs it.
 * Clobbers RAX, RCX, RDX and flags.
 */
SYM_START(hsave_mitigate_exit_untrain, SYM_L_GLOBAL, SYM_A_ALIGN)
#ifdef UNTRAIN_RET_VM
	UNTRAIN_RET_VM
#else
	/* Before Linux 6.6 the IBPB that is due after a guest only is not part of the macro. */
	UNTRAIN_RET
	ALTERNATIVE "", "call entry_ibpb", X86_FEATURE_IBPB_ON_VMEXIT
#endif
	jmp	hsave_mitigate_exit_untrain_done
SYM_END(hsave_mitigate_exit_untrain, SYM_T_FUNC)
STACK_FRAME_NON_STANDARD hsave_mitigate_exit_untrain
