// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/kernel/hsave, and the uevents that go with it: docs/upgrade.md.
 */
#define pr_fmt(fmt) "kvm: " fmt
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include "base.h"

static struct kset *hsave, *engines, *vms;

/* An attribute that is read as one line. */
#define SHOWN(name)                                                                                 \
	static ssize_t name##_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)

/*
 * The base.
 */

SHOWN(version)
{
	return sysfs_emit(buf, "%s\n", HSAVE_VERSION);
}

SHOWN(interface)
{
	return sysfs_emit(buf, "%u\n", HSAVE_INTERFACE);
}

static ssize_t get_current_engine(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	struct hsave_engine *engine = hsave_engine_current();
	ssize_t n = sysfs_emit(buf, "%s\n", engine ? module_name(engine->module) : "");

	if (engine)
		module_put(engine->module);
	return n;
}

static ssize_t set_current_engine(struct kobject *kobj, struct kobj_attribute *attr, const char *buf, size_t len)
{
	int err = hsave_engine_make_current(buf);

	return err ? err : len;
}

SHOWN(last_exits)
{
	return hsave_ends_show(buf);
}

static struct kobj_attribute base_version = __ATTR_RO(version);
static struct kobj_attribute base_interface = __ATTR_RO(interface);
/* It names processes, and addresses in guests. */
static struct kobj_attribute base_last_exits = __ATTR_RO_MODE(last_exits, 0400);
/* The kernel has a macro of this name. */
static struct kobj_attribute base_current = {
	.attr = { .name = "current", .mode = 0644 },
	.show = get_current_engine,
	.store = set_current_engine,
};

static struct attribute *base_attrs[] = {
	&base_version.attr,
	&base_interface.attr,
	&base_current.attr,
	&base_last_exits.attr,
	NULL,
};

static const struct attribute_group base_group = { .attrs = base_attrs };

/*
 * Engines.
 */

struct hsave_engine_dir {
	struct kobject kobj;
	/* Until the directory is removed, which waits for readers. */
	struct hsave_engine *engine;
};

static struct hsave_engine *engine_of(struct kobject *kobj)
{
	return container_of(kobj, struct hsave_engine_dir, kobj)->engine;
}

SHOWN(engine_version)
{
	return sysfs_emit(buf, "%s\n", engine_of(kobj)->version);
}

SHOWN(engine_interface)
{
	return sysfs_emit(buf, "%u\n", engine_of(kobj)->interface);
}

SHOWN(engine_vms)
{
	return sysfs_emit(buf, "%d\n", atomic_read(&engine_of(kobj)->vms));
}

static struct kobj_attribute engine_version = __ATTR(version, 0444, engine_version_show, NULL);
static struct kobj_attribute engine_interface = __ATTR(interface, 0444, engine_interface_show, NULL);
static struct kobj_attribute engine_vms = __ATTR(vms, 0444, engine_vms_show, NULL);

static struct attribute *engine_attrs[] = {
	&engine_version.attr,
	&engine_interface.attr,
	&engine_vms.attr,
	NULL,
};
ATTRIBUTE_GROUPS(engine);

static void engine_release(struct kobject *kobj)
{
	kfree(container_of(kobj, struct hsave_engine_dir, kobj));
}

static struct kobj_type engine_type = {
	.release = engine_release,
	.sysfs_ops = &kobj_sysfs_ops,
	.default_groups = engine_groups,
};

/* 0 or a negative errno. */
int hsave_sysfs_add_engine(struct hsave_engine *engine)
{
	struct hsave_engine_dir *dir = kzalloc(sizeof(*dir), GFP_KERNEL);
	int err;

	if (!dir)
		return -ENOMEM;
	dir->engine = engine;
	dir->kobj.kset = engines;
	err = kobject_init_and_add(&dir->kobj, &engine_type, NULL, "%s", module_name(engine->module));
	if (err) {
		kobject_put(&dir->kobj);
		return err;
	}
	engine->dir = dir;
	kobject_uevent(&dir->kobj, KOBJ_ADD);
	return 0;
}

/* Nobody reads of it any more when this returns. */
void hsave_sysfs_remove_engine(struct hsave_engine *engine)
{
	struct kobject *kobj = &engine->dir->kobj;

	kobject_uevent(kobj, KOBJ_REMOVE);
	kobject_del(kobj);
	kobject_put(kobj);
	engine->dir = NULL;
}

/* New VMs get this engine from now on. It has its directory. */
void hsave_sysfs_engine_is_current(struct hsave_engine *engine)
{
	char *env[] = { "EVENT=current", NULL };

	kobject_uevent_env(&engine->dir->kobj, KOBJ_CHANGE, env);
}

/*
 * VMs.
 */

static struct hsave_vm *vm_of(struct kobject *kobj)
{
	return container_of(kobj, struct hsave_vm, kobj);
}

SHOWN(pid)
{
	return sysfs_emit(buf, "%u\n", vm_of(kobj)->tgid);
}

SHOWN(name)
{
	return sysfs_emit(buf, "%s\n", vm_of(kobj)->name);
}

SHOWN(vcpus)
{
	return sysfs_emit(buf, "%d\n", atomic_read(&vm_of(kobj)->vcpus));
}

SHOWN(engine)
{
	struct hsave_vm *vm = vm_of(kobj);
	ssize_t n;

	/* Not the gate: anybody may read this, and could keep a handover from it. The old engine stays for a grace period. */
	rcu_read_lock();
	n = sysfs_emit(buf, "%s\n", module_name(smp_load_acquire(&vm->part)->engine->module));
	rcu_read_unlock();
	return n;
}

SHOWN(upgrades)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(vm_of(kobj)->upgrades));
}

SHOWN(pause_ns)
{
	return sysfs_emit(buf, "%llu\n", READ_ONCE(vm_of(kobj)->pause_ns));
}

SHOWN(error)
{
	struct hsave_vm *vm = vm_of(kobj);
	ssize_t n;

	mutex_lock(&vm->upgrade_lock);
	n = sysfs_emit(buf, "%s\n", vm->error);
	mutex_unlock(&vm->upgrade_lock);
	return n;
}

static ssize_t upgrade_store(struct kobject *kobj, struct kobj_attribute *attr, const char *buf, size_t len)
{
	int err = hsave_vm_upgrade(vm_of(kobj), buf);

	return err ? err : len;
}

static struct kobj_attribute vm_pid = __ATTR_RO(pid);
/* What a process is called is not everybody's business where /proc hides it. */
static struct kobj_attribute vm_name = __ATTR_RO_MODE(name, 0400);
static struct kobj_attribute vm_vcpus = __ATTR_RO(vcpus);
static struct kobj_attribute vm_engine = __ATTR_RO(engine);
static struct kobj_attribute vm_upgrade = __ATTR_WO(upgrade);
static struct kobj_attribute vm_upgrades = __ATTR_RO(upgrades);
static struct kobj_attribute vm_pause = __ATTR_RO(pause_ns);
static struct kobj_attribute vm_error = __ATTR_RO(error);

static struct attribute *vm_attrs[] = {
	&vm_pid.attr,
	&vm_name.attr,
	&vm_vcpus.attr,
	&vm_engine.attr,
	&vm_upgrade.attr,
	&vm_upgrades.attr,
	&vm_pause.attr,
	&vm_error.attr,
	NULL,
};
ATTRIBUTE_GROUPS(vm);

static void vm_dir_release(struct kobject *kobj)
{
	kfree(vm_of(kobj));
}

static struct kobj_type vm_type = {
	.release = vm_dir_release,
	.sysfs_ops = &kobj_sysfs_ops,
	.default_groups = vm_groups,
};

/* From here on the VM is freed with its directory (hsave_sysfs_forget_vm). */
void hsave_sysfs_init_vm(struct hsave_vm *vm)
{
	kobject_init(&vm->kobj, &vm_type);
	vm->kobj.kset = vms;
}

static bool exists(const char *name)
{
	struct kobject *found = kset_find_obj(vms, name);

	kobject_put(found);
	return found;
}

/*
 * The directory appears, named as stock names that of its statistics. A number is added where there is one of that name: of a VM
 * whose descriptor was closed before those of its vCPUs.
 */
int hsave_sysfs_add_vm(struct hsave_vm *vm, int fd)
{
	static DEFINE_MUTEX(naming);
	/* Not from 2 for each name: with thousands of one name that would take seconds. */
	static unsigned int others = 1;
	char name[40];
	int err;

	mutex_lock(&naming);
	snprintf(name, sizeof(name), "%u-%d", vm->pid, fd);
	while (exists(name))
		snprintf(name, sizeof(name), "%u-%d-%u", vm->pid, fd, ++others);
	err = kobject_add(&vm->kobj, NULL, "%s", name);
	mutex_unlock(&naming);
	if (!err)
		kobject_uevent(&vm->kobj, KOBJ_ADD);
	return err;
}

/*
 * The VM is going. Nobody reads of it, or writes to it, any more when this returns. The kernel tells of it itself: after it has waited
 * for who is at the files, as one who hands the VM over and tells of that, and before the directory goes.
 */
void hsave_sysfs_remove_vm(struct hsave_vm *vm)
{
	kobject_del(&vm->kobj);
}

void hsave_sysfs_forget_vm(struct hsave_vm *vm)
{
	kobject_put(&vm->kobj);
}

/* The VM is in another engine. */
void hsave_sysfs_vm_upgraded(struct hsave_vm *vm)
{
	char engine[8 + MODULE_NAME_LEN];
	char *env[] = { "EVENT=upgrade", engine, NULL };

	snprintf(engine, sizeof(engine), "ENGINE=%s", module_name(vm->part->engine->module));
	kobject_uevent_env(&vm->kobj, KOBJ_CHANGE, env);
}

int hsave_sysfs_start(void)
{
	int err = -ENOMEM;

	hsave = kset_create_and_add("hsave", NULL, kernel_kobj);
	if (!hsave)
		return -ENOMEM;
	engines = kset_create_and_add("engines", NULL, &hsave->kobj);
	if (!engines)
		goto hsave;
	vms = kset_create_and_add("vms", NULL, &hsave->kobj);
	if (!vms)
		goto engines;
	err = sysfs_create_group(&hsave->kobj, &base_group);
	if (!err)
		return 0;
	kset_unregister(vms);
engines:
	kset_unregister(engines);
hsave:
	kset_unregister(hsave);
	return err;
}

void hsave_sysfs_stop(void)
{
	sysfs_remove_group(&hsave->kobj, &base_group);
	kset_unregister(vms);
	kset_unregister(engines);
	kset_unregister(hsave);
}
