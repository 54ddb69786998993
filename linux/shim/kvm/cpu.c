// SPDX-License-Identifier: GPL-2.0-only
/*
 * The CPUs: SVM goes on and off with them, through hotplug, suspend, reboot and crash.
 */
#define pr_fmt(fmt) "kvm: " fmt
#include <linux/cc_platform.h>
#include <linux/cpuhotplug.h>
#include <linux/cpumask.h>
#include <linux/percpu.h>
#include <linux/printk.h>
#include <linux/reboot.h>
#include <linux/smp.h>
#include <linux/syscore_ops.h>
#include <asm/msr.h>
#include <asm/perf_event.h>
#include <asm/reboot.h>
#if __has_include(<asm/virt.h>)
#include <asm/virt.h>
#endif
#include <hsave.h>
#include "cpu.h"

/*
 * Nonzero while SVM may be off under a running guest: a fault of VMRUN and its kin is then expected. The assembly
 * looks at it.
 */
u8 hsave_rebooting;

DEFINE_PER_CPU_ALIGNED(struct hsave_cpu_data, hsave_cpu_data);

unsigned int hsave_next_cpu(int previous)
{
	return cpumask_next(previous, cpu_possible_mask);
}

unsigned int hsave_online_cpus(void)
{
	return num_online_cpus();
}

bool hsave_cpu_exists(unsigned int cpu)
{
	return cpu < nr_cpu_ids;
}

/* SME: the processor would need the encryption bit in every physical address that we give it. */
bool hsave_memory_is_encrypted(void)
{
	return cc_platform_has(CC_ATTR_HOST_MEM_ENCRYPT);
}

/*
 * SEV-SNP: VMRUN marks the pages of VMCB and host save area as in use in the RMP, and an erratum makes accesses to the rest
 * of their 2 MiB fault then; and the firmware's initialisation, which may come at any time, clears VM_HSAVE_PA on all CPUs.
 */
bool hsave_snp_is_on(void)
{
#if LINUX_AT_LEAST(6, 9)
	return cc_platform_has(CC_ATTR_HOST_SEV_SNP);
#else
	return false;
#endif
}

/* The CPU's data, with the fields filled that everybody relies on. */
struct hsave_cpu_data *hsave_cpu_data_of(unsigned int cpu)
{
	struct hsave_cpu_data *data = per_cpu_ptr(&hsave_cpu_data, cpu);

	data->this = data;
	data->number = cpu;
	return data;
}

/* All CPUs that were there at load work: from now on a failure is a CPU's own. */
static bool started;

static int online(unsigned int cpu)
{
	int err;

	preempt_disable();
	hsave_tsc_aux_start();
	err = READ_ONCE(hsave_rebooting) ? -EBUSY : hsave_cpu_online();
	/* Counters that are for the host or for guests only tell them apart while EFER.SVME is set. */
	if (!err)
		amd_pmu_enable_virt();
	preempt_enable();
	if (err && started)
		pr_err("cannot enable SVM on CPU %u (%d)\n", cpu, err);
#if LINUX_AT_LEAST(6, 12)
	return err;
#else
	/* This state's callbacks must not fail. KVM_RUN reports EIO on this CPU. */
	return 0;
#endif
}

static int offline(unsigned int cpu)
{
	preempt_disable();
	hsave_tsc_aux_stop();
	amd_pmu_disable_virt();
	hsave_cpu_offline();
	/* A CPU that wakes up has its MSRs in the state of a reset. */
	hsave_speculation_restore();
	preempt_enable();
	return 0;
}

#if LINUX_AT_LEAST(6, 12)
#define KVM_STATE CPUHP_AP_KVM_ONLINE
#else
#define KVM_STATE CPUHP_AP_KVM_STARTING
#endif

#if LINUX_AT_LEAST(7, 0)
/* The kernel owns EFER.SVME and switches it off itself; we only have to know. */
int hsave_svme_on(void)
{
	return x86_virt_get_ref(X86_FEATURE_SVM);
}

void hsave_svme_off(void)
{
	x86_virt_put_ref(X86_FEATURE_SVM);
}

static void emergency(void)
{
	WRITE_ONCE(hsave_rebooting, 1);
}

#define register_emergency() x86_virt_register_emergency_callback(emergency)
#define unregister_emergency() x86_virt_unregister_emergency_callback(emergency)
#else
int hsave_svme_on(void)
{
	u64 efer;

	rdmsrl(MSR_EFER, efer);
	if (efer & EFER_SVME)
		return -EBUSY;
	wrmsrl(MSR_EFER, efer | EFER_SVME);
	return 0;
}

void hsave_svme_off(void)
{
	u64 efer;

	rdmsrl(MSR_EFER, efer);
	wrmsrl(MSR_EFER, efer & ~EFER_SVME);
}

/* A crash or an unclean reboot, possibly in an NMI: INIT is blocked while GIF is clear, so it is set before SVM ends. */
static void emergency(void)
{
	u64 efer;

	WRITE_ONCE(hsave_rebooting, 1);
	rdmsrl(MSR_EFER, efer);
	if (efer & EFER_SVME) {
		asm volatile("stgi" ::: "memory");
		wrmsrl(MSR_EFER, efer & ~EFER_SVME);
	}
}

#define register_emergency() cpu_emergency_register_virt_callback(emergency)
#define unregister_emergency() cpu_emergency_unregister_virt_callback(emergency)
#endif

static void offline_here(void *unused)
{
	offline(smp_processor_id());
}

/* Restart, power off, kexec: whoever still runs a guest gets EIO from here on. */
static int reboot(struct notifier_block *nb, unsigned long code, void *unused)
{
	WRITE_ONCE(hsave_rebooting, 1);
	on_each_cpu(offline_here, NULL, 1);
	return NOTIFY_OK;
}

static struct notifier_block reboot_notifier = { .notifier_call = reboot };

/* Suspend takes the other CPUs through hotplug; these are for the last one, interrupts off. */
static int suspend(void)
{
	hsave_clock_suspend();
	offline(smp_processor_id());
	return 0;
}

static void resume(void)
{
	hsave_clock_resume();
	online(smp_processor_id());
}

#ifdef HSAVE_OLD_SYSCORE
static struct syscore_ops syscore = { .suspend = suspend, .resume = resume };
#define register_suspend() register_syscore_ops(&syscore)
#define unregister_suspend() unregister_syscore_ops(&syscore)
#else
static int suspend_with(void *unused)
{
	return suspend();
}

static void resume_with(void *unused)
{
	resume();
}

static const struct syscore_ops ops = { .suspend = suspend_with, .resume = resume_with };
static struct syscore syscore = { .ops = &ops };
#define register_suspend() register_syscore(&syscore)
#define unregister_suspend() unregister_syscore(&syscore)
#endif

#if !LINUX_AT_LEAST(6, 12)
static void look_at_svme(void *busy)
{
	u64 efer;

	rdmsrl(MSR_EFER, efer);
	if (efer & EFER_SVME)
		WRITE_ONCE(*(bool *)busy, true);
}
#endif

/* SVM on, on all CPUs that are there and come; every CPU was prepared before. 0 or a negative errno. */
int hsave_cpus_start(void)
{
	int err;

#if !LINUX_AT_LEAST(6, 12)
	bool busy = false;

	on_each_cpu(look_at_svme, &busy, 1);
	if (busy)
		return -EBUSY;
#endif
	register_emergency();
	err = cpuhp_setup_state(KVM_STATE, "kvm/cpu:online", online, offline);
	if (err) {
		unregister_emergency();
		return err;
	}
	started = true;
	hsave_perf_start();
	register_suspend();
	register_reboot_notifier(&reboot_notifier);
	return 0;
}

void hsave_cpus_stop(void)
{
	unregister_reboot_notifier(&reboot_notifier);
	unregister_suspend();
	hsave_perf_stop();
	started = false;
	/* Runs offline() on each. */
	cpuhp_remove_state(KVM_STATE);
	unregister_emergency();
}
