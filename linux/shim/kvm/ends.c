// SPDX-License-Identifier: GPL-2.0-only
/*
 * The last exits of vCPUs that could not go on: a dozen of them, in /sys/kernel/hsave/last_exits, for `hsavectl report`. The VM may be
 * gone when somebody looks. Nothing that the guest holds is kept, but addresses that the processor told.
 */
#include <linux/errno.h>
#include <linux/kvm.h>
#include <linux/math64.h>
#include <linux/pid.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/sysfs.h>
#include <linux/timekeeping.h>
#include "base.h"

/* What is read fits into a page. */
#define ENDS 12

struct end {
	/* Nanoseconds, as those of the kernel's log. */
	u64 at;
	u32 tgid;
	char name[TASK_COMM_LEN];
	u32 vcpu;
	/* How often it tried to go on, and ended there again; 0: there is nothing here. */
	u32 times;
	/* KVM_EXIT_*, and the suberror, the processor's reason or the errno that goes with it. */
	u32 reason;
	u64 detail;
	u64 code;
	u64 info[2];
	u64 int_info;
	u64 rip;
};

/* Neither is taken with another lock, nor where interrupts are off. */
static DEFINE_SPINLOCK(lock);
static struct end ends[ENDS];
/* Where the next one goes. */
static unsigned int next;

static bool same(const struct end *a, const struct end *b)
{
	return a->tgid == b->tgid && a->vcpu == b->vcpu && a->reason == b->reason && a->detail == b->detail &&
	       a->code == b->code && a->rip == b->rip;
}

/* Of the leader, as in the list of VMs; threads are called after what they do. Fit for root's terminal: it may be any bytes. */
static void take_name(struct end *e)
{
	char *c;

	get_task_comm(e->name, current->group_leader);
	for (c = e->name; *c; c++) {
		if (*c < ' ' || *c > '~')
			*c = '?';
	}
}

/* A vCPU whose KVM_RUN the current task is in leaves and has nowhere to go on; process context. */
void hsave_ended(u32 vcpu, u32 reason, u64 detail, u64 code, u64 info1, u64 info2, u64 int_info, u64 rip)
{
	struct end new = {
		.at = ktime_get_ns(), .tgid = task_tgid_nr(current), .vcpu = vcpu, .times = 1, .reason = reason,
		.detail = detail, .code = code, .info = { info1, info2 }, .int_info = int_info, .rip = rip,
	};
	struct end *last = NULL;
	unsigned int i;

	take_name(&new);
	spin_lock(&lock);
	/* A VMM that tries again and again does not push others out. */
	for (i = 0; i < ENDS && !last; i++)
		if (ends[i].times && same(&ends[i], &new))
			last = &ends[i];
	if (last) {
		last->times += last->times != U32_MAX;
		last->at = new.at;
	} else {
		ends[next] = new;
		next = (next + 1) % ENDS;
	}
	spin_unlock(&lock);
}

static const char *reason_name(u32 reason)
{
	switch (reason) {
	case KVM_EXIT_SHUTDOWN:
		return "KVM_EXIT_SHUTDOWN";
	case KVM_EXIT_FAIL_ENTRY:
		return "KVM_EXIT_FAIL_ENTRY";
	case KVM_EXIT_INTERNAL_ERROR:
		return "KVM_EXIT_INTERNAL_ERROR";
	default:
		return "EIO";
	}
}

/* One line each, the oldest first. */
ssize_t hsave_ends_show(char *buf)
{
	ssize_t n = 0;
	unsigned int i;

	spin_lock(&lock);
	for (i = 0; i < ENDS; i++) {
		const struct end *e = &ends[(next + i) % ENDS];

		if (e->times)
			n += sysfs_emit_at(buf, n,
					   "[%5llu.%06llu] process %u (%s) vcpu %u %s detail 0x%llx exit 0x%llx info1 0x%llx info2 0x%llx intr_info 0x%llx rip 0x%llx times %u\n",
					   div_u64(e->at, NSEC_PER_SEC), div_u64(e->at, NSEC_PER_USEC) % USEC_PER_SEC, e->tgid, e->name, e->vcpu, reason_name(e->reason), e->detail, e->code,
					   e->info[0], e->info[1], e->int_info, e->rip, e->times);
	}
	spin_unlock(&lock);
	return n;
}
