// SPDX-License-Identifier: GPL-2.0-only
/*
 * The CPUs: SVM goes on and off with them, through hotplug, suspend, reboot and crash.
 */
#define pr_fmt(fmt) "kvm: " fmt
#include <linux/cc_platform.h>
#include <linux/cpuhotplug.h>
#include <linux/cpumask.h>
#include <linux/export.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/percpu.h>
#include <linux/printk.h>
#include <linux/smp.h>
#include <linux/syscore_ops.h>
#include <linux/topology.h>
#if __has_include(<asm/cpuid/api.h>)
#include <asm/cpuid/api.h>
#else
#include <asm/processor.h>
#endif
#include <asm/msr.h>
#include <asm/perf_event.h>
#include <asm/reboot.h>
#if __has_include(<asm/virt.h>)
#include <asm/virt.h>
#endif
#include "base.h"
#include "cpu.h"

/*
 * Nonzero while SVM may be off under a running guest: a fault of VMRUN and its kin is then expected. The assembly
 * looks at it.
 */
u8 hsave_rebooting;

/* What all engines share of a CPU; written there, interrupts off. */
DEFINE_PER_CPU_ALIGNED(struct hsave_cpu_data, hsave_cpu_data);
EXPORT_PER_CPU_SYMBOL_GPL(hsave_cpu_data);

/* A name for a vCPU that no other has had, of any engine. */
u64 hsave_vcpu_token(void)
{
	static atomic64_t last;

	return atomic64_inc_return(&last);
}

unsigned int hsave_online_cpus(void)
{
	return num_online_cpus();
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

/* A host save area for each CPU that can ever come, on its own node, and accounted to nobody who happens to load an engine. */
int hsave_cpus_prepare(void)
{
	struct hsave_cpu_data *data;
	struct page *page;
	int cpu;

	for_each_possible_cpu(cpu) {
		data = per_cpu_ptr(&hsave_cpu_data, cpu);
		data->this = data;
		data->number = cpu;
		page = alloc_pages_node(cpu_to_node(cpu), GFP_KERNEL | __GFP_ZERO, 0);
		if (!page)
			return -ENOMEM;
		data->hsave_va = (unsigned long)page_address(page);
		data->hsave_pa = page_to_phys(page);
	}
	return 0;
}

/* SVM is off everywhere. */
void hsave_cpus_release(void)
{
	struct hsave_cpu_data *data;
	int cpu;

	for_each_possible_cpu(cpu) {
		data = per_cpu_ptr(&hsave_cpu_data, cpu);
		free_page(data->hsave_va);
		data->hsave_va = 0;
		data->hsave_pa = 0;
	}
}

/*
 * TSC ratio 1.0 (APM 15.30.5), which applies to guests only. It is the processor's word that counts, as for the engines, and not
 * what the kernel was told to think of it.
 */
static void reset_tsc_ratio(struct hsave_cpu_data *data)
{
	if (!(cpuid_edx(0x8000000a) & BIT(X86_FEATURE_TSCRATEMSR & 31)))
		return;
	wrmsrl(MSR_AMD64_TSC_RATIO, 1ULL << 32);
	data->tsc_ratio = 1ULL << 32;
}

static int svme_on(void);
static void svme_off(void);

/* SVM on on this CPU; nothing if it is on. Preemption is off. */
static int enable(void)
{
	struct hsave_cpu_data *data = this_cpu_ptr(&hsave_cpu_data);
	int err;

	if (data->enabled)
		return 0;
	err = svme_on();
	if (err)
		return err;
	wrmsrl(MSR_VM_HSAVE_PA, data->hsave_pa);
	reset_tsc_ratio(data);
	/*
	 * The first ASID that is handed out opens a new generation, which flushes whatever the TLB holds. The generation goes on
	 * from where it was, and no ASID from before is of it: this CPU may have been reset in between (hotplug, suspend), and a
	 * vCPU that comes back with its old one would find its VMCB forgotten here.
	 */
	data->asid_generation++;
	data->asid_max = cpuid_ebx(0x8000000a) - 1;
	data->asid_next = data->asid_max + 1;
	/* Whatever ran here last is not loaded any more. */
	data->last_vcpu = 0;
	data->enabled = true;
	return 0;
}

/* SVM off on this CPU; nothing if it is off. Preemption is off, and no guest runs. */
static void disable(void)
{
	struct hsave_cpu_data *data = this_cpu_ptr(&hsave_cpu_data);

	if (!data->enabled)
		return;
	data->enabled = false;
	reset_tsc_ratio(data);
	wrmsrl(MSR_VM_HSAVE_PA, 0);
	/* After a CPU was switched off by force GIF may be clear; EFER.SVME must not go with it clear (APM 15.17). */
	asm volatile("stgi" ::: "memory");
	svme_off();
}

/* All CPUs that were there at load work: from now on a failure is a CPU's own. */
static bool started;

static int online(unsigned int cpu)
{
	int err;

	preempt_disable();
	hsave_tsc_aux_start();
	err = READ_ONCE(hsave_rebooting) ? -EBUSY : enable();
	/* Counters that are for the host or for guests only tell them apart while EFER.SVME is set. */
	if (!err)
		amd_pmu_enable_virt();
	preempt_enable();
#if LINUX_AT_LEAST(6, 12)
	if (err && started)
		pr_err("cannot enable SVM on CPU %u (%d): it does not come online\n", cpu, err);
	return err;
#else
	if (err && started)
		pr_err("cannot enable SVM on CPU %u (%d): KVM_RUN fails with EIO there; take the CPU offline\n", cpu, err);
	/* This state's callbacks must not fail. KVM_RUN reports EIO on this CPU. */
	return 0;
#endif
}

static int offline(unsigned int cpu)
{
	preempt_disable();
	hsave_tsc_aux_stop();
	amd_pmu_disable_virt();
	disable();
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
static int svme_on(void)
{
	return x86_virt_get_ref(X86_FEATURE_SVM);
}

static void svme_off(void)
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
static int svme_on(void)
{
	u64 efer;

	rdmsrl(MSR_EFER, efer);
	if (efer & EFER_SVME)
		return -EBUSY;
	wrmsrl(MSR_EFER, efer | EFER_SVME);
	return 0;
}

static void svme_off(void)
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

/* Restart, power off, kexec, after devices are shut down: whoever still runs a guest gets EIO from here on. */
static void shutdown(void)
{
	WRITE_ONCE(hsave_rebooting, 1);
	on_each_cpu(offline_here, NULL, 1);
}

/* Suspend takes the other CPUs through hotplug; these two are for the last one, interrupts off. */
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
static struct syscore_ops syscore = { .suspend = suspend, .resume = resume, .shutdown = shutdown };
#define register_syscore_callbacks() register_syscore_ops(&syscore)
#define unregister_syscore_callbacks() unregister_syscore_ops(&syscore)
#else
static int suspend_with(void *unused)
{
	return suspend();
}

static void resume_with(void *unused)
{
	resume();
}

static void shutdown_with(void *unused)
{
	shutdown();
}

static const struct syscore_ops ops = { .suspend = suspend_with, .resume = resume_with, .shutdown = shutdown_with };
static struct syscore syscore = { .ops = &ops };
#define register_syscore_callbacks() register_syscore(&syscore)
#define unregister_syscore_callbacks() unregister_syscore(&syscore)
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
	register_syscore_callbacks();
	/* One that is loaded while the machine goes down may have come too late for shutdown(): SVM would be on in the next kernel. */
	if (system_state == SYSTEM_HALT || system_state == SYSTEM_POWER_OFF || system_state == SYSTEM_RESTART) {
		hsave_cpus_stop();
		return -EBUSY;
	}
	return 0;
}

void hsave_cpus_stop(void)
{
	unregister_syscore_callbacks();
	hsave_perf_stop();
	started = false;
	/* Runs offline() on each. */
	cpuhp_remove_state(KVM_STATE);
	unregister_emergency();
}
