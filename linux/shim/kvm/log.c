// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel log, and the end of the road. Texts from Rust come with their length.
 */
#define pr_fmt(fmt) "kvm: " fmt
#include <linux/bug.h>
#include <linux/printk.h>
#include <linux/ratelimit.h>
#include <hsave.h>

void hsave_log_info(const u8 *text, size_t len)
{
	pr_info("%.*s\n", (int)len, text);
}

void hsave_log_err(const u8 *text, size_t len)
{
	pr_err("%.*s\n", (int)len, text);
}

void hsave_log_warn(const u8 *text, size_t len, u64 value)
{
	pr_warn_ratelimited("%.*s: %#llx\n", (int)len, text, value);
}

/* A panic in Rust. Does not return, but is not declared so: objtool knows no such function of ours. */
void hsave_bug(const u8 *file, size_t len, u32 line)
{
	pr_emerg("panic at %.*s:%u\n", (int)len, file, line);
	BUG();
}
