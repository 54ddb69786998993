/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Per-CPU data of the world switch: the first four fields are shared with switch/src/percpu.rs, the rest is its own.
 */
#ifndef HSAVE_CPU_H
#define HSAVE_CPU_H

#include <linux/percpu.h>
#include <linux/types.h>

struct hsave_cpu_data {
	struct hsave_cpu_data *this;
	u64 hsave_pa;
	/* What MSR_TSC_AUX holds. */
	u64 tsc_aux;
	u32 number;
	u8 rest[256 - 28];
} __aligned(64);

static_assert(sizeof(struct hsave_cpu_data) == 256);
static_assert(offsetof(struct hsave_cpu_data, number) == 24);

DECLARE_PER_CPU_ALIGNED(struct hsave_cpu_data, hsave_cpu_data);

/* tsc_aux.c; on the CPU itself, preemption off. */
void hsave_tsc_aux_start(void);
void hsave_tsc_aux_stop(void);

/* The names changed in Linux 6.16. */
#ifndef rdmsrl
#define rdmsrl rdmsrq
#define wrmsrl wrmsrq
#define rdmsrl_safe rdmsrq_safe
#endif

#endif
