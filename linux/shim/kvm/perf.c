// SPDX-License-Identifier: GPL-2.0-only
/*
 * The host's performance counters while guests run: which of them count, and whose instruction a sample belongs to.
 */
#include <linux/compiler.h>
#include <linux/instrumentation.h>
#include <linux/percpu.h>
#include <linux/perf_event.h>
#include <hsave.h>
#include "cpu.h"

#ifdef CONFIG_GUEST_PERF_EVENTS

/* Where the guest was when an interrupt or NMI took this CPU out of it, until that has been handled. */
struct interrupted {
	unsigned long ip;
	/* PERF_GUEST_*; 0: there is none. */
	unsigned int state;
};

static DEFINE_PER_CPU(struct interrupted, interrupted);

static unsigned int state(void)
{
	return this_cpu_read(interrupted.state);
}

static unsigned long get_ip(void)
{
	return this_cpu_read(interrupted.ip);
}

static struct perf_guest_info_callbacks callbacks = { .state = state, .get_ip = get_ip };

/* GIF is clear: a breakpoint of the tracer's would be one too many. */
noinstr void hsave_guest_interrupted(u64 ip, bool user)
{
	instrumentation_begin();
	this_cpu_write(interrupted.ip, ip);
	this_cpu_write(interrupted.state, PERF_GUEST_ACTIVE | (user ? PERF_GUEST_USER : 0));
	instrumentation_end();
}

void hsave_guest_handled(void)
{
	this_cpu_write(interrupted.state, 0);
}

void hsave_perf_start(void)
{
	perf_register_guest_info_callbacks(&callbacks);
}

void hsave_perf_stop(void)
{
	perf_unregister_guest_info_callbacks(&callbacks);
}

#else

noinstr void hsave_guest_interrupted(u64 ip, bool user)
{
}

void hsave_guest_handled(void)
{
}

void hsave_perf_start(void)
{
}

void hsave_perf_stop(void)
{
}

#endif
