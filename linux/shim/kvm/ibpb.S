/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's IBPB for engines of other names than the stock module's, for which alone it is exported.
 */
#include <linux/export.h>
#include <linux/linkage.h>
#include <linux/objtool.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 0, 0)
.section .noinstr.text, "ax"

/* Called between #VMEXIT and the untraining of return prediction: nothing but the jump. */
SYM_START(hsave_write_ibpb, SYM_L_GLOBAL, SYM_A_ALIGN)
	ANNOTATE_NOENDBR /* Called directly alone. */
	jmp	write_ibpb
SYM_END(hsave_write_ibpb, SYM_T_FUNC)
STACK_FRAME_NON_STANDARD hsave_write_ibpb
EXPORT_SYMBOL_GPL(hsave_write_ibpb)
#endif
