// SPDX-License-Identifier: GPL-2.0-only
/*
 * What becomes of accesses to MSRs that do not exist: the module's parameters, with the names and defaults of stock.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/printk.h>
#include <linux/ratelimit.h>
#include <linux/sched.h>
#include <hsave.h>

static bool ignore_msrs;
module_param(ignore_msrs, bool, 0644);
MODULE_PARM_DESC(ignore_msrs, "MSRs that do not exist read zero and take any value, instead of #GP");

static bool report_ignored_msrs = true;
module_param(report_ignored_msrs, bool, 0644);
MODULE_PARM_DESC(report_ignored_msrs, "Say in the kernel log which MSRs were ignored");

/* Is the access to be ignored? Any context that may print. */
bool hsave_ignores_msr(u32 index, bool write, u64 value)
{
	if (!READ_ONCE(ignore_msrs))
		return false;
	if (READ_ONCE(report_ignored_msrs))
		pr_err_ratelimited("kvm [%i]: ignored %s: 0x%x data 0x%llx\n", task_tgid_nr(current),
				   write ? "wrmsr" : "rdmsr", index, value);
	return true;
}

/* A guest wrote an MSR that does nothing here, or not with this value; in stock's words. Any context that may print. */
void hsave_unhandled_wrmsr(u32 vcpu, u64 rip, u32 index, u64 value)
{
	if (READ_ONCE(report_ignored_msrs))
		pr_err_ratelimited("kvm [%i]: vcpu%u, guest rIP: 0x%llx Unhandled WRMSR(0x%x) = 0x%llx\n",
				   task_tgid_nr(current), vcpu, rip, index, value);
}
