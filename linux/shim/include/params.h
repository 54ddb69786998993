/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Parameters of the stock modules for what is not available here: they say so, and cannot be set (docs/decisions/0022).
 */
#ifndef HSAVE_PARAMS_H
#define HSAVE_PARAMS_H

#include <linux/module.h>
#include <linux/printk.h>

#define ABSENT(name, type, what)                                                                    \
	static type name;                                                                           \
	module_param(name, type, 0444);                                                             \
	MODULE_PARM_DESC(name, what "; not available, stays off")

/* Common in modprobe.d; refusing to load would help nobody. */
#define OFF(name)                                                                                   \
	do {                                                                                        \
		if (name)                                                                           \
			pr_warn(#name " has no effect: it is not available; take it out of modprobe.d\n"); \
		name = 0;                                                                           \
	} while (0)

#endif
