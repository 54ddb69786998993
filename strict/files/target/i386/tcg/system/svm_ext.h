/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The functions that the emulator calls for our features of SVM and our checks.
 */
#ifndef TCG_SVM_EXT_H
#define TCG_SVM_EXT_H

/* svm_decode.c: fills in the instruction's bytes; returns EXITINFO1. */
uint64_t svm_decode_assist(CPUX86State *env, uint64_t exit_code,
                           uint64_t exit_info_1);

/* SPEC_CTRL exists with any of these, and with V_SPEC_CTRL a guest's is another one (APM volume 2, 15.32.2). */
#define SVM_SPEC_CTRL (CPUID_8000_0008_EBX_IBRS | CPUID_8000_0008_EBX_STIBP | \
                       CPUID_8000_0008_EBX_AMD_SSBD)

static inline uint64_t *svm_spec_ctrl_place(CPUX86State *env)
{
    return (env->hflags & HF_GUEST_MASK) &&
           (env->features[FEAT_SVM] & CPUID_SVM_V_SPEC_CTRL) ?
           &env->svm.spec_ctrl_guest : &env->spec_ctrl;
}

static inline void svm_set_spec_ctrl(CPUX86State *env, uint64_t val)
{
    *svm_spec_ctrl_place(env) = val;
}

static inline uint64_t svm_spec_ctrl(CPUX86State *env)
{
    return *svm_spec_ctrl_place(env);
}

/* svm_checks.c: PRED_CMD is written. */
void svm_barrier(CPUX86State *env, uint64_t val);

/* svm_tlb.c */
void svm_tlb_flush_all(CPUX86State *env);
void svm_tlb_flush_asid(CPUX86State *env, uint32_t asid);
void svm_tlb_guest_flush(CPUX86State *env);
void svm_tlb_invlpg(CPUX86State *env, target_ulong addr);
void svm_tlb_vmrun(CPUX86State *env);
void svm_tlb_nested(CPUX86State *env, hwaddr gpa, hwaddr hpa, int prot,
                    uint64_t size);
bool svm_tlb_lookup(CPUX86State *env, vaddr addr, int access_type, int mmu_idx,
                    hwaddr *paddr, int *prot, int *page_size);
void svm_tlb_insert(CPUX86State *env, vaddr addr, int mmu_idx, hwaddr paddr,
                    int prot, int page_size);

/* svm_clean.c: the VMCB as the processor has it, with the clean groups as they were. */
void svm_clean_load(CPUX86State *env, struct vmcb *v);
void svm_clean_store(CPUX86State *env);

/* svm_checks.c: one bit of `svm-checks` each. */
enum {
    SVM_CHECK_TRANSLATIONS,
    SVM_CHECK_CLEAN,
    SVM_CHECK_VMCB,
    SVM_CHECK_LEFTOVERS,
    SVM_CHECK_PREDICTION,
    SVM_CHECK_RULES,
    SVM_CHECK_SHADOW,
    SVM_CHECKS,
};

static inline bool svm_checks(CPUX86State *env, int check)
{
    return env_archcpu(env)->svm_checks & (1u << check);
}

/* CPUID Fn8000_000A_EBX. */
#define SVM_ASIDS 16

void svm_report(CPUX86State *env, int check, const char *format, ...)
    G_GNUC_PRINTF(3, 4);
void svm_check_invlpga(CPUX86State *env, uint32_t asid);
void svm_check_vmrun(CPUX86State *env, const struct vmcb *v);
void svm_check_vmexit(CPUX86State *env, bool shadow);

void svm_check_user(CPUX86State *env);
void svm_check_nmi(CPUX86State *env);
void svm_check_switch(CPUX86State *env);

/* What fields hold that are undefined. */
#define SVM_POISON 0xbad0bad0bad0bad0ull
void svm_poison(CPUX86State *env, uint64_t exit_code);

#endif
