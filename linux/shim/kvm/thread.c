// SPDX-License-Identifier: GPL-2.0-only
/*
 * The thread of a vCPU: where it sleeps, its timer, and the IPI that takes it out of the guest.
 *
 * Long because: sleeping, waking and being told of the scheduler are three views of one state.
 */
#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/hrtimer.h>
#include <linux/preempt.h>
#include <linux/rcuwait.h>
#include <linux/sched/cputime.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/uaccess.h>
#include <asm/special_insns.h>
#include "base.h"

struct hsave_thread {
	/* What the engine, whichever it is, looks at as well: first. */
	struct hsave_thread_shared shared;
	refcount_t refs;
	struct rcuwait wait;
	struct preempt_notifier notifier;
	/* Guards note against being written to once it was taken back. */
	raw_spinlock_t note_lock;
	/* User address of a byte that says that the runner lost its CPU; 0: none. */
	unsigned long note;
	/* It says so. */
	bool noted;
	/* The guest is between two instructions; the runner's own. */
	bool preemptible;
	/* How often the runner lost its CPU though it could have gone on: between two instructions, and otherwise. */
	u64 preempted[2];
	/* Where the runner was last. */
	int cpu;
	/* Where it was since the guest last wrote the caches back. */
	cpumask_var_t ran_on;
	/* The task in KVM_RUN; set and cleared by that task itself, so it lives while RCU readers see it here. */
	struct task_struct __rcu *runner;
	struct hrtimer timer;
	/* Where the timer was armed. */
	int timer_cpu;
	/* What the engine has of the VM whose KVM_RUN the runner is in. */
	const void *vm;
	struct hsave_page_ins *page_ins;
	struct list_head all;
};

static_assert(offsetof(struct hsave_thread, shared) == 0);

/* A request of the vCPU, which its thread serves before it enters the guest again. Any context. */
static void make_request(struct hsave_thread *t, unsigned int request)
{
	/* A locked instruction: who looks at the mode or sleeps sees it, or is seen (host/src/requests.rs). */
	set_bit(request, (unsigned long *)&t->shared.requests.pending);
	smp_mb__after_atomic();
}

static void kick(struct hsave_thread *t)
{
	if (READ_ONCE(t->shared.requests.mode) == HSAVE_IN_GUEST)
		hsave_thread_kick(t);
}

static void wake(struct hsave_thread *t)
{
	hsave_thread_wake(t);
	kick(t);
}

/* All there are, for what every vCPU has to know. */
static DEFINE_MUTEX(threads_lock);
static LIST_HEAD(threads);

/* Makes a request of every vCPU. One that sleeps sleeps on, and one that comes into being meanwhile finds out by itself. */
void hsave_threads_request(unsigned int what)
{
	struct hsave_thread *t;

	mutex_lock(&threads_lock);
	list_for_each_entry(t, &threads, all) {
		make_request(t, what);
		kick(t);
	}
	mutex_unlock(&threads_lock);
}

struct hsave_page_ins *hsave_thread_page_ins(const struct hsave_thread *t)
{
	return t->page_ins;
}

/* A page-in is over; process context. The first that the vCPU has not looked at yet is told. */
void hsave_page_in_done(struct hsave_thread *t, u8 number)
{
	if (atomic64_fetch_or(BIT_ULL(number & 63), (atomic64_t *)&t->shared.page_ins))
		return;
	make_request(t, HSAVE_REQUEST_APF_READY);
	wake(t);
}

static enum hrtimer_restart expired(struct hrtimer *timer)
{
	struct hsave_thread *t = container_of(timer, struct hsave_thread, timer);

	make_request(t, HSAVE_REQUEST_TIMER);
	wake(t);
	return HRTIMER_NORESTART;
}

/* The runner has a CPU again. */
static void sched_in(struct preempt_notifier *notifier, int cpu)
{
	struct hsave_thread *t = container_of(notifier, struct hsave_thread, notifier);

	if (READ_ONCE(t->note) || t->cpu != cpu)
		make_request(t, HSAVE_REQUEST_STEAL_UPDATE);
	if (t->cpu != cpu)
		cpumask_set_cpu(cpu, t->ran_on);
	t->cpu = cpu;
}

/* The runner loses its CPU; it is still current, interrupts are off and nothing may sleep. */
static void sched_out(struct preempt_notifier *notifier, struct task_struct *next)
{
	struct hsave_thread *t = container_of(notifier, struct hsave_thread, notifier);
	u8 preempted = 1;

#if LINUX_AT_LEAST(6, 12)
	if (task_is_runnable(current))
#else
	if (current->on_rq)
#endif
		WRITE_ONCE(t->preempted[!t->preemptible], t->preempted[!t->preemptible] + 1);
	if (!t->preemptible || !READ_ONCE(t->note))
		return;
	raw_spin_lock(&t->note_lock);
	if (t->note && !t->noted)
		t->noted = !copy_to_user_nofault((void __user *)t->note, &preempted, sizeof(preempted));
	raw_spin_unlock(&t->note_lock);
}

static struct preempt_ops preempt_ops = { .sched_in = sched_in, .sched_out = sched_out };

/* sibling: that of another vCPU of the VM, or NULL. NULL: no memory. */
struct hsave_thread *hsave_thread_new(const struct hsave_thread *sibling)
{
	struct hsave_thread *t = kzalloc(sizeof(*t), GFP_KERNEL_ACCOUNT);

	if (!t)
		return NULL;
	t->page_ins = hsave_page_ins_new(t, sibling ? sibling->page_ins : NULL);
	if (!t->page_ins) {
		kfree(t);
		return NULL;
	}
	if (!zalloc_cpumask_var(&t->ran_on, GFP_KERNEL_ACCOUNT)) {
		hsave_page_ins_free(t->page_ins);
		kfree(t);
		return NULL;
	}
	refcount_set(&t->refs, 1);
	rcuwait_init(&t->wait);
	raw_spin_lock_init(&t->note_lock);
	preempt_notifier_init(&t->notifier, &preempt_ops);
	preempt_notifier_inc();
	t->cpu = -1;
#if LINUX_AT_LEAST(6, 13)
	hrtimer_setup(&t->timer, expired, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
#else
	hrtimer_init(&t->timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
	t->timer.function = expired;
#endif
	mutex_lock(&threads_lock);
	list_add(&t->all, &threads);
	if (hsave_traced())
		make_request(t, HSAVE_REQUEST_TRACE);
	mutex_unlock(&threads_lock);
	return t;
}

void hsave_thread_get(struct hsave_thread *t)
{
	refcount_inc(&t->refs);
}

/* The last one waits for a callback of the timer; page-ins that are under way say nothing from then on. */
void hsave_thread_put(struct hsave_thread *t)
{
	if (!refcount_dec_and_test(&t->refs))
		return;
	mutex_lock(&threads_lock);
	list_del(&t->all);
	mutex_unlock(&threads_lock);
	hsave_page_ins_free(t->page_ins);
	hrtimer_cancel(&t->timer);
	preempt_notifier_dec();
	free_cpumask_var(t->ran_on);
	kfree(t);
}

/*
 * The current task begins KVM_RUN of the engine's VM, or (NULL) ends it. Only one at a time: the vCPU's file is locked.
 */
void hsave_thread_run(struct hsave_thread *t, const void *vm)
{
	t->vm = vm;
	rcu_assign_pointer(t->runner, vm ? current : NULL);
	if (!vm) {
		preempt_notifier_unregister(&t->notifier);
		return;
	}
	preempt_notifier_register(&t->notifier);
	/* Preempted in between, it is found to be right already. */
	if (READ_ONCE(t->cpu) != raw_smp_processor_id()) {
		/* Preempted here, it is noted twice. */
		cpumask_set_cpu(raw_smp_processor_id(), t->ran_on);
		WRITE_ONCE(t->cpu, raw_smp_processor_id());
		make_request(t, HSAVE_REQUEST_STEAL_UPDATE);
	}
}

/*
 * The current task dies in the middle of KVM_RUN: the scheduler forgets the thread. What the engine has of
 * the VM, or NULL: it is in no KVM_RUN.
 */
const void *hsave_thread_abandon(void)
{
	struct preempt_notifier *notifier;
	struct hlist_node *next;
	struct hsave_thread *t;

	hlist_for_each_entry_safe(notifier, next, &current->preempt_notifiers, link) {
		if (notifier->ops != &preempt_ops)
			continue;
		t = container_of(notifier, struct hsave_thread, notifier);
		rcu_assign_pointer(t->runner, NULL);
		preempt_notifier_unregister(notifier);
		return t->vm;
	}
	return NULL;
}

/* Where to note that the runner lost its CPU; 0: nowhere. Nothing is written to the old place when this returns. */
void hsave_thread_note(struct hsave_thread *t, u64 at)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&t->note_lock, flags);
	t->note = at;
	t->noted = false;
	raw_spin_unlock_irqrestore(&t->note_lock, flags);
}

void hsave_thread_preemptible(struct hsave_thread *t, bool yes)
{
	t->preemptible = yes;
	/* Seen by sched_out, on this very CPU, in this order. */
	barrier();
}

void hsave_thread_preemptions(struct hsave_thread *t, u64 *reported, u64 *other)
{
	*reported = READ_ONCE(t->preempted[0]);
	*other = READ_ONCE(t->preempted[1]);
}

static void write_back(void *unused)
{
	wbinvd();
}

/*
 * The runner's guest wants the caches written back: on each CPU where it may have something in them. Clears the mask but
 * for the CPU that it is on, which it may go on to use.
 */
void hsave_thread_wbinvd(struct hsave_thread *t)
{
	int cpu = get_cpu();

	cpumask_set_cpu(cpu, t->ran_on);
	on_each_cpu_mask(t->ran_on, write_back, NULL, true);
	cpumask_clear(t->ran_on);
	cpumask_set_cpu(cpu, t->ran_on);
	put_cpu();
}

/* Does the kernel account how long threads wait for a CPU? */
bool hsave_has_run_delay(void)
{
	return sched_info_on();
}

u64 hsave_run_delay(void)
{
	return current->sched_info.run_delay;
}

/* How long the current thread has run, in user space and in the kernel. */
u64 hsave_task_runtime(void)
{
	u64 user, system;

	task_cputime_adjusted(current, &user, &system);
	return user + system;
}

bool hsave_smt_possible(void)
{
	return cpu_smt_possible();
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

/*
 * Gives this CPU to the runner. Positive: it has got it; 0: it is not in KVM_RUN, runs already or may not have it;
 * negative: the scheduler has nobody to yield to. May sleep.
 */
int hsave_thread_yield_to(struct hsave_thread *t)
{
	struct task_struct *task;
	int got;

	rcu_read_lock();
	task = rcu_dereference(t->runner);
	if (task)
		get_task_struct(task);
	rcu_read_unlock();
	if (!task)
		return 0;
	got = yield_to(task, true);
	put_task_struct(task);
	return got;
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
	t->timer_cpu = raw_smp_processor_id();
	hrtimer_start(&t->timer, ns_to_ktime(min_t(u64, ns, KTIME_MAX)), HRTIMER_MODE_ABS_HARD);
}

void hsave_timer_cancel(struct hsave_thread *t)
{
	hrtimer_try_to_cancel(&t->timer);
}

/*
 * Where the runner is on another CPU than the timer was armed on, it expires here from now on, and not by an IPI; false if it is not.
 * Not while the timer is armed or cancelled elsewhere.
 */
bool hsave_timer_migrate(struct hsave_thread *t)
{
	int cpu = raw_smp_processor_id();

	if (t->timer_cpu == cpu)
		return false;
	t->timer_cpu = cpu;
	if (hrtimer_cancel(&t->timer))
		hrtimer_start_expires(&t->timer, HRTIMER_MODE_ABS_HARD);
	return true;
}
