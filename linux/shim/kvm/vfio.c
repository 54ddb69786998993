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
#include <linux/vfio.h>
#include <hsave.h>

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
struct file *hsave_vfio_get(int fd)
{
	struct file *file = fget(fd);

	if (!file)
		return ERR_PTR(-EBADF);
	if (is_vfio(file))
		return file;
	fput(file);
	return ERR_PTR(-EINVAL);
}

void hsave_vfio_put(struct file *file)
{
	fput(file);
}

/* Does the IOMMU keep the caches right, whatever the device asks for? */
bool hsave_vfio_coherent(struct file *file)
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
void hsave_vfio_set_vm(struct file *file, const void *vm)
{
	void (*fn)(struct file *file, struct kvm *kvm) = symbol_get(vfio_file_set_kvm);

	if (!fn)
		return;
	fn(file, (struct kvm *)vm);
	symbol_put(vfio_file_set_kvm);
}

/*
 * For drivers that want the VM to stay. To them it is opaque. What they hold may outlive the VM's files, which are what
 * else keeps the vendor module.
 */
static struct module *vendor;

void hsave_vfio_set_owner(struct module *module)
{
	vendor = module;
}

void kvm_get_kvm(struct kvm *kvm);
bool kvm_get_kvm_safe(struct kvm *kvm);
void kvm_put_kvm(struct kvm *kvm);

/* False: the VM is about to go. */
bool kvm_get_kvm_safe(struct kvm *kvm)
{
	if (!hsave_vm_get((const void *)kvm))
		return false;
	__module_get(vendor);
	return true;
}
EXPORT_SYMBOL_GPL(kvm_get_kvm_safe);

/* The caller knows that the VM is there. */
void kvm_get_kvm(struct kvm *kvm)
{
	WARN_ON_ONCE(!kvm_get_kvm_safe(kvm));
}
EXPORT_SYMBOL_GPL(kvm_get_kvm);

void kvm_put_kvm(struct kvm *kvm)
{
	struct module *module = vendor;

	hsave_vm_put((void *)kvm);
	module_put(module);
}
EXPORT_SYMBOL_GPL(kvm_put_kvm);
