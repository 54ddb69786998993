/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Per-CPU data, which switch/src/percpu.rs declares (border.h), and the names of MSR accesses.
 */
#ifndef HSAVE_CPU_H
#define HSAVE_CPU_H

#include <linux/percpu.h>
#include <asm/cpufeature.h>
#include <hsave.h>

DECLARE_PER_CPU_ALIGNED(struct hsave_cpu_data, hsave_cpu_data);

/* clock.c; the last CPU, interrupts off. */
void hsave_clock_suspend(void);
void hsave_clock_resume(void);

/* perf.c; the first is undone by the second, the third ends what hsave_guest_interrupted() began on this CPU. */
void hsave_perf_start(void);
void hsave_perf_stop(void);
void hsave_guest_handled(void);

/* tsc_aux.c; on the CPU itself, preemption off. */
void hsave_tsc_aux_start(void);
void hsave_tsc_aux_stop(void);

/*
 * srso.c: this CPU is about to enter a guest; interrupts off. And: it stops running guests; any context.
 */
#ifdef X86_FEATURE_SRSO_BP_SPEC_REDUCE
void hsave_speculation_reduce(void);
void hsave_speculation_restore(void);
#else
static inline void hsave_speculation_restore(void) { }
#endif

/* The names changed in Linux 6.16. */
#ifndef rdmsrl
#define rdmsrl rdmsrq
#define wrmsrl wrmsrq
#define rdmsrl_safe rdmsrq_safe
#endif

#endif
