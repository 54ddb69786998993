// SPDX-License-Identifier: GPL-2.0-only
/*
 * The engines, and the machine under them, which is there for as long as an engine is.
 */
#define pr_fmt(fmt) "kvm: " fmt
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/printk.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include "base.h"

/* Held while an engine comes or goes. */
static DEFINE_MUTEX(coming);

/* Guards what follows, the list together with the mutex; module references are taken under it. */
static DEFINE_SPINLOCK(lock);
static LIST_HEAD(engines);
static struct hsave_engine *current_engine;
/* It has become that, and nobody was told yet: an open cannot tell anybody. */
static bool unannounced;
/* Files of /dev/kvm that are open: the current engine is held for them, as the stock vendor module is. */
static unsigned int pins;

struct hsave_engine *hsave_engine_current(void)
{
	struct hsave_engine *engine;

	spin_lock(&lock);
	engine = current_engine;
	if (engine && !try_module_get(engine->module))
		engine = NULL;
	spin_unlock(&lock);
	return engine;
}

/* NULL: there is none, or it is about to go. The name may end in a new line. */
struct hsave_engine *hsave_engine_get(const char *name)
{
	struct hsave_engine *engine, *found = NULL;

	mutex_lock(&coming);
	list_for_each_entry(engine, &engines, node) {
		if (sysfs_streq(name, module_name(engine->module)))
			found = engine;
	}
	if (found && !try_module_get(found->module))
		found = NULL;
	mutex_unlock(&coming);
	return found;
}

/*
 * The current engine is held. One whose module is on its way out, but has not said so yet, makes room for another: its
 * unregistering tells of that one. Not under the mutex, which is held while the device goes, and an open keeps the device.
 */
static bool hold_current(void)
{
	struct hsave_engine *engine;

	if (current_engine && try_module_get(current_engine->module))
		return true;
	list_for_each_entry(engine, &engines, node) {
		if (try_module_get(engine->module)) {
			current_engine = engine;
			unannounced = true;
			return true;
		}
	}
	return false;
}

/* /dev/kvm is opened. -ENODEV: there is no engine. */
int hsave_engine_pin(void)
{
	int err = 0;

	spin_lock(&lock);
	if (!pins && !hold_current())
		err = -ENODEV;
	else
		pins++;
	spin_unlock(&lock);
	return err;
}

void hsave_engine_unpin(void)
{
	spin_lock(&lock);
	if (!--pins)
		module_put(current_engine->module);
	spin_unlock(&lock);
}

/* -ENOENT: there is no engine of that name. The name may end in a new line. */
int hsave_engine_make_current(const char *name)
{
	struct hsave_engine *engine, *found = NULL;
	int err = -ENOENT;

	mutex_lock(&coming);
	list_for_each_entry(engine, &engines, node) {
		if (sysfs_streq(name, module_name(engine->module)))
			found = engine;
	}
	spin_lock(&lock);
	/* One that is about to go is there no more. */
	if (found && found != current_engine && (!pins || try_module_get(found->module))) {
		if (pins)
			module_put(current_engine->module);
		current_engine = found;
		err = 0;
	}
	spin_unlock(&lock);
	if (!err)
		hsave_sysfs_engine_is_current(found);
	else if (found && found == current_engine)
		err = 0;
	mutex_unlock(&coming);
	return err;
}

/* What there is once per machine. 0 or a negative errno, and a line that says why. */
static int start(const struct hsave_engine *engine)
{
	int err;

	if (hsave_memory_is_encrypted()) {
		pr_err("the host's memory is encrypted, which hsave cannot do yet: boot with mem_encrypt=off, or use stock KVM\n");
		return -EOPNOTSUPP;
	}
	if (hsave_snp_is_on()) {
		pr_err("SEV-SNP is on, which hsave cannot live with yet: switch it off in the firmware's setup, or use stock KVM\n");
		return -EOPNOTSUPP;
	}
	err = hsave_cpus_prepare();
	if (err)
		goto prepared;
	err = hsave_clock_start();
	if (err)
		goto prepared;
	err = hsave_cpus_start();
	if (err) {
		if (err == -EBUSY)
			pr_err("SVM is in use by somebody else: unload the other hypervisor first\n");
		else
			pr_err("cannot switch SVM on (%d): look for SVM in the firmware's setup, or use stock KVM\n", err);
		goto clock;
	}
	/* It may be missing, and is not missed. What statistics there are the first engine says. */
	hsave_debugfs_start();
	engine->ops.name_stats();
	return 0;

clock:
	hsave_clock_stop();
prepared:
	hsave_cpus_release();
	return err;
}

/* No VM is left. */
static void stop(void)
{
	hsave_notifiers_settle();
	hsave_debugfs_stop();
	hsave_cpus_stop();
	hsave_clock_stop();
	hsave_cpus_release();
}

/* Was the engine built for this base? */
static int check(const struct hsave_engine *engine)
{
	const char *name = module_name(engine->module);

	if (engine->interface != HSAVE_INTERFACE)
		pr_err("%s is made for version %u of the interface, and this kvm has version %u: load those that were built together\n", name,
		       engine->interface, HSAVE_INTERFACE);
	else if (engine->size != sizeof(*engine) || engine->hash != HSAVE_INTERFACE_HASH)
		pr_err("%s is made for another state of version %u of the interface than this kvm: load those that were built together\n", name,
		       HSAVE_INTERFACE);
	else
		return 0;
	return -EINVAL;
}

/* The current engine, if nobody was told that it is that; the caller has both locks, and tells when it has let go of this one. */
static struct hsave_engine *to_be_told_of(void)
{
	struct hsave_engine *engine = unannounced ? current_engine : NULL;

	unannounced = false;
	return engine;
}

int hsave_engine_register(struct hsave_engine *engine)
{
	struct hsave_engine *now;
	bool first;
	int err;

	err = check(engine);
	if (err)
		return err;
	mutex_lock(&coming);
	atomic_set(&engine->vms, 0);
	err = engine->ops.load();
	if (err)
		goto out;
	first = list_empty(&engines);
	if (first) {
		err = start(engine);
		if (err)
			goto unload;
	}
	err = hsave_sysfs_add_engine(engine);
	if (err)
		goto stop;
	spin_lock(&lock);
	list_add_tail(&engine->node, &engines);
	spin_unlock(&lock);
	if (first) {
		err = hsave_device_register();
		if (err) {
			pr_err("cannot register /dev/kvm (%d): `hsavectl status` says whether another KVM has it\n", err);
			goto remove;
		}
		pr_info("hsave: virtual machines with SVM and nested paging\n");
	} else {
		pr_info("engine %s %s loaded\n", module_name(engine->module), engine->version);
	}
	/* From here on VMs can come, and the module can be held: nothing fails any more that would free it. */
	spin_lock(&lock);
	if (!current_engine) {
		current_engine = engine;
		unannounced = true;
	}
	now = to_be_told_of();
	spin_unlock(&lock);
	if (now)
		hsave_sysfs_engine_is_current(now);
	goto out;

remove:
	spin_lock(&lock);
	list_del(&engine->node);
	spin_unlock(&lock);
	hsave_sysfs_remove_engine(engine);
stop:
	if (first)
		stop();
unload:
	engine->ops.unload();
out:
	mutex_unlock(&coming);
	return err;
}
EXPORT_SYMBOL_GPL(hsave_engine_register);

/* The engine's module goes: nothing holds it, so it has no VM, and if it is the current one /dev/kvm is not open. */
void hsave_engine_unregister(struct hsave_engine *engine)
{
	struct hsave_engine *next;

	mutex_lock(&coming);
	spin_lock(&lock);
	list_del(&engine->node);
	if (current_engine == engine) {
		current_engine = list_first_entry_or_null(&engines, struct hsave_engine, node);
		unannounced = true;
	}
	next = to_be_told_of();
	spin_unlock(&lock);
	if (list_empty(&engines))
		hsave_device_unregister();
	if (next)
		hsave_sysfs_engine_is_current(next);
	hsave_sysfs_remove_engine(engine);
	if (list_empty(&engines))
		stop();
	engine->ops.unload();
	mutex_unlock(&coming);
}
EXPORT_SYMBOL_GPL(hsave_engine_unregister);
