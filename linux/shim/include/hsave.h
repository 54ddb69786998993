/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The border between the Rust object and the C shim. Functions under "Rust" are called by the shim and defined in
 * linux/src/; everything else is the shim's and declared for Rust in linux/src/shim.rs. Kernel structures never cross
 * it: Rust holds pointers to them without looking inside.
 */
#ifndef HSAVE_H
#define HSAVE_H

#include <linux/types.h>
#include <linux/version.h>

#define LINUX_AT_LEAST(a, b) (LINUX_VERSION_CODE >= KERNEL_VERSION(a, b, 0))

struct file;
struct mm_struct;
struct module;

/* Rust: load and unload of the vendor module; 0 or a negative errno. */
int hsave_load(void);
void hsave_unload(void);

/* Rust: one CPU goes to or leaves work; on that CPU. */
int hsave_cpu_online(void);
void hsave_cpu_offline(void);

/* Rust: files. Values are what the system call returns. */
long hsave_system_ioctl(unsigned int cmd, unsigned long arg);
long hsave_vm_ioctl(void *vm, unsigned int cmd, unsigned long arg, struct mm_struct *mm);
void hsave_vm_release(void *vm);
long hsave_vcpu_ioctl(void *vcpu, unsigned int cmd, unsigned long arg, struct mm_struct *mm);
void hsave_vcpu_release(void *vcpu);
long hsave_stats_read(void *stats, unsigned long to, unsigned long len, u64 pos);
void hsave_stats_release(void *stats);
u64 hsave_vcpu_page(void *vcpu, unsigned long index);

/* Rust: the VM's memory changes under it. */
void hsave_invalidate_start(void *vm, unsigned long start, unsigned long end, bool may_block);
void hsave_invalidate_end(void *vm, unsigned long start, unsigned long end);
bool hsave_age(void *vm, unsigned long start, unsigned long end);
bool hsave_test_young(void *vm, unsigned long start, unsigned long end);
void hsave_mm_release(void *vm);

/* Rust: a vCPU's timer expired; hard interrupt context. */
void hsave_timer_expired(void *thread);

/* Rust: a vCPU's thread got a CPU again, or another one; interrupts off. */
void hsave_scheduled(void *thread);

/* Rust: a timer of the VM's devices expired; hard interrupt context. */
#define HSAVE_HRTIMERS 2
void hsave_hrtimer_expired(void *vm, u32 which);

/* Rust: an eventfd raises an interrupt, until its end is acknowledged if it is resampled; any context. */
void hsave_irqfd_raise(void *vm, u32 gsi, bool resample);

/* Between files of the shim. */
int hsave_cpus_start(void);
void hsave_cpus_stop(void);
void hsave_set_owner(struct module *vendor);
int hsave_device_register(void);
void hsave_device_unregister(void);
int hsave_clock_start(void);
void hsave_clock_stop(void);
void hsave_settle_params(void);

/* For kvm-amd.ko. */
int hsave_start(struct module *vendor);
void hsave_stop(void);

#endif
