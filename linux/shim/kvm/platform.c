// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the world switch needs at each entry and exit: linux/src/platform.rs. Interrupts are off in all of it.
 */
#include <linux/hw_breakpoint.h>
#include <linux/irqflags.h>
#include <linux/kvm_host.h>
#include <linux/kvm_para.h>
#include <asm/cpufeature.h>
#include <asm/debugreg.h>
#include <asm/fpu/api.h>
#include <asm/mce.h>
#include <asm/nospec-branch.h>
#include <asm/smp.h>
#include <asm/spec-ctrl.h>
#if __has_include(<linux/entry-virt.h>)
#include <linux/entry-virt.h>
#else
#include <linux/entry-kvm.h>
#endif
#include <hsave.h>
#include "cpu.h"

/*
 * Switches interrupts off. False: the kernel wants work done first. True: the FPU registers are this task's, and interrupts
 * stay off.
 */
bool hsave_may_enter(void)
{
	local_irq_disable();
	xfer_to_guest_mode_prepare();
	if (xfer_to_guest_mode_work_pending()) {
		local_irq_enable();
		return false;
	}
	if (test_thread_flag(TIF_NEED_FPU_LOAD))
		switch_fpu_return();
#ifdef X86_FEATURE_SRSO_BP_SPEC_REDUCE
	if (cpu_feature_enabled(X86_FEATURE_SRSO_BP_SPEC_REDUCE))
		hsave_speculation_reduce();
#endif
	return true;
}

/* Interrupts on again when the guest was not entered after all. */
void hsave_irq_enable(void)
{
	local_irq_enable();
}

/* GIF is clear around these two, and RCU does not watch in between: nothing of them may be traced. */
noinstr void hsave_guest_enter(void)
{
	instrumentation_begin();
	guest_timing_enter_irqoff();
	instrumentation_end();
	/*
	 * Where the kernel follows whether interrupts are on, they count as on from here to the exit: RFLAGS.IF is set at VMRUN.
	 * Elsewhere the rest of guest_state_enter_irqoff() is a note for RCU at each exit, some 100 instructions, which
	 * hsave_guest_done() makes once for each interrupt.
	 */
#ifdef CONFIG_TRACE_IRQFLAGS
	guest_state_enter_irqoff();
#else
	context_tracking_guest_enter();
#endif
	/*
	 * X86_BUG_DIV0: on Zen 1 a division that faults forwards the quotient of the last one on this core, which would be
	 * the host's.
	 */
	amd_clear_divider();
}

noinstr void hsave_guest_exit(void)
{
#ifdef CONFIG_TRACE_IRQFLAGS
	guest_state_exit_irqoff();
#else
	context_tracking_guest_exit();
#endif
	instrumentation_begin();
	if (hw_breakpoint_active())
		hw_breakpoint_restore();
#ifdef X86_FEATURE_IBPB_EXIT_TO_USER
	/* The VMM must not run on predictions that the guest has trained. */
	if (cpu_feature_enabled(X86_FEATURE_IBPB_EXIT_TO_USER))
		this_cpu_write(x86_ibpb_exit_to_user, true);
#endif
	instrumentation_end();
}

/* With an interrupt pending it is taken here: a tick that ended the run is the guest's time. */
void hsave_guest_done(bool pending)
{
	if (pending) {
		/*
		 * The guest held no reference of RCU's. Said once per interrupt, not once per entry: a guest that runs
		 * without exits is interrupted by the tick at the latest, and one that exits often is preempted.
		 */
#if LINUX_AT_LEAST(6, 12)
		rcu_virt_note_context_switch();
#else
		rcu_virt_note_context_switch(smp_processor_id());
#endif
		preempt_disable();
		local_irq_enable();
		/* The instruction after STI runs before the interrupt is taken. */
		asm volatile("nop");
		local_irq_disable();
	}
	hsave_guest_handled();
	guest_timing_exit_irqoff();
	local_irq_enable();
	if (pending)
		preempt_enable();
}

/* Between two guests on this CPU. */
void hsave_guest_barrier(void)
{
#if LINUX_AT_LEAST(7, 0)
	if (static_branch_likely(&switch_vcpu_ibpb))
		indirect_branch_prediction_barrier();
#else
	indirect_branch_prediction_barrier();
#endif
}

/* The IPI of a reschedule, which the host takes without doing anything. */
void hsave_interrupt_self(void)
{
#ifdef smp_send_reschedule
	arch_smp_send_reschedule(smp_processor_id());
#else
	smp_send_reschedule(smp_processor_id());
#endif
}

/*
 * The processor leaves the guest instead of raising the machine check, so the kernel's handler has to be called. It is
 * told that user mode was interrupted, which is as much of the kernel's as a guest is: an error in memory that the guest
 * has read costs the VMM a signal, and not the host its life. A kernel without CONFIG_X86_MCE has no handler, and the
 * processor no machine checks: CR4.MCE is clear there.
 */
void hsave_machine_check(void)
{
#ifdef CONFIG_X86_MCE
	struct pt_regs regs = { .cs = 3, .flags = X86_EFLAGS_IF };

	do_machine_check(&regs);
#endif
}

/*
 * Does the outer KVM, of which this host is a guest, wait for memory of the host's? It says so by a #PF exit whether or not that
 * is intercepted, since Linux allows it (KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT). Whoever takes the exit has to take the note, too: the
 * next #PF of the kernel's own on this CPU would be held for it, which is a panic.
 */
bool hsave_host_page_fault(void)
{
	return kvm_read_and_reset_apf_flags() & KVM_PV_REASON_PAGE_NOT_PRESENT;
}

/* Sleeps until the page of this token is there. */
void hsave_wait_for_host_page(u32 token)
{
	local_irq_disable();
	kvm_async_pf_task_wait_schedule(token);
	local_irq_enable();
}

#define KNOWN(name, bit) (boot_cpu_has(X86_FEATURE_##name) ? BIT(bit) : 0)

/*
 * CPUID Fn8000_0021: what the kernel knows of the processor by its model and microcode, although CPUID may not say it: EAX (0) and
 * ECX (2).
 */
u32 hsave_known_features(u32 reg)
{
	u32 known = 0;

	if (reg == 0) {
#ifdef X86_FEATURE_VERW_CLEAR
		known |= KNOWN(VERW_CLEAR, 5);
#endif
#ifdef X86_FEATURE_SRSO_NO
		known |= KNOWN(SBPB, 27) | KNOWN(IBPB_BRTYPE, 28) | KNOWN(SRSO_NO, 29);
#endif
	}
	if (reg == 2) {
#ifdef X86_FEATURE_TSA_SQ_NO
		known |= KNOWN(TSA_SQ_NO, 1) | KNOWN(TSA_L1_NO, 2);
#endif
#ifdef X86_FEATURE_TSA_FILL_NO
		known |= KNOWN(TSA_FILL_NO, 7);
#endif
	}
	return known;
}

/* Branch Type Confusion: a branch of any kind can be taken for an indirect one (X86_BUG_RETBLEED). */
bool hsave_has_retbleed(void)
{
	return boot_cpu_has_bug(X86_BUG_RETBLEED);
}

/* Can the kernel switch SSBD for a guest other than by SPEC_CTRL? */
bool hsave_has_virt_ssbd(void)
{
	return boot_cpu_has(X86_FEATURE_LS_CFG_SSBD) || boot_cpu_has(X86_FEATURE_VIRT_SSBD);
}

/* Does the current task run with speculative store bypass disabled? */
bool hsave_task_ssbd(void)
{
	return boot_cpu_has(X86_FEATURE_SPEC_STORE_BYPASS_DISABLE) || test_thread_flag(TIF_SSBD);
}

/* The guest's value goes in (enter), or the task's comes back. */
void hsave_virt_spec_ctrl(u64 value, bool enter)
{
	x86_virt_spec_ctrl(value, enter);
}

void hsave_prediction_command(u64 bits)
{
	wrmsrl(MSR_IA32_PRED_CMD, bits);
}

void hsave_flush_l1d(void)
{
	wrmsrl(MSR_IA32_FLUSH_CMD, L1D_FLUSH);
}

int hsave_read_msr(u32 index, u64 *value)
{
	return rdmsrl_safe(index, value);
}

/* Which bits of a CPUID register the kernel lets be used; all ones where it has no say. */
static const struct {
	u32 leaf;
	u8 subleaf;
	u8 reg;
	u8 word;
} cpuid_words[] = {
	{ 0x00000001, 0, 3, CPUID_1_EDX },
	{ 0x00000001, 0, 2, CPUID_1_ECX },
	{ 0x00000006, 0, 0, CPUID_6_EAX },
	{ 0x00000007, 0, 1, CPUID_7_0_EBX },
	{ 0x00000007, 0, 2, CPUID_7_ECX },
	{ 0x00000007, 0, 3, CPUID_7_EDX },
	{ 0x00000007, 1, 0, CPUID_7_1_EAX },
	{ 0x0000000d, 1, 0, CPUID_D_1_EAX },
	{ 0x80000001, 0, 3, CPUID_8000_0001_EDX },
	{ 0x80000001, 0, 2, CPUID_8000_0001_ECX },
	{ 0x80000008, 0, 1, CPUID_8000_0008_EBX },
	{ 0x8000000a, 0, 3, CPUID_8000_000A_EDX },
	{ 0x8000001f, 0, 0, CPUID_8000_001F_EAX },
	{ 0x80000021, 0, 0, CPUID_8000_0021_EAX },
};

u32 hsave_cpuid_mask(u32 leaf, u32 subleaf, u32 reg)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(cpuid_words); i++) {
		if (cpuid_words[i].leaf == leaf && cpuid_words[i].subleaf == subleaf && cpuid_words[i].reg == reg)
			return boot_cpu_data.x86_capability[cpuid_words[i].word];
	}
	return ~0u;
}
