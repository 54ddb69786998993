// SPDX-License-Identifier: GPL-2.0-only
/*
 * User memory of the current task: pages for the guest, the size of the host's own mappings, copies.
 */
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/sched.h>
#include <linux/swap.h>
#include <linux/uaccess.h>
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

/* The same for the page at hva, faulting it in. The caller's notifier tells when it goes away. */
static int uncounted_page(unsigned long hva, bool write, u64 *pa)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	bool writable = false, unlocked;
	int tries, err = -EFAULT;
	unsigned long pfn;

	mmap_read_lock(mm);
	for (tries = 0; tries < 3; tries++) {
		vma = find_vma(mm, hva);
		if (!vma || hva < vma->vm_start || !(vma->vm_flags & (VM_IO | VM_PFNMAP)) ||
		    !(vma->vm_flags & (write ? VM_WRITE : VM_READ))) {
			err = -EFAULT;
			break;
		}
		err = follow(vma, hva, &writable, &pfn);
		if (!err && (writable || !write))
			break;
		unlocked = false;
		err = fixup_user_fault(mm, hva, write ? FAULT_FLAG_WRITE : 0, &unlocked);
		if (err)
			break;
		err = -EFAULT;
	}
	mmap_read_unlock(mm);
	if (err)
		return err == -EINTR ? -EINTR : -EFAULT;
	*pa = (u64)pfn << PAGE_SHIFT;
	return HSAVE_PAGE_UNCOUNTED | (writable ? HSAVE_PAGE_WRITABLE : 0);
}

/*
 * Takes a reference to the page at hva, faulting it in. Returns flags, or a negative errno: -EFAULT, -EHWPOISON,
 * -EINTR (fatal signal), -ENOMEM; with !wait also -EAGAIN: somebody else has to bring the page in (from swap, a file, or
 * user space). May sleep.
 */
int hsave_user_page(u64 hva, bool write, bool wait, u64 *pa)
{
	struct page *page, *again;
	long n;

	/* Present and writable, the common case: no lock, and a reader learns that it may map for writing. */
	if (get_user_page_fast_only(hva, FOLL_WRITE, &page)) {
		write = true;
	} else {
		n = get_user_pages_unlocked(hva, 1, &page,
					    FOLL_HWPOISON | (write ? FOLL_WRITE : 0) | (wait ? 0 : FOLL_NOWAIT));
		if (n == 0 && !wait)
			return -EAGAIN;
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

/* Levels of the host's own page tables. */
u8 hsave_paging_levels(void)
{
	return pgtable_l5_enabled() ? 5 : 4;
}

/*
 * The entry that maps hva in the current task's page table: its level, 1, 2 or 3 (4 KiB, 2 MiB, 1 GiB), and what it
 * holds; 0 if there is none. Interrupts are off: tables are freed only after an IPI to all CPUs that use this mm.
 */
static __always_inline int host_entry(unsigned long hva, pmd_t *pmd, pte_t *pte)
{
	pgd_t pgd;
	p4d_t p4d;
	pud_t pud;

	if (!current->mm)
		return 0;
	pgd = READ_ONCE(*pgd_offset(current->mm, hva));
	if (pgd_none(pgd) || !pgd_present(pgd))
		return 0;
	p4d = READ_ONCE(*p4d_offset(&pgd, hva));
	if (p4d_none(p4d) || !p4d_present(p4d))
		return 0;
	pud = READ_ONCE(*pud_offset(&p4d, hva));
	if (pud_none(pud) || !pud_present(pud))
		return 0;
	if (pud_leaf(pud))
		return 3;
	*pmd = READ_ONCE(*pmd_offset(&pud, hva));
	if (pmd_none(*pmd) || !pmd_present(*pmd))
		return 0;
	if (pmd_leaf(*pmd))
		return 2;
	*pte = READ_ONCE(*pte_offset_kernel(pmd, hva));
	return pte_present(*pte) ? 1 : 0;
}

/* Level of the entry that maps hva; 1 if there is none. */
int hsave_user_level(u64 hva)
{
	unsigned long flags;
	pmd_t pmd;
	pte_t pte;
	int level;

	local_irq_save(flags);
	level = host_entry(hva, &pmd, &pte);
	local_irq_restore(flags);
	return max(level, 1);
}

/*
 * The page at hva if the current task could write it right now without a trace: then neither a reference nor a mark on
 * the page is needed, for whoever takes any of this back tells the mmu notifier first. Anonymous memory only; what files
 * allow is for get_user_pages to say. Returns the level, 0 if it is not so.
 */
int hsave_mapped_page(u64 hva, u64 *pa)
{
	unsigned long flags, pfn = 0;
	int level;
	pmd_t pmd;
	pte_t pte;

	local_irq_save(flags);
	level = host_entry(hva, &pmd, &pte);
	switch (level) {
	case 1:
		if (pte_access_permitted(pte, true) && pte_dirty(pte) && pte_young(pte) && !pte_special(pte))
			pfn = pte_pfn(pte);
		break;
	case 2:
		if (pmd_access_permitted(pmd, true) && pmd_dirty(pmd) && pmd_young(pmd))
			pfn = pmd_pfn(pmd) + ((hva & ~PMD_MASK) >> PAGE_SHIFT);
		/* Older kernels do not mark the large entries that have no struct page. */
		if (!pfn_valid(pfn))
			pfn = 0;
		break;
	}
	if (pfn && !PageAnon(pfn_to_page(pfn)))
		pfn = 0;
	local_irq_restore(flags);
	*pa = (u64)pfn << PAGE_SHIFT;
	return pfn ? level : 0;
}

bool hsave_user_range_ok(u64 hva, u64 len)
{
	/* An address with a tag (linear address masking) would not compare with those that the mmu notifier gives. */
	u64 untagged = untagged_addr(hva);

	return hva == untagged && access_ok((void __user *)hva, len);
}

/*
 * Nonzero if not everything was copied.
 *
 * The buffers on the kernel's side are Rust slices, whose bounds the compiler has checked: the kernel's own check of
 * what the copy touches (hardened usercopy) has nothing to add, and short copies are what an emulated instruction is
 * made of.
 */
unsigned long hsave_copy_from_user(u8 *to, u64 from, unsigned long n)
{
	const void __user *user = (const void __user *)from;

	/* Nor may the processor read elsewhere on speculation, whatever address it is given. */
#ifdef masked_user_access_begin
	user = mask_user_address(user);
#else
	if (!access_ok(user, n))
		return n;
	barrier_nospec();
#endif
	return raw_copy_from_user(to, user, n);
}

/* 0 or -EFAULT. */
int hsave_read_user_u64(u64 from, u64 *value)
{
	return get_user(*value, (const u64 __user *)from);
}

unsigned long hsave_copy_to_user(u64 to, const u8 *from, unsigned long n)
{
	return copy_to_user((void __user *)to, from, n);
}

/* 0 exchanged, 1 the value was another, -EFAULT. at is naturally aligned to size. */
int hsave_cmpxchg_user(u64 at, u64 old, u64 new, unsigned int size)
{
	void __user *p = (void __user *)at;

	if (!access_ok(p, size))
		return -EFAULT;
	switch (size) {
#define CASE(bytes, type)                                                                          \
	case bytes: {                                                                              \
		type expected = old;                                                               \
		return __try_cmpxchg_user((type __user *)p, &expected, (type)new, fault_##bytes);  \
	}
	CASE(1, u8)
	CASE(2, u16)
	CASE(4, u32)
	CASE(8, u64)
#undef CASE
	}
	return -EINVAL;
}
