/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reports of what a real processor would not forgive, and the small checks.
 *
 * A report is a line on standard error that begins with `strict: `, with the check's name, the processor, RIP, the VMCB and how
 * many there were of that check; ./x takes any as a failure. Only the first few are printed.
 */
#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/thread.h"
#include "cpu.h"
#include "exec/helper-proto.h"
#include "tcg/helper-tcg.h"
#include "svm_ext.h"

#define SHOWN 20

static const char *const names[SVM_CHECKS] = {
    [SVM_CHECK_TRANSLATIONS] = "stale translation",
    [SVM_CHECK_CLEAN] = "clean bits",
    [SVM_CHECK_VMCB] = "vmcb",
    [SVM_CHECK_LEFTOVERS] = "left-over",
    [SVM_CHECK_PREDICTION] = "prediction",
    [SVM_CHECK_RULES] = "rule",
    [SVM_CHECK_SHADOW] = "interrupt shadow",
};
static int counts[SVM_CHECKS];

void svm_report(CPUX86State *env, int check, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;
    int count;

    if (!svm_checks(env, check)) {
        return;
    }
    count = qatomic_inc_fetch(&counts[check]);
    if (count > SHOWN) {
        return;
    }
    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    fprintf(stderr, "strict: %s %d: cpu %d rip 0x%" PRIx64 " vmcb 0x%" PRIx64
            "%s: %s\n", names[check], count, env_cpu(env)->cpu_index,
            (uint64_t)env->eip, (uint64_t)env->vm_vmcb,
            env->hflags & HF_GUEST_MASK ? " in the guest" : "", text);
}

void svm_check_invlpga(CPUX86State *env, uint32_t asid)
{
    if (asid >= SVM_ASIDS) {
        svm_report(env, SVM_CHECK_RULES, "INVLPGA of ASID %u, which does not "
                   "exist", asid);
    }
}

/*
 * What #VMEXIT left of the VMCBs that ran last, on whatever processor, for what the next VMRUN may do with them, on whatever
 * processor that is.
 */
#define LEFT 64

static struct {
    hwaddr vmcb;
    uint64_t rip;
    bool shadow;
} left[LEFT];
static unsigned next_left;
static QemuSpin left_lock;

/* What VMRUN does not switch, but for the general registers. */
typedef struct Unswitched {
    uint64_t values[20];
    uint64_t xmm[CPU_NB_REGS64][2];
} Unswitched;

static const char *const unswitched[] = {
    "STAR", "LSTAR", "CSTAR", "SFMASK", "KernelGSBase", "GS base", "FS base",
    "SYSENTER_CS", "SYSENTER_ESP", "SYSENTER_EIP", "TSC_AUX", "XCR0", "XSS",
    "PKRU", "DEBUGCTL", "SPEC_CTRL", "DR0", "DR1", "DR2", "DR3",
};
QEMU_BUILD_BUG_ON(ARRAY_SIZE(unswitched) != 20);
#define FIRST_DR 16

struct SVMChecks {
    /* What was there at the last #VMEXIT, and at the last return to user space. */
    Unswitched guest, user;
    bool guest_is_newer, user_is_known;
    /* Was it looked at since, at an NMI and at a write of CR3? */
    bool nmi_looked, switch_looked;
    /* Whether that guest could use the FPU without asking. */
    bool guest_has_fpu;
    uint64_t regs[CPU_NB_REGS64];
    /* Since the last #VMEXIT. */
    unsigned calls;
    /* The guest before this one on this processor, and whether a barrier came since. */
    hwaddr last_vmcb, last_ncr3;
    bool barrier;
};

static struct SVMChecks *own(CPUX86State *env)
{
    if (!env->svm.checks) {
        env->svm.checks = g_new0(struct SVMChecks, 1);
    }
    return env->svm.checks;
}

static void remember(CPUX86State *env, bool shadow)
{
    unsigned i;

    qemu_spin_lock(&left_lock);
    for (i = 0; i < LEFT && left[i].vmcb != env->vm_vmcb; i++) {
    }
    if (i == LEFT) {
        i = next_left++ % LEFT;
    }
    left[i].vmcb = env->vm_vmcb;
    left[i].rip = env->eip;
    left[i].shadow = shadow;
    qemu_spin_unlock(&left_lock);
}

/*
 * The shadow of STI or MOV SS ends with the next instruction. A hypervisor that has executed that instruction itself, so that RIP
 * is another one, has to take the shadow away (APM 15.21.5).
 */
static void check_shadow(CPUX86State *env, const struct vmcb *v)
{
    bool shadow = false;
    uint64_t rip = 0;

    qemu_spin_lock(&left_lock);
    for (int i = 0; i < LEFT; i++) {
        if (left[i].vmcb == env->vm_vmcb) {
            shadow = left[i].shadow;
            rip = left[i].rip;
        }
    }
    qemu_spin_unlock(&left_lock);
    if (shadow && (v->control.int_state & SVM_INTERRUPT_SHADOW_MASK) &&
        v->save.rip != rip) {
        svm_report(env, SVM_CHECK_SHADOW, "the interrupt shadow at guest rip 0x%"
                   PRIx64 " is still there at 0x%" PRIx64, rip, v->save.rip);
    }
}

/*
 * Another guest's predictions (APM volume 2, 3.2.9): whoever was here before may have trained the branch predictor, unless
 * IBPB came in between. Guests are told apart by VMCB and nested CR3, so that the vCPUs of one VM count as one.
 */
static void check_barrier(CPUX86State *env, const struct vmcb *v)
{
    struct SVMChecks *c = own(env);

    if (c->last_vmcb && c->last_vmcb != env->vm_vmcb &&
        c->last_ncr3 != v->control.nested_cr3 && !c->barrier &&
        (env->features[FEAT_8000_0008_EBX] & CPUID_8000_0008_EBX_IBPB)) {
        svm_report(env, SVM_CHECK_PREDICTION, "another guest (VMCB 0x%" PRIx64
                   ", nested CR3 0x%" PRIx64 ") was here, and no IBPB since",
                   (uint64_t)c->last_vmcb, (uint64_t)c->last_ncr3);
    }
    c->last_vmcb = env->vm_vmcb;
    c->last_ncr3 = v->control.nested_cr3;
    c->barrier = false;
}

static void look(CPUX86State *env, Unswitched *u)
{
    uint64_t values[] = {
        env->star, env->lstar, env->cstar, env->fmask, env->kernelgsbase,
        env->segs[R_GS].base, env->segs[R_FS].base, env->sysenter_cs,
        env->sysenter_esp, env->sysenter_eip, env->tsc_aux, env->xcr0,
        env->xss, env->pkru, env->svm.lbr[0],
        /* A virtual one is no left-over. */
        env->features[FEAT_SVM] & CPUID_SVM_V_SPEC_CTRL ? 0 : env->spec_ctrl,
        env->dr[0], env->dr[1], env->dr[2], env->dr[3],
    };

    QEMU_BUILD_BUG_ON(sizeof(values) != sizeof(u->values));
    memcpy(u->values, values, sizeof(values));
    for (int i = 0; i < CPU_NB_REGS64; i++) {
        u->xmm[i][0] = env->xmm_regs[i].ZMM_Q(0);
        u->xmm[i][1] = env->xmm_regs[i].ZMM_Q(1);
    }
}

/*
 * The host has returned to user space. What is a guest's there is what this processor had at the last #VMEXIT and user space did
 * not have when it was here last. A value of 0 tells nothing.
 */
void svm_check_user(CPUX86State *env)
{
    struct SVMChecks *c = env->svm.checks;
    Unswitched now;

    /* Nothing can be left where no guest has run; the first return after that has nothing to compare with but is remembered. */
    if (!c || (env->hflags & HF_GUEST_MASK) ||
        !svm_checks(env, SVM_CHECK_LEFTOVERS)) {
        return;
    }
    look(env, &now);
    if (c->guest_is_newer && c->user_is_known) {
        for (int i = 0; i < ARRAY_SIZE(unswitched); i++) {
            if (i >= FIRST_DR &&
                !(env->dr[7] >> (i - FIRST_DR) * 2 & 3)) {
                /* A breakpoint that is off has no effect, and the address can be read by the kernel alone. */
                continue;
            }
            if (now.values[i] && now.values[i] == c->guest.values[i] &&
                now.values[i] != c->user.values[i]) {
                svm_report(env, SVM_CHECK_LEFTOVERS, "%s is the guest's in user "
                           "space: 0x%" PRIx64 ", where it was 0x%" PRIx64
                           " before", unswitched[i], now.values[i],
                           c->user.values[i]);
            }
        }
        if (c->guest_has_fpu &&
            !memcmp(now.xmm, c->guest.xmm, sizeof(now.xmm)) &&
            memcmp(now.xmm, c->user.xmm, sizeof(now.xmm)) &&
            !buffer_is_zero(now.xmm, sizeof(now.xmm))) {
            svm_report(env, SVM_CHECK_LEFTOVERS, "the FPU registers are the "
                       "guest's in user space: XMM0 is 0x%" PRIx64,
                       now.xmm[0][0]);
        }
    }
    c->user = now;
    c->user_is_known = true;
    c->guest_is_newer = false;
}

/*
 * The host takes an NMI, or writes CR3, as a switch to another task does: the first time after a #VMEXIT it is looked at whether
 * something of the guest's is in force there that an NMI's handler or another task would run under. Not what the host may leave
 * until it returns to user space (TSC_AUX, FPU registers), what it changes by task (SPEC_CTRL), the kernel's own GS base, nor
 * breakpoints, which are off.
 */
static void svm_check_kernel(CPUX86State *env, bool *looked, const char *when)
{
    static const int which[] = { 0, 1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14 };
    struct SVMChecks *c = env->svm.checks;
    Unswitched now;

    if (!c || (env->hflags & HF_GUEST_MASK) || *looked ||
        !c->guest_is_newer || !c->user_is_known ||
        !svm_checks(env, SVM_CHECK_LEFTOVERS)) {
        return;
    }
    *looked = true;
    look(env, &now);
    for (int k = 0; k < ARRAY_SIZE(which); k++) {
        int i = which[k];

        if (now.values[i] && now.values[i] == c->guest.values[i] &&
            now.values[i] != c->user.values[i]) {
            svm_report(env, SVM_CHECK_LEFTOVERS, "%s is the guest's at %s: 0x%"
                       PRIx64 ", where user space had 0x%" PRIx64,
                       unswitched[i], when, now.values[i], c->user.values[i]);
        }
    }
}

void svm_check_nmi(CPUX86State *env)
{
    if (env->svm.checks) {
        svm_check_kernel(env, &env->svm.checks->nmi_looked, "an NMI");
    }
}

void svm_check_switch(CPUX86State *env)
{
    if (env->svm.checks) {
        svm_check_kernel(env, &env->svm.checks->switch_looked,
                         "a switch of tables");
    }
}

/* The other way round: a guest that can use its FPU registers has user space's in them. */
static void check_guest_sees(CPUX86State *env, const struct vmcb *v)
{
    struct SVMChecks *c = own(env);
    Unswitched now;

    if (!c->user_is_known || !svm_checks(env, SVM_CHECK_LEFTOVERS) ||
        (v->save.cr0 & CR0_TS_MASK) ||
        (v->control.intercept_exceptions & (1u << EXCP07_PREX))) {
        return;
    }
    look(env, &now);
    if (!memcmp(now.xmm, c->user.xmm, sizeof(now.xmm)) &&
        memcmp(now.xmm, c->guest.xmm, sizeof(now.xmm)) &&
        now.xmm[0][0] && now.xmm[1][0]) {
        svm_report(env, SVM_CHECK_LEFTOVERS, "the FPU registers are user "
                   "space's in the guest: XMM0 is 0x%" PRIx64, now.xmm[0][0]);
    }
}

/*
 * Whether this RET is the end of a sequence that makes the following ones safe, so that it is not at the guest's mercy itself
 * although registers are not cleared yet: nothing but a jump, a call and what drops its return address since LFENCE (the
 * untraining of return prediction, which has just trained this RET), or since IBPB.
 */
#define LONG_AGO (UINT32_MAX / 2)

static bool ends_untraining(CPUX86State *env, uint32_t kind)
{
    return kind == SVM_BRANCH_RET && env->svm.since_fence <= 4;
}

static void check_regs(CPUX86State *env, uint32_t kind, uintptr_t ra)
{
    static const char *const regs[CPU_NB_REGS64] = {
        NULL, "RCX", "RDX", "RBX", NULL, "RBP", "RSI", "RDI",
        "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15",
    };
    struct SVMChecks *c = own(env);

    for (int i = 0; i < CPU_NB_REGS64; i++) {
        /* Small numbers are everywhere. */
        if (regs[i] && env->regs[i] == c->regs[i] && c->regs[i] > 0xffff) {
            cpu_restore_state(env_cpu(env), ra);
            svm_report(env, SVM_CHECK_LEFTOVERS, "%s is the guest's at the first "
                       "%s: 0x%" PRIx64, regs[i], kind == SVM_BRANCH_RET ?
                       "RET" : "indirect branch", (uint64_t)env->regs[i]);
        }
    }
}

/*
 * The first RET or indirect branch after #VMEXIT, or a CALL before it. It may go wherever the guest wants unless the return
 * stack has been refilled (32 calls), and it may leak what the guest left in general registers.
 */
void helper_svm_branch(CPUX86State *env, uint32_t kind)
{
    struct SVMChecks *c = own(env);

    if (kind == SVM_BRANCH_CALL) {
        c->calls++;
        return;
    }
    if (ends_untraining(env, kind)) {
        /* Of one RET that is true. */
        env->svm.since_fence = LONG_AGO;
    } else {
        env->hflags &= ~HF_SVMEXIT_MASK;
        check_regs(env, kind, GETPC());
    }
    if (c->calls < 32 && kind == SVM_BRANCH_RET) {
        cpu_restore_state(env_cpu(env), GETPC());
        svm_report(env, SVM_CHECK_PREDICTION, "the first RET after #VMEXIT comes "
                   "after %u calls, which do not refill the return stack",
                   c->calls);
    }
    if (!(env->features[FEAT_SVM] & CPUID_SVM_V_SPEC_CTRL) &&
        c->user_is_known && env->spec_ctrl == c->guest.values[15] &&
        env->spec_ctrl != c->user.values[15]) {
        cpu_restore_state(env_cpu(env), GETPC());
        svm_report(env, SVM_CHECK_PREDICTION, "the guest's SPEC_CTRL is in force "
                   "at the first branch: 0x%" PRIx64 " instead of 0x%" PRIx64,
                   env->spec_ctrl, c->user.values[15]);
    }
}

static void reserved(CPUX86State *env, const char *what, uint64_t value)
{
    if (value) {
        svm_report(env, SVM_CHECK_VMCB, "reserved bits of %s are set: 0x%"
                   PRIx64, what, value);
    }
}

/* At VMRUN, before anything of the VMCB is used. */
void svm_check_vmrun(CPUX86State *env, const struct vmcb *v)
{
    uint32_t features = env->features[FEAT_SVM];
    uint64_t int_ctl = V_TPR_MASK | V_IRQ_MASK | V_INTR_PRIO_MASK |
                       V_IGN_TPR_MASK | V_INTR_MASKING_MASK;

    if (env->hflags & HF_GUEST_MASK) {
        return;
    }
    if (env->hflags2 & HF2_GIF_MASK) {
        svm_report(env, SVM_CHECK_RULES, "VMRUN with GIF set: an interrupt "
                   "could have come between the last look and here");
    }
    if (!env->vm_hsave || (env->vm_hsave & 0xfff)) {
        svm_report(env, SVM_CHECK_RULES, "the host save area is at 0x%" PRIx64,
                   (uint64_t)env->vm_hsave);
    }
    if (env->vm_hsave == env->vm_vmcb) {
        svm_report(env, SVM_CHECK_RULES, "the host save area is the VMCB");
    }
    if (v->control.asid == 0 || v->control.asid >= SVM_ASIDS) {
        svm_report(env, SVM_CHECK_RULES, "ASID %u", v->control.asid);
    }
    check_shadow(env, v);
    check_barrier(env, v);
    check_guest_sees(env, v);

    if (features & CPUID_SVM_VGIF) {
        int_ctl |= V_GIF_MASK | V_GIF_ENABLED_MASK;
    }
    if (features & CPUID_SVM_VNMI) {
        int_ctl |= V_NMI_PENDING_MASK | V_NMI_BLOCKING_MASK |
                   V_NMI_ENABLED_MASK;
    }
    reserved(env, "the virtual interrupt control (60h)",
             v->control.int_ctl & ~int_ctl);
    reserved(env, "the virtual interrupt vector (64h)",
             v->control.int_vector & ~0xff);
    /* Bit 1 is for encrypted guests alone, but a #VMEXIT may have left it. */
    reserved(env, "the interrupt shadow (68h)", v->control.int_state & ~3);
    reserved(env, "nested paging (90h)", v->control.nested_ctl & ~1ull);
    reserved(env, "LBR and VMLOAD virtualization (B8h)", v->control.lbr_ctl &
             ~(uint64_t)((features & CPUID_SVM_LBRV ? 1 : 0) |
                         (features & CPUID_SVM_V_VMSAVE_VMLOAD ? 2 : 0)));
    /* Bit 31 is left to software. */
    reserved(env, "the clean bits (C0h)", v->control.clean & ~0x80001fffu);
    for (int i = 0; i < sizeof(v->control.reserved_1); i++) {
        reserved(env, "18h to 3Bh", v->control.reserved_1[i]);
    }
    for (int i = 0; i < sizeof(v->control.reserved_2); i++) {
        reserved(env, "5Dh to 5Fh", v->control.reserved_2[i]);
    }
    if (v->control.event_inj & SVM_EVTINJ_VALID) {
        reserved(env, "EVENTINJ (A8h)", v->control.event_inj & 0x7ffff000);
    }
}

/* Whether the APM says what this exit code's EXITINFO1 and EXITINFO2 are. */
static bool tells(CPUX86State *env, uint64_t exit_code)
{
    switch (exit_code) {
    case SVM_EXIT_READ_CR0 ... SVM_EXIT_WRITE_DR7 + 8:
    case SVM_EXIT_CR0_SEL_WRITE:
    case SVM_EXIT_INVLPG:
    case SVM_EXIT_SWINT:
        return env->features[FEAT_SVM] & CPUID_SVM_DECODEASSIST;
    case SVM_EXIT_INTR ... SVM_EXIT_NMI:
    case SVM_EXIT_VINTR:
    case SVM_EXIT_IDTR_READ ... SVM_EXIT_IRET:
    case SVM_EXIT_INVD ... SVM_EXIT_HLT:
    case SVM_EXIT_INVLPGA:
    case SVM_EXIT_VMRUN ... SVM_EXIT_XSETBV + 1:
        return false;
    default:
        return true;
    }
}

/* At #VMEXIT, with the guest's state still in the processor. */
void svm_check_vmexit(CPUX86State *env, bool shadow)
{
    struct SVMChecks *c = own(env);

    remember(env, shadow);
    look(env, &c->guest);
    c->guest_is_newer = true;
    c->nmi_looked = c->switch_looked = false;
    c->guest_has_fpu = !(env->cr[0] & CR0_TS_MASK) &&
                       !(env->intercept_exceptions & (1u << EXCP07_PREX));
    memcpy(c->regs, env->regs, sizeof(c->regs));
    c->calls = 0;
    env->svm.since_fence = LONG_AGO;
}

void svm_poison(CPUX86State *env, uint64_t exit_code)
{
    CPUState *cs = env_cpu(env);

    if (svm_checks(env, SVM_CHECK_VMCB) && !tells(env, exit_code)) {
        x86_stq_phys(cs, env->vm_vmcb +
                     offsetof(struct vmcb, control.exit_info_1), SVM_POISON);
        x86_stq_phys(cs, env->vm_vmcb +
                     offsetof(struct vmcb, control.exit_info_2), SVM_POISON);
    }
}

void svm_barrier(CPUX86State *env, uint64_t val)
{
    if (val & 1) {
        own(env)->barrier = true;
        env->svm.since_fence = 0;
    }
}
