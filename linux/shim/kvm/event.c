// SPDX-License-Identifier: GPL-2.0-only
/*
 * Eventfds.
 */
#include <linux/err.h>
#include <linux/eventfd.h>
#include <hsave.h>

/* A reference, or an ERR_PTR: -EBADF, -EINVAL. */
struct eventfd_ctx *hsave_eventfd_get(int fd)
{
	return eventfd_ctx_fdget(fd);
}

void hsave_eventfd_put(struct eventfd_ctx *ctx)
{
	eventfd_ctx_put(ctx);
}

void hsave_eventfd_signal(struct eventfd_ctx *ctx)
{
#if LINUX_AT_LEAST(6, 8)
	eventfd_signal(ctx);
#else
	eventfd_signal(ctx, 1);
#endif
}
