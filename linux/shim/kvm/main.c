// SPDX-License-Identifier: GPL-2.0-only
/*
 * kvm.ko: the hypervisor, inert until kvm-amd.ko starts it, so that modules and names are those of the stock kernel.
 */
#include <linux/kvm.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <hsave.h>

int hsave_start(struct module *vendor)
{
	hsave_set_owner(vendor);
	return hsave_load();
}
EXPORT_SYMBOL_GPL(hsave_start);

void hsave_stop(void)
{
	hsave_unload();
}
EXPORT_SYMBOL_GPL(hsave_stop);

static int __init kvm_init(void)
{
	hsave_settle_params();
	return 0;
}
module_init(kvm_init);

static void __exit kvm_exit(void)
{
}
module_exit(kvm_exit);

MODULE_DESCRIPTION("Kernel-based virtual machines for AMD SVM (hsave)");
MODULE_LICENSE("GPL");
MODULE_ALIAS_MISCDEV(KVM_MINOR);
MODULE_ALIAS("devname:kvm");
