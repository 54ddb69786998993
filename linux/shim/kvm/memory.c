// SPDX-License-Identifier: GPL-2.0-only
/*
 * Kernel memory for Rust: the heap, contiguous pages for the processor, page-table pages, pages shared with user
 * space. Everything that a VM causes is accounted to its memory cgroup, and page tables to SecPageTables as on stock.
 */
#include <linux/io.h>
#include <linux/kvm_host.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/topology.h>
#include <hsave.h>

/* Nothing that we allocate comes near it; keeps the allocator's own size checks from warning. */
#define HEAP_MAX (1UL << 30)

u8 *hsave_heap_alloc(size_t size, bool zeroed)
{
	if (size > HEAP_MAX)
		return NULL;
	/* Whoever asks is told by ENOMEM, which is no news for the log. */
	return kvmalloc(size, GFP_KERNEL_ACCOUNT | __GFP_NOWARN | (zeroed ? __GFP_ZERO : 0));
}

void hsave_heap_free(u8 *p)
{
	kvfree(p);
}

/* 1 << order zeroed pages; NULL without memory. */
u8 *hsave_pages_alloc(unsigned int order, u64 *pa)
{
	struct page *page = alloc_pages(GFP_KERNEL_ACCOUNT | __GFP_ZERO, order);

	if (!page)
		return NULL;
	*pa = page_to_phys(page);
	return page_address(page);
}

/*
 * A zeroed page that a CPU uses for as long as the module is loaded: on its own node, and nobody's who happens to load the
 * module.
 */
u8 *hsave_cpu_page_alloc(u32 cpu, u64 *pa)
{
	struct page *page = alloc_pages_node(cpu_to_node(cpu), GFP_KERNEL | __GFP_ZERO, 0);

	if (!page)
		return NULL;
	*pa = page_to_phys(page);
	return page_address(page);
}

void hsave_pages_free(u8 *va, unsigned int order)
{
	free_pages((unsigned long)va, order);
}

/* Marks a live page-table page in page->private, so that a wild address is not taken for one. */
#define TABLE_MAGIC 0x6873617665ul

u64 hsave_table_alloc(void)
{
	struct page *page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);

	if (!page)
		return 0;
	set_page_private(page, TABLE_MAGIC);
	kvm_account_pgtable_pages(page_address(page), 1);
	return page_to_phys(page);
}

void *hsave_table(u64 pa)
{
	struct page *page;

	if (!pfn_valid(pa >> PAGE_SHIFT))
		return NULL;
	page = pfn_to_page(pa >> PAGE_SHIFT);
	return page_private(page) == TABLE_MAGIC ? page_address(page) : NULL;
}

void hsave_table_free(u64 pa)
{
	struct page *page;

	/* Also catches a second free. */
	if (WARN_ON_ONCE(!hsave_table(pa)))
		return;
	page = pfn_to_page(pa >> PAGE_SHIFT);
	set_page_private(page, 0);
	kvm_account_pgtable_pages(page_address(page), -1);
	__free_page(page);
}

/* A zeroed page that user space may map: whoever maps it holds a reference of its own. */
u8 *hsave_shared_alloc(u64 *pa)
{
	return hsave_pages_alloc(0, pa);
}

void hsave_shared_get(u64 pa)
{
	get_page(pfn_to_page(pa >> PAGE_SHIFT));
}

void hsave_shared_free(u64 pa)
{
	put_page(pfn_to_page(pa >> PAGE_SHIFT));
}
