// SPDX-License-Identifier: GPL-2.0-only
/*
 * The memory of a VM is that of one process: who may change it under the VM tells it first.
 */
#include <linux/err.h>
#include <linux/mmu_notifier.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/wait_bit.h>
#include <kvm_trace.h>
#include "base.h"

struct hsave_notifier {
	struct mmu_notifier mn;
	struct mm_struct *mm;
	/* NULL when the VM is going: whoever comes later finds nothing to do. */
	struct hsave_vm *vm;
	/* Calls that may have seen vm; with CLOSED while the VM's memory goes from one engine to another. */
	atomic_t active;
};

#define CLOSED (INT_MIN / 2)

/* 7.3 returns bool where older kernels return int. */
#if LINUX_AT_LEAST(7, 0)
typedef bool young_t;
#else
typedef int young_t;
#endif

/*
 * The VM, which stays until leave(); NULL if it is going. enter() counts and looks, hsave_notifier_free() clears and
 * counts, both with a full barrier in between: one of them sees the other.
 */
static struct hsave_vm *enter(struct mmu_notifier *mn)
{
	struct hsave_notifier *n = container_of(mn, struct hsave_notifier, mn);

	/* A handful of instructions of another CPU, which is not interrupted. */
	while (unlikely(atomic_inc_return(&n->active) < 0)) {
		atomic_dec(&n->active);
		while (atomic_read(&n->active) < 0)
			cpu_relax();
	}
	return READ_ONCE(n->vm);
}

static void leave(struct mmu_notifier *mn)
{
	struct hsave_notifier *n = container_of(mn, struct hsave_notifier, mn);

	if (atomic_dec_and_test(&n->active) && unlikely(!READ_ONCE(n->vm)))
		wake_up_var(&n->active);
}

static int invalidate_start(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	struct hsave_vm *vm = enter(mn);

	trace_kvm_unmap_hva_range(range->start, range->end);
	if (vm)
		hsave_call(vm, invalidate_start, range->start, range->end, mmu_notifier_range_blockable(range));
	leave(mn);
	return 0;
}

static void invalidate_end(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	struct hsave_vm *vm = enter(mn);

	if (vm)
		hsave_call(vm, invalidate_end, range->start, range->end);
	leave(mn);
}

static young_t clear_flush_young(struct mmu_notifier *mn, struct mm_struct *mm, unsigned long start, unsigned long end)
{
	struct hsave_vm *vm = enter(mn);
	bool young;

	trace_kvm_age_hva(start, end);
	young = vm && hsave_call(vm, age, start, end);

	leave(mn);
	return young;
}

static young_t test_young(struct mmu_notifier *mn, struct mm_struct *mm, unsigned long address)
{
	struct hsave_vm *vm = enter(mn);
	bool young;

	trace_kvm_test_age_hva(address);
	young = vm && hsave_call(vm, test_young, address, address + 1);

	leave(mn);
	return young;
}

static void release(struct mmu_notifier *mn, struct mm_struct *mm)
{
	struct hsave_vm *vm = enter(mn);

	if (vm)
		hsave_call(vm, mm_release);
	leave(mn);
}

/*
 * Nobody calls into the VM until hsave_notifier_open(), and who wants to spins: preemption is off until then. False: somebody is
 * calling, and nothing has changed.
 */
bool hsave_notifier_close(struct hsave_notifier *n)
{
	preempt_disable();
	if (!atomic_cmpxchg(&n->active, 0, CLOSED))
		return true;
	preempt_enable();
	return false;
}

void hsave_notifier_open(struct hsave_notifier *n)
{
	/* Others may have counted themselves in meanwhile, and count themselves out again. */
	atomic_sub(CLOSED, &n->active);
	preempt_enable();
}

/* A grace period after the last call. */
static void free_notifier(struct mmu_notifier *mn)
{
	struct hsave_notifier *n = container_of(mn, struct hsave_notifier, mn);

	mmdrop(n->mm);
	kfree(n);
}

static const struct mmu_notifier_ops ops = {
	.invalidate_range_start = invalidate_start,
	.invalidate_range_end = invalidate_end,
	.clear_flush_young = clear_flush_young,
	.clear_young = clear_flush_young,
	.test_young = test_young,
	.release = release,
	.free_notifier = free_notifier,
};

/*
 * Binds vm, which its engine has made its part of, to the current process; calls may come from here on. ENOMEM; EINTR where a
 * signal is pending, after which VMMs try again.
 */
struct hsave_notifier *hsave_notifier_new(struct hsave_vm *vm)
{
	struct hsave_notifier *n = kzalloc(sizeof(*n), GFP_KERNEL_ACCOUNT);
	int err;

	if (!n)
		return ERR_PTR(-ENOMEM);
	n->mn.ops = &ops;
	n->mm = current->mm;
	n->vm = vm;
	mmgrab(n->mm);
	err = mmu_notifier_register(&n->mn, n->mm);
	if (err) {
		mmdrop(n->mm);
		kfree(n);
		return ERR_PTR(err);
	}
	return n;
}

/*
 * No call reaches the VM after it. May sleep, but only for calls that are under way: what is left of the notifier is
 * freed later.
 */
void hsave_notifier_free(struct hsave_notifier *n)
{
	smp_store_mb(n->vm, NULL);
	wait_var_event(&n->active, !atomic_read(&n->active));
	mmu_notifier_put(&n->mn);
}

/* Unloading: waits until the last notifier is freed. */
void hsave_notifiers_settle(void)
{
	mmu_notifier_synchronize();
}

const struct mm_struct *hsave_notifier_mm(const struct hsave_notifier *n)
{
	return n->mm;
}
