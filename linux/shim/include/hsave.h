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
void hsave_settle_params(void);

/* For kvm-amd.ko. */
int hsave_start(struct module *vendor);
void hsave_stop(void);

#endif
