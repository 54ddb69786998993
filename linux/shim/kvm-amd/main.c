// SPDX-License-Identifier: GPL-2.0-only
/*
 * kvm-amd.ko: the name that udev, modprobe and administrators use. Loading it starts the hypervisor in kvm.ko.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#include <linux/module.h>
#include <linux/mod_devicetable.h>
#include <asm/cpu_device_id.h>
#include <asm/cpufeature.h>
#include <hsave.h>

static bool npt = true;
module_param(npt, bool, 0444);
MODULE_PARM_DESC(npt, "Nested paging; cannot be switched off");

static int nested;
module_param(nested, int, 0444);
MODULE_PARM_DESC(nested, "Nested virtualization; not available, stays 0");

static bool avic;
module_param(avic, bool, 0444);
MODULE_PARM_DESC(avic, "Interrupt delivery by the processor; not available, stays N");

/* udev loads the module on processors with SVM. */
static const struct x86_cpu_id svm_cpu_id[] = {
	X86_MATCH_FEATURE(X86_FEATURE_SVM, NULL),
	{}
};
MODULE_DEVICE_TABLE(x86cpu, svm_cpu_id);

static int __init kvm_amd_init(void)
{
	if (!npt) {
		pr_err("npt=0 is not supported: there is no shadow paging\n");
		return -EOPNOTSUPP;
	}
	if (nested) {
		/* Common in modprobe.d; refusing to load would help nobody. */
		pr_warn("nested=%d has no effect: nested virtualization is not available\n", nested);
		nested = 0;
	}
	if (avic) {
		pr_warn("avic=Y has no effect: it is not available\n");
		avic = false;
	}
	return hsave_start(THIS_MODULE);
}
module_init(kvm_amd_init);

static void __exit kvm_amd_exit(void)
{
	hsave_stop();
}
module_exit(kvm_amd_exit);

MODULE_DESCRIPTION("Kernel-based virtual machines for AMD SVM (hsave): vendor module");
MODULE_LICENSE("GPL");
