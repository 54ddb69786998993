// SPDX-License-Identifier: GPL-2.0-only
/*
 * User memory of the current task: how the host maps it, and copies.
 */
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <hsave.h>

/* Levels of the host's own page tables. */
u8 hsave_paging_levels(void)
{
	return pgtable_l5_enabled() ? 5 : 4;
}

/*
 * The entry that maps hva in the current task's page table: its level, 1, 2 or 3 (4 KiB, 2 MiB, 1 GiB), and what it
 * holds; 0 if there is none. Interrupts are off: tables are freed after an RCU grace period, which this CPU holds up, or
 * after an IPI to all CPUs that use this mm.
 */
static __always_inline int host_entry(unsigned long hva, pmd_t *pmd, pte_t *pte)
{
	pgd_t pgd;
	p4d_t p4d;
	pud_t pud;

	/* The kernel's half of the table is nobody's. */
	if (!current->mm || hva >= TASK_SIZE_MAX)
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
 * The buffers on the kernel's side are Rust slices, whose bounds the compiler has checked: the kernel's own check of
 * what the copy touches (hardened usercopy) has nothing to add, and short copies are what an emulated instruction is
 * made of.
 */
static __always_inline unsigned long copy_in(u8 *to, u64 from, unsigned long n)
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

/* Nonzero if not everything was copied. */
unsigned long hsave_copy_from_user(u8 *to, u64 from, unsigned long n)
{
	return copy_in(to, from, n);
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
static int cmpxchg_user(u64 at, u64 old, u64 new, unsigned int size)
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

int hsave_cmpxchg_user(u64 at, u64 old, u64 new, unsigned int size)
{
	return cmpxchg_user(at, old, new, size);
}

/*
 * Guest memory on behalf of an instruction of the guest's. These differ from the functions above where the memory is not
 * there: a signal ends the wait for it, and a broken page means SIGBUS. What such a page is waits for in
 * hsave_user_page(), not in the fault of the copy, which would look at fatal signals only.
 */

/* A copy of n bytes at hva met a page that is not there. 0: the copy may take its faults; -EINTR, -EHWPOISON, -EROFS. */
static noinline int bring_in(unsigned long hva, unsigned long n, bool write)
{
	unsigned long page = hva & PAGE_MASK;
	u64 pa;
	int got;

	for (; page < hva + n; page += PAGE_SIZE) {
		got = hsave_user_page(page, write, true, &pa);
		if (got == -EINTR || got == -EHWPOISON || got == -EROFS)
			return got;
		if (got >= 0)
			hsave_user_page_put(pa, got & HSAVE_PAGE_UNCOUNTED);
	}
	return 0;
}

/* 0, -EFAULT, -EINTR, -EHWPOISON. */
int hsave_read_guest(u8 *to, u64 from, unsigned long n)
{
	unsigned long left;
	int err;

	pagefault_disable();
	left = copy_in(to, from, n);
	pagefault_enable();
	if (likely(!left))
		return 0;
	err = bring_in(from, n, false);
	if (err)
		return err;
	return copy_in(to, from, n) ? -EFAULT : 0;
}

/* The same for one aligned word. */
int hsave_read_guest_u64(u64 from, u64 *value)
{
	int err;

	pagefault_disable();
	err = get_user(*value, (const u64 __user *)from);
	pagefault_enable();
	if (likely(!err))
		return 0;
	err = bring_in(from, sizeof(*value), false);
	return err ? err : get_user(*value, (const u64 __user *)from);
}

/* The same in the other direction; also -EROFS: device memory that the task may only read. */
int hsave_write_guest(u64 to, const u8 *from, unsigned long n)
{
	unsigned long left;
	int err;

	pagefault_disable();
	left = copy_to_user((void __user *)to, from, n);
	pagefault_enable();
	if (likely(!left))
		return 0;
	err = bring_in(to, n, true);
	if (err)
		return err;
	return copy_to_user((void __user *)to, from, n) ? -EFAULT : 0;
}

/* As hsave_cmpxchg_user(), and -EINTR, -EHWPOISON, -EROFS. */
int hsave_cmpxchg_guest(u64 at, u64 old, u64 new, unsigned int size)
{
	int got;

	pagefault_disable();
	got = cmpxchg_user(at, old, new, size);
	pagefault_enable();
	if (likely(got >= 0))
		return got;
	got = bring_in(at, size, true);
	return got ? got : cmpxchg_user(at, old, new, size);
}

/*
 * Sleeps until the page at hva is there, or cannot be. Only a fatal signal ends this, and no other keeps it from sleeping:
 * the fault of a copy waits for userfaultfd interruptibly, and is taken again and again while a signal is pending. What
 * the task may not write it may still read.
 */
void hsave_wait_for_page(u64 hva, bool write)
{
	struct page *page;
	long n = get_user_pages_unlocked(hva, 1, &page, write ? FOLL_WRITE : 0);

	if (n == -EFAULT && write)
		n = get_user_pages_unlocked(hva, 1, &page, 0);
	if (n == 1)
		put_page(page);
}

/* Is the current task about to die? */
bool hsave_killed(void)
{
	return fatal_signal_pending(current);
}
