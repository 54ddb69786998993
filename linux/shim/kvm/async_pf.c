// SPDX-License-Identifier: GPL-2.0-only
/*
 * Asynchronous page faults: pages of the VMM's memory are brought in by a worker of the kernel's, and the vCPU that waits
 * for them is told.
 *
 * Nobody ever waits for a worker: it may sleep for as long as another process likes (userfaultfd), which may be the very
 * process that closes the vCPU's file. What a worker needs has a reference of its own, and the vCPU's end is noted there.
 * Only the unloading of this module waits, when no engine is left.
 */
#include <linux/mm.h>
#include <linux/mmu_context.h>
#include <linux/refcount.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/wait_bit.h>
#include <linux/workqueue.h>
#include "base.h"

/* Of one vCPU: ASYNC_PF_PER_VCPU of the stock module, host::PageIns::LIMIT. */
#define MOST_OF_ONE 64

/*
 * Of one VM. Its workqueue runs so many at once, so that none waits in it for those of another VM: a guest whose fault finds
 * no room waits for its page in its own thread.
 */
#define MOST_OF_VM 256

/* So many does each VM have to itself. What it has beyond them it shares with all others, who may leave it none. */
#define OF_ITS_OWN 8
#define MOST_IN_COMMON 1024

/*
 * Of all VMs, those that are gone included: a worker ends when its page comes, which may be never, and somebody may go on
 * making VMs and leaving them.
 */
#define MOST_OF_ALL 2048

/* What the vCPUs of a VM and their workers share. */
struct share {
	refcount_t refs;
	atomic_t under_way;
	/* Made when the first page is brought in: most VMs never need one. */
	struct workqueue_struct *queue;
	struct work_struct end;
};

/* What a vCPU and its workers share. */
struct hsave_page_ins {
	refcount_t refs;
	struct share *share;
	/* Guards what follows. */
	spinlock_t lock;
	/* The vCPU's thread; NULL once it is gone. */
	struct hsave_thread *owner;
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
	/* One of those that VMs have in common. */
	bool common;
};

/* Where the workqueues of VMs that are gone end: the last to use one may be a worker of its own. */
static struct workqueue_struct *ends;
static atomic_t shares;
static atomic_t in_common;
static atomic_t of_all;

int hsave_page_ins_start(void)
{
	ends = alloc_workqueue("kvm_async_pf_end", WQ_UNBOUND, 0);
	return ends ? 0 : -ENOMEM;
}

/* Waits for every worker: after it none runs code of this module. */
void hsave_page_ins_stop(void)
{
	wait_var_event(&shares, !atomic_read(&shares));
	destroy_workqueue(ends);
	ends = NULL;
}

static void free_share(struct share *share)
{
	kfree(share);
	if (atomic_dec_and_test(&shares))
		wake_up_var(&shares);
}

static void end_share(struct work_struct *work)
{
	struct share *share = container_of(work, struct share, end);

	destroy_workqueue(share->queue);
	free_share(share);
}

static void put_share(struct share *share)
{
	if (!refcount_dec_and_test(&share->refs))
		return;
	if (share->queue)
		queue_work(ends, &share->end);
	else
		free_share(share);
}

static struct share *new_share(void)
{
	struct share *share = kzalloc(sizeof(*share), GFP_KERNEL_ACCOUNT);

	if (!share)
		return NULL;
	refcount_set(&share->refs, 1);
	INIT_WORK(&share->end, end_share);
	atomic_inc(&shares);
	return share;
}

/* The VM's workqueue; NULL: there is no memory for it. */
static struct workqueue_struct *queue_of(struct share *share)
{
	struct workqueue_struct *queue = smp_load_acquire(&share->queue), *first;

	if (queue)
		return queue;
	queue = alloc_workqueue("kvm_async_pf", WQ_UNBOUND, MOST_OF_VM);
	if (!queue)
		return NULL;
	first = cmpxchg(&share->queue, NULL, queue);
	if (!first)
		return queue;
	destroy_workqueue(queue);
	return first;
}

/* sibling: the same of another vCPU of the VM, or NULL. */
struct hsave_page_ins *hsave_page_ins_new(struct hsave_thread *owner, const struct hsave_page_ins *sibling)
{
	struct hsave_page_ins *all = kzalloc(sizeof(*all), GFP_KERNEL_ACCOUNT);

	if (!all)
		return NULL;
	if (sibling) {
		all->share = sibling->share;
		refcount_inc(&all->share->refs);
	} else {
		all->share = new_share();
		if (!all->share) {
			kfree(all);
			return NULL;
		}
	}
	refcount_set(&all->refs, 1);
	spin_lock_init(&all->lock);
	all->owner = owner;
	return all;
}

static void put(struct hsave_page_ins *all)
{
	if (!refcount_dec_and_test(&all->refs))
		return;
	put_share(all->share);
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
void hsave_page_ins_forget(struct hsave_thread *t)
{
	struct hsave_page_ins *all = hsave_thread_page_ins(t);

	spin_lock(&all->lock);
	all->generation++;
	spin_unlock(&all->lock);
}

static bool one_more(atomic_t *count, int most)
{
	if (atomic_inc_return(count) <= most)
		return true;
	atomic_dec(count);
	return false;
}

/* A place for one page-in of the VM; common: it is one of those that VMs have in common. */
static bool take_place(struct share *share, bool *common)
{
	int n;

	if (!one_more(&of_all, MOST_OF_ALL))
		return false;
	n = atomic_inc_return(&share->under_way);
	*common = n > OF_ITS_OWN;
	if (n <= MOST_OF_VM && (!*common || one_more(&in_common, MOST_IN_COMMON)))
		return true;
	atomic_dec(&share->under_way);
	atomic_dec(&of_all);
	return false;
}

static void give_back(struct share *share, bool common)
{
	if (common)
		atomic_dec(&in_common);
	atomic_dec(&share->under_way);
	atomic_dec(&of_all);
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
	give_back(all->share, one->common);
	put(all);
	kfree(one);
}

/*
 * Begins to bring in the page at hva of the current task's memory. 0 or -ENOMEM. Sleeps only when it is the VM's first: who
 * would have to wait for memory may as well wait for the page.
 */
int hsave_page_in_start(struct hsave_thread *t, u64 hva, bool write, u8 number)
{
	struct hsave_page_ins *all = hsave_thread_page_ins(t);
	struct workqueue_struct *queue = queue_of(all->share);
	struct page_in *one;
	bool room, common;

	if (!queue || !take_place(all->share, &common))
		return -ENOMEM;
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
	one->common = common;
	INIT_WORK(&one->work, bring_in);
	queue_work(queue, &one->work);
	return 0;
out:
	give_back(all->share, common);
	return -ENOMEM;
}
