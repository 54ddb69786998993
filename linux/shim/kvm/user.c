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

/* linux/src/page.rs */
#define PAGE_WRITABLE 1

/*
 * Takes a reference to the page at hva, faulting it in. Returns flags, or a negative errno: -EFAULT, -EHWPOISON,
 * -EINTR (fatal signal), -ENOMEM. May sleep.
 */
int hsave_user_page(unsigned long hva, bool write, u64 *pa)
{
	struct page *page, *again;
	long n;

	/* Present and writable, the common case: no lock, and a reader learns that it may map for writing. */
	if (get_user_page_fast_only(hva, FOLL_WRITE, &page)) {
		write = true;
	} else {
		n = get_user_pages_unlocked(hva, 1, &page, FOLL_HWPOISON | (write ? FOLL_WRITE : 0));
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
	return write ? PAGE_WRITABLE : 0;
}

/* The guest may have used the page through a nested mapping that the host's page tables know nothing of. */
void hsave_user_page_put(u64 pa, int flags)
{
	struct page *page = pfn_to_page(pa >> PAGE_SHIFT);

	if (!PageReserved(page)) {
		if (flags & PAGE_WRITABLE)
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
 * Level of the entry that maps hva in the current task's page table: 1, 2 or 3 (4 KiB, 2 MiB, 1 GiB). Interrupts are
 * off during the walk: tables are freed only after an IPI to all CPUs that use this mm.
 */
int hsave_user_level(unsigned long hva)
{
	unsigned long flags;
	int level = 1;
	pgd_t pgd;
	p4d_t p4d;
	pud_t pud;
	pmd_t pmd;

	if (!current->mm)
		return level;
	local_irq_save(flags);
	pgd = READ_ONCE(*pgd_offset(current->mm, hva));
	if (pgd_none(pgd) || !pgd_present(pgd))
		goto out;
	p4d = READ_ONCE(*p4d_offset(&pgd, hva));
	if (p4d_none(p4d) || !p4d_present(p4d))
		goto out;
	pud = READ_ONCE(*pud_offset(&p4d, hva));
	if (pud_none(pud) || !pud_present(pud))
		goto out;
	if (pud_leaf(pud)) {
		level = 3;
		goto out;
	}
	pmd = READ_ONCE(*pmd_offset(&pud, hva));
	if (pmd_none(pmd) || !pmd_present(pmd))
		goto out;
	if (pmd_leaf(pmd))
		level = 2;
out:
	local_irq_restore(flags);
	return level;
}

bool hsave_user_range_ok(unsigned long hva, unsigned long len)
{
	return access_ok((void __user *)hva, len);
}

/*
 * Nonzero if not everything was copied.
 *
 * The buffers on the kernel's side are Rust slices, whose bounds the compiler has checked: the kernel's own check of
 * what the copy touches (hardened usercopy) has nothing to add, and short copies are what an emulated instruction is
 * made of.
 */
unsigned long hsave_copy_from_user(void *to, unsigned long from, unsigned long n)
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
int hsave_read_user_u64(unsigned long from, u64 *value)
{
	return get_user(*value, (const u64 __user *)from);
}

unsigned long hsave_copy_to_user(unsigned long to, const void *from, unsigned long n)
{
	return copy_to_user((void __user *)to, from, n);
}

/* 0 exchanged, 1 the value was another, -EFAULT. at is naturally aligned to size. */
int hsave_cmpxchg_user(unsigned long at, u64 old, u64 new, unsigned int size)
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
