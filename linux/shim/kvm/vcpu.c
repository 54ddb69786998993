// SPDX-License-Identifier: GPL-2.0-only
/*
 * The files of vCPUs.
 */
#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kvm.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include "base.h"

/* Signals that are blocked in KVM_RUN, or none; SIGKILL and SIGSTOP cannot be. The lock is held. */
void hsave_vcpu_set_mask(struct hsave_vcpu *v, bool on, u64 blocked)
{
	v->masked = on;
	v->blocked = blocked & ~(sigmask(SIGKILL) | sigmask(SIGSTOP));
}

static long run(struct hsave_vcpu *v, unsigned long arg)
{
	struct hsave_vm *vm = v->vm;
	long r;

	if (unlikely(v->masked))
		hsave_sigmask_set(v->blocked);
	while ((r = hsave_call(vm, run, v->index, arg)) == HSAVE_RAN_HAND_OVER)
		hsave_vcpu_park(v);
	if (unlikely(v->masked))
		hsave_sigmask_restore();
	return r;
}

static long vcpu_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct hsave_vcpu *v = file->private_data;
	struct hsave_vm *vm = v->vm;
	long r;

	if (!hsave_vm_belongs(vm))
		return -EIO;
	/* isatty() and the like ask any descriptor: they do not wait for whoever is in KVM_RUN. */
	if (unlikely(_IOC_TYPE(cmd) != KVMIO))
		return -EINVAL;
	/* Whoever is in KVM_RUN may be there for as long as it likes. */
	if (mutex_lock_killable(&v->lock))
		return -EINTR;
	/* Begun before the lock was last let go of, it is seen here: the engine is not called meanwhile. */
	if (unlikely(READ_ONCE(vm->stopping)))
		hsave_vcpu_park(v);
	if (cmd == KVM_RUN)
		r = run(v, arg);
	else
		r = hsave_call(vm, vcpu_ioctl, vm, v->index, v, cmd, arg);
	mutex_unlock(&v->lock);
	/* Seen too late, the vCPU is found to be free by looking. */
	if (unlikely(READ_ONCE(vm->stopping)))
		wake_up(&vm->stopped);
	return r;
}

static int vcpu_release(struct inode *inode, struct file *file)
{
	struct hsave_vcpu *v = file->private_data;
	struct hsave_vm *vm = v->vm;

	mutex_lock(&vm->vcpus_lock);
	list_del(&v->node);
	mutex_unlock(&vm->vcpus_lock);
	hsave_vm_put(vm);
	kfree(v);
	return 0;
}

static vm_fault_t vcpu_fault(struct vm_fault *vmf)
{
	struct hsave_vcpu *v = vmf->vma->vm_file->private_data;
	u64 pa;

	/* What is mapped is the same in each engine. The lock of the address space is held: nobody waits here for a handover. */
	rcu_read_lock();
	pa = hsave_call(v->vm, vcpu_page, v->index, vmf->pgoff);
	rcu_read_unlock();
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
	struct hsave_vcpu *v = file->private_data;
	unsigned long first = vma->vm_pgoff, pages = vma_pages(vma);
	unsigned long ring;
	bool odd = (vma->vm_flags & VM_EXEC) || !(vma->vm_flags & VM_SHARED);

	/* As above. */
	rcu_read_lock();
	ring = hsave_call(v->vm, vcpu_ring_pages);
	rcu_read_unlock();
	if (odd && first < KVM_DIRTY_LOG_PAGE_OFFSET + ring && first + pages > KVM_DIRTY_LOG_PAGE_OFFSET)
		return -EINVAL;
	vma->vm_ops = &vcpu_vm_ops;
	return 0;
}

static const struct file_operations vcpu_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = vcpu_ioctl,
	.compat_ioctl = vcpu_ioctl,
	.release = vcpu_release,
	.mmap = vcpu_mmap,
	.llseek = noop_llseek,
};

/* KVM_CREATE_VCPU: the descriptor of its file, or a negative errno. The caller has the gate. */
long hsave_vcpu_create(struct hsave_vm *vm, unsigned long arg)
{
	struct hsave_vcpu *v;
	struct file *file;
	char name[24];
	long index;
	int fd;

	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	v = kzalloc(sizeof(*v), GFP_KERNEL_ACCOUNT);
	index = -ENOMEM;
	if (!v)
		goto out;
	mutex_init(&v->lock);
	/* The id is checked with the rest; here it is part of a name. */
	snprintf(name, sizeof(name), "kvm-vcpu:%u", (u32)arg);
	file = anon_inode_getfile(name, &vcpu_fops, v, O_RDWR);
	if (IS_ERR(file)) {
		kfree(v);
		index = PTR_ERR(file);
		goto out;
	}
	hsave_vm_hold(vm);
	v->vm = vm;
	mutex_lock(&vm->vcpus_lock);
	list_add_tail(&v->node, &vm->vcpu_list);
	mutex_unlock(&vm->vcpus_lock);
	/* The last step: a vCPU that user space cannot close it could not undo. */
	index = hsave_call(vm, vcpu_new, vm, arg);
	if (index < 0) {
		fput(file);
		goto out;
	}
	v->index = index;
	atomic_inc(&vm->vcpus);
	fd_install(fd, file);
	return fd;
out:
	put_unused_fd(fd);
	return index;
}
