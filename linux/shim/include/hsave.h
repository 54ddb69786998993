/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What every file of base and engines includes. border.h is the border between them, made from the sources of the engine
 * (xtask/src/border.rs). Kernel structures never cross it: Rust holds pointers to them without looking inside.
 */
#ifndef HSAVE_H
#define HSAVE_H

#include <linux/types.h>
#include <linux/version.h>
#include <border.h>

#define LINUX_AT_LEAST(a, b) (LINUX_VERSION_CODE >= KERNEL_VERSION(a, b, 0))

struct module;
struct hsave_engine_dir;

/*
 * An engine, in the memory of its module: what the base calls in it. The first five are looked at before anything else is,
 * and stay what and where they are in each version of the interface.
 */
struct hsave_engine {
	/* HSAVE_INTERFACE, the size of all of this and HSAVE_INTERFACE_HASH as the engine was built with. */
	u32 interface;
	u32 size;
	u64 hash;
	/* Of the engine, for people. */
	const char *version;
	struct module *module;
	struct hsave_engine_ops ops;
	/* The base's own. */
	struct list_head node;
	struct hsave_engine_dir *dir;
	atomic_t vms;
};

/* Task context, from the engine's init and exit. The first fails with the errno that loading is to fail with, and says why. */
int hsave_engine_register(struct hsave_engine *engine);
void hsave_engine_unregister(struct hsave_engine *engine);

#endif
