/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Clean bits (APM volume 2, 15.15): a processor keeps the VMCBs that it ran, by address, and takes the groups that the
 * hypervisor calls clean from there, whatever memory says. So a bit that was forgotten has its effect; and it is reported.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "tcg/helper-tcg.h"
#include "svm_ext.h"

/* More than a hypervisor under test has at a time. */
#define KEPT 64

struct SVMCache {
    struct vmcb vmcb[KEPT];
    hwaddr addr[KEPT];
    uint64_t used[KEPT];
    uint64_t count;
    int now;
};

static const struct {
    uint16_t bit, start, len;
    const char *name;
} groups[] = {
#define SPAN(bit, from, to) { bit, offsetof(struct vmcb, from), \
    offsetof(struct vmcb, to) + sizeof(((struct vmcb *)0)->to) - \
    offsetof(struct vmcb, from), #from }
#define ONE(bit, field) SPAN(bit, field, field)
    SPAN(0, control.intercept_cr_read, control.intercept5),
    SPAN(0, control.pause_filter_thresh, control.pause_filter_count),
    ONE(0, control.tsc_offset),
    SPAN(1, control.iopm_base_pa, control.msrpm_base_pa),
    ONE(2, control.asid),
    SPAN(3, control.int_ctl, control.int_vector),
    ONE(4, control.nested_ctl),
    ONE(4, control.nested_cr3),
    ONE(4, save.g_pat),
    ONE(5, save.efer),
    SPAN(5, save.cr4, save.cr0),
    SPAN(6, save.dr7, save.dr6),
    ONE(7, save.gdtr),
    ONE(7, save.idtr),
    SPAN(8, save.es, save.ds),
    ONE(8, save.cpl),
    ONE(9, save.cr2),
    SPAN(10, save.dbgctl, save.last_excp_to),
#undef ONE
#undef SPAN
};

static void compare(CPUX86State *env, struct vmcb *v, const struct vmcb *old)
{
    uint32_t clean = v->control.clean;

    for (int g = 0; g < ARRAY_SIZE(groups); g++) {
        uint8_t *now = (uint8_t *)v + groups[g].start;
        const uint8_t *was = (const uint8_t *)old + groups[g].start;
        int k;

        if (!(clean & (1u << groups[g].bit)) ||
            !memcmp(now, was, groups[g].len)) {
            continue;
        }
        for (k = 0; now[k] == was[k]; k++) {
        }
        svm_report(env, SVM_CHECK_CLEAN, "group %d (%s) is clean, but the byte "
                   "at 0x%x went from 0x%02x to 0x%02x", groups[g].bit,
                   groups[g].name, groups[g].start + k, was[k], now[k]);
        memcpy(now, was, groups[g].len);
    }
}

void svm_clean_load(CPUX86State *env, struct vmcb *v)
{
    struct SVMCache *c = env->svm.cache;
    int i, oldest = 0;

    if (!(env->features[FEAT_SVM] & CPUID_SVM_VMCBCLEAN)) {
        return;
    }
    if (!c) {
        c = env->svm.cache = g_new0(struct SVMCache, 1);
        memset(c->addr, 0xff, sizeof(c->addr));
    }
    for (i = 0; i < KEPT && c->addr[i] != env->vm_vmcb; i++) {
        if (c->used[i] < c->used[oldest]) {
            oldest = i;
        }
    }
    if (i < KEPT) {
        compare(env, v, &c->vmcb[i]);
    } else {
        i = oldest;
        if (v->control.clean && !c->used[i]) {
            svm_report(env, SVM_CHECK_CLEAN, "clean bits 0x%x in a VMCB that "
                       "this processor has never run", v->control.clean);
        }
        c->addr[i] = env->vm_vmcb;
    }
    c->vmcb[i] = *v;
    c->used[i] = ++c->count;
    c->now = i;
}

/* What #VMEXIT has written is what the processor has from now on. */
void svm_clean_store(CPUX86State *env)
{
    struct SVMCache *c = env->svm.cache;
    struct vmcb now;

    if (!(env->features[FEAT_SVM] & CPUID_SVM_VMCBCLEAN) || !c ||
        c->addr[c->now] != env->vm_vmcb) {
        return;
    }
    cpu_physical_memory_read(env->vm_vmcb, &now, sizeof(now));
    for (int g = 0; g < ARRAY_SIZE(groups); g++) {
        int start = groups[g].start, bit = groups[g].bit;

        /* #VMEXIT writes no intercepts, permission maps, ASID and nested tables; the PAT it does. */
        if ((bit > 2 && bit != 4) ||
            start == offsetof(struct vmcb, save.g_pat)) {
            memcpy((uint8_t *)&c->vmcb[c->now] + start,
                   (uint8_t *)&now + start, groups[g].len);
        }
    }
}
