// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_IRQFD: an eventfd that raises an interrupt when it is signalled.
 *
 * The binding holds a reference to the eventfd's context, so its wait queue stays even if every descriptor is closed.
 * Such a binding is dead. It is taken away by a work item, because Rust sleeps when it does that; or with the VM.
 */
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <hsave.h>

/* Of one VM. */
struct hsave_sweeper {
	struct work_struct work;
	const void *list;
};

struct hsave_irqfd {
	wait_queue_entry_t wait;
	poll_table table;
	struct eventfd_ctx *ctx;
	/* Until it is bound. */
	struct file *file;
	struct hsave_sweeper *sweeper;
	const void *vm;
	u32 gsi;
	bool resample;
	bool dead;
	/* In the eventfd's wait queue, or why not. */
	bool queued;
	int err;
};

/* Called with the eventfd's lock held and interrupts off. */
static int wakeup(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct hsave_irqfd *i = container_of(wait, struct hsave_irqfd, wait);
	__poll_t events = key_to_poll(key);
	u64 count;

	if (events & EPOLLHUP) {
		WRITE_ONCE(i->dead, true);
		schedule_work(&i->sweeper->work);
	}
	if (!(events & EPOLLIN))
		return 0;
	eventfd_ctx_do_read(i->ctx, &count);
	hsave_irqfd_raise(i->vm, i->gsi, i->resample);
	return 1;
}

static void queue(struct file *file, wait_queue_head_t *head, poll_table *table)
{
	struct hsave_irqfd *i = container_of(table, struct hsave_irqfd, table);

#if LINUX_AT_LEAST(6, 17)
	/* Nobody else is woken, and one eventfd raises one interrupt only, of all VMs. */
	i->err = add_wait_queue_priority_exclusive(head, &i->wait);
#else
	add_wait_queue_priority(head, &i->wait);
#endif
	i->queued = !i->err;
}

/* The eventfd behind a descriptor, which raises nothing yet. An ERR_PTR: -EBADF, -EINVAL, -ENOMEM. */
struct hsave_irqfd *hsave_irqfd_new(int fd)
{
	struct hsave_irqfd *i;
	struct file *file = fget(fd);
	int err;

	if (!file)
		return ERR_PTR(-EBADF);
	i = kzalloc(sizeof(*i), GFP_KERNEL_ACCOUNT);
	if (!i) {
		fput(file);
		return ERR_PTR(-ENOMEM);
	}
	i->file = file;
	i->ctx = eventfd_ctx_fileget(file);
	if (IS_ERR(i->ctx)) {
		err = PTR_ERR(i->ctx);
		fput(file);
		kfree(i);
		return ERR_PTR(err);
	}
	init_waitqueue_func_entry(&i->wait, wakeup);
	init_poll_funcptr(&i->table, queue);
	return i;
}

/* Binds it to the VM's gsi, which it raises from here on; once. 0, or -EBUSY: it raises an interrupt already. */
int hsave_irqfd_bind(struct hsave_irqfd *i, struct hsave_sweeper *sweeper, const void *vm, u32 gsi, bool resample)
{
	__poll_t events;

	i->sweeper = sweeper;
	i->vm = vm;
	i->gsi = gsi;
	i->resample = resample;
	events = vfs_poll(i->file, &i->table);
	/* The context is enough from here on: the eventfd's descriptors may all be closed. */
	fput(i->file);
	i->file = NULL;
	if (i->err)
		return i->err;
	/* What was signalled before counts too: nobody is woken for it any more. */
	if (events & EPOLLIN)
		hsave_irqfd_raise(vm, gsi, resample);
	return 0;
}

/* Nothing is raised after it. */
void hsave_irqfd_free(struct hsave_irqfd *i)
{
	u64 count;

	if (i->queued)
		eventfd_ctx_remove_wait_queue(i->ctx, &i->wait, &count);
	eventfd_ctx_put(i->ctx);
	if (i->file)
		fput(i->file);
	kfree(i);
}

const struct eventfd_ctx *hsave_irqfd_event(const struct hsave_irqfd *i)
{
	return i->ctx;
}

bool hsave_irqfd_dead(const struct hsave_irqfd *i)
{
	return READ_ONCE(i->dead);
}

static void sweep(struct work_struct *work)
{
	hsave_irqfds_sweep(container_of(work, struct hsave_sweeper, work)->list);
}

struct hsave_sweeper *hsave_sweeper_new(const void *list)
{
	struct hsave_sweeper *s = kzalloc(sizeof(*s), GFP_KERNEL_ACCOUNT);

	if (!s)
		return NULL;
	INIT_WORK(&s->work, sweep);
	s->list = list;
	return s;
}

/* No binding knows it any more. Waits for a sweep under way. */
void hsave_sweeper_free(struct hsave_sweeper *s)
{
	cancel_work_sync(&s->work);
	kfree(s);
}
