// SPDX-License-Identifier: GPL-2.0-only
/*
 * Lockdep is told of the engines' locks, which are a word each (docs/decisions/0007): one class for each place in their order
 * (host/src/rank.rs). Only an engine that was built for it calls this.
 */
#include <linux/kernel.h>
#include <linux/lockdep.h>
#include "base.h"

#ifdef CONFIG_LOCKDEP

static struct lock_class_key keys[HSAVE_RANK_SNAPSHOT + 1];

#define PLACE(rank, text, type) [rank] = { .name = text, .key = &keys[rank], .wait_type_inner = type }
#define SLEEPS(rank, text) PLACE(rank, "hsave " text, LD_WAIT_SLEEP)
/* On PREEMPT_RT, too: none of the kernel's that sleeps there is taken under it. */
#define SPINS(rank, text) PLACE(rank, "hsave " text, LD_WAIT_SPIN)

static struct lockdep_map places[ARRAY_SIZE(keys)] = {
	SLEEPS(1, "core"),
	SLEEPS(2, "shape"),
	SLEEPS(3, "hyperv"),
	SLEEPS(4, "slot changes"),
	SLEEPS(5, "slots"),
	SLEEPS(6, "tables"),
	SPINS(HSAVE_FIRST_SPINNING, "mmu"),
	SPINS(8, "invalidations"),
	SPINS(9, "clock"),
	SPINS(10, "apics"),
	SPINS(12, "pit"),
	SPINS(13, "controllers"),
	SPINS(HSAVE_RANK_SNAPSHOT, "snapshot"),
};

void hsave_lock_wanted(u32 rank)
{
	if (rank < HSAVE_FIRST_SPINNING)
		might_sleep();
}

void hsave_lock_taken(u32 rank, bool read, bool tried)
{
	/* Only snapshots are read again by who reads already. */
	if (rank < ARRAY_SIZE(places))
		lock_acquire(&places[rank], 0, tried, rank == HSAVE_RANK_SNAPSHOT ? 2 : read, 1, NULL, _RET_IP_);
}

void hsave_lock_gone(u32 rank)
{
	if (rank < ARRAY_SIZE(places))
		lock_release(&places[rank], _RET_IP_);
}

#else

void hsave_lock_wanted(u32 rank)
{
}

void hsave_lock_taken(u32 rank, bool read, bool tried)
{
}

void hsave_lock_gone(u32 rank)
{
}

#endif
