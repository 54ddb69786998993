// SPDX-License-Identifier: GPL-2.0-only
/*
 * Eventfds, as the engines have them: counted, which the kernel lets nobody do who has no file of them.
 */
#include <linux/err.h>
#include <linux/eventfd.h>
#include <linux/refcount.h>
#include <linux/slab.h>
#include <hsave.h>

struct hsave_eventfd {
	refcount_t refs;
	struct eventfd_ctx *ctx;
};

/* A reference, or an ERR_PTR: -EBADF, -EINVAL, -ENOMEM. */
struct hsave_eventfd *hsave_eventfd_open(int fd)
{
	struct eventfd_ctx *ctx = eventfd_ctx_fdget(fd);
	struct hsave_eventfd *event;

	if (IS_ERR(ctx))
		return ERR_CAST(ctx);
	event = kmalloc(sizeof(*event), GFP_KERNEL_ACCOUNT);
	if (!event) {
		eventfd_ctx_put(ctx);
		return ERR_PTR(-ENOMEM);
	}
	refcount_set(&event->refs, 1);
	event->ctx = ctx;
	return event;
}

void hsave_eventfd_get(struct hsave_eventfd *event)
{
	refcount_inc(&event->refs);
}

void hsave_eventfd_put(struct hsave_eventfd *event)
{
	if (!refcount_dec_and_test(&event->refs))
		return;
	eventfd_ctx_put(event->ctx);
	kfree(event);
}

void hsave_eventfd_signal(struct hsave_eventfd *event)
{
#if LINUX_AT_LEAST(6, 8)
	eventfd_signal(event->ctx);
#else
	eventfd_signal(event->ctx, 1);
#endif
}

/* Are they the same eventfd? */
bool hsave_eventfd_same(const struct hsave_eventfd *event, const struct hsave_eventfd *other)
{
	return event->ctx == other->ctx;
}
