// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel log, and the end of the road. Texts from Rust come with their length.
 */
#define pr_fmt(fmt) "kvm: " fmt
#include <linux/bug.h>
#include <linux/irqflags.h>
#include <linux/panic.h>
#include <linux/pid.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/ratelimit.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <hsave.h>

void hsave_log_err(const u8 *text, size_t len)
{
	pr_err("%.*s\n", (int)len, text);
}

void hsave_log_warn(const u8 *text, size_t len, u64 value)
{
	pr_warn_ratelimited("kvm [%i]: %.*s: %#llx\n", task_tgid_nr(current), (int)len, text, value);
}

/* The guest left for a reason that nobody asked for; in stock's words. */
void hsave_log_unexpected_exit(u32 vcpu, u64 rip, u64 code)
{
	pr_err_ratelimited("kvm [%i]: vcpu%u, guest rIP: 0x%llx svm: unexpected exit reason 0x%llx\n",
			   task_tgid_nr(current), vcpu, rip, code);
}

/* Lines of a VMCB; its owner has asked for it. */
void hsave_log_field(const u8 *name, size_t len, u64 value)
{
	pr_err("%-20.*s%016llx\n", (int)len, name, value);
}

void hsave_log_segment(const u8 *name, size_t len, u16 selector, u16 attrib, u32 limit, u64 base)
{
	pr_err("%-5.*s s: %04x a: %04x l: %08x b: %016llx\n", (int)len, name, selector, attrib, limit, base);
}

/* A panic in Rust. Returns if no more than this thread has to end. */
void hsave_panicked(const u8 *file, size_t len, u32 line)
{
	pr_emerg("panic at %.*s:%u in process %i (%s): a bug of hsave's, which ends this thread; please report what `hsavectl report` says\n",
		 (int)len, file, line, task_tgid_nr(current), current->comm);
	if (in_interrupt() || irqs_disabled() || preempt_count())
		panic("kvm: panic at %.*s:%u in atomic context\n", (int)len, file, line);
}

/* The end of the thread. Does not return, but is not declared so: objtool knows no such function of ours. */
void hsave_bug(void)
{
	/* Mutexes that this thread holds name it as their owner for ever, and whoever waits for one looks at it. */
	get_task_struct(current);
	BUG();
}
