// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_IRQFD: an eventfd that raises an interrupt when it is signalled.
 *
 * The binding holds a reference to the eventfd's context, so its wait queue stays even if every descriptor is closed;
 * such a binding is dead and taken away by Rust when it next looks at the list, or with the VM.
 */
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/wait.h>
#include <hsave.h>

struct hsave_irqfd {
	wait_queue_entry_t wait;
	poll_table table;
	struct eventfd_ctx *ctx;
	const void *vm;
	u32 gsi;
	bool resample;
	bool dead;
};

/* Called with the eventfd's lock held and interrupts off. */
static int wakeup(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct hsave_irqfd *i = container_of(wait, struct hsave_irqfd, wait);
	__poll_t events = key_to_poll(key);
	u64 count;

	if (events & EPOLLHUP)
		WRITE_ONCE(i->dead, true);
	if (!(events & EPOLLIN))
		return 0;
	eventfd_ctx_do_read(i->ctx, &count);
	hsave_irqfd_raise(i->vm, i->gsi, i->resample);
	return 1;
}

static void queue(struct file *file, wait_queue_head_t *head, poll_table *table)
{
	add_wait_queue_priority(head, &container_of(table, struct hsave_irqfd, table)->wait);
}

/* Binds the eventfd to the VM's gsi; it raises from here on. An ERR_PTR: -EBADF, -EINVAL, -ENOMEM. */
struct hsave_irqfd *hsave_irqfd_new(int fd, const void *vm, u32 gsi, bool resample)
{
	struct hsave_irqfd *i;
	struct file *file = fget(fd);

	if (!file)
		return ERR_PTR(-EBADF);
	i = kzalloc(sizeof(*i), GFP_KERNEL_ACCOUNT);
	if (!i) {
		fput(file);
		return ERR_PTR(-ENOMEM);
	}
	i->vm = vm;
	i->gsi = gsi;
	i->resample = resample;
	i->ctx = eventfd_ctx_fileget(file);
	if (IS_ERR(i->ctx)) {
		int err = PTR_ERR(i->ctx);

		kfree(i);
		fput(file);
		return ERR_PTR(err);
	}
	init_waitqueue_func_entry(&i->wait, wakeup);
	init_poll_funcptr(&i->table, queue);
	/* What was signalled before counts too: nobody is woken for it any more. */
	if (vfs_poll(file, &i->table) & EPOLLIN)
		hsave_irqfd_raise(vm, gsi, resample);
	fput(file);
	return i;
}

/* Nothing is raised after it. */
void hsave_irqfd_free(struct hsave_irqfd *i)
{
	u64 count;

	eventfd_ctx_remove_wait_queue(i->ctx, &i->wait, &count);
	eventfd_ctx_put(i->ctx);
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
