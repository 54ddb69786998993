// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/kvm and the files of VMs and vCPUs. Each table is owned by the vendor module, which cannot be unloaded while a
 * file is open, and with it this one.
 */
#include <linux/anon_inodes.h>
#include <linux/compat.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kvm.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <hsave.h>

static long system_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return hsave_system_ioctl(cmd, arg);
}

static struct file_operations system_fops = {
	.unlocked_ioctl = system_ioctl,
	.compat_ioctl = system_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice kvm_device = {
	.minor = KVM_MINOR,
	.name = "kvm",
	.fops = &system_fops,
};

static long vm_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return hsave_vm_ioctl(file->private_data, cmd, arg, current->mm);
}

static int vm_release(struct inode *inode, struct file *file)
{
	if (file->private_data)
		hsave_vm_release(file->private_data);
	return 0;
}

/* A 32-bit program: some of the structs that it hands over are laid out differently. */
static long vm_compat_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return hsave_vm_compat_ioctl(file->private_data, cmd, arg, current->mm);
}

static struct file_operations vm_fops = {
	.unlocked_ioctl = vm_ioctl,
	.compat_ioctl = vm_compat_ioctl,
	.release = vm_release,
	.llseek = noop_llseek,
};

static long vcpu_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return hsave_vcpu_ioctl(file->private_data, cmd, arg, current->mm);
}

static int vcpu_release(struct inode *inode, struct file *file)
{
	if (file->private_data)
		hsave_vcpu_release(file->private_data);
	return 0;
}

static vm_fault_t vcpu_fault(struct vm_fault *vmf)
{
	u64 pa = hsave_vcpu_page(vmf->vma->vm_file->private_data, vmf->pgoff);

	if (!pa)
		return VM_FAULT_SIGBUS;
	vmf->page = pfn_to_page(pa >> PAGE_SHIFT);
	get_page(vmf->page);
	return 0;
}

static const struct vm_operations_struct vcpu_vm_ops = {
	.fault = vcpu_fault,
};

/* A dirty ring is for user space to read and write, and for nobody to have a copy of. */
static int vcpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	unsigned long first = vma->vm_pgoff, pages = vma_pages(vma);
	unsigned long ring = hsave_vcpu_ring_pages(file->private_data);
	bool odd = (vma->vm_flags & VM_EXEC) || !(vma->vm_flags & VM_SHARED);

	if (odd && first < KVM_DIRTY_LOG_PAGE_OFFSET + ring && first + pages > KVM_DIRTY_LOG_PAGE_OFFSET)
		return -EINVAL;
	vma->vm_ops = &vcpu_vm_ops;
	return 0;
}

static struct file_operations vcpu_fops = {
	.unlocked_ioctl = vcpu_ioctl,
	.compat_ioctl = vcpu_ioctl,
	.release = vcpu_release,
	.mmap = vcpu_mmap,
	.llseek = noop_llseek,
};

static ssize_t stats_read(struct file *file, char __user *to, size_t len, loff_t *pos)
{
	long n = hsave_stats_read(file->private_data, (unsigned long)to, len, *pos);

	if (n > 0)
		*pos += n;
	return n;
}

static int stats_release(struct inode *inode, struct file *file)
{
	if (file->private_data)
		hsave_stats_release(file->private_data);
	return 0;
}

static struct file_operations stats_fops = {
	.read = stats_read,
	.release = stats_release,
	.llseek = noop_llseek,
};

static long device_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return hsave_device_ioctl(file->private_data, cmd, arg, current->mm);
}

static int device_release(struct inode *inode, struct file *file)
{
	if (file->private_data)
		hsave_device_release(file->private_data);
	return 0;
}

static struct file_operations device_fops = {
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = device_ioctl,
	.release = device_release,
	.llseek = noop_llseek,
};

/*
 * A new file is made in steps, each of which can be taken back: a descriptor, the file, and then, when nothing can fail
 * any more, the object that it is to own.
 */

int hsave_fd_reserve(void)
{
	return get_unused_fd_flags(O_CLOEXEC);
}

void hsave_fd_release(int fd)
{
	put_unused_fd(fd);
}

/* A file that owns nothing yet, or an ERR_PTR. */
struct file *hsave_vm_file(void)
{
	return anon_inode_getfile("kvm-vm", &vm_fops, NULL, O_RDWR);
}

struct file *hsave_vcpu_file(u32 id)
{
	char name[24];

	snprintf(name, sizeof(name), "kvm-vcpu:%u", id);
	return anon_inode_getfile(name, &vcpu_fops, NULL, O_RDWR);
}

/* A negative vcpu: those of the VM. They are read at any offset. */
struct file *hsave_stats_file(s64 vcpu)
{
	char name[32] = "kvm-vm-stats";
	struct file *file;

	if (vcpu >= 0)
		snprintf(name, sizeof(name), "kvm-vcpu-stats:%lld", vcpu);
	file = anon_inode_getfile(name, &stats_fops, NULL, O_RDONLY);
	if (!IS_ERR(file))
		file->f_mode |= FMODE_PREAD;
	return file;
}

struct file *hsave_device_file(void)
{
	return anon_inode_getfile("kvm-vfio", &device_fops, NULL, O_RDWR);
}

void hsave_file_drop(struct file *file)
{
	fput(file);
}

/* Another thread may close the descriptor before this returns. */
void hsave_file_install(int fd, struct file *file, void *object)
{
	file->private_data = object;
	fd_install(fd, file);
}

u32 hsave_pid(void)
{
	return task_pid_nr(current);
}

void hsave_set_owner(struct module *vendor)
{
	system_fops.owner = vendor;
	vm_fops.owner = vendor;
	vcpu_fops.owner = vendor;
	stats_fops.owner = vendor;
	device_fops.owner = vendor;
	hsave_vfio_set_owner(vendor);
}

int hsave_device_register(void)
{
	return misc_register(&kvm_device);
}

void hsave_device_unregister(void)
{
	misc_deregister(&kvm_device);
}
