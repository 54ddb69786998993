// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages of the current task's memory for the guest.
 */
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/swap.h>
#include <asm/mmu_context.h>
#include <hsave.h>

/* What the host maps at hva without struct page, or with one that is not counted: device memory, /dev/mem. */
static int follow(struct vm_area_struct *vma, unsigned long hva, bool *writable, unsigned long *pfn)
{
#if LINUX_AT_LEAST(6, 12)
	struct follow_pfnmap_args args = { .vma = vma, .address = hva };
	int err = follow_pfnmap_start(&args);

	if (err)
		return err;
	*pfn = args.pfn;
	*writable = args.writable;
	follow_pfnmap_end(&args);
	return 0;
#else
	spinlock_t *lock;
	pte_t *pte;
	int err = follow_pte(vma->vm_mm, hva, &pte, &lock);

	if (err)
		return err;
	*pfn = pte_pfn(*pte);
	*writable = pte_write(*pte);
	pte_unmap_unlock(pte, lock);
	return 0;
#endif
}

/*
 * The same for the page at hva, faulting it in. The caller's notifier tells when it goes away. It waits in any case, as on stock: a
 * worker could not bring the page in, because who serves faults of such memory may count on the task that has mapped it (the
 * kernel's own [vvar] warns of others).
 */
static int uncounted_page(unsigned long hva, bool write, u64 *pa)
{
	struct mm_struct *mm = current->mm;
	bool writable = false, faulted = false, unlocked;
	struct vm_area_struct *vma;
	unsigned long pfn;
	int err, tries = 0;

	mmap_read_lock(mm);
	for (;;) {
		vma = find_vma(mm, hva);
		if (!vma || hva < vma->vm_start || !(vma->vm_flags & (VM_IO | VM_PFNMAP)) ||
		    !(vma->vm_flags & (write ? VM_READ | VM_WRITE : VM_READ))) {
			err = -EFAULT;
			break;
		}
		err = follow(vma, hva, &writable, &pfn);
		if (!err && (writable || !write))
			break;
		/* It is there and stays as it is. */
		if (write && !(vma->vm_flags & VM_WRITE)) {
			err = err ? -EFAULT : -EROFS;
			break;
		}
		/*
		 * Who serves the fault may have been kept from it by a signal, and says that nothing is wrong: a graphics buffer's
		 * owner does (TTM), whose lock is waited for interruptibly.
		 */
		if (faulted && signal_pending(current)) {
			err = -EINTR;
			break;
		}
		if (tries == 3) {
			err = -EFAULT;
			break;
		}
		unlocked = false;
		err = fixup_user_fault(mm, hva, write ? FAULT_FLAG_WRITE : 0, &unlocked);
		if (err)
			break;
		faulted = true;
		/* Where the lock was let go of, the memory may have changed meanwhile: it is a new fault, as often as that happens. */
		if (unlocked)
			cond_resched();
		else
			tries++;
	}
	mmap_read_unlock(mm);
	if (err)
		return err == -EINTR || err == -EROFS ? err : -EFAULT;
	*pa = (u64)pfn << PAGE_SHIFT;
	return HSAVE_PAGE_UNCOUNTED | (writable ? HSAVE_PAGE_WRITABLE : 0);
}

#if !LINUX_AT_LEAST(6, 2)
/*
 * Older kernels look for fatal signals only while a page is faulted in. So the page is faulted in here first, and what
 * waits for userfaultfd ends with any signal. 0: it is there, or it is not for us to say why not.
 */
static int fault_in(unsigned long hva, bool write)
{
	unsigned int flags = FAULT_FLAG_DEFAULT | (write ? FAULT_FLAG_WRITE : 0);
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	vm_fault_t fault;

	for (;;) {
		if (mmap_read_lock_killable(mm))
			return -EINTR;
		vma = vma_lookup(mm, hva);
		if (!vma || !(vma->vm_flags & (write ? VM_WRITE : VM_READ)) ||
		    !arch_vma_access_permitted(vma, write, false, false)) {
			mmap_read_unlock(mm);
			return 0;
		}
		fault = handle_mm_fault(vma, hva, flags, NULL);
		if (fault & VM_FAULT_COMPLETED)
			return 0;
		if (!(fault & VM_FAULT_RETRY)) {
			mmap_read_unlock(mm);
			return 0;
		}
		/* The lock is free again. */
		if (signal_pending(current))
			return -EINTR;
		flags |= FAULT_FLAG_TRIED;
	}
}
#endif

/*
 * One reference to the page at hva, faulting it in: 1, or a negative errno; 0 with !wait if that takes a while. A guest's access counts as one of the
 * task's: it takes the faults by which the kernel learns on which node memory is used. Any signal ends the wait for
 * who serves the page, because the VMM may need the thread back; what stock KVM does on each kernel, or more.
 */
static long pin(unsigned long hva, bool write, bool wait, struct page **page)
{
	unsigned int flags = FOLL_HWPOISON | (write ? FOLL_WRITE : 0) | (wait ? 0 : FOLL_NOWAIT);

#if LINUX_AT_LEAST(6, 6)
	flags |= FOLL_HONOR_NUMA_FAULT;
#endif
#if LINUX_AT_LEAST(6, 2)
	if (wait)
		flags |= FOLL_INTERRUPTIBLE;
#else
	int err = wait ? fault_in(hva, write) : 0;

	if (err)
		return err;
#endif
	return get_user_pages_unlocked(hva, 1, page, flags);
}

/*
 * Takes a reference to the page at hva, faulting it in. Returns flags, or a negative errno: -EFAULT, -EHWPOISON,
 * -EINTR (a signal), -ENOMEM, with write -EROFS: device memory that the task may only read; with !wait also -EAGAIN: somebody
 * else has to bring the page in (from swap, a file, or user space). The page that the guest wants may be broken: as for an access
 * of its own, the thread gets SIGBUS with the address and that it is one page, and the VMM can hand the error on to the guest.
 * May sleep.
 */
int hsave_user_page(u64 hva, bool write, bool wait, u64 *pa)
{
	struct page *page, *again;
	long n;

	/* Present and writable, the common case: no lock, and a reader learns that it may map for writing. */
	if (get_user_page_fast_only(hva, FOLL_WRITE, &page)) {
		write = true;
	} else {
		n = pin(hva, write, wait, &page);
		if (n == 0 && !wait)
			return -EAGAIN;
		if (n == -EHWPOISON)
			send_sig_mceerr(BUS_MCEERR_AR, (void __user *)(hva & PAGE_MASK), PAGE_SHIFT, current);
		if (n == -EFAULT)
			return uncounted_page(hva, write, pa);
		if (n != 1)
			return n < 0 ? n : -EFAULT;
		/* The fault may have made it writable. If the page was replaced since, the newer one counts. */
		if (!write && get_user_page_fast_only(hva, FOLL_WRITE, &again)) {
			put_page(page);
			page = again;
			write = true;
		}
	}
	*pa = page_to_phys(page);
	return write ? HSAVE_PAGE_WRITABLE : 0;
}

/* The guest may have used the page through a nested mapping that the host's page tables know nothing of. */
void hsave_user_page_put(u64 pa, int flags)
{
	struct page *page;

	if (flags & HSAVE_PAGE_UNCOUNTED)
		return;
	page = pfn_to_page(pa >> PAGE_SHIFT);
	if (!PageReserved(page)) {
		if (flags & HSAVE_PAGE_WRITABLE)
			SetPageDirty(page);
		mark_page_accessed(page);
	}
	put_page(page);
}
