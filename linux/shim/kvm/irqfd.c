// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_IRQFD: an eventfd that raises an interrupt when it is signalled.
 *
 * It is raised where that happens, unless it is for so many vCPUs that interrupts would be off for long: those, which the guest
 * chooses, are a work item's, as on stock. Signals that come before that has run are one.
 *
 * The binding holds a reference to the eventfd's context, so its wait queue stays even if every descriptor is closed.
 * Such a binding is dead. It is taken away by a work item, because that sleeps; or with the VM.
 */
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/poll.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/wait.h>
#include "base.h"

struct irqfd {
	/* In the VM's list, under its lock. */
	struct list_head node;
	wait_queue_entry_t wait;
	poll_table table;
	struct eventfd_ctx *ctx;
	struct hsave_vm *vm;
	u32 gsi;
	/* Signalled at EOI, which lowers the interrupt; NULL: it is a pulse. The engine has a reference of its own. */
	struct hsave_eventfd *resampler;
	/* Raises what was not raised at once. */
	struct work_struct late;
	/* It was signalled while the VM went from one engine to another; under the VM's held_lock. */
	bool held;
	bool dead;
	/* In the eventfd's wait queue, or why not. */
	bool queued;
	int err;
};

/* In a task, with interrupts on, or in any context. */
static void raise(struct irqfd *i, bool in_task)
{
	struct hsave_vm *vm = i->vm;

	rcu_read_lock();
	if (likely(!smp_load_acquire(&vm->closed)) || !hsave_vm_hold_back(vm, &i->held)) {
		if (unlikely(!hsave_call(vm, irqfd_raise, i->gsi, i->resampler, in_task)))
			hsave_do_late(&i->late);
	}
	rcu_read_unlock();
}

static void raise_late(struct work_struct *work)
{
	raise(container_of(work, struct irqfd, late), true);
}

/* The VM has another engine, or the one that it had: what was signalled meanwhile is raised. The caller holds irqfds_lock. */
void hsave_irqfds_deliver(struct hsave_vm *vm)
{
	struct irqfd *i;

	list_for_each_entry(i, &vm->irqfds, node) {
		/* Nobody sets it any more. */
		if (xchg(&i->held, false))
			raise(i, true);
	}
}

/* Called with the eventfd's lock held and interrupts off. */
static int wakeup(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct irqfd *i = container_of(wait, struct irqfd, wait);
	__poll_t events = key_to_poll(key);
	u64 count;

	if (events & EPOLLHUP) {
		WRITE_ONCE(i->dead, true);
		schedule_work(&i->vm->irqfds_sweep);
	}
	if (!(events & EPOLLIN))
		return 0;
	eventfd_ctx_do_read(i->ctx, &count);
	raise(i, false);
	return 1;
}

static void queue(struct file *file, wait_queue_head_t *head, poll_table *table)
{
	struct irqfd *i = container_of(table, struct irqfd, table);

#if LINUX_AT_LEAST(6, 17)
	/* Nobody else is woken, and one eventfd raises one interrupt only, of all VMs. */
	i->err = add_wait_queue_priority_exclusive(head, &i->wait);
#else
	add_wait_queue_priority(head, &i->wait);
#endif
	i->queued = !i->err;
}

/* The eventfd resample_fd is signalled at EOI: by the engine, and it is known here, to be found there again. */
static int add_resampler(struct irqfd *i, int resample_fd)
{
	struct hsave_eventfd *event = hsave_eventfd_open(resample_fd);
	int err;

	if (IS_ERR(event))
		return PTR_ERR(event);
	err = hsave_call(i->vm, add_resampler, i->gsi, event);
	if (err) {
		hsave_eventfd_put(event);
		return err;
	}
	i->resampler = event;
	return 0;
}

/* What was signalled is raised, and nothing after it. */
static void unbind(struct irqfd *i)
{
	struct hsave_vm *vm = i->vm;
	u64 count;

	if (i->queued)
		eventfd_ctx_remove_wait_queue(i->ctx, &i->wait, &count);
	/* Takes no lock that the caller may have. */
	flush_work(&i->late);
	eventfd_ctx_put(i->ctx);
	if (i->resampler) {
		hsave_call(vm, remove_resampler, i->gsi, i->resampler);
		hsave_eventfd_put(i->resampler);
	}
	kfree(i);
}

static bool is_bound(struct hsave_vm *vm, const struct eventfd_ctx *ctx)
{
	struct irqfd *i;

	list_for_each_entry(i, &vm->irqfds, node) {
		if (i->ctx == ctx)
			return true;
	}
	return false;
}

/* Under the lock. file is the eventfd's. */
static int bind(struct irqfd *i, struct file *file, bool resample, int resample_fd)
{
	int err;

	if (is_bound(i->vm, i->ctx))
		return -EBUSY;
	/* Before the eventfd can raise the line, so that there is always somebody who lowers it. */
	err = resample ? add_resampler(i, resample_fd) : 0;
	if (err)
		return err;
	init_waitqueue_func_entry(&i->wait, wakeup);
	init_poll_funcptr(&i->table, queue);
	/* What was signalled before counts too: nobody is woken for it any more. */
	if ((vfs_poll(file, &i->table) & EPOLLIN) && !i->err)
		raise(i, true);
	return i->err;
}

/*
 * Binds the eventfd behind fd to the VM's gsi. -EBADF, -EINVAL (no eventfd), -EBUSY (bound already; since Linux 6.17 in any VM),
 * -ENOMEM.
 */
int hsave_irqfd_assign(struct hsave_vm *vm, int fd, u32 gsi, bool resample, int resample_fd)
{
	/* Looked up once: the caller's other threads can change what the number means. */
	struct file *file = fget(fd);
	struct irqfd *i;
	int err;

	if (!file)
		return -EBADF;
	i = kzalloc(sizeof(*i), GFP_KERNEL_ACCOUNT);
	err = -ENOMEM;
	if (!i)
		goto out;
	i->vm = vm;
	i->gsi = gsi;
	INIT_WORK(&i->late, raise_late);
	i->ctx = eventfd_ctx_fileget(file);
	err = PTR_ERR_OR_ZERO(i->ctx);
	if (err) {
		kfree(i);
		goto out;
	}
	mutex_lock(&vm->irqfds_lock);
	err = bind(i, file, resample, resample_fd);
	if (err)
		unbind(i);
	else
		list_add_tail(&i->node, &vm->irqfds);
	mutex_unlock(&vm->irqfds_lock);
out:
	/* The context is enough from here on: the eventfd's descriptors may all be closed. */
	fput(file);
	return err;
}

/* Takes a binding back; nothing if there is none, as on stock. -EBADF, -EINVAL (no eventfd). */
int hsave_irqfd_deassign(struct hsave_vm *vm, int fd, u32 gsi)
{
	struct eventfd_ctx *ctx = eventfd_ctx_fdget(fd);
	struct irqfd *i, *next;

	if (IS_ERR(ctx))
		return PTR_ERR(ctx);
	mutex_lock(&vm->irqfds_lock);
	list_for_each_entry_safe(i, next, &vm->irqfds, node) {
		if (i->gsi == gsi && i->ctx == ctx) {
			list_del(&i->node);
			unbind(i);
		}
	}
	mutex_unlock(&vm->irqfds_lock);
	eventfd_ctx_put(ctx);
	return 0;
}

/* The descriptors of some eventfds were closed without a word. */
static void sweep(struct work_struct *work)
{
	struct hsave_vm *vm = container_of(work, struct hsave_vm, irqfds_sweep);
	struct irqfd *i, *next;

	down_read(&vm->gate);
	mutex_lock(&vm->irqfds_lock);
	list_for_each_entry_safe(i, next, &vm->irqfds, node) {
		if (READ_ONCE(i->dead)) {
			list_del(&i->node);
			unbind(i);
		}
	}
	mutex_unlock(&vm->irqfds_lock);
	up_read(&vm->gate);
}

void hsave_irqfds_init(struct hsave_vm *vm)
{
	mutex_init(&vm->irqfds_lock);
	INIT_LIST_HEAD(&vm->irqfds);
	INIT_WORK(&vm->irqfds_sweep, sweep);
}

/* Takes all bindings away: their eventfds serve somebody else then. */
void hsave_irqfds_unbind(struct hsave_vm *vm)
{
	struct irqfd *i, *next;

	mutex_lock(&vm->irqfds_lock);
	list_for_each_entry_safe(i, next, &vm->irqfds, node) {
		list_del(&i->node);
		unbind(i);
	}
	mutex_unlock(&vm->irqfds_lock);
}

/* Waits for a sweep under way, which no binding is left to start again. */
void hsave_irqfds_close(struct hsave_vm *vm)
{
	hsave_irqfds_unbind(vm);
	cancel_work_sync(&vm->irqfds_sweep);
}
