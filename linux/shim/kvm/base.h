/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Between the files of the base.
 */
#ifndef HSAVE_BASE_H
#define HSAVE_BASE_H

#include <linux/kobject.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/refcount.h>
#include <linux/rwsem.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <hsave.h>

struct kobject;
struct mm_struct;
struct hsave_debugfs;
struct hsave_notifier;

/* The engine that a VM is in, and what that has of it: one to look at for whoever calls while the VM goes to another. */
struct hsave_part {
	struct hsave_engine *engine;
	void *object;
};

/* A VM. What holds it: its file and those of its vCPUs, statistics and VFIO device, and drivers of devices that its guest uses. */
struct hsave_vm {
	refcount_t refs;
	/*
	 * One of parts; the VM holds a reference to the engine's module. Who calls the engine keeps it where it is: by gate, by the
	 * vCPU's lock, by the notifier's count, or by RCU and closed (upgrade.c).
	 */
	struct hsave_part *part;
	struct hsave_part parts[2];
	/* The thread and process that made it, and its address space, the only one that may use the VM. */
	u32 pid;
	u32 tgid;
	char name[TASK_COMM_LEN];
	const struct mm_struct *mm;
	atomic_t vcpus;
	/* vcpu.c: those that have a file. */
	struct mutex vcpus_lock;
	struct list_head vcpu_list;
	/* upgrade.c. Held for reading by whoever calls the engine and may sleep, vCPUs excepted. */
	struct rw_semaphore gate;
	/* Held while the VM is handed over, and guards what is told of it afterwards. */
	struct mutex upgrade_lock;
	u32 upgrades;
	u64 pause_ns;
	char error[128];
	/* Interrupts of eventfds and timers of devices are held back. */
	bool closed;
	raw_spinlock_t held_lock;
	bool held_hrtimers[HSAVE_HRTIMERS];
	/* vCPUs are to stand still; changes under the lock. They wait for the end of it, and who stops them for them. */
	bool stopping;
	spinlock_t stop_lock;
	wait_queue_head_t stopped, going_on;
	/* Its directory in sysfs, with which it is freed. */
	struct kobject kobj;
	struct hsave_notifier *notifier;
	/* Its directory; NULL: there was no memory for it. */
	struct hsave_debugfs *debugfs;
	/* irqfd.c */
	struct mutex irqfds_lock;
	struct list_head irqfds;
	struct work_struct irqfds_sweep;
	/* vfio.c */
	struct mutex vfio_lock;
	struct list_head vfio_files;
	/* It has its VFIO device: one per VM. */
	bool has_vfio;
};

/* vm.c; the last is: may the current task use the VM? */
struct hsave_vm *hsave_vm_create(unsigned long arg, int fd);
void hsave_vm_hold(struct hsave_vm *vm);
void hsave_vm_put(struct hsave_vm *vm);
bool hsave_vm_belongs(const struct hsave_vm *vm);

/* Calls the engine of a VM, with what that has of the VM as the first argument. */
#define hsave_call(vm, op, ...)                                                     \
	({                                                                          \
		const struct hsave_part *part_ = READ_ONCE((vm)->part);             \
                                                                                    \
		part_->engine->ops.op(part_->object, ##__VA_ARGS__);                \
	})

/* What a vCPU's file has. */
struct hsave_vcpu {
	struct hsave_vm *vm;
	struct list_head node;
	/* Its place among the VM's vCPUs. */
	unsigned long index;
	/* One thread at a time uses the vCPU. */
	struct mutex lock;
	/* That one waits for the end of a handover, in KVM_RUN or before what it wants; under the VM's stop_lock. */
	bool parked;
	/* Whoever stops the VM's vCPUs has found nobody in it; under the VM's vcpus_lock. */
	bool idle;
	/* KVM_SET_SIGNAL_MASK. */
	bool masked;
	u64 blocked;
};

/* vcpu.c */
long hsave_vcpu_create(struct hsave_vm *vm, unsigned long arg);

/* upgrade.c; of a VM: for a new one; it goes to the engine of this name; who is in the vCPU waits for the end of that, with its lock. */
int hsave_upgrades_start(void);
void hsave_upgrades_stop(void);
void hsave_upgrade_init(struct hsave_vm *vm);
int hsave_vm_upgrade(struct hsave_vm *vm, const char *name);
void hsave_vcpu_park(struct hsave_vcpu *v);
/* An eventfd, or a timer of a device: true: it is noted in mark, for later. Any context. */
bool hsave_vm_hold_back(struct hsave_vm *vm, bool *mark);
bool hsave_vm_expired(struct hsave_vm *vm, u32 which);

/* engine.c: the engine that new VMs get, with a reference to its module; NULL: there is none. */
struct hsave_engine *hsave_engine_current(void);
/* That of this name, in the same way. */
struct hsave_engine *hsave_engine_get(const char *name);
int hsave_engine_make_current(const char *name);
int hsave_engine_pin(void);
void hsave_engine_unpin(void);

/* sysfs.c */
int hsave_sysfs_start(void);
void hsave_sysfs_stop(void);
int hsave_sysfs_add_engine(struct hsave_engine *engine);
void hsave_sysfs_remove_engine(struct hsave_engine *engine);
void hsave_sysfs_engine_is_current(struct hsave_engine *engine);
void hsave_sysfs_init_vm(struct hsave_vm *vm);
int hsave_sysfs_add_vm(struct hsave_vm *vm, int fd);
void hsave_sysfs_remove_vm(struct hsave_vm *vm);
void hsave_sysfs_forget_vm(struct hsave_vm *vm);
void hsave_sysfs_vm_upgraded(struct hsave_vm *vm);

/* file.c */
int hsave_device_register(void);
void hsave_device_unregister(void);
/* NULL: there is no /dev/kvm. */
struct kobject *hsave_device_kobject(void);

/* ends.c: into a page. */
ssize_t hsave_ends_show(char *buf);

/* debugfs.c: for a VM that is going to have the descriptor fd; and nobody asks for anything of it any more. */
void hsave_debugfs_start(void);
void hsave_debugfs_stop(void);
struct hsave_debugfs *hsave_debugfs_new(struct hsave_vm *vm);
void hsave_debugfs_free(struct hsave_debugfs *dir);

/* irqfd.c: for a new VM; and nothing raises an interrupt of it any more. May sleep. */
void hsave_irqfds_init(struct hsave_vm *vm);
void hsave_irqfds_unbind(struct hsave_vm *vm);
void hsave_irqfds_close(struct hsave_vm *vm);
void hsave_irqfds_deliver(struct hsave_vm *vm);

/* late.c: a worker does it; any context. */
int hsave_late_start(void);
void hsave_late_stop(void);
void hsave_do_late(struct work_struct *work);

/* vfio.c: for a new VM; -EBUSY: it has its device; it is gone, and all that was added to it. */
void hsave_vfio_init(struct hsave_vm *vm);
int hsave_vfio_create(struct hsave_vm *vm);
void hsave_vfio_remove(struct hsave_vm *vm);

/* notify.c */
struct hsave_notifier *hsave_notifier_new(struct hsave_vm *vm);
void hsave_notifier_free(struct hsave_notifier *n);
void hsave_notifiers_settle(void);
bool hsave_notifier_close(struct hsave_notifier *n);
void hsave_notifier_open(struct hsave_notifier *n);
const struct mm_struct *hsave_notifier_mm(const struct hsave_notifier *n);

/* async_pf.c */
struct hsave_page_ins;
int hsave_page_ins_start(void);
void hsave_page_ins_stop(void);
struct hsave_page_ins *hsave_page_ins_new(struct hsave_thread *owner, const struct hsave_page_ins *sibling);
void hsave_page_ins_free(struct hsave_page_ins *all);

/* thread.c */
struct hsave_page_ins *hsave_thread_page_ins(const struct hsave_thread *t);
void hsave_page_in_done(struct hsave_thread *t, u8 number);

/* thread.c: of every vCPU. */
void hsave_threads_request(unsigned int what);

/* cpu.c */
int hsave_cpus_prepare(void);
void hsave_cpus_release(void);
int hsave_cpus_start(void);
void hsave_cpus_stop(void);
bool hsave_memory_is_encrypted(void);
bool hsave_snp_is_on(void);

/* clock.c */
int hsave_clock_start(void);
void hsave_clock_stop(void);

/* srso.c */
void hsave_vm_comes(void);
void hsave_vm_gone(void);

/* sync.c: KVM_SET_SIGNAL_MASK for the length of KVM_RUN. */
void hsave_sigmask_set(u64 mask);
void hsave_sigmask_restore(void);

/* params.c */
void hsave_settle_params(void);

#endif
