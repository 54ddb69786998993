// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/kvm and the files of VMs, those of vCPUs apart (vcpu.c). Open files keep this module, and VMs that of their engine.
 */
#include <linux/anon_inodes.h>
#include <linux/device.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kvm.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/slab.h>
#include "base.h"

/* A new file is made before what it is for: when nothing can fail any more it is given to the process. */

int hsave_fd_reserve(void)
{
	return get_unused_fd_flags(O_CLOEXEC);
}

void hsave_fd_release(int fd)
{
	put_unused_fd(fd);
}

void hsave_file_drop(struct file *file)
{
	fput(file);
}

/* Another thread may close the descriptor before this returns. */
void hsave_file_install(int fd, struct file *file)
{
	fd_install(fd, file);
}

/*
 * Statistics.
 */

struct stats {
	struct hsave_vm *vm;
	/* Place of a vCPU; negative: those of the VM. */
	s64 vcpu;
};

static ssize_t stats_read(struct file *file, char __user *to, size_t len, loff_t *pos)
{
	struct stats *s = file->private_data;
	struct hsave_vm *vm = s->vm;
	long n;

	down_read(&vm->gate);
	n = hsave_call(vm, stats_read, s->vcpu, vm->pid, (unsigned long)to, len, *pos);
	up_read(&vm->gate);
	if (n > 0)
		*pos += n;
	return n;
}

static int stats_release(struct inode *inode, struct file *file)
{
	struct stats *s = file->private_data;

	hsave_vm_put(s->vm);
	kfree(s);
	return 0;
}

static const struct file_operations stats_fops = {
	.owner = THIS_MODULE,
	.read = stats_read,
	.release = stats_release,
	.llseek = noop_llseek,
};

/* A negative vcpu: those of the VM. They are read at any offset. */
struct file *hsave_stats_file(struct hsave_vm *vm, s64 vcpu, s64 id)
{
	struct stats *s = kzalloc(sizeof(*s), GFP_KERNEL_ACCOUNT);
	char name[32] = "kvm-vm-stats";
	struct file *file;

	if (!s)
		return ERR_PTR(-ENOMEM);
	if (vcpu >= 0)
		snprintf(name, sizeof(name), "kvm-vcpu-stats:%lld", id);
	file = anon_inode_getfile(name, &stats_fops, s, O_RDONLY);
	if (IS_ERR(file)) {
		kfree(s);
		return file;
	}
	hsave_vm_hold(vm);
	s->vm = vm;
	s->vcpu = vcpu;
	file->f_mode |= FMODE_PREAD;
	return file;
}

/*
 * The VFIO device.
 */

static long device_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct hsave_vm *vm = file->private_data;

	long r;

	if (!hsave_vm_belongs(vm))
		return -EIO;
	down_read(&vm->gate);
	r = hsave_call(vm, device_ioctl, vm, cmd, arg);
	up_read(&vm->gate);
	return r;
}

static int device_release(struct inode *inode, struct file *file)
{
	struct hsave_vm *vm = file->private_data;

	down_read(&vm->gate);
	hsave_vfio_remove(vm);
	up_read(&vm->gate);
	hsave_vm_put(vm);
	return 0;
}

static const struct file_operations device_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = device_ioctl,
	.release = device_release,
	.llseek = noop_llseek,
};

/* The VM has its device for as long as there is the file. An ERR_PTR: -EBUSY (it has it already), those of opening a file. */
struct file *hsave_device_file(struct hsave_vm *vm)
{
	struct file *file;
	int err = hsave_vfio_create(vm);

	if (err)
		return ERR_PTR(err);
	file = anon_inode_getfile("kvm-vfio", &device_fops, vm, O_RDWR);
	if (IS_ERR(file))
		hsave_vfio_remove(vm);
	else
		hsave_vm_hold(vm);
	return file;
}

/*
 * VMs.
 */

/* compat: of a 32-bit program, some of whose structs are laid out differently. */
static long of_vm(struct hsave_vm *vm, unsigned int cmd, unsigned long arg, bool compat)
{
	long r;

	if (!hsave_vm_belongs(vm))
		return -EIO;
	down_read(&vm->gate);
	if (cmd == KVM_CREATE_VCPU)
		r = hsave_vcpu_create(vm, arg);
	else if (compat)
		r = hsave_call(vm, vm_compat_ioctl, vm, cmd, arg);
	else
		r = hsave_call(vm, vm_ioctl, vm, cmd, arg);
	up_read(&vm->gate);
	return r;
}

static long vm_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return of_vm(file->private_data, cmd, arg, false);
}

static long vm_compat_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return of_vm(file->private_data, cmd, arg, true);
}

static int vm_release(struct inode *inode, struct file *file)
{
	struct hsave_vm *vm = file->private_data;

	/* The VM may live on by its vCPUs, its statistics or a driver; its eventfds are free for the next one, as on stock. */
	down_read(&vm->gate);
	hsave_irqfds_unbind(vm);
	up_read(&vm->gate);
	hsave_vm_put(vm);
	return 0;
}

static const struct file_operations vm_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = vm_ioctl,
	.compat_ioctl = vm_compat_ioctl,
	.release = vm_release,
	.llseek = noop_llseek,
};

static long create_vm(unsigned long arg)
{
	struct hsave_vm *vm;
	struct file *file;
	int fd;

	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	vm = hsave_vm_create(arg, fd);
	if (IS_ERR(vm)) {
		put_unused_fd(fd);
		return PTR_ERR(vm);
	}
	file = anon_inode_getfile("kvm-vm", &vm_fops, vm, O_RDWR);
	if (IS_ERR(file)) {
		hsave_vm_put(vm);
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	fd_install(fd, file);
	return fd;
}

/*
 * /dev/kvm.
 */

static int system_open(struct inode *inode, struct file *file)
{
	return hsave_engine_pin();
}

static int system_release(struct inode *inode, struct file *file)
{
	hsave_engine_unpin();
	return 0;
}

static long system_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct hsave_engine *engine;
	long r;

	if (cmd == KVM_CREATE_VM)
		return create_vm(arg);
	engine = hsave_engine_current();
	if (!engine)
		return -ENODEV;
	r = engine->ops.system_ioctl(cmd, arg);
	module_put(engine->module);
	return r;
}

static const struct file_operations system_fops = {
	.owner = THIS_MODULE,
	.open = system_open,
	.release = system_release,
	.unlocked_ioctl = system_ioctl,
	.compat_ioctl = system_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice kvm_device = {
	.minor = KVM_MINOR,
	.name = "kvm",
	.fops = &system_fops,
};

struct kobject *hsave_device_kobject(void)
{
	return kvm_device.this_device ? &kvm_device.this_device->kobj : NULL;
}

int hsave_device_register(void)
{
	return misc_register(&kvm_device);
}

void hsave_device_unregister(void)
{
	misc_deregister(&kvm_device);
}
