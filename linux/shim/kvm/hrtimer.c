// SPDX-License-Identifier: GPL-2.0-only
/*
 * The timers of a VM's devices.
 */
#include <linux/hrtimer.h>
#include <linux/slab.h>
#include "base.h"

struct vm_hrtimer {
	struct hrtimer timer;
	/* What of an expiry is not for hard interrupt context. */
	struct work_struct late;
	struct hsave_hrtimers *all;
};

struct hsave_hrtimers {
	/* The engine's, and while the VM goes to another one that one's. */
	refcount_t refs;
	/* Set once, before a timer can be armed. */
	struct hsave_vm *vm;
	struct vm_hrtimer hrtimers[HSAVE_HRTIMERS];
};

static enum hrtimer_restart expired(struct hrtimer *timer)
{
	struct vm_hrtimer *a = container_of(timer, struct vm_hrtimer, timer);

	if (unlikely(!hsave_vm_expired(a->all->vm, a - a->all->hrtimers)))
		hsave_do_late(&a->late);
	return HRTIMER_NORESTART;
}

static void late(struct work_struct *work)
{
	struct vm_hrtimer *a = container_of(work, struct vm_hrtimer, late);
	struct hsave_vm *vm = a->all->vm;
	u32 which = a - a->all->hrtimers;

	rcu_read_lock();
	/* The engine knows what it has left, and the next one will: to look again is enough. */
	if (likely(!smp_load_acquire(&vm->closed)) || !hsave_vm_hold_back(vm, &vm->held_hrtimers[which]))
		hsave_call(vm, hrtimer_late, which);
	rcu_read_unlock();
}

struct hsave_hrtimers *hsave_hrtimers_new(void)
{
	struct hsave_hrtimers *all = kzalloc(sizeof(*all), GFP_KERNEL_ACCOUNT);
	struct vm_hrtimer *a;

	if (!all)
		return NULL;
	refcount_set(&all->refs, 1);
	for (a = all->hrtimers; a < all->hrtimers + HSAVE_HRTIMERS; a++) {
		a->all = all;
		INIT_WORK(&a->late, late);
#if LINUX_AT_LEAST(6, 13)
		hrtimer_setup(&a->timer, expired, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
#else
		hrtimer_init(&a->timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
		a->timer.function = expired;
#endif
	}
	return all;
}

void hsave_hrtimers_bind(struct hsave_hrtimers *all, struct hsave_vm *vm)
{
	all->vm = vm;
}

void hsave_hrtimers_get(struct hsave_hrtimers *all)
{
	refcount_inc(&all->refs);
}

/* The last one waits for callbacks that are running, and for the rest of them, which arms no timer. */
void hsave_hrtimers_put(struct hsave_hrtimers *all)
{
	struct vm_hrtimer *a;

	if (!refcount_dec_and_test(&all->refs))
		return;
	for (a = all->hrtimers; a < all->hrtimers + HSAVE_HRTIMERS; a++)
		hrtimer_cancel(&a->timer);
	for (a = all->hrtimers; a < all->hrtimers + HSAVE_HRTIMERS; a++)
		cancel_work_sync(&a->late);
	kfree(all);
}

void hsave_hrtimer_arm(struct hsave_hrtimers *all, u32 which, u64 ns)
{
	hrtimer_start(&all->hrtimers[which].timer, ns_to_ktime(min_t(u64, ns, KTIME_MAX)), HRTIMER_MODE_ABS_HARD);
}

void hsave_hrtimer_cancel(struct hsave_hrtimers *all, u32 which)
{
	hrtimer_try_to_cancel(&all->hrtimers[which].timer);
}
