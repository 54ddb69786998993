// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's FPU state, kept by the kernel's own FPU code.
 */
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <asm/fpu/api.h>
#include <asm/fpu/types.h>
#include <hsave.h>
#include <kvm_trace.h>

/* An engine has the state, and while the vCPU goes to another one that one as well. */
struct counted_fpu {
	struct fpu_guest fpu;
	refcount_t refs;
};

struct fpu_guest *hsave_fpu_new(void)
{
	struct counted_fpu *c = kzalloc(sizeof(*c), GFP_KERNEL_ACCOUNT);

	if (!c)
		return NULL;
	if (!fpu_alloc_guest_fpstate(&c->fpu)) {
		kfree(c);
		return NULL;
	}
	refcount_set(&c->refs, 1);
	return &c->fpu;
}

void hsave_fpu_hold(struct fpu_guest *fpu)
{
	refcount_inc(&container_of(fpu, struct counted_fpu, fpu)->refs);
}

void hsave_fpu_free(struct fpu_guest *fpu)
{
	struct counted_fpu *c = container_of(fpu, struct counted_fpu, fpu);

	if (!refcount_dec_and_test(&c->refs))
		return;
	fpu_free_guest_fpstate(fpu);
	kfree(c);
}

/* Swaps the task's state with the guest's, in or out. */
void hsave_fpu_swap(struct fpu_guest *fpu, bool enter)
{
	fpu_swap_kvm_fpstate(fpu, enter);
	trace_kvm_fpu(enter);
}

size_t hsave_fpu_user_size(const struct fpu_guest *fpu)
{
	return fpu->uabi_size;
}

void hsave_fpu_get(struct fpu_guest *fpu, u8 *buf, unsigned int size, u64 xfeatures, u32 pkru)
{
	fpu_copy_guest_fpstate_to_uabi(fpu, buf, size, xfeatures, pkru);
}

/* buf holds at least uabi_size bytes. */
int hsave_fpu_set(struct fpu_guest *fpu, const u8 *buf, u64 xcr0, u32 *pkru)
{
	return fpu_copy_uabi_to_guest_fpstate(fpu, buf, xcr0, pkru);
}

/*
 * The guest's vector registers, live: between hsave_fpu_swap in and out. The lock keeps them in the processor, where
 * they may have to be brought back first.
 */
static void registers_begin(void)
{
	fpregs_lock();
	if (test_thread_flag(TIF_NEED_FPU_LOAD))
		switch_fpu_return();
}

#define EACH_REGISTER(X) \
	X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

/* Bits 255:0 of register n (0 to 15); without AVX the upper half of out stays. */
void hsave_fpu_vector_get(u32 n, u8 *out)
{
	u8 (*ymm)[32] = (void *)out;
	u8 (*xmm)[16] = (void *)out;
	bool avx = boot_cpu_has(X86_FEATURE_AVX);

	registers_begin();
	switch (n) {
#define GET(r)                                                                 \
	case r:                                                                \
		if (avx)                                                       \
			asm volatile("vmovdqu %%ymm" #r ", %0" : "=m"(*ymm));   \
		else                                                           \
			asm volatile("movdqu %%xmm" #r ", %0" : "=m"(*xmm));    \
		break;
	EACH_REGISTER(GET)
#undef GET
	}
	fpregs_unlock();
}

/* vex: all of 255:0, what is above is cleared; else 127:0, what is above stays. */
void hsave_fpu_vector_set(u32 n, const u8 *in, bool vex)
{
	const u8 (*ymm)[32] = (const void *)in;
	const u8 (*xmm)[16] = (const void *)in;
	bool avx = vex && boot_cpu_has(X86_FEATURE_AVX);

	registers_begin();
	switch (n) {
#define SET(r)                                                                 \
	case r:                                                                \
		if (avx)                                                       \
			asm volatile("vmovdqu %0, %%ymm" #r : : "m"(*ymm));     \
		else                                                           \
			asm volatile("movdqu %0, %%xmm" #r : : "m"(*xmm));      \
		break;
	EACH_REGISTER(SET)
#undef SET
	}
	fpregs_unlock();
}

u16 hsave_fpu_x87_control(void)
{
	u16 control;

	registers_begin();
	asm volatile("fnstcw %0" : "=m"(control));
	fpregs_unlock();
	return control;
}

u16 hsave_fpu_x87_status(void)
{
	u16 status;

	registers_begin();
	asm volatile("fnstsw %0" : "=m"(status));
	fpregs_unlock();
	return status;
}

#define EACH_MMX(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

/* MMX register n (0 to 7), with what an MMX instruction does to the x87 state. */
u64 hsave_fpu_mmx_get(u32 n)
{
	u64 value = 0;

	registers_begin();
	switch (n) {
#define GET(r)                                                                 \
	case r:                                                                \
		asm volatile("movq %%mm" #r ", %0" : "=m"(value));              \
		break;
	EACH_MMX(GET)
#undef GET
	}
	fpregs_unlock();
	return value;
}

void hsave_fpu_mmx_set(u32 n, u64 value)
{
	registers_begin();
	switch (n) {
#define SET(r)                                                                 \
	case r:                                                                \
		asm volatile("movq %0, %%mm" #r : : "m"(value));                \
		break;
	EACH_MMX(SET)
#undef SET
	}
	fpregs_unlock();
}

/* This task dies in KVM_RUN: its FPU state is its own again before the guest's is freed. */
void hsave_fpu_abandon(void)
{
#if LINUX_AT_LEAST(6, 16)
	/* x86_task_fpu(), which is not for modules where the kernel checks its use. */
	struct fpu *fpu = (void *)current + sizeof(*current);
#else
	struct fpu *fpu = &current->thread.fpu;
#endif
	struct fpu_guest guest = { .fpstate = fpu->fpstate };

	if (fpu->__task_fpstate)
		fpu_swap_kvm_fpstate(&guest, false);
}
