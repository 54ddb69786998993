// SPDX-License-Identifier: GPL-2.0-only
/*
 * The module of an engine: the Rust object, and what a module needs around it. Its parameters are those of the stock vendor
 * module (docs/decisions/0022). kvm-amd.ko is the name that udev, modprobe and administrators use.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#include <linux/bits.h>
#include <linux/module.h>
#include <linux/ratelimit.h>
#include <linux/string.h>
#include <linux/mod_devicetable.h>
#include <asm/cpu_device_id.h>
#include <asm/cpufeature.h>
#include <hsave.h>
#include <params.h>

static bool npt = true;
module_param(npt, bool, 0444);
MODULE_PARM_DESC(npt, "Nested paging; cannot be switched off");

static bool intercept_smi = true;
module_param(intercept_smi, bool, 0444);
MODULE_PARM_DESC(intercept_smi, "SMIs are the host's; stays Y");

static bool dump_invalid_vmcb;
module_param(dump_invalid_vmcb, bool, 0644);
MODULE_PARM_DESC(dump_invalid_vmcb, "Write VMCBs that the processor refuses into the kernel log");

/* Zero where the processor has no such thing. */
static int nrips = 1;
module_param(nrips, int, 0444);
MODULE_PARM_DESC(nrips, "Use the address of the next instruction that the processor gives");

static int tsc_scaling = 1;
module_param(tsc_scaling, int, 0444);
MODULE_PARM_DESC(tsc_scaling, "Give guests a TSC of another frequency");

static unsigned short pause_filter_count = 3000;
module_param(pause_filter_count, ushort, 0444);
MODULE_PARM_DESC(pause_filter_count, "PAUSE intercept: initial filter count; 0: no intercept");

static unsigned short pause_filter_thresh = 128;
module_param(pause_filter_thresh, ushort, 0444);
MODULE_PARM_DESC(pause_filter_thresh, "Most cycles between two PAUSEs of a loop");

static unsigned short pause_filter_count_grow = 2;
module_param(pause_filter_count_grow, ushort, 0444);
MODULE_PARM_DESC(pause_filter_count_grow, "Factor by which the number grows with each exit; 0: it does not");

static unsigned short pause_filter_count_shrink;
module_param(pause_filter_count_shrink, ushort, 0444);
MODULE_PARM_DESC(pause_filter_count_shrink, "Divisor by which it shrinks when the guest was not on a CPU; 0: to the first");

static unsigned short pause_filter_count_max = USHRT_MAX;
module_param(pause_filter_count_max, ushort, 0444);
MODULE_PARM_DESC(pause_filter_count_max, "Most that it grows to");

/* What is never so. */
ABSENT(nested, int, "Nested virtualization");
/* Newer stock modules also take the word "auto", which must not keep this one from loading. */
static bool avic;

static int set_avic(const char *value, const struct kernel_param *kp)
{
	return value && sysfs_streq(value, "auto") ? 0 : param_set_bool(value, kp);
}

static const struct kernel_param_ops avic_ops = {
	.flags = KERNEL_PARAM_OPS_FL_NOARG,
	.set = set_avic,
	.get = param_get_bool,
};
module_param_cb(avic, &avic_ops, &avic, 0444);
__MODULE_PARM_TYPE(avic, "bool");
MODULE_PARM_DESC(avic, "Interrupt delivery by the processor; not available, stays off");
ABSENT(force_avic, bool, "The same where the processor does not say that it can");
ABSENT(lbrv, int, "Branch records of guests");
ABSENT(vgif, int, "Virtual global interrupt flag, for nested virtualization");
ABSENT(vls, int, "Virtual VMLOAD and VMSAVE, for nested virtualization");
ABSENT(vnmi, bool, "Virtual NMIs");
#ifdef CONFIG_KVM_AMD_SEV
ABSENT(sev, bool, "Encrypted guests");
ABSENT(sev_es, bool, "Guests with encrypted registers");
ABSENT(sev_snp, bool, "Guests with memory that the host cannot remap");
ABSENT(debug_swap, bool, "Debug registers of encrypted guests");
#endif

/* udev loads the vendor module on processors with SVM. */
#ifdef HSAVE_VENDOR
static const struct x86_cpu_id svm_cpu_id[] = {
	X86_MATCH_FEATURE(X86_FEATURE_SVM, NULL),
	{}
};
MODULE_DEVICE_TABLE(x86cpu, svm_cpu_id);
#endif

/* Bits of CPUID Fn8000_000A_EDX that are not to be used. */
static u32 hidden_features;

u32 hsave_hidden_svm_features(void)
{
	return hidden_features;
}

void hsave_pause_parameters(u32 *count, u32 *thresh, u32 *grow, u32 *shrink, u32 *max)
{
	*count = pause_filter_count;
	*thresh = pause_filter_thresh;
	*grow = pause_filter_count_grow;
	*shrink = pause_filter_count_shrink;
	*max = pause_filter_count_max;
}

/* Is a VMCB to be shown that VMRUN refuses, or that has an unexpected exit? Says how to see it otherwise. */
bool hsave_dumps_invalid_vmcb(void)
{
	if (READ_ONCE(dump_invalid_vmcb))
		return true;
	pr_warn_ratelimited("set " KBUILD_MODNAME ".dump_invalid_vmcb=1 to dump internal KVM state.\n");
	return false;
}

/* What is wanted and there; what is there and not wanted is hidden. */
static void settle_params(void)
{
	if (!nrips)
		hidden_features |= BIT(X86_FEATURE_NRIPS & 31);
	nrips = nrips && boot_cpu_has(X86_FEATURE_NRIPS);
	if (!tsc_scaling)
		hidden_features |= BIT(X86_FEATURE_TSCRATEMSR & 31);
	tsc_scaling = tsc_scaling && boot_cpu_has(X86_FEATURE_TSCRATEMSR);
	/* Without a threshold each PAUSE would count, loop or not. */
	if (!boot_cpu_has(X86_FEATURE_PAUSEFILTER) || !boot_cpu_has(X86_FEATURE_PFTHRESHOLD)) {
		pause_filter_count = 0;
		pause_filter_thresh = 0;
	}
}

static struct hsave_engine engine = {
	.interface = HSAVE_INTERFACE,
	.size = sizeof(struct hsave_engine),
	.hash = HSAVE_INTERFACE_HASH,
	.version = HSAVE_ENGINE_VERSION,
	.module = THIS_MODULE,
	.ops = HSAVE_ENGINE_OPS,
};

static int __init engine_init(void)
{
	if (!npt) {
		pr_err("npt=0 is not supported, because there is no shadow paging: take it out of modprobe.d, or use stock KVM\n");
		return -EOPNOTSUPP;
	}
	OFF(nested);
	OFF(avic);
	OFF(force_avic);
	OFF(lbrv);
	OFF(vgif);
	OFF(vls);
	OFF(vnmi);
#ifdef CONFIG_KVM_AMD_SEV
	OFF(sev);
	OFF(sev_es);
	OFF(sev_snp);
	OFF(debug_swap);
#endif
	intercept_smi = true;
	settle_params();
	return hsave_engine_register(&engine);
}
module_init(engine_init);

static void __exit engine_exit(void)
{
	hsave_engine_unregister(&engine);
}
module_exit(engine_exit);

MODULE_DESCRIPTION("Kernel-based virtual machines for AMD SVM (hsave): engine");
MODULE_VERSION(HSAVE_ENGINE_VERSION);
MODULE_LICENSE("GPL");
