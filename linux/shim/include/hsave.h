/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What every file of the shim includes. border.h is the border between it and the Rust object, made from the sources of
 * the latter (xtask/src/border.rs). Kernel structures never cross it: Rust holds pointers to them without looking inside.
 */
#ifndef HSAVE_H
#define HSAVE_H

#include <linux/types.h>
#include <linux/version.h>
#include <border.h>

#define LINUX_AT_LEAST(a, b) (LINUX_VERSION_CODE >= KERNEL_VERSION(a, b, 0))

struct module;

/* Between files of the shim. */
void hsave_set_owner(struct module *vendor);
void hsave_vfio_set_owner(struct module *vendor);
void hsave_settle_params(void);

/* For kvm-amd.ko. */
struct hsave_amd_params {
	/* Bits of CPUID Fn8000_000A_EDX that are not to be used. */
	u32 hidden_features;
	u16 pause_filter_count;
	u16 pause_filter_thresh;
	u16 pause_filter_count_grow;
	u16 pause_filter_count_shrink;
	u16 pause_filter_count_max;
	/* Read whenever it matters: lives as long as kvm-amd.ko does. */
	const bool *dump_invalid_vmcb;
};
void hsave_set_amd_params(const struct hsave_amd_params *params);
int hsave_start(struct module *vendor);
void hsave_stop(void);

#endif
