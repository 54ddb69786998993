// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/kernel/debug/kvm as stock has it: statistics of all VMs added up, a directory PID-FD for each VM with its own and
 * those of its vCPUs added up, and in it one for each vCPU. And the uevents that tell of VMs. Numbers are asked of the VM's
 * engine, which has them; a VM's directory goes, and whoever reads there is waited for, before the VM does.
 */
#include <linux/debugfs.h>
#include <linux/dcache.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/kobject.h>
#include <linux/limits.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/wait.h>
#include "base.h"

/* One file: of a VM, or of all (NULL). */
struct value {
	const struct hsave_debugfs *dir;
	/* HSAVE_VALUE_* with the number of the statistic or of the vCPU. */
	u32 what;
	u32 n;
};

/* A statistic as Rust has named it. */
struct statistic {
	char name[48];
	u32 what;
	u32 n;
	umode_t mode;
	struct value of_all;
};

struct hsave_debugfs {
	struct list_head all;
	struct hsave_vm *vm;
	struct dentry *dentry;
	pid_t pid;
	/* How many ask its VM for something of all VMs; none comes any more once it is going. Under the lock. */
	unsigned int users;
	bool going;
	struct list_head vcpus;
	struct value values[];
};

/* The directory of a vCPU. */
struct vcpu_values {
	struct list_head all;
	struct value guest_mode, tsc_offset, timer_advance, tsc_ratio, tsc_fraction;
};

static struct statistic stats[96];
static unsigned int stat_count;
static struct dentry *root;
/* Of all VMs: which directories of vCPUs there are. Taken with a VM's gate. */
static DEFINE_MUTEX(vcpus_lock);
/* Directories, and the numbers below. Not held while a VM is asked: that waits for its gate. */
static DEFINE_MUTEX(lock);
static DECLARE_WAIT_QUEUE_HEAD(let_go);
static LIST_HEAD(dirs);
static u64 created, active;

static u64 number(const struct hsave_debugfs *dir, const struct value *v)
{
	struct hsave_vm *vm = dir->vm;
	u64 value;

	down_read(&vm->gate);
	value = hsave_call(vm, vm_value, v->what, v->n);
	up_read(&vm->gate);
	return value;
}

static void clear(const struct hsave_debugfs *dir, const struct value *v)
{
	struct hsave_vm *vm = dir->vm;

	down_read(&vm->gate);
	hsave_call(vm, vm_clear, v->what, v->n);
	up_read(&vm->gate);
}

/*
 * The directory after one that is held, or the first (NULL), held in its place: it stays in the list, and its VM is there. NULL: it was the
 * last. New ones are put in front of all.
 */
static struct hsave_debugfs *hold_next(struct hsave_debugfs *held)
{
	struct hsave_debugfs *dir, *next = NULL;

	mutex_lock(&lock);
	dir = list_prepare_entry(held, &dirs, all);
	list_for_each_entry_continue(dir, &dirs, all) {
		if (!dir->going) {
			dir->users++;
			next = dir;
			break;
		}
	}
	if (held && !--held->users)
		wake_up(&let_go);
	mutex_unlock(&lock);
	return next;
}

static int value_get(void *data, u64 *value)
{
	const struct value *v = data;
	struct hsave_debugfs *dir;

	*value = 0;
	if (v->dir) {
		*value = number(v->dir, v);
		return 0;
	}
	for (dir = hold_next(NULL); dir; dir = hold_next(dir))
		*value += number(dir, v);
	return 0;
}

/* Counts begin anew, and that is all that can be written. */
static int value_clear(void *data, u64 value)
{
	const struct value *v = data;
	struct hsave_debugfs *dir;

	if (value)
		return -EINVAL;
	if (v->dir) {
		clear(v->dir, v);
		return 0;
	}
	for (dir = hold_next(NULL); dir; dir = hold_next(dir))
		clear(dir, v);
	return 0;
}

DEFINE_SIMPLE_ATTRIBUTE(counted, value_get, value_clear, "%llu\n");
DEFINE_SIMPLE_ATTRIBUTE(seen, value_get, NULL, "%llu\n");
DEFINE_SIMPLE_ATTRIBUTE(seen_signed, value_get, NULL, "%lld\n");

/* The next statistic of all that there are; not while there are VMs. what: HSAVE_VALUE_VM or _VCPU. */
void hsave_debugfs_stat(const u8 *name, size_t len, u32 what, u32 n, bool clearable)
{
	struct statistic *s = &stats[stat_count];

	if (stat_count == ARRAY_SIZE(stats) || len >= sizeof(s->name))
		return;
	memcpy(s->name, name, len);
	s->name[len] = 0;
	s->what = what;
	s->n = n;
	s->mode = clearable ? 0644 : 0444;
	s->of_all = (struct value){ .what = what, .n = n };
	stat_count++;
	debugfs_create_file(s->name, s->mode, root, &s->of_all, clearable ? &counted : &seen);
}

void hsave_debugfs_start(void)
{
	stat_count = 0;
	root = debugfs_create_dir("kvm", NULL);
}

void hsave_debugfs_stop(void)
{
	debugfs_remove(root);
}

/* Tells user space that a VM has come or goes: what changes is /dev/kvm. */
static void notify(const struct hsave_debugfs *dir, bool comes, u64 so_far, u64 count)
{
	struct kobject *device = hsave_device_kobject();
	struct kobj_uevent_env *env;
	char *buffer, *path;

	if (!device)
		return;
	env = kzalloc(sizeof(*env), GFP_KERNEL_ACCOUNT);
	if (!env)
		return;
	add_uevent_var(env, "CREATED=%llu", so_far);
	add_uevent_var(env, "COUNT=%llu", count);
	add_uevent_var(env, "EVENT=%s", comes ? "create" : "destroy");
	add_uevent_var(env, "PID=%d", dir->pid);
	if (!IS_ERR_OR_NULL(dir->dentry)) {
		buffer = kmalloc(PATH_MAX, GFP_KERNEL);
		if (buffer) {
			path = dentry_path_raw(dir->dentry, buffer, PATH_MAX);
			if (!IS_ERR(path))
				add_uevent_var(env, "STATS_PATH=%s", path);
			kfree(buffer);
		}
	}
	/* No more variables. */
	env->envp[env->envp_idx] = NULL;
	kobject_uevent_env(device, KOBJ_CHANGE, env->envp);
	kfree(env);
}

/* There is no shadow paging, and so no reverse map: as stock's file with nested paging. */
static int nothing_show(struct seq_file *file, void *unused)
{
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(nothing);

/* The directory of a VM that is at its final place and has its name in sysfs. NULL: no memory, no directory. */
struct hsave_debugfs *hsave_debugfs_new(struct hsave_vm *vm)
{
	struct hsave_debugfs *dir;
	u64 so_far, count;
	unsigned int i;

	dir = kzalloc(struct_size(dir, values, stat_count), GFP_KERNEL_ACCOUNT);
	if (!dir)
		return NULL;
	dir->vm = vm;
	dir->pid = task_pid_nr(current);
	INIT_LIST_HEAD(&dir->vcpus);
	mutex_lock(&lock);
	list_add(&dir->all, &dirs);
	so_far = ++created;
	count = ++active;
	mutex_unlock(&lock);
	/* Nothing else has this name (hsave_sysfs_add_vm): debugfs would complain each time. */
	dir->dentry = debugfs_create_dir(kobject_name(&vm->kobj), root);
	for (i = 0; i < stat_count; i++) {
		dir->values[i] = (struct value){ .dir = dir, .what = stats[i].what, .n = stats[i].n };
		debugfs_create_file(stats[i].name, stats[i].mode, dir->dentry, &dir->values[i],
				    stats[i].mode & 0200 ? &counted : &seen);
	}
	debugfs_create_file("mmu_rmaps_stat", 0644, dir->dentry, NULL, &nothing_fops);
	notify(dir, true, so_far, count);
	return dir;
}

static void vcpu_file(const char *name, struct dentry *parent, struct hsave_debugfs *dir, struct value *v, u32 what, u32 n,
		      const struct file_operations *fops)
{
	*v = (struct value){ .dir = dir, .what = what, .n = n };
	debugfs_create_file(name, 0444, parent, v, fops);
}

/* The directory of the vCPU with this number in its VM, and this id. */
void hsave_debugfs_vcpu(struct hsave_vm *vm, u32 n, u32 id, bool lapic, bool scales)
{
	struct hsave_debugfs *dir = vm->debugfs;
	struct vcpu_values *v = kzalloc(sizeof(*v), GFP_KERNEL_ACCOUNT);
	struct dentry *dentry;
	char name[24];

	if (!v || !dir) {
		kfree(v);
		return;
	}
	snprintf(name, sizeof(name), "vcpu%u", id);
	dentry = debugfs_create_dir(name, dir->dentry);
	mutex_lock(&vcpus_lock);
	list_add(&v->all, &dir->vcpus);
	mutex_unlock(&vcpus_lock);
	vcpu_file("guest_mode", dentry, dir, &v->guest_mode, HSAVE_VALUE_GUEST_MODE, n, &seen);
	vcpu_file("tsc-offset", dentry, dir, &v->tsc_offset, HSAVE_VALUE_TSC_OFFSET, n, &seen_signed);
	if (lapic)
		vcpu_file("lapic_timer_advance_ns", dentry, dir, &v->timer_advance, HSAVE_VALUE_TIMER_ADVANCE, n, &seen);
	if (!scales)
		return;
	vcpu_file("tsc-scaling-ratio", dentry, dir, &v->tsc_ratio, HSAVE_VALUE_TSC_RATIO, n, &seen);
	vcpu_file("tsc-scaling-ratio-frac-bits", dentry, dir, &v->tsc_fraction, HSAVE_VALUE_TSC_FRACTION, n, &seen);
}

/* Nobody reads there when this returns. */
void hsave_debugfs_free(struct hsave_debugfs *dir)
{
	struct vcpu_values *v, *next;
	u64 so_far, count;

	mutex_lock(&lock);
	dir->going = true;
	mutex_unlock(&lock);
	wait_event_idle(let_go, !READ_ONCE(dir->users));
	mutex_lock(&lock);
	list_del(&dir->all);
	so_far = created;
	count = --active;
	mutex_unlock(&lock);
	notify(dir, false, so_far, count);
	debugfs_remove(dir->dentry);
	list_for_each_entry_safe(v, next, &dir->vcpus, all)
		kfree(v);
	kfree(dir);
}
