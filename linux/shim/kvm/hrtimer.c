// SPDX-License-Identifier: GPL-2.0-only
/*
 * The timers of a VM's devices.
 */
#include <linux/hrtimer.h>
#include <linux/slab.h>
#include <hsave.h>

struct vm_hrtimer {
	struct hrtimer timer;
	struct hsave_hrtimers *all;
};

struct hsave_hrtimers {
	/* Set once, before a timer can be armed. */
	const void *vm;
	struct vm_hrtimer hrtimers[HSAVE_HRTIMERS];
};

static enum hrtimer_restart expired(struct hrtimer *timer)
{
	struct vm_hrtimer *a = container_of(timer, struct vm_hrtimer, timer);

	hsave_hrtimer_expired(a->all->vm, a - a->all->hrtimers);
	return HRTIMER_NORESTART;
}

struct hsave_hrtimers *hsave_hrtimers_new(void)
{
	struct hsave_hrtimers *all = kzalloc(sizeof(*all), GFP_KERNEL_ACCOUNT);
	struct vm_hrtimer *a;

	if (!all)
		return NULL;
	for (a = all->hrtimers; a < all->hrtimers + HSAVE_HRTIMERS; a++) {
		a->all = all;
#if LINUX_AT_LEAST(6, 13)
		hrtimer_setup(&a->timer, expired, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
#else
		hrtimer_init(&a->timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
		a->timer.function = expired;
#endif
	}
	return all;
}

void hsave_hrtimers_bind(struct hsave_hrtimers *all, const void *vm)
{
	all->vm = vm;
}

/* Waits for callbacks that are running. */
void hsave_hrtimers_free(struct hsave_hrtimers *all)
{
	struct vm_hrtimer *a;

	for (a = all->hrtimers; a < all->hrtimers + HSAVE_HRTIMERS; a++)
		hrtimer_cancel(&a->timer);
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

/* It expires on this CPU from now on. One that is cancelled at the same time may expire all the same. May sleep. */
void hsave_hrtimer_migrate(struct hsave_hrtimers *all, u32 which)
{
	struct hrtimer *timer = &all->hrtimers[which].timer;

	if (hrtimer_cancel(timer))
		hrtimer_start_expires(timer, HRTIMER_MODE_ABS_HARD);
}
