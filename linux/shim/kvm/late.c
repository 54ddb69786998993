// SPDX-License-Identifier: GPL-2.0-only
/*
 * What interrupts and eventfd wake-ups leave to a task because it would take them too long: interrupts for all of a VM's vCPUs.
 *
 * A queue of its own, whose workers wait for nothing but a CPU: whoever waits for one of them (irqfd.c, hrtimer.c) may itself be a
 * worker, of the kernel's queue.
 */
#include <linux/workqueue.h>
#include "base.h"

static struct workqueue_struct *queue;

int hsave_late_start(void)
{
	queue = alloc_workqueue("kvm_late", WQ_UNBOUND, 0);
	return queue ? 0 : -ENOMEM;
}

/* Nobody is left who has something to do. */
void hsave_late_stop(void)
{
	destroy_workqueue(queue);
	queue = NULL;
}

void hsave_do_late(struct work_struct *work)
{
	queue_work(queue, work);
}
