// SPDX-License-Identifier: GPL-2.0-only
/*
 * The timers of a VM's devices.
 */
#include <linux/hrtimer.h>
#include <linux/slab.h>
#include <hsave.h>

struct alarm {
	struct hrtimer timer;
	struct hsave_alarms *all;
};

struct hsave_alarms {
	/* Set once, before a timer can be armed. */
	void *vm;
	struct alarm alarms[HSAVE_ALARMS];
};

static enum hrtimer_restart expired(struct hrtimer *timer)
{
	struct alarm *a = container_of(timer, struct alarm, timer);

	hsave_alarm(a->all->vm, a - a->all->alarms);
	return HRTIMER_NORESTART;
}

struct hsave_alarms *hsave_alarms_new(void)
{
	struct hsave_alarms *all = kzalloc(sizeof(*all), GFP_KERNEL_ACCOUNT);
	struct alarm *a;

	if (!all)
		return NULL;
	for (a = all->alarms; a < all->alarms + HSAVE_ALARMS; a++) {
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

void hsave_alarms_bind(struct hsave_alarms *all, void *vm)
{
	all->vm = vm;
}

/* Waits for callbacks that are running. */
void hsave_alarms_free(struct hsave_alarms *all)
{
	struct alarm *a;

	for (a = all->alarms; a < all->alarms + HSAVE_ALARMS; a++)
		hrtimer_cancel(&a->timer);
	kfree(all);
}

void hsave_alarm_arm(struct hsave_alarms *all, u32 which, u64 ns)
{
	hrtimer_start(&all->alarms[which].timer, ns_to_ktime(min_t(u64, ns, KTIME_MAX)), HRTIMER_MODE_ABS_HARD);
}

void hsave_alarm_cancel(struct hsave_alarms *all, u32 which)
{
	hrtimer_try_to_cancel(&all->alarms[which].timer);
}
