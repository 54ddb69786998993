// SPDX-License-Identifier: GPL-2.0-only
/*
 * The host's clocks.
 */
#include <linux/clocksource.h>
#include <linux/notifier.h>
#include <linux/pvclock_gtod.h>
#include <linux/timekeeper_internal.h>
#include <linux/timekeeping.h>
#include <asm/tsc.h>
#include <hsave.h>

/* Is the TSC what the kernel keeps time by? Written under the timekeeper's lock. */
static bool tsc_keeps_time;

static int timekeeper_changed(struct notifier_block *nb, unsigned long unused, void *data)
{
	const struct timekeeper *tk = data;

	WRITE_ONCE(tsc_keeps_time, tk->tkr_mono.clock->vdso_clock_mode == VDSO_CLOCKMODE_TSC);
	return 0;
}

static struct notifier_block timekeeper_notifier = { .notifier_call = timekeeper_changed };

int hsave_clock_start(void)
{
	return pvclock_gtod_register_notifier(&timekeeper_notifier);
}

void hsave_clock_stop(void)
{
	pvclock_gtod_unregister_notifier(&timekeeper_notifier);
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

/* TSC, boot time and real time of one moment; the TSC is that of the middle between two reads. */
void hsave_time_point(u64 *tsc, u64 *boot_ns, u64 *real_ns)
{
	unsigned long flags;
	u64 before;

	local_irq_save(flags);
	before = rdtsc_ordered();
	*boot_ns = ktime_get_boottime_ns();
	*real_ns = ktime_get_real_ns();
	*tsc = before + (rdtsc_ordered() - before) / 2;
	local_irq_restore(flags);
}
