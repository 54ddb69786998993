// SPDX-License-Identifier: GPL-2.0-only
/*
 * The host's clocks.
 */
#include <linux/clocksource.h>
#include <linux/irq_work.h>
#include <linux/notifier.h>
#include <linux/pvclock_gtod.h>
#include <linux/suspend.h>
#include <linux/timekeeper_internal.h>
#include <linux/timekeeping.h>
#include <linux/workqueue.h>
#include <asm/tsc.h>
#include "base.h"
#include "cpu.h"

/* Is the TSC what the kernel keeps time by? Written under the timekeeper's lock. */
static bool tsc_keeps_time;

/* It no longer is: each guest's clock has to follow the host's, also that of a vCPU which keeps its CPU. */
static void tell_vcpus(struct work_struct *unused)
{
	hsave_threads_request(HSAVE_REQUEST_STEAL_UPDATE);
}

static DECLARE_WORK(tell_work, tell_vcpus);

static void tell_soon(struct irq_work *unused)
{
	schedule_work(&tell_work);
}

static DEFINE_IRQ_WORK(tell_irq_work, tell_soon);

/* Under the timekeeper's lock nothing can be woken up, not even a worker: that is left to an interrupt. */
static int timekeeper_changed(struct notifier_block *nb, unsigned long unused, void *data)
{
	const struct timekeeper *tk = data;
	bool before = tsc_keeps_time;

	WRITE_ONCE(tsc_keeps_time, tk->tkr_mono.clock->vdso_clock_mode == VDSO_CLOCKMODE_TSC);
	if (before && !tsc_keeps_time)
		irq_work_queue(&tell_irq_work);
	return 0;
}

static struct notifier_block timekeeper_notifier = { .notifier_call = timekeeper_changed };

/*
 * How often the machine went to sleep, and what its TSC lost with that: it begins anew in sleeps in which the processor
 * loses its state. Written while no task runs that reads it, but for the first increment below.
 */
static u64 suspends, lost, last;

/*
 * A vCPU that looks only before the machine really sleeps would look too early: the sleep itself counts again. In the one
 * kind of sleep that does not go through hsave_clock_suspend(), to idle, the TSC is kept.
 */
static int pm_changed(struct notifier_block *nb, unsigned long state, void *unused)
{
	if (state == PM_SUSPEND_PREPARE || state == PM_HIBERNATION_PREPARE)
		WRITE_ONCE(suspends, suspends + 1);
	return NOTIFY_DONE;
}

static struct notifier_block pm_notifier = { .notifier_call = pm_changed };

/* The last CPU goes to sleep; interrupts off. */
void hsave_clock_suspend(void)
{
	WRITE_ONCE(suspends, suspends + 1);
	last = rdtsc();
}

/* It is awake again. The others' TSCs are in step with its, or none of them is used to keep time by. */
void hsave_clock_resume(void)
{
	u64 now = rdtsc();

	if (now < last)
		WRITE_ONCE(lost, lost + (last - now));
}

u64 hsave_suspends(void)
{
	return READ_ONCE(suspends);
}

int hsave_clock_start(void)
{
	int err = register_pm_notifier(&pm_notifier);

	if (err)
		return err;
	err = pvclock_gtod_register_notifier(&timekeeper_notifier);
	if (err)
		unregister_pm_notifier(&pm_notifier);
	return err;
}

void hsave_clock_stop(void)
{
	pvclock_gtod_unregister_notifier(&timekeeper_notifier);
	irq_work_sync(&tell_irq_work);
	cancel_work_sync(&tell_work);
	unregister_pm_notifier(&pm_notifier);
}

bool hsave_tsc_is_stable(void)
{
	return READ_ONCE(tsc_keeps_time) && !check_tsc_unstable();
}

u32 hsave_tsc_khz(void)
{
	return tsc_khz;
}

u64 hsave_now_ns(void)
{
	return ktime_get_ns();
}

/* TSC, boot time and real time of one moment; the TSC is that of the middle between two reads. And what it has lost. */
void hsave_time_point(u64 *tsc, u64 *boot_ns, u64 *real_ns, u64 *tsc_lost)
{
	unsigned long flags;
	u64 before;

	local_irq_save(flags);
	before = rdtsc_ordered();
	*boot_ns = ktime_get_boottime_ns();
	*real_ns = ktime_get_real_ns();
	*tsc = before + (rdtsc_ordered() - before) / 2;
	local_irq_restore(flags);
	*tsc_lost = READ_ONCE(lost);
}
