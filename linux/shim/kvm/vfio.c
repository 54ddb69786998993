// SPDX-License-Identifier: GPL-2.0-only
/*
 * The VFIO device of a VM: which VFIO groups and devices it uses. VFIO need not be loaded: its functions are looked up
 * when a file is handed over, and a driver that wants the VM to stay finds the functions for that by name.
 */
#include <linux/err.h>
#include <linux/export.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kvm_types.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vfio.h>
#include "base.h"

/* A file of VFIO's that was added to a VM's device, with a reference. */
struct assigned {
	struct list_head node;
	struct file *file;
};

static bool is_vfio(struct file *file)
{
#if LINUX_AT_LEAST(6, 6)
	bool (*fn)(struct file *file) = symbol_get(vfio_file_is_valid);
#else
	bool (*fn)(struct file *file) = symbol_get(vfio_file_is_group);
#endif
	bool yes;

	if (!fn)
		return false;
	yes = fn(file);
#if LINUX_AT_LEAST(6, 6)
	symbol_put(vfio_file_is_valid);
#else
	symbol_put(vfio_file_is_group);
#endif
	return yes;
}

/* A reference, or an ERR_PTR: -EBADF, -EINVAL (no file of VFIO's). */
static struct file *get(int fd)
{
	struct file *file = fget(fd);

	if (!file)
		return ERR_PTR(-EBADF);
	if (is_vfio(file))
		return file;
	fput(file);
	return ERR_PTR(-EINVAL);
}

/* Does the IOMMU keep the caches right, whatever the device asks for? */
static bool is_coherent(struct file *file)
{
	bool (*fn)(struct file *file) = symbol_get(vfio_file_enforced_coherent);
	bool coherent;

	if (!fn)
		return false;
	coherent = fn(file);
	symbol_put(vfio_file_enforced_coherent);
	return coherent;
}

/* Tells the driver whose VM the devices are for; NULL: nobody's any more. */
static void set_vm(struct file *file, struct hsave_vm *vm)
{
	void (*fn)(struct file *file, struct kvm *kvm) = symbol_get(vfio_file_set_kvm);

	if (!fn)
		return;
	fn(file, (struct kvm *)vm);
	symbol_put(vfio_file_set_kvm);
}

void hsave_vfio_init(struct hsave_vm *vm)
{
	mutex_init(&vm->vfio_lock);
	INIT_LIST_HEAD(&vm->vfio_files);
}

int hsave_vfio_create(struct hsave_vm *vm)
{
	int err;

	mutex_lock(&vm->vfio_lock);
	err = vm->has_vfio ? -EBUSY : 0;
	vm->has_vfio = true;
	mutex_unlock(&vm->vfio_lock);
	return err;
}

static void forget(struct assigned *a)
{
	list_del(&a->node);
	set_vm(a->file, NULL);
	fput(a->file);
	kfree(a);
}

/* One device that the IOMMU lets go past the caches is enough for the guest's WBINVD to be carried out. Under the lock. */
static void update(struct hsave_vm *vm)
{
	struct assigned *a;
	bool noncoherent = false;

	list_for_each_entry(a, &vm->vfio_files, node)
		noncoherent |= !is_coherent(a->file);
	hsave_call(vm, set_noncoherent_dma, noncoherent);
}

/* The device goes with its file, on each kernel (stock of 6.1 keeps it until the VM ends), and everything that was added with it. */
void hsave_vfio_remove(struct hsave_vm *vm)
{
	struct assigned *a, *next;

	mutex_lock(&vm->vfio_lock);
	list_for_each_entry_safe(a, next, &vm->vfio_files, node)
		forget(a);
	update(vm);
	vm->has_vfio = false;
	mutex_unlock(&vm->vfio_lock);
}

static struct assigned *find(struct hsave_vm *vm, const struct file *file)
{
	struct assigned *a;

	list_for_each_entry(a, &vm->vfio_files, node) {
		if (a->file == file)
			return a;
	}
	return NULL;
}

/* KVM_DEV_VFIO_FILE_ADD. -EBADF, -EINVAL (no file of VFIO's), -EEXIST, -ENOMEM. */
int hsave_vfio_add(struct hsave_vm *vm, int fd)
{
	struct file *file = get(fd);
	struct assigned *new;
	int err = 0;

	if (IS_ERR(file))
		return PTR_ERR(file);
	new = kzalloc(sizeof(*new), GFP_KERNEL_ACCOUNT);
	mutex_lock(&vm->vfio_lock);
	if (find(vm, file)) {
		err = -EEXIST;
	} else if (!new) {
		err = -ENOMEM;
	} else {
		new->file = file;
		set_vm(file, vm);
		list_add_tail(&new->node, &vm->vfio_files);
		update(vm);
	}
	mutex_unlock(&vm->vfio_lock);
	if (err) {
		kfree(new);
		fput(file);
	}
	return err;
}

/* KVM_DEV_VFIO_FILE_DEL. -EBADF, -ENOENT (it was not added). */
int hsave_vfio_del(struct hsave_vm *vm, int fd)
{
	struct file *file = get(fd);
	struct assigned *gone;

	/* A file that is none of VFIO's is not in the list. */
	if (IS_ERR(file))
		return PTR_ERR(file) == -EINVAL ? -ENOENT : PTR_ERR(file);
	mutex_lock(&vm->vfio_lock);
	gone = find(vm, file);
	if (gone) {
		forget(gone);
		update(vm);
	}
	mutex_unlock(&vm->vfio_lock);
	fput(file);
	return gone ? 0 : -ENOENT;
}

/* For drivers that want the VM to stay, longer than its files perhaps. To them it is opaque. */
void kvm_get_kvm(struct kvm *kvm);
bool kvm_get_kvm_safe(struct kvm *kvm);
void kvm_put_kvm(struct kvm *kvm);

/* False: the VM is about to go. It is taken back from the driver before. */
bool kvm_get_kvm_safe(struct kvm *kvm)
{
	return refcount_inc_not_zero(&((struct hsave_vm *)kvm)->refs);
}
EXPORT_SYMBOL_GPL(kvm_get_kvm_safe);

/* The caller knows that the VM is there. */
void kvm_get_kvm(struct kvm *kvm)
{
	hsave_vm_hold((struct hsave_vm *)kvm);
}
EXPORT_SYMBOL_GPL(kvm_get_kvm);

void kvm_put_kvm(struct kvm *kvm)
{
	hsave_vm_put((struct hsave_vm *)kvm);
}
EXPORT_SYMBOL_GPL(kvm_put_kvm);
