// SPDX-License-Identifier: GPL-2.0-only
/*
 * Asynchronous page faults: pages of the VMM's memory are brought in by a worker of the kernel's, and the vCPU that waits
 * for them is told.
 *
 * Nobody ever waits for a worker: it may sleep for as long as another process likes (userfaultfd), which may be the very
 * process that closes the vCPU's file. What a worker needs has a reference of its own, and the vCPU's end is noted there.
 * Only the unloading of the module waits, when no VM is left.
 */
#include <linux/mm.h>
#include <linux/mmu_context.h>
#include <linux/refcount.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>
#include <hsave.h>

/* Of one vCPU: ASYNC_PF_PER_VCPU of the stock module, host::PageIns::LIMIT. */
#define MOST_OF_ONE 64

/*
 * Of all vCPUs. The workqueue runs so many at once, so that none waits in it for those of another VM: a guest whose fault
 * finds no room waits for its page in its own thread.
 */
#define MOST_OF_ALL 256

/* What a vCPU and its workers share. */
struct hsave_page_ins {
	refcount_t refs;
	/* Guards what follows. */
	spinlock_t lock;
	/* The vCPU's thread; NULL once it is gone. */
	const void *owner;
	/* Those that were started before this was advanced are of no interest. */
	unsigned int generation;
	unsigned int under_way;
};

struct page_in {
	struct work_struct work;
	struct hsave_page_ins *all;
	struct mm_struct *mm;
	u64 hva;
	unsigned int generation;
	u8 number;
	bool write;
};

static struct workqueue_struct *queue;
static atomic_t total;

int hsave_page_ins_start(void)
{
	queue = alloc_workqueue("kvm_async_pf", WQ_UNBOUND, MOST_OF_ALL);
	return queue ? 0 : -ENOMEM;
}

/* Waits for every worker: after it none runs code of this module. */
void hsave_page_ins_stop(void)
{
	destroy_workqueue(queue);
	queue = NULL;
}

struct hsave_page_ins *hsave_page_ins_new(const void *owner)
{
	struct hsave_page_ins *all = kzalloc(sizeof(*all), GFP_KERNEL_ACCOUNT);

	if (!all)
		return NULL;
	refcount_set(&all->refs, 1);
	spin_lock_init(&all->lock);
	all->owner = owner;
	return all;
}

static void put(struct hsave_page_ins *all)
{
	if (refcount_dec_and_test(&all->refs))
		kfree(all);
}

/* The owner hears nothing any more when this returns. */
void hsave_page_ins_free(struct hsave_page_ins *all)
{
	spin_lock(&all->lock);
	all->owner = NULL;
	spin_unlock(&all->lock);
	put(all);
}

/* The owner hears nothing any more of what was started before. */
void hsave_page_ins_forget(struct hsave_page_ins *all)
{
	spin_lock(&all->lock);
	all->generation++;
	spin_unlock(&all->lock);
}

static void bring_in(struct work_struct *work)
{
	struct page_in *one = container_of(work, struct page_in, work);
	struct hsave_page_ins *all = one->all;
	struct mm_struct *mm = one->mm;
	unsigned int flags = one->write ? FOLL_WRITE : 0;
	int locked = 1;

	/* No users: the process is exiting, and nobody looks at the page. */
	if (mmget_not_zero(mm)) {
		mmap_read_lock(mm);
#if LINUX_AT_LEAST(6, 5)
		get_user_pages_remote(mm, one->hva, 1, flags, NULL, &locked);
#else
		get_user_pages_remote(mm, one->hva, 1, flags, NULL, NULL, &locked);
#endif
		if (locked)
			mmap_read_unlock(mm);
		mmput(mm);
	}
	mmdrop(mm);

	/* Whatever came of it: the vCPU faults again, in its own thread, and learns why. */
	spin_lock(&all->lock);
	all->under_way--;
	if (all->owner && all->generation == one->generation)
		hsave_page_in_done(all->owner, one->number);
	spin_unlock(&all->lock);
	put(all);
	kfree(one);
	atomic_dec(&total);
}

/*
 * Begins to bring in the page at hva of the current task's memory. 0 or -ENOMEM. Does not sleep: who would have to wait
 * for memory may as well wait for the page.
 */
int hsave_page_in_start(struct hsave_page_ins *all, u64 hva, bool write, u8 number)
{
	struct page_in *one;
	bool room;

	if (atomic_inc_return(&total) > MOST_OF_ALL)
		goto out;
	one = kmalloc(sizeof(*one), GFP_NOWAIT | __GFP_NOWARN | __GFP_ACCOUNT);
	if (!one)
		goto out;
	spin_lock(&all->lock);
	room = all->under_way < MOST_OF_ONE;
	if (room)
		all->under_way++;
	one->generation = all->generation;
	spin_unlock(&all->lock);
	if (!room) {
		kfree(one);
		goto out;
	}
	refcount_inc(&all->refs);
	mmgrab(current->mm);
	one->all = all;
	one->mm = current->mm;
	one->hva = hva;
	one->number = number;
	one->write = write;
	INIT_WORK(&one->work, bring_in);
	queue_work(queue, &one->work);
	return 0;
out:
	atomic_dec(&total);
	return -ENOMEM;
}
