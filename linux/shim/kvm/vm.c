// SPDX-License-Identifier: GPL-2.0-only
/*
 * VMs: what the base has of them.
 */
#include <linux/err.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include "base.h"

/*
 * KVM_CREATE_VM: a VM of the current process, held once; fd is going to be its descriptor. An
 * ERR_PTR: -ENODEV (there is no engine), -EINVAL, -ENOMEM.
 */
struct hsave_vm *hsave_vm_create(unsigned long arg, int fd)
{
	struct hsave_engine *engine = hsave_engine_current();
	struct hsave_vm *vm;
	int err;

	if (!engine)
		return ERR_PTR(-ENODEV);
	vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	err = -ENOMEM;
	if (!vm)
		goto put;
	refcount_set(&vm->refs, 1);
	vm->part = &vm->parts[0];
	vm->part->engine = engine;
	vm->pid = task_pid_nr(current);
	vm->tgid = task_tgid_nr(current);
	get_task_comm(vm->name, current->group_leader);
	hsave_sysfs_init_vm(vm);
	hsave_irqfds_init(vm);
	hsave_vfio_init(vm);
	hsave_upgrade_init(vm);
	hsave_vm_comes();
	vm->part->object = engine->ops.vm_new(vm, arg);
	err = PTR_ERR_OR_ZERO(vm->part->object);
	if (err)
		goto gone;
	/* The kernel calls the VM from here on. */
	vm->notifier = hsave_notifier_new(vm);
	err = PTR_ERR_OR_ZERO(vm->notifier);
	if (err)
		goto free;
	vm->mm = hsave_notifier_mm(vm->notifier);
	atomic_inc(&engine->vms);
	err = hsave_sysfs_add_vm(vm, fd);
	if (!err) {
		vm->debugfs = hsave_debugfs_new(vm);
		return vm;
	}
	atomic_dec(&engine->vms);
	hsave_notifier_free(vm->notifier);
free:
	engine->ops.vm_free(vm->part->object);
gone:
	hsave_vm_gone();
	hsave_sysfs_forget_vm(vm);
put:
	module_put(engine->module);
	return ERR_PTR(err);
}

/* A VM is for the process that made it alone: its memory is the guest's. */
bool hsave_vm_belongs(const struct hsave_vm *vm)
{
	return vm->mm == current->mm;
}

void hsave_vm_hold(struct hsave_vm *vm)
{
	refcount_inc(&vm->refs);
}

/*
 * The last reference goes in process context: a file's release, a system call, or a driver's close of a device, with VFIO's own
 * locks held.
 */
void hsave_vm_put(struct hsave_vm *vm)
{
	struct hsave_engine *engine;

	if (!refcount_dec_and_test(&vm->refs))
		return;
	if (vm->debugfs)
		hsave_debugfs_free(vm->debugfs);
	hsave_sysfs_remove_vm(vm);
	/* Nobody hands it over any more: that is asked for in its directory. */
	engine = vm->part->engine;
	hsave_irqfds_close(vm);
	hsave_notifier_free(vm->notifier);
	engine->ops.vm_free(vm->part->object);
	/* Some processors run differently while there are VMs. */
	hsave_vm_gone();
	hsave_sysfs_forget_vm(vm);
	atomic_dec(&engine->vms);
	module_put(engine->module);
}
