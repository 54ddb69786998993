// SPDX-License-Identifier: GPL-2.0-only
/*
 * TSC_AUX: the kernel does not read it, so the guest's value stays until the CPU returns to user mode.
 */
#include <linux/irqflags.h>
#include <linux/user-return-notifier.h>
#include <asm/cpufeature.h>
#include <asm/msr.h>
#include <hsave.h>
#include "cpu.h"

struct tsc_aux {
	struct user_return_notifier urn;
	u64 host;
	bool registered;
};

static DEFINE_PER_CPU(struct tsc_aux, tsc_aux);

static void give_back(struct tsc_aux *t)
{
	struct hsave_cpu_data *data = this_cpu_ptr(&hsave_cpu_data);
	unsigned long flags;

	/* Also called by an IPI (reboot). */
	local_irq_save(flags);
	if (t->registered) {
		t->registered = false;
		user_return_notifier_unregister(&t->urn);
		if (data->tsc_aux != t->host) {
			wrmsrl(MSR_TSC_AUX, t->host);
			data->tsc_aux = t->host;
		}
	}
	local_irq_restore(flags);
}

static void on_user_return(struct user_return_notifier *urn)
{
	give_back(container_of(urn, struct tsc_aux, urn));
}

/* Interrupts off. */
void hsave_set_user_return_tsc_aux(u64 value)
{
	struct tsc_aux *t = this_cpu_ptr(&tsc_aux);

	wrmsrl(MSR_TSC_AUX, value);
	this_cpu_ptr(&hsave_cpu_data)->tsc_aux = value;
	if (!t->registered) {
		t->urn.on_user_return = on_user_return;
		user_return_notifier_register(&t->urn);
		t->registered = true;
	}
}

void hsave_tsc_aux_start(void)
{
	struct tsc_aux *t = this_cpu_ptr(&tsc_aux);

	/* Zero where there is no such register; the switch does not touch it there. */
	if (rdmsrl_safe(MSR_TSC_AUX, &t->host))
		t->host = 0;
	this_cpu_ptr(&hsave_cpu_data)->tsc_aux = t->host;
}

void hsave_tsc_aux_stop(void)
{
	give_back(this_cpu_ptr(&tsc_aux));
}
