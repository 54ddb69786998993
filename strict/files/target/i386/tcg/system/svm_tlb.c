/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Translations by ASID (APM volume 2, 15.16), and the check for those that are stale.
 *
 * The emulator's own TLB forgets everything at each VMRUN and #VMEXIT. Here is what a processor remembers under a guest's
 * ASID: the guest's translations, which are used again until somebody flushes them, as on a processor whose TLB is never
 * full; and, for the check alone, the nested ones, of which each is remembered until its ASID is flushed.
 *
 * A nested translation is stale if the tables no longer give it, or give fewer rights. That is no mistake while another
 * processor is changing the tables and has yet to tell this one. So a suspect is reported only when all others have since
 * been seen where nobody holds the hypervisor's locks (in user space, in a guest, halted), the guest has then been entered,
 * left, and is entered again, and the translation has still not been flushed. Whoever changes the tables may also lose its
 * processor before it asks for the flush, to this very guest; so some time has to pass as well.
 */
#include "qemu/osdep.h"
#include "qemu/timer.h"
#include "cpu.h"
#include "exec/cputlb.h"
#include "exec/helper-proto.h"
#include "tcg/helper-tcg.h"
#include "svm_ext.h"

/* How many nested translations are looked at again at a VMRUN, and how often at most. */
#define SWEEP 256
#define SWEEP_NS 1000000
/* How long a translation may be suspected where somebody may be waiting for a processor. */
#define PATIENCE_NS 5000000000

typedef struct Linear {
    uint64_t key;
    hwaddr paddr, gpa;
    int prot, page_size;
    /* What was in force when it was made and is looked at with every access. */
    int mode;
    uint32_t pkru;
} Linear;

typedef struct Nested {
    hwaddr gpa, hpa;
    uint64_t size;
    int prot;
    /* The grace period that has to end, 0 if there is nothing to suspect, and whether its end was seen at a VMRUN. */
    uint64_t suspect;
    int64_t since;
    bool ended;
} Nested;

typedef struct Asid {
    GHashTable *linear;     /* Linear, by its key */
    GHashTable *index;      /* of Nested, by gpa and size */
    GArray *nested;
    guint next;             /* to be looked at */
    guint suspects;
    uint64_t ncr3;
} Asid;

struct SVMTlb {
    GHashTable *asids;
    int64_t swept;
    /* Grace periods: the one that runs, or ran last; the processors that it still waits for. */
    uint64_t period;
    uint64_t waits;
};

#define MODE (PG_MODE_WP | PG_MODE_NXE | PG_MODE_SMEP | PG_MODE_PKE)

static void asid_free(gpointer data)
{
    Asid *a = data;

    g_hash_table_unref(a->linear);
    g_hash_table_unref(a->index);
    g_array_unref(a->nested);
    g_free(a);
}

static Asid *asid_of(CPUX86State *env, uint32_t asid, bool make)
{
    struct SVMTlb *t = env->svm.tlb;
    Asid *a;

    if (!t) {
        if (!make) {
            return NULL;
        }
        t = env->svm.tlb = g_new0(struct SVMTlb, 1);
        t->asids = g_hash_table_new_full(g_direct_hash, g_direct_equal, NULL,
                                         asid_free);
    }
    a = g_hash_table_lookup(t->asids, GUINT_TO_POINTER(asid));
    if (!a && make) {
        a = g_new0(Asid, 1);
        a->linear = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL,
                                          g_free);
        a->index = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free,
                                         NULL);
        a->nested = g_array_new(false, false, sizeof(Nested));
        g_hash_table_insert(t->asids, GUINT_TO_POINTER(asid), a);
    }
    return a;
}

/* Whether there is anything to remember translations for. */
static bool keeps(CPUX86State *env)
{
    return env_archcpu(env)->svm_kept_translations;
}

void svm_tlb_flush_all(CPUX86State *env)
{
    if (env->svm.tlb) {
        g_hash_table_remove_all(env->svm.tlb->asids);
    }
}

void svm_tlb_flush_asid(CPUX86State *env, uint32_t asid)
{
    if (env->svm.tlb) {
        g_hash_table_remove(env->svm.tlb->asids, GUINT_TO_POINTER(asid));
    }
}

/* The guest flushes its own translations: the nested ones stay. */
void svm_tlb_guest_flush(CPUX86State *env)
{
    if (env->hflags & HF_GUEST_MASK) {
        Asid *a = asid_of(env, env->svm.asid, false);

        if (a) {
            g_hash_table_remove_all(a->linear);
        }
    }
}

static gboolean same_page(gpointer key, gpointer value, gpointer data)
{
    Linear *l = value;

    return ((l->key ^ *(uint64_t *)data) & -(uint64_t)l->page_size) == 0;
}

static void flush_page(CPUX86State *env, uint32_t asid, uint64_t addr)
{
    Asid *a = asid_of(env, asid, false);

    if (a) {
        g_hash_table_foreach_remove(a->linear, same_page, &addr);
    }
}

void svm_tlb_invlpg(CPUX86State *env, target_ulong addr)
{
    if (env->hflags & HF_GUEST_MASK) {
        flush_page(env, env->svm.asid, addr);
    }
}

void helper_invlpga(CPUX86State *env, target_ulong addr)
{
    uint32_t asid = env->regs[R_ECX];

    svm_check_invlpga(env, asid);
    flush_page(env, asid, addr);
    if (asid == 0) {
        tlb_flush_page(env_cpu(env), addr);
    }
}

/*
 * What the nested tables say of an address now, without leaving a trace in them. Accessed and dirty bits do not count.
 * Returns the rights, 0 if there is nothing.
 */
static int walk(CPUX86State *env, hwaddr gpa, hwaddr *hpa, uint64_t *size)
{
    CPUState *cs = env_cpu(env);
    int mode = env->nested_pg_mode, level, prot = PAGE_READ | PAGE_WRITE | PAGE_EXEC;
    uint64_t table = env->nested_cr3 & PG_ADDRESS_MASK;

    if (!(mode & PG_MODE_LMA)) {
        /* Hosts of 32 bits are not looked at. */
        *size = 0;
        return 0;
    }
    for (level = mode & PG_MODE_LA57 ? 5 : 4; level; level--) {
        int shift = 12 + (level - 1) * 9;
        uint64_t pte = x86_ldq_phys(cs, table + ((gpa >> shift) & 0x1ff) * 8);

        *size = 1ull << shift;
        if (!(pte & PG_PRESENT_MASK) || !(pte & PG_USER_MASK)) {
            return 0;
        }
        if (!(pte & PG_RW_MASK)) {
            prot &= ~PAGE_WRITE;
        }
        if ((pte & PG_NX_MASK) && (mode & PG_MODE_NXE)) {
            prot &= ~PAGE_EXEC;
        }
        table = pte & PG_ADDRESS_MASK;
        if (level == 1 || (level <= 3 && (pte & PG_PSE_MASK))) {
            *hpa = (table & -*size) | (gpa & (*size - 1));
            return prot;
        }
    }
    return 0;
}

/* Looks who can no longer be in the middle of something that began before this grace period. */
static void observe(CPUX86State *env, struct SVMTlb *t)
{
    CPUState *cs;

    if (!t->waits) {
        return;
    }
    CPU_FOREACH(cs) {
        CPUX86State *other = cpu_env(cs);
        uint32_t hflags = qatomic_read(&other->hflags);

        if ((hflags & HF_GUEST_MASK) || (hflags & HF_CPL_MASK) == 3 ||
            qatomic_read(&cs->halted)) {
            t->waits &= ~(1ull << cs->cpu_index);
        }
    }
}

static void suspect(CPUX86State *env, Asid *a, Nested *n)
{
    struct SVMTlb *t = env->svm.tlb;

    if (n->suspect) {
        return;
    }
    observe(env, t);
    if (!t->waits) {
        CPUState *cs;

        t->period++;
        CPU_FOREACH(cs) {
            if (cs != env_cpu(env)) {
                t->waits |= 1ull << cs->cpu_index;
            }
        }
        n->suspect = t->period;
    } else {
        /* One runs already, which began too early for this one. */
        n->suspect = t->period + 1;
    }
    n->ended = false;
    n->since = get_clock();
    a->suspects++;
}

static void stale(CPUX86State *env, Nested *n, const char *when, int prot,
                  hwaddr hpa)
{
    svm_report(env, SVM_CHECK_TRANSLATIONS,
               "%s: ASID %u has guest page 0x%" PRIx64 " (0x%" PRIx64
               " bytes) at 0x%" PRIx64 " with rights %d; the tables say 0x%"
               PRIx64 " with rights %d", when, env->svm.asid,
               (uint64_t)n->gpa, n->size, (uint64_t)n->hpa, n->prot,
               (uint64_t)(prot ? hpa & -n->size : 0), prot);
}

/* Whether the tables still give what is remembered. */
static bool holds(CPUX86State *env, Nested *n, int *prot, hwaddr *hpa)
{
    uint64_t size;

    *hpa = 0;
    *prot = walk(env, n->gpa, hpa, &size);
    if (!*prot && !size) {
        return true;
    }
    return *hpa == n->hpa && !(n->prot & ~*prot);
}

/* At a VMRUN, after what it flushes. */
static void examine(CPUX86State *env, Asid *a, guint i)
{
    struct SVMTlb *t = env->svm.tlb;
    Nested *n = &g_array_index(a->nested, Nested, i);
    hwaddr hpa;
    int prot;

    if (holds(env, n, &prot, &hpa)) {
        if (n->suspect) {
            n->suspect = 0;
            a->suspects--;
        }
        return;
    }
    if (!n->suspect) {
        suspect(env, a, n);
    } else if (n->suspect < t->period || (n->suspect == t->period && !t->waits)) {
        if (CPU_NEXT(first_cpu) && get_clock() - n->since < PATIENCE_NS) {
            return;
        }
        if (n->ended) {
            stale(env, n, "at VMRUN", prot, hpa);
            /* Once is enough. */
            n->prot = prot;
            n->hpa = hpa;
            n->suspect = 0;
            a->suspects--;
            if (!prot) {
                n->hpa = -1;
            }
        } else {
            n->ended = true;
        }
    } else if (n->suspect > t->period && !t->waits) {
        CPUState *cs;

        t->period++;
        CPU_FOREACH(cs) {
            if (cs != env_cpu(env)) {
                t->waits |= 1ull << cs->cpu_index;
            }
        }
    }
}

void svm_tlb_vmrun(CPUX86State *env)
{
    Asid *a;
    int64_t now;
    guint i;

    if (!keeps(env) || !svm_checks(env, SVM_CHECK_TRANSLATIONS) ||
        !(a = asid_of(env, env->svm.asid, false))) {
        return;
    }
    if (a->ncr3 != env->nested_cr3 && a->nested->len) {
        svm_report(env, SVM_CHECK_RULES,
                   "ASID %u is used with nested CR3 0x%" PRIx64 " after 0x%"
                   PRIx64 " without a flush", env->svm.asid,
                   (uint64_t)env->nested_cr3, a->ncr3);
        svm_tlb_flush_asid(env, env->svm.asid);
        return;
    }
    observe(env, env->svm.tlb);
    if (a->suspects) {
        for (i = 0; i < a->nested->len; i++) {
            if (g_array_index(a->nested, Nested, i).suspect) {
                examine(env, a, i);
            }
        }
    }
    now = get_clock();
    if (now - env->svm.tlb->swept < SWEEP_NS) {
        return;
    }
    env->svm.tlb->swept = now;
    for (i = 0; i < SWEEP && i < a->nested->len; i++) {
        if (a->next >= a->nested->len) {
            a->next = 0;
        }
        examine(env, a, a->next++);
    }
}

/* The emulator has walked the nested tables. */
void svm_tlb_nested(CPUX86State *env, hwaddr gpa, hwaddr hpa, int prot,
                    uint64_t size)
{
    Asid *a;
    gpointer at;
    Nested *n;
    uint64_t key;

    if (!keeps(env) || !svm_checks(env, SVM_CHECK_TRANSLATIONS) ||
        !(env->hflags & HF_GUEST_MASK)) {
        return;
    }
    gpa &= -size;
    hpa &= -size;
    a = asid_of(env, env->svm.asid, true);
    a->ncr3 = env->nested_cr3;
    key = gpa | ctz64(size);
    at = g_hash_table_lookup(a->index, &key);
    if (at) {
        n = &g_array_index(a->nested, Nested, GPOINTER_TO_UINT(at) - 1);
        if (n->hpa != hpa && n->hpa != -1) {
            suspect(env, a, n);
        } else if (n->hpa == -1) {
            n->hpa = hpa;
            n->prot = prot;
        } else if (!n->suspect) {
            n->prot |= prot;
        }
    } else {
        Nested new = { .gpa = gpa, .hpa = hpa, .size = size, .prot = prot };

        g_array_append_val(a->nested, new);
        g_hash_table_insert(a->index, g_memdup2(&key, sizeof(key)),
                            GUINT_TO_POINTER(a->nested->len));
    }
}

bool svm_tlb_lookup(CPUX86State *env, vaddr addr, int access_type, int mmu_idx,
                    hwaddr *paddr, int *prot, int *page_size)
{
    uint64_t key = (addr & TARGET_PAGE_MASK) | mmu_idx;
    Asid *a = keeps(env) ? asid_of(env, env->svm.asid, false) : NULL;
    Linear *l = a ? g_hash_table_lookup(a->linear, &key) : NULL;

    if (!l || !(l->prot & (1 << access_type)) || l->pkru != env->pkru ||
        l->mode != (get_pg_mode(env) & MODE)) {
        return false;
    }
    *paddr = l->paddr | (addr & ~TARGET_PAGE_MASK);
    *prot = l->prot;
    *page_size = l->page_size;
    if (svm_checks(env, SVM_CHECK_TRANSLATIONS) && !CPU_NEXT(first_cpu)) {
        /* Nobody else is there who could be changing the tables, so it was changed before the guest was entered. */
        Nested used = { .gpa = l->gpa, .hpa = l->paddr, .size = TARGET_PAGE_SIZE, .prot = l->prot };
        hwaddr hpa;
        int now;

        if (!holds(env, &used, &now, &hpa)) {
            stale(env, &used, "used", now, hpa);
        }
    }
    return true;
}

void svm_tlb_insert(CPUX86State *env, vaddr addr, int mmu_idx, hwaddr paddr,
                    int prot, int page_size)
{
    Linear *l;
    Asid *a;

    if (!keeps(env)) {
        return;
    }
    a = asid_of(env, env->svm.asid, true);
    a->ncr3 = env->nested_cr3;
    l = g_new(Linear, 1);
    l->key = (addr & TARGET_PAGE_MASK) | mmu_idx;
    l->paddr = paddr & TARGET_PAGE_MASK;
    l->gpa = env->svm.gpa & TARGET_PAGE_MASK;
    l->prot = prot;
    l->page_size = page_size;
    l->mode = get_pg_mode(env) & MODE;
    l->pkru = env->pkru;
    g_hash_table_replace(a->linear, &l->key, l);
}
