// SPDX-License-Identifier: GPL-2.0-only
/*
 * Parameters of the stock kvm.ko, under its names (docs/decisions/0022): those that are honoured and not part of another
 * file, and those of what is not available here, which say so and cannot be set. Engines have their own.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/string.h>
#include <params.h>
#include "base.h"

static unsigned int min_timer_period_us = 200;
module_param(min_timer_period_us, uint, 0644);
MODULE_PARM_DESC(min_timer_period_us, "Shortest period of a guest's timer in microseconds, of vCPUs that are made from now on");

static unsigned int tsc_tolerance_ppm = 250;
module_param(tsc_tolerance_ppm, uint, 0644);
MODULE_PARM_DESC(tsc_tolerance_ppm, "A guest's TSC frequency is taken for the host's within so many parts in a million");

u32 hsave_min_timer_period_us(void)
{
	return READ_ONCE(min_timer_period_us);
}

u32 hsave_tsc_tolerance_ppm(void)
{
	return READ_ONCE(tsc_tolerance_ppm);
}

/* What is always so. */
static bool tdp_mmu = true;
module_param(tdp_mmu, bool, 0444);
MODULE_PARM_DESC(tdp_mmu, "Nested page tables are made for nested paging alone; stays Y");

#if LINUX_AT_LEAST(6, 12)
static bool enable_virt_at_load = true;
module_param(enable_virt_at_load, bool, 0444);
MODULE_PARM_DESC(enable_virt_at_load, "SVM is switched on when the module is loaded; stays Y");
#endif

/* What is never so. */
ABSENT(force_emulation_prefix, int, "Forced emulation of guest instructions");
ABSENT(enable_pmu, bool, "Performance counters for guests");
ABSENT(enable_vmware_backdoor, bool, "VMware's I/O ports for guests");
ABSENT(eager_page_split, bool, "Splitting of large pages when the dirty log is switched on");
ABSENT(flush_on_reuse, bool, "Flush when shadow page tables are used again");
ABSENT(kvmclock_periodic_sync, bool, "Update of all clock pages every five minutes");
ABSENT(lapic_timer_advance, bool, "Local APIC timers that fire ahead of their time");
ABSENT(mmio_caching, bool, "Nested page-table entries for addresses of devices");
ABSENT(nx_huge_pages_recovery_period_ms, uint, "Period of joining pages that nx_huge_pages has split");
ABSENT(nx_huge_pages_recovery_ratio, uint, "Share of them that is joined at a time");
ABSENT(pi_inject_timer, int, "Timer interrupts that are posted from another CPU");
ABSENT(vector_hashing, bool, "Choice of the destination of lowest-priority interrupts by their vector");

/* Stock takes words (auto, force, never, off): whatever modprobe.d has, it must not keep the module from loading. */
static bool nx_huge_pages;

static int set_nx_huge_pages(const char *value, const struct kernel_param *kp)
{
	nx_huge_pages = !sysfs_streq(value, "off") && !sysfs_streq(value, "never") && !sysfs_streq(value, "0") &&
			!sysfs_streq(value, "n") && !sysfs_streq(value, "N");
	return 0;
}

static const struct kernel_param_ops nx_huge_pages_ops = { .set = set_nx_huge_pages, .get = param_get_bool };
module_param_cb(nx_huge_pages, &nx_huge_pages_ops, &nx_huge_pages, 0444);
__MODULE_PARM_TYPE(nx_huge_pages, "bool");
MODULE_PARM_DESC(nx_huge_pages, "Large pages without execute permission; not available, stays off");

void hsave_settle_params(void)
{
	OFF(force_emulation_prefix);
	OFF(enable_pmu);
	OFF(enable_vmware_backdoor);
	OFF(eager_page_split);
	OFF(flush_on_reuse);
	OFF(kvmclock_periodic_sync);
	OFF(lapic_timer_advance);
	OFF(mmio_caching);
	OFF(nx_huge_pages);
	OFF(nx_huge_pages_recovery_period_ms);
	OFF(nx_huge_pages_recovery_ratio);
	OFF(pi_inject_timer);
	OFF(vector_hashing);
	tdp_mmu = true;
#if LINUX_AT_LEAST(6, 12)
	enable_virt_at_load = true;
#endif
}
