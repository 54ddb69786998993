// SPDX-License-Identifier: GPL-2.0-only
/*
 * kvm.ko: the base, which owns what the kernel and the machine know of. It is inert until an engine is loaded
 * (docs/decisions/0033).
 */
#include <linux/kvm.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include "base.h"

static int __init kvm_init(void)
{
	int err;

	hsave_settle_params();
	err = hsave_page_ins_start();
	if (err)
		return err;
	err = hsave_late_start();
	if (err)
		goto page_ins;
	err = hsave_upgrades_start();
	if (err)
		goto late;
	err = hsave_sysfs_start();
	if (!err)
		return 0;
	hsave_upgrades_stop();
late:
	hsave_late_stop();
page_ins:
	hsave_page_ins_stop();
	return err;
}
module_init(kvm_init);

static void __exit kvm_exit(void)
{
	hsave_sysfs_stop();
	hsave_upgrades_stop();
	hsave_late_stop();
	hsave_page_ins_stop();
}
module_exit(kvm_exit);

MODULE_DESCRIPTION("Kernel-based virtual machines for AMD SVM (hsave): base");
MODULE_LICENSE("GPL");
MODULE_ALIAS_MISCDEV(KVM_MINOR);
MODULE_ALIAS("devname:kvm");
