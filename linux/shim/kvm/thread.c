// SPDX-License-Identifier: GPL-2.0-only
/*
 * The thread of a vCPU: where it sleeps, its timer, and the IPI that takes it out of the guest.
 */
#include <linux/hrtimer.h>
#include <linux/rcuwait.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <hsave.h>

struct hsave_thread {
	struct rcuwait wait;
	/* The task in KVM_RUN; set and cleared by that task itself, so it lives while RCU readers see it here. */
	struct task_struct __rcu *runner;
	struct hrtimer timer;
	void *owner;
};

static enum hrtimer_restart expired(struct hrtimer *timer)
{
	hsave_timer_expired(container_of(timer, struct hsave_thread, timer)->owner);
	return HRTIMER_NORESTART;
}

struct hsave_thread *hsave_thread_new(void *owner)
{
	struct hsave_thread *t = kzalloc(sizeof(*t), GFP_KERNEL_ACCOUNT);

	if (!t)
		return NULL;
	rcuwait_init(&t->wait);
	t->owner = owner;
#if LINUX_AT_LEAST(6, 13)
	hrtimer_setup(&t->timer, expired, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
#else
	hrtimer_init(&t->timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
	t->timer.function = expired;
#endif
	return t;
}

/* Waits for a callback that is running. Nobody else knows the thread any more. */
void hsave_thread_free(struct hsave_thread *t)
{
	hrtimer_cancel(&t->timer);
	kfree(t);
}

/* The current task begins or ends KVM_RUN. Only one at a time: Rust holds a lock around it. */
void hsave_thread_run(struct hsave_thread *t, bool running)
{
	rcu_assign_pointer(t->runner, running ? current : NULL);
}

/* Sends an IPI to the CPU where the runner is on, which ends a guest there. No IPI if it is not running. */
void hsave_thread_kick(struct hsave_thread *t)
{
	struct task_struct *task;

	rcu_read_lock();
	task = rcu_dereference(t->runner);
	if (task)
		kick_process(task);
	rcu_read_unlock();
}

void hsave_thread_wake(struct hsave_thread *t)
{
	rcuwait_wake_up(&t->wait);
}

/* block_begin; then block_prepare, look at the condition, block_sleep while it does not hold; block_end. */
void hsave_thread_block_begin(struct hsave_thread *t)
{
	prepare_to_rcuwait(&t->wait);
}

/* From here a wake-up is not lost. False: a signal is pending. */
bool hsave_thread_block_prepare(void)
{
	set_current_state(TASK_INTERRUPTIBLE);
	return !signal_pending(current);
}

void hsave_thread_block_sleep(void)
{
	schedule();
}

void hsave_thread_block_end(struct hsave_thread *t)
{
	finish_rcuwait(&t->wait);
}

void hsave_timer_arm(struct hsave_thread *t, u64 ns)
{
	hrtimer_start(&t->timer, ns_to_ktime(min_t(u64, ns, KTIME_MAX)), HRTIMER_MODE_ABS_HARD);
}

void hsave_timer_cancel(struct hsave_thread *t)
{
	hrtimer_try_to_cancel(&t->timer);
}
