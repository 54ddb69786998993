// SPDX-License-Identifier: GPL-2.0-only
/*
 * Speculative return stack overflow on processors that need no safe return between user space and kernel any more, but
 * still one thing between guest and host: BP_CFG[BpSpecReduce] has to be set while they run guests. Where the kernel
 * reports that mitigation (X86_FEATURE_SRSO_BP_SPEC_REDUCE) it leaves the bit to the hypervisor. It costs performance,
 * so a CPU sets it when it first enters a guest, and all CPUs clear it when the last VM has gone.
 */
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <asm/cpufeature.h>
#include <asm/msr.h>
#include "base.h"
#include "cpu.h"

#ifdef X86_FEATURE_SRSO_BP_SPEC_REDUCE

static DEFINE_MUTEX(lock);
/* Number of VMs; under the lock. */
static unsigned int vms;
/* The bit is set on this CPU. Written there only, interrupts off. */
static DEFINE_PER_CPU(bool, reduced);

void hsave_speculation_reduce(void)
{
	if (__this_cpu_read(reduced))
		return;
	__this_cpu_write(reduced, true);
	msr_set_bit(MSR_ZEN4_BP_CFG, MSR_ZEN4_BP_CFG_BP_SPEC_REDUCE_BIT);
}

void hsave_speculation_restore(void)
{
	unsigned long flags;

	local_irq_save(flags);
	if (__this_cpu_read(reduced)) {
		msr_clear_bit(MSR_ZEN4_BP_CFG, MSR_ZEN4_BP_CFG_BP_SPEC_REDUCE_BIT);
		__this_cpu_write(reduced, false);
	}
	local_irq_restore(flags);
}

static void restore_here(void *unused)
{
	hsave_speculation_restore();
}

/* A VM comes. May sleep: a new VM must not run while the end of the last one still clears the bit. */
void hsave_vm_comes(void)
{
	mutex_lock(&lock);
	vms++;
	mutex_unlock(&lock);
}

/* A VM is gone: none of its vCPUs runs any more. May sleep. */
void hsave_vm_gone(void)
{
	mutex_lock(&lock);
	if (!--vms && cpu_feature_enabled(X86_FEATURE_SRSO_BP_SPEC_REDUCE))
		on_each_cpu(restore_here, NULL, 1);
	mutex_unlock(&lock);
}

#else

void hsave_vm_comes(void)
{
}

void hsave_vm_gone(void)
{
}

#endif
