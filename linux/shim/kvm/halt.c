// SPDX-License-Identifier: GPL-2.0-only
/*
 * How halted vCPUs wait: the module's parameters, with the names and defaults of the stock module, and what the
 * processor allows.
 */
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/cpu.h>
#include <linux/kvm.h>
#include <asm/cpufeature.h>
#include <hsave.h>

static unsigned int halt_poll_ns = 200000;
module_param(halt_poll_ns, uint, 0644);
MODULE_PARM_DESC(halt_poll_ns, "Maximum ns a halted vCPU polls before it blocks; 0: no polling");

static unsigned int halt_poll_ns_grow = 2;
module_param(halt_poll_ns_grow, uint, 0644);
MODULE_PARM_DESC(halt_poll_ns_grow, "Factor by which the time grows; 0: it does not");

static unsigned int halt_poll_ns_grow_start = 10000;
module_param(halt_poll_ns_grow_start, uint, 0644);
MODULE_PARM_DESC(halt_poll_ns_grow_start, "Nanoseconds that it grows to from 0");

static unsigned int halt_poll_ns_shrink = LINUX_AT_LEAST(6, 12) ? 2 : 0;
module_param(halt_poll_ns_shrink, uint, 0644);
MODULE_PARM_DESC(halt_poll_ns_shrink, "Divisor by which it shrinks; 0: to nothing");

static bool mitigate_smt_rsb;
module_param(mitigate_smt_rsb, bool, 0444);
MODULE_PARM_DESC(mitigate_smt_rsb, "Guests may not idle by themselves where threads of a core share return predictions");

void hsave_poll_parameters(u32 *max, u32 *grow, u32 *grow_start, u32 *shrink)
{
	*max = READ_ONCE(halt_poll_ns);
	*grow = READ_ONCE(halt_poll_ns_grow);
	*grow_start = READ_ONCE(halt_poll_ns_grow_start);
	*shrink = READ_ONCE(halt_poll_ns_shrink);
}

/* Nobody else wants this CPU, and no signal is pending. */
bool hsave_may_poll(void)
{
	return single_task_running() && !need_resched() && !signal_pending(current);
}

/* KVM's interface is that of this kernel's own KVM. */
u32 hsave_linux_version(void)
{
	return LINUX_VERSION_CODE;
}

/* KVM_X86_DISABLE_EXITS_* that a guest may be given. */
u32 hsave_idle_exits(void)
{
	u32 exits = KVM_X86_DISABLE_EXITS_PAUSE;

#ifdef X86_BUG_SMT_RSB
	if (mitigate_smt_rsb && boot_cpu_has_bug(X86_BUG_SMT_RSB) && cpu_smt_possible())
		return exits;
#endif
	exits |= KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_CSTATE;
	if (boot_cpu_has(X86_FEATURE_MWAIT) && !boot_cpu_has_bug(X86_BUG_MONITOR) && boot_cpu_has(X86_FEATURE_ARAT))
		exits |= KVM_X86_DISABLE_EXITS_MWAIT;
	return exits;
}
