/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a CPU has for the features of SVM and the checks that our patches add.
 *
 * It is a part of CPUX86State that a reset clears, but for what is behind the pointers.
 */
#ifndef TARGET_I386_SVM_EXT_H
#define TARGET_I386_SVM_EXT_H

typedef struct SVMExt {
    /* The instruction that is executed: its length, or 0 if nothing is known of it. */
    uint32_t insn_len;
    /* The same for an INTn that raises its interrupt with its state already in place. */
    uint32_t int_len;

    /* What VMRUN took out of the VMCB and the guest's execution needs. */
    uint32_t asid;
    uint32_t int_vector;
    uint64_t msrpm_pa;
    uint64_t iopm_pa;
    uint64_t virt_ext;
    /* The guest's physical address that a translation went through last. */
    uint64_t gpa;

    /* Pause filter (APM 15.14.4). */
    uint32_t pause_count;
    uint32_t pause_reload;
    uint32_t pause_thresh;
    uint64_t pause_tsc;

    /* Registers that the emulator did not have, or not one each for host and guest. */
    uint64_t host_pat;
    uint64_t spec_ctrl_guest;
    /* DEBUGCTL, then the last branch's and the last exception's two addresses. */
    uint64_t lbr[5], host_lbr[5];
    uint64_t xss;
    bool lbr_in_vmcb;
    bool pat_in_vmcb;

    /* Instructions since LFENCE or IBPB; kept only between #VMEXIT and the first RET or indirect branch. */
    uint32_t since_fence;

    /* VMCBs by clean bits, and translations by ASID. */
    struct SVMCache *cache;
    struct SVMTlb *tlb;
    struct SVMChecks *checks;
} SVMExt;

#endif
