// SPDX-License-Identifier: GPL-2.0-only
/*
 * The memory of a VM is that of one process: who may change it under the VM tells it first.
 */
#include <linux/err.h>
#include <linux/mmu_notifier.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/wait_bit.h>
#include <hsave.h>

struct hsave_notifier {
	struct mmu_notifier mn;
	struct mm_struct *mm;
	/* NULL when the VM is going: whoever comes later finds nothing to do. */
	const void *vm;
	/* Calls that may have seen vm. */
	atomic_t active;
};

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
static const void *enter(struct mmu_notifier *mn)
{
	struct hsave_notifier *n = container_of(mn, struct hsave_notifier, mn);

	atomic_inc(&n->active);
	smp_mb__after_atomic();
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
	const void *vm = enter(mn);

	if (vm)
		hsave_invalidate_start(vm, range->start, range->end, mmu_notifier_range_blockable(range));
	leave(mn);
	return 0;
}

static void invalidate_end(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	const void *vm = enter(mn);

	if (vm)
		hsave_invalidate_end(vm, range->start, range->end);
	leave(mn);
}

static young_t clear_flush_young(struct mmu_notifier *mn, struct mm_struct *mm, unsigned long start, unsigned long end)
{
	const void *vm = enter(mn);
	bool young = vm && hsave_age(vm, start, end);

	leave(mn);
	return young;
}

static young_t test_young(struct mmu_notifier *mn, struct mm_struct *mm, unsigned long address)
{
	const void *vm = enter(mn);
	bool young = vm && hsave_test_young(vm, address, address + 1);

	leave(mn);
	return young;
}

static void release(struct mmu_notifier *mn, struct mm_struct *mm)
{
	const void *vm = enter(mn);

	if (vm)
		hsave_mm_release(vm);
	leave(mn);
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

/* Binds vm, which has its final address, to the current process; calls may come from here on. NULL: no memory. */
struct hsave_notifier *hsave_notifier_new(const void *vm)
{
	struct hsave_notifier *n = kzalloc(sizeof(*n), GFP_KERNEL_ACCOUNT);

	if (!n)
		return NULL;
	n->mn.ops = &ops;
	n->mm = current->mm;
	n->vm = vm;
	mmgrab(n->mm);
	if (mmu_notifier_register(&n->mn, n->mm)) {
		mmdrop(n->mm);
		kfree(n);
		return NULL;
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
