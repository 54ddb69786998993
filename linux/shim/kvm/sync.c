// SPDX-License-Identifier: GPL-2.0-only
/*
 * What locks and loops need of the scheduler: sleeping on a word, preemption, interrupts, pending work.
 */
#include <linux/kvm_host.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/srcu.h>
#include <linux/wait_bit.h>
#if __has_include(<linux/entry-virt.h>)
#include <linux/entry-virt.h>
#else
#include <linux/entry-kvm.h>
#endif
#include "base.h"

/*
 * Sleeps until *word is no longer value. TASK_IDLE: the holder may be in a guest for as long as it likes, which is no
 * hung task.
 */
void hsave_wait_word(const u32 *word, u32 value)
{
	might_sleep();
	/* The kernel only looks at the address. */
	___wait_var_event((u32 *)word, READ_ONCE(*word) != value, TASK_IDLE, 0, 0, schedule());
}

/* The same, unless the task is to die: -ERESTARTSYS. As above this is no hung task, nor load. */
int hsave_wait_word_killable(const u32 *word, u32 value)
{
	might_sleep();
	return ___wait_var_event((u32 *)word, READ_ONCE(*word) != value, (TASK_KILLABLE | TASK_NOLOAD), 0, 0, schedule());
}

/* Wakes who sleeps on word. The store to *word before it was a locked instruction, the barrier that this needs. */
void hsave_wake_word(const u32 *word)
{
	wake_up_var((u32 *)word);
}

void hsave_preempt_disable(void)
{
	preempt_disable();
}

void hsave_preempt_enable(void)
{
	preempt_enable();
}

/*
 * Readers of snapshots. SRCU of our own, for whose grace periods no other CPU is disturbed, because a VMM can ask for one after the
 * other; and preemption off, so that no reader keeps another VM's waiting.
 */
DEFINE_STATIC_SRCU(readers);

int hsave_srcu_read_lock(void)
{
	int idx;

	preempt_disable();
	idx = srcu_read_lock(&readers);
	if (IS_ENABLED(CONFIG_LOCKDEP))
		hsave_lock_taken(HSAVE_RANK_SNAPSHOT, true, false);
	return idx;
}

void hsave_srcu_read_unlock(int idx)
{
	if (IS_ENABLED(CONFIG_LOCKDEP))
		hsave_lock_gone(HSAVE_RANK_SNAPSHOT);
	srcu_read_unlock(&readers, idx);
	preempt_enable();
}

/* Sleeps until who reads now reads no more. */
void hsave_synchronize_srcu(void)
{
	synchronize_srcu_expedited(&readers);
}

/* How many of our locks that want interrupts off this CPU holds, and what was before the first of them. */
static DEFINE_PER_CPU(unsigned int, irq_depth);
static DEFINE_PER_CPU(unsigned long, irq_flags);

void hsave_irq_save(void)
{
	unsigned long flags;

	local_irq_save(flags);
	preempt_disable();
	if (!__this_cpu_read(irq_depth))
		__this_cpu_write(irq_flags, flags);
	__this_cpu_inc(irq_depth);
}

void hsave_irq_restore(void)
{
	unsigned long flags = __this_cpu_read(irq_flags);

	if (!__this_cpu_dec_return(irq_depth))
		local_irq_restore(flags);
	preempt_enable();
}

void hsave_cond_resched(void)
{
	cond_resched();
}

#if !LINUX_AT_LEAST(7, 0)
/* Older kernels report a signal through a vCPU of the stock module; this one takes the report, nobody reads it. */
static struct kvm_run no_run;
static struct kvm_vcpu no_vcpu = { .run = &no_run };
#define handle_work() xfer_to_guest_mode_handle_work(&no_vcpu)
#else
#define handle_work() xfer_to_guest_mode_handle_work()
#endif

/* Reschedules and runs task work as asked for. Nonzero: a signal is pending. May sleep. */
int hsave_do_work(void)
{
	if (!__xfer_to_guest_mode_work_pending())
		return 0;
	return handle_work();
}

/* KVM_SET_SIGNAL_MASK: blocks other signals than the caller's own mask for the length of KVM_RUN. */
void hsave_sigmask_set(u64 mask)
{
	sigset_t set = { .sig = { mask } };

	BUILD_BUG_ON(sizeof(set) != sizeof(mask));
	sigprocmask(SIG_SETMASK, &set, &current->real_blocked);
}

void hsave_sigmask_restore(void)
{
	sigprocmask(SIG_SETMASK, &current->real_blocked, NULL);
	sigemptyset(&current->real_blocked);
}
