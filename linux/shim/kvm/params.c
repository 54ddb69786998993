// SPDX-License-Identifier: GPL-2.0-only
/*
 * Parameters of the stock kvm.ko that programs look at, for what is not available here: they say so.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#include <linux/module.h>
#include <hsave.h>

static int force_emulation_prefix;
module_param(force_emulation_prefix, int, 0444);
MODULE_PARM_DESC(force_emulation_prefix, "Forced emulation of guest instructions; not available, stays 0");

static bool enable_pmu;
module_param(enable_pmu, bool, 0444);
MODULE_PARM_DESC(enable_pmu, "Performance counters for guests; not available, stays N");

/* Common in modprobe.d; refusing to load would help nobody. */
void hsave_settle_params(void)
{
	if (force_emulation_prefix || enable_pmu)
		pr_warn("force_emulation_prefix and enable_pmu have no effect: neither is available\n");
	force_emulation_prefix = 0;
	enable_pmu = false;
}
