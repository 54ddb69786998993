// SPDX-License-Identifier: GPL-2.0-only
/*
 * The memory of a VM is that of one process: who may change it under the VM tells it first.
 */
#include <linux/err.h>
#include <linux/mmu_notifier.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <hsave.h>

struct hsave_notifier {
	struct mmu_notifier mn;
	struct mm_struct *mm;
	void *vm;
};

/* 7.3 returns bool where older kernels return int. */
#if LINUX_AT_LEAST(7, 0)
typedef bool young_t;
#else
typedef int young_t;
#endif

static void *vm_of(struct mmu_notifier *mn)
{
	return container_of(mn, struct hsave_notifier, mn)->vm;
}

static int invalidate_start(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	hsave_invalidate_start(vm_of(mn), range->start, range->end, mmu_notifier_range_blockable(range));
	return 0;
}

static void invalidate_end(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	hsave_invalidate_end(vm_of(mn), range->start, range->end);
}

static young_t clear_flush_young(struct mmu_notifier *mn, struct mm_struct *mm, unsigned long start, unsigned long end)
{
	return hsave_age(vm_of(mn), start, end);
}

static young_t test_young(struct mmu_notifier *mn, struct mm_struct *mm, unsigned long address)
{
	return hsave_test_young(vm_of(mn), address, address + 1);
}

static void release(struct mmu_notifier *mn, struct mm_struct *mm)
{
	hsave_mm_release(vm_of(mn));
}

static const struct mmu_notifier_ops ops = {
	.invalidate_range_start = invalidate_start,
	.invalidate_range_end = invalidate_end,
	.clear_flush_young = clear_flush_young,
	.clear_young = clear_flush_young,
	.test_young = test_young,
	.release = release,
};

/* Binds vm, which has its final address, to the current process; calls may come from here on. NULL: no memory. */
struct hsave_notifier *hsave_notifier_new(void *vm)
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

/* No call comes after it. May sleep. */
void hsave_notifier_free(struct hsave_notifier *n)
{
	mmu_notifier_unregister(&n->mn, n->mm);
	mmdrop(n->mm);
	kfree(n);
}

struct mm_struct *hsave_notifier_mm(const struct hsave_notifier *n)
{
	return n->mm;
}
