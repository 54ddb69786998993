// SPDX-License-Identifier: GPL-2.0-only
/*
 * A VM goes from one engine to another while it runs (docs/decisions/0036).
 *
 * Until hand_over() has made its last step the VM is in its old engine, and whatever fails leaves it there. What keeps others out
 * meanwhile: of system calls the gate; of vCPUs that they are parked, as who comes to one is; eventfds and timers of devices are noted
 * and delivered afterwards; the mmu notifier calls on, but for the last step.
 *
 * All of that is done by a worker, and whoever has asked waits for it: a guest that stands still must not wait for the CPU time, or for
 * the memory, that somebody else has left.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/workqueue.h>
#include "base.h"

/* How long to wait for system calls, vCPUs and the mmu notifier, each: what keeps one of them longer may keep it for ever. */
#define PATIENCE HZ

static struct workqueue_struct *queue;

/* Of its own, and ahead of others: while one of its workers is at work a guest stands still. */
int hsave_upgrades_start(void)
{
	queue = alloc_workqueue("kvm_upgrade", WQ_UNBOUND | WQ_HIGHPRI, 0);
	return queue ? 0 : -ENOMEM;
}

/* Nobody is left who asks. */
void hsave_upgrades_stop(void)
{
	destroy_workqueue(queue);
	queue = NULL;
}

/* One attempt; it is on the stack of whoever asks for it. */
struct handover {
	struct work_struct work;
	struct completion done;
	struct hsave_vm *vm;
	struct hsave_engine *to;
	/* Whoever has asked has got a signal. */
	bool give_up;
	int err;
};

void hsave_upgrade_init(struct hsave_vm *vm)
{
	mutex_init(&vm->vcpus_lock);
	INIT_LIST_HEAD(&vm->vcpu_list);
	init_rwsem(&vm->gate);
	mutex_init(&vm->upgrade_lock);
	raw_spin_lock_init(&vm->held_lock);
	spin_lock_init(&vm->stop_lock);
	init_waitqueue_head(&vm->stopped);
	init_waitqueue_head(&vm->going_on);
}

/* Why nothing comes of it. */
static void say(struct hsave_vm *vm, const char *why)
{
	strscpy(vm->error, why, sizeof(vm->error));
}

/*
 * Eventfds and timers.
 */

/* The caller is in an RCU read section, and calls the engine in it if this is false. */
bool hsave_vm_hold_back(struct hsave_vm *vm, bool *mark)
{
	unsigned long flags;
	bool closed;

	raw_spin_lock_irqsave(&vm->held_lock, flags);
	closed = vm->closed;
	if (closed)
		*mark = true;
	raw_spin_unlock_irqrestore(&vm->held_lock, flags);
	return closed;
}

/* A timer of a device has expired; hard interrupt context. False: something is left to do in a task. */
bool hsave_vm_expired(struct hsave_vm *vm, u32 which)
{
	bool done = true;

	rcu_read_lock();
	if (likely(!smp_load_acquire(&vm->closed)) || !hsave_vm_hold_back(vm, &vm->held_hrtimers[which]))
		done = hsave_call(vm, hrtimer_expired, which);
	rcu_read_unlock();
	return done;
}

/* From here on they are noted; none is in the engine when it returns. */
static void close_events(struct hsave_vm *vm)
{
	raw_spin_lock_irq(&vm->held_lock);
	vm->closed = true;
	raw_spin_unlock_irq(&vm->held_lock);
	synchronize_rcu_expedited();
}

/* What was noted happens in the engine that the VM is in now. The caller has irqfds_lock. */
static void open_events(struct hsave_vm *vm)
{
	u32 which;

	raw_spin_lock_irq(&vm->held_lock);
	smp_store_release(&vm->closed, false);
	raw_spin_unlock_irq(&vm->held_lock);
	for (which = 0; which < HSAVE_HRTIMERS; which++) {
		/* Nobody sets it any more. */
		if (xchg(&vm->held_hrtimers[which], false) && !hsave_call(vm, hrtimer_expired, which))
			hsave_call(vm, hrtimer_late, which);
	}
	hsave_irqfds_deliver(vm);
}

/*
 * vCPUs.
 */

/*
 * The current task has left KVM_RUN, or has not begun with what it wants of the vCPU, and goes on with it when this returns; it keeps
 * the vCPU's lock.
 */
void hsave_vcpu_park(struct hsave_vcpu *v)
{
	struct hsave_vm *vm = v->vm;
	bool parked;

	for (;;) {
		spin_lock(&vm->stop_lock);
		parked = vm->stopping;
		v->parked = parked;
		spin_unlock(&vm->stop_lock);
		if (!parked)
			return;
		wake_up(&vm->stopped);
		/* Not for long: whoever has stopped it waits for nobody who can keep him. */
		wait_event_idle(vm->going_on, !READ_ONCE(vm->stopping));
	}
}

/*
 * Does every vCPU stand still? That nobody is in one is found by its lock, which is let go of at once: there may be a thousand, and a
 * kernel that checks locks knows of 48 that a task holds. Who takes it next looks at stopping, and parks. The caller has vcpus_lock.
 */
static bool all_stopped(struct hsave_vm *vm)
{
	struct hsave_vcpu *v;
	bool parked, all = true;

	list_for_each_entry(v, &vm->vcpu_list, node) {
		if (v->idle)
			continue;
		spin_lock(&vm->stop_lock);
		parked = v->parked;
		spin_unlock(&vm->stop_lock);
		if (!parked && mutex_trylock(&v->lock)) {
			v->idle = true;
			mutex_unlock(&v->lock);
		}
		all &= parked || v->idle;
	}
	return all;
}

/* 0, -EBUSY (one does not come) or -ERESTARTSYS; call let_go() whatever it is. The caller has vcpus_lock until then. */
static int stop(struct handover *h)
{
	unsigned long end = jiffies + PATIENCE;
	struct hsave_vm *vm = h->vm;

	spin_lock(&vm->stop_lock);
	vm->stopping = true;
	spin_unlock(&vm->stop_lock);
	hsave_call(vm, vm_call_out);
	for (;;) {
		/* A vCPU that user space has got back may not say so: looks again with each tick. */
		if (wait_event_idle_timeout(vm->stopped, all_stopped(vm), 1))
			return 0;
		if (READ_ONCE(h->give_up))
			return -ERESTARTSYS;
		if (time_after(jiffies, end)) {
			say(vm, "a vCPU does not come out of the kernel: perhaps it waits for memory");
			return -EBUSY;
		}
	}
}

static void let_go(struct hsave_vm *vm)
{
	struct hsave_vcpu *v;

	list_for_each_entry(v, &vm->vcpu_list, node)
		v->idle = false;
	spin_lock(&vm->stop_lock);
	vm->stopping = false;
	spin_unlock(&vm->stop_lock);
	wake_up_all(&vm->going_on);
}

/*
 * The handover.
 */

/* Waits for somebody who is not to be kept from anything meanwhile: until try() is true. 0, -EBUSY or -ERESTARTSYS. */
#define TRY_FOR_LONG(h, try)                                              \
	({                                                                \
		unsigned long end_ = jiffies + PATIENCE;                  \
		int err_ = 0;                                             \
                                                                          \
		while (!(try)) {                                          \
			err_ = READ_ONCE((h)->give_up) ? -ERESTARTSYS :   \
			       time_after(jiffies, end_) ? -EBUSY : 0;    \
			if (err_)                                         \
				break;                                    \
			usleep_range(20, 50);                             \
		}                                                         \
		err_;                                                     \
	})

/* Everything stands still. When it returns 0 the VM is in the other engine, and what it was in the old one is for the caller to free. */
static int hand_over(struct handover *h)
{
	struct hsave_engine *to = h->to;
	struct hsave_vm *vm = h->vm;
	struct hsave_part *old = vm->part, *new = &vm->parts[old == &vm->parts[0]];
	u64 moved[HSAVE_MOVED];
	struct hsave_parcel parcel = { .moved = moved, .why = vm->error, .why_len = sizeof(vm->error) - 1 };
	int err;

	err = old->engine->ops.vm_leave(old->object, &parcel);
	if (err)
		return err;
	new->engine = to;
	new->object = to->ops.vm_arrive(&parcel);
	err = PTR_ERR_OR_ZERO(new->object);
	if (err)
		goto out;
	err = TRY_FOR_LONG(h, hsave_notifier_close(vm->notifier));
	if (err) {
		if (err == -EBUSY)
			say(vm, "the host does not stop changing the VM's memory");
		to->ops.vm_free(new->object);
		goto out;
	}
	/* Nothing fails from here on. */
	old->engine->ops.vm_give(old->object, &parcel);
	to->ops.vm_take(new->object, &parcel);
	smp_store_release(&vm->part, new);
	hsave_notifier_open(vm->notifier);
out:
	hsave_heap_free(parcel.state);
	hsave_heap_free((u8 *)parcel.lent);
	return err;
}

/* All during which the VM is held, in a worker. */
static void attempt(struct work_struct *work)
{
	struct handover *h = container_of(work, struct handover, work);
	struct hsave_vm *vm = h->vm;
	unsigned int io;
	ktime_t begin;
	int err;

	err = TRY_FOR_LONG(h, down_write_trylock(&vm->gate));
	if (err) {
		if (err == -EBUSY)
			say(vm, "a system call on the VM does not come to an end");
		goto done;
	}
	/*
	 * Memory that takes I/O to get is not waited for: the disk may be one that this VM serves, which stands still. So it is the
	 * engines' allocations that fail, without anybody being killed for them (memory.c). No cgroup's limit is in their way: a
	 * worker's memory is nobody's.
	 */
	io = memalloc_noio_save();
	mutex_lock(&vm->vcpus_lock);
	mutex_lock(&vm->irqfds_lock);
	begin = ktime_get();
	close_events(vm);
	err = stop(h);
	if (!err)
		err = hand_over(h);
	open_events(vm);
	let_go(vm);
	/* Also if it came to nothing: the guest waited all the same. */
	WRITE_ONCE(vm->pause_ns, ktime_to_ns(ktime_sub(ktime_get(), begin)));
	mutex_unlock(&vm->irqfds_lock);
	mutex_unlock(&vm->vcpus_lock);
	up_write(&vm->gate);
	memalloc_noio_restore(io);
done:
	h->err = err;
	complete(&h->done);
}

/* upgrade_lock is held, and the engine's module. */
static int upgrade(struct hsave_vm *vm, struct hsave_engine *to)
{
	struct handover h = { .vm = vm, .to = to };
	struct hsave_part *old = vm->part;

	init_completion(&h.done);
	INIT_WORK_ONSTACK(&h.work, attempt);
	queue_work(queue, &h.work);
	if (wait_for_completion_interruptible(&h.done)) {
		/* It ends soon, one way or the other, and what it works with is here. */
		WRITE_ONCE(h.give_up, true);
		wait_for_completion(&h.done);
	}
	destroy_work_on_stack(&h.work);
	if (h.err)
		return h.err;
	WRITE_ONCE(vm->upgrades, vm->upgrades + 1);
	__module_get(to->module);
	atomic_inc(&to->vms);
	/* For mmap and page faults, which look at what stays the same. */
	synchronize_rcu();
	old->engine->ops.vm_free(old->object);
	atomic_dec(&old->engine->vms);
	module_put(old->engine->module);
	hsave_sysfs_vm_upgraded(vm);
	return 0;
}

/*
 * Hands the VM over to the engine of this name, which may end in a new line; called in its directory, so that it does not go
 * meanwhile. Nothing happens if it is there. -ENOENT (there is no such engine), -EBUSY (somebody in it does not stop), -ENOMEM,
 * -EOPNOTSUPP (it has what is not handed over, or what the engine does not know), -EINVAL (the engine takes the state for
 * impossible), -ERESTARTSYS. If it fails the VM is where it was, and vm->error says why.
 */
int hsave_vm_upgrade(struct hsave_vm *vm, const char *name)
{
	struct hsave_engine *to;
	int err;

	if (mutex_lock_interruptible(&vm->upgrade_lock))
		return -ERESTARTSYS;
	memset(vm->error, 0, sizeof(vm->error));
	to = hsave_engine_get(name);
	err = -ENOENT;
	if (!to) {
		say(vm, "there is no such engine, or it is going");
		goto out;
	}
	err = to == vm->part->engine ? 0 : upgrade(vm, to);
	/* Wherever it was. */
	if (err == -ERESTARTSYS)
		say(vm, "interrupted");
	/* The VM has references of its own. */
	module_put(to->module);
out:
	mutex_unlock(&vm->upgrade_lock);
	return err;
}
