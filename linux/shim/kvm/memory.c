// SPDX-License-Identifier: GPL-2.0-only
/*
 * Kernel memory for Rust: the heap, contiguous pages for the processor, page-table pages, pages shared with user
 * space. Everything that a VM causes is accounted to its memory cgroup, and page tables to SecPageTables as on stock.
 */
#include <linux/io.h>
#include <linux/kvm_host.h>
#include <linux/mm.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include <hsave.h>

/*
 * Who may not do I/O for memory, as the one who hands a VM over (upgrade.c), tries, and is told that there is none: the kernel would
 * go on trying for him until somebody else frees some, or in a cgroup kill for it. Nor is that news for the log.
 */
static bool told(void)
{
	/* Not a VMM that has said by PR_SET_IO_FLUSHER that it serves disks: that one's memory is as on stock. */
	return (current->flags & (PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE)) == PF_MEMALLOC_NOIO;
}

static gfp_t gfp(void)
{
	return GFP_KERNEL_ACCOUNT | (told() ? __GFP_RETRY_MAYFAIL | __GFP_NOWARN : 0);
}

/* Nothing that we allocate comes near it; keeps the allocator's own size checks from warning. */
#define HEAP_MAX (1UL << 30)

u8 *hsave_heap_alloc(size_t size, bool zeroed)
{
	gfp_t flags;
	u8 *p;

	if (size > HEAP_MAX)
		return NULL;
	/* Whoever asks is told by ENOMEM, which is no news for the log. */
	flags = __GFP_NOWARN | (zeroed ? __GFP_ZERO : 0);
	if (likely(!told() || size <= PAGE_SIZE))
		return kvmalloc(size, gfp() | flags);
	/* What kvmalloc() does, which tries hard for pages in a row where it is told that it may fail: a guest waits meanwhile. */
	flags |= GFP_KERNEL_ACCOUNT;
	p = kmalloc(size, __GFP_NORETRY | flags);
	/* In between, vmalloc() complains of the one and knows the other, which gives up sooner. */
	return p ?: __vmalloc(size, flags | (LINUX_AT_LEAST(6, 19) && !LINUX_AT_LEAST(7, 3) ? __GFP_NORETRY : __GFP_RETRY_MAYFAIL));
}

void hsave_heap_free(u8 *p)
{
	kvfree(p);
}

/* 1 << order zeroed pages; NULL without memory. */
u8 *hsave_pages_alloc(unsigned int order, u64 *pa)
{
	struct page *page = alloc_pages(gfp() | __GFP_ZERO, order);

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
	struct page *page = alloc_page(gfp() | __GFP_ZERO);

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

/* Another reference; where the page is. */
u8 *hsave_shared_get(u64 pa)
{
	struct page *page = pfn_to_page(pa >> PAGE_SHIFT);

	get_page(page);
	return page_address(page);
}

void hsave_shared_free(u64 pa)
{
	put_page(pfn_to_page(pa >> PAGE_SHIFT));
}

/* Words that one engine hands to the next without moving them. */
struct words {
	refcount_t refs;
	size_t n;
	u64 words[];
};

static struct words *words_of(u64 *p)
{
	return container_of(p, struct words, words[0]);
}

/* n of them, all 0, held once; NULL without memory. */
u64 *hsave_words_alloc(size_t n)
{
	struct words *w;

	if (n > HEAP_MAX / sizeof(u64))
		return NULL;
	w = kvzalloc(struct_size(w, words, n), gfp() | __GFP_NOWARN);
	if (!w)
		return NULL;
	refcount_set(&w->refs, 1);
	w->n = n;
	return w->words;
}

/* Another reference; how many there are. */
size_t hsave_words_get(u64 *words)
{
	struct words *w = words_of(words);

	refcount_inc(&w->refs);
	return w->n;
}

void hsave_words_put(u64 *words)
{
	struct words *w = words_of(words);

	if (refcount_dec_and_test(&w->refs))
		kvfree(w);
}
