/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Decode assists (APM volume 2, 15.8.4 and 15.10): what a #VMEXIT tells of the intercepted instruction.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/cpu_ldst.h"
#include "exec/helper-proto.h"
#include "tcg/helper-tcg.h"
#include "svm_ext.h"

/* The bytes at CS:RIP that can be had without a fault, at most 15; returns how many. */
static unsigned fetch(CPUX86State *env, uint8_t *insn)
{
    target_ulong pc = env->segs[R_CS].base + env->eip;
    int mmu_idx = cpu_mmu_index(env_cpu(env), true);
    /* A probe that fails writes here. */
    int error_code = env->error_code;
    unsigned n = 0;

    if (!(env->hflags & HF_CS64_MASK)) {
        pc = (uint32_t)pc;
    }
    while (n < 15) {
        unsigned left = TARGET_PAGE_SIZE - ((pc + n) & ~TARGET_PAGE_MASK);
        unsigned here = MIN(15 - n, left);
        void *host;
        int flags = probe_access_flags(env, pc + n, here, MMU_INST_FETCH,
                                       mmu_idx, true, &host, 0);

        if ((flags & TLB_INVALID_MASK) || !host) {
            break;
        }
        memcpy(insn + n, host, here);
        n += here;
    }
    env->error_code = error_code;
    return n;
}

/* EXITINFO1 of an access to a control or debug register: the general register, and bit 63 for a MOV of a control register. */
static uint64_t mov_operand(CPUX86State *env)
{
    uint8_t insn[15];
    unsigned n = fetch(env, insn), i, rex = 0;

    for (i = 0; i < n; i++) {
        uint8_t byte = insn[i];

        if ((byte & 0xf0) == 0x40 && (env->hflags & HF_CS64_MASK)) {
            rex = byte;
        } else if (byte == 0x26 || byte == 0x2e || byte == 0x36 ||
                   byte == 0x3e || (byte >= 0x64 && byte <= 0x67) ||
                   byte == 0xf0 || byte == 0xf2 || byte == 0xf3) {
            rex = 0;
        } else {
            break;
        }
    }
    if (i + 2 < n && insn[i] == 0x0f && (insn[i + 1] & 0xfc) == 0x20) {
        unsigned gpr = (insn[i + 2] & 7) | (rex & 1) << 3;

        return gpr | (insn[i + 1] & 1 ? 0 : 1ull << 63);
    }
    return 0;
}

uint64_t svm_decode_assist(CPUX86State *env, uint64_t exit_code,
                           uint64_t exit_info_1)
{
    uint8_t insn[16] = { 0 };
    bool data;

    if (!(env->features[FEAT_SVM] & CPUID_SVM_DECODEASSIST)) {
        return exit_info_1;
    }
    data = !(exit_info_1 & PG_ERROR_I_D_MASK);
    if (data && (exit_code == SVM_EXIT_NPF ||
                 exit_code == SVM_EXIT_EXCP_BASE + EXCP0E_PAGE)) {
        insn[0] = fetch(env, insn + 1);
    }
    cpu_physical_memory_write(env->vm_vmcb +
                              offsetof(struct vmcb, control.insn_len),
                              insn, sizeof(insn));
    if (exit_code <= SVM_EXIT_WRITE_DR7 + 8 ||
        exit_code == SVM_EXIT_CR0_SEL_WRITE) {
        return mov_operand(env);
    }
    return exit_info_1;
}

void helper_svm_check_invlpg(CPUX86State *env, target_ulong addr)
{
    bool tells = env->features[FEAT_SVM] & CPUID_SVM_DECODEASSIST;

    cpu_svm_check_intercept_param(env, SVM_EXIT_INVLPG, tells ? addr : 0,
                                  GETPC());
}
