/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The trace events of stock's kvm and kvm-amd, for what happens here as well. Tools know events by these names, fields and
 * texts (perf kvm, trace-cmd, bpftrace): `./x test --only trace` compares each with stock's, kernel by kernel. Those that
 * are not here, and why: docs/decisions/0038.
 *
 * Long because: one list.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm

#if !defined(HSAVE_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define HSAVE_TRACE_H

#include <linux/tracepoint.h>
#include <linux/version.h>
#include <asm/kvm.h>
#include <asm/svm.h>
#include <asm/vmx.h>
#include <uapi/linux/kvm.h>

/* An event of the run loop's, which looks for it only while somebody wants it. */
#define RUN_EVENT(name, proto, args, tstruct, assign, print) \
	TRACE_EVENT_FN(name, PARAMS(proto), PARAMS(args), PARAMS(tstruct), PARAMS(assign), PARAMS(print), watch_##name, \
		       unwatch_##name)

/* One that Rust tells where it happens, and makes only while somebody wants one of them. */
#define PLACE_EVENT(name, proto, args, tstruct, assign, print) \
	TRACE_EVENT_FN(name, PARAMS(proto), PARAMS(args), PARAMS(tstruct), PARAMS(assign), PARAMS(print), listen, unlisten)

#ifndef HSAVE_TRACE_TEXTS
#define HSAVE_TRACE_TEXTS
#define HSAVE_ISA_VMX 1
#define HSAVE_ISA_SVM 2

#define HSAVE_EXIT_REASON(field)                                                                     \
	(__entry->isa == HSAVE_ISA_VMX) ? __print_symbolic(__entry->field & 0xffff, VMX_EXIT_REASONS) : \
					  __print_symbolic(__entry->field, SVM_EXIT_REASONS),         \
	(__entry->isa == HSAVE_ISA_VMX && __entry->field & ~0xffff) ? " " : "",                      \
	(__entry->isa == HSAVE_ISA_VMX) ? __print_flags(__entry->field & ~0xffff, " ", VMX_EXIT_REASON_FLAGS) : ""

#define HSAVE_REASON(n) { KVM_EXIT_##n, "KVM_EXIT_" #n }
#define HSAVE_USER_REASONS                                                                           \
	HSAVE_REASON(UNKNOWN), HSAVE_REASON(EXCEPTION), HSAVE_REASON(IO), HSAVE_REASON(HYPERCALL), HSAVE_REASON(DEBUG), \
	HSAVE_REASON(HLT), HSAVE_REASON(MMIO), HSAVE_REASON(IRQ_WINDOW_OPEN), HSAVE_REASON(SHUTDOWN), \
	HSAVE_REASON(FAIL_ENTRY), HSAVE_REASON(INTR), HSAVE_REASON(SET_TPR), HSAVE_REASON(TPR_ACCESS), \
	HSAVE_REASON(S390_SIEIC), HSAVE_REASON(S390_RESET), HSAVE_REASON(DCR), HSAVE_REASON(NMI),    \
	HSAVE_REASON(INTERNAL_ERROR), HSAVE_REASON(OSI), HSAVE_REASON(PAPR_HCALL), HSAVE_REASON(S390_UCONTROL), \
	HSAVE_REASON(WATCHDOG), HSAVE_REASON(S390_TSCH), HSAVE_REASON(EPR), HSAVE_REASON(SYSTEM_EVENT), \
	HSAVE_REASON(S390_STSI), HSAVE_REASON(IOAPIC_EOI), HSAVE_REASON(HYPERV), HSAVE_REASON(ARM_NISV), \
	HSAVE_REASON(X86_RDMSR), HSAVE_REASON(X86_WRMSR)

#define HSAVE_VECTOR(v) { v##_VECTOR, "#" #v }
#define HSAVE_OLD_VECTORS                                                                            \
	HSAVE_VECTOR(DE), HSAVE_VECTOR(DB), HSAVE_VECTOR(BP), HSAVE_VECTOR(OF), HSAVE_VECTOR(BR), HSAVE_VECTOR(UD), \
	HSAVE_VECTOR(NM), HSAVE_VECTOR(DF), HSAVE_VECTOR(TS), HSAVE_VECTOR(NP), HSAVE_VECTOR(SS), HSAVE_VECTOR(GP), \
	HSAVE_VECTOR(PF), HSAVE_VECTOR(MF), HSAVE_VECTOR(AC), HSAVE_VECTOR(MC)
/* Later kernels name all vectors, and leave the list of error codes out, which has always been empty. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 18, 0)
#define HSAVE_VECTORS                                                                                \
	HSAVE_OLD_VECTORS, HSAVE_VECTOR(XM), HSAVE_VECTOR(VE), HSAVE_VECTOR(CP), HSAVE_VECTOR(HV), HSAVE_VECTOR(VC), \
	HSAVE_VECTOR(SX)
#define HSAVE_ERROR_CODE __print_symbolic(__entry->error_code)
#else
#define HSAVE_VECTORS HSAVE_OLD_VECTORS
#define HSAVE_ERROR_CODE __print_symbolic(__entry->error_code, { })
#endif

#define HSAVE_APIC_REGISTER(reg) { APIC_##reg, "APIC_" #reg }
#define HSAVE_APIC_REGISTERS                                                                         \
	HSAVE_APIC_REGISTER(ID), HSAVE_APIC_REGISTER(LVR), HSAVE_APIC_REGISTER(TASKPRI), HSAVE_APIC_REGISTER(ARBPRI), \
	HSAVE_APIC_REGISTER(PROCPRI), HSAVE_APIC_REGISTER(EOI), HSAVE_APIC_REGISTER(RRR), HSAVE_APIC_REGISTER(LDR), \
	HSAVE_APIC_REGISTER(DFR), HSAVE_APIC_REGISTER(SPIV), HSAVE_APIC_REGISTER(ISR), HSAVE_APIC_REGISTER(TMR), \
	HSAVE_APIC_REGISTER(IRR), HSAVE_APIC_REGISTER(ESR), HSAVE_APIC_REGISTER(ICR), HSAVE_APIC_REGISTER(ICR2), \
	HSAVE_APIC_REGISTER(LVTT), HSAVE_APIC_REGISTER(LVTTHMR), HSAVE_APIC_REGISTER(LVTPC), HSAVE_APIC_REGISTER(LVT0), \
	HSAVE_APIC_REGISTER(LVT1), HSAVE_APIC_REGISTER(LVTERR), HSAVE_APIC_REGISTER(TMICT), HSAVE_APIC_REGISTER(TMCCT), \
	HSAVE_APIC_REGISTER(TDCR), HSAVE_APIC_REGISTER(SELF_IPI), HSAVE_APIC_REGISTER(EFEAT), HSAVE_APIC_REGISTER(ECTRL)

#define HSAVE_DELIVERY_MODES                                                                         \
	{0x0, "Fixed"}, {0x1, "LowPrio"}, {0x2, "SMI"}, {0x3, "Res3"}, {0x4, "NMI"}, {0x5, "INIT"}, {0x6, "SIPI"}, \
	{0x7, "ExtINT"}
#define HSAVE_SHORTHANDS {0x0, "dst"}, {0x1, "self"}, {0x2, "all"}, {0x3, "all-but-self"}
#define HSAVE_MMIO_TYPES { 0, "unsatisfied-read" }, { 1, "read" }, { 2, "write" }
#define HSAVE_IRQCHIPS {0, "PIC master"}, {1, "PIC slave"}, {2, "IOAPIC"}

/* Part of kvm_entry and kvm_exit in later kernels. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 15, 0)
#define HSAVE_MORE_OF_ENTRIES
#endif
#endif

RUN_EVENT(kvm_entry,
	TP_PROTO(u32 vcpu, u64 at, bool immediate, u64 inj),
	TP_ARGS(vcpu, at, immediate, inj),
	TP_STRUCT__entry(
		__field(unsigned int, vcpu_id)
		__field(unsigned long, rip)
		__field(bool, immediate_exit)
#ifdef HSAVE_MORE_OF_ENTRIES
		__field(u32, intr_info)
		__field(u32, error_code)
#endif
	),
	TP_fast_assign(
		__entry->vcpu_id = vcpu;
		__entry->rip = at;
		__entry->immediate_exit = immediate;
#ifdef HSAVE_MORE_OF_ENTRIES
		__entry->intr_info = inj;
		__entry->error_code = hsave_error_code(inj);
#endif
	),
#ifdef HSAVE_MORE_OF_ENTRIES
	TP_printk("vcpu %u, rip 0x%lx intr_info 0x%08x error_code 0x%08x%s", __entry->vcpu_id, __entry->rip,
		  __entry->intr_info, __entry->error_code, __entry->immediate_exit ? "[immediate exit]" : "")
#else
	TP_printk("vcpu %u, rip 0x%lx%s", __entry->vcpu_id, __entry->rip,
		  __entry->immediate_exit ? "[immediate exit]" : "")
#endif
);

RUN_EVENT(kvm_exit,
	TP_PROTO(u32 vcpu, u64 at, u64 code, u64 one, u64 two, u64 int_info, u64 asked),
	TP_ARGS(vcpu, at, code, one, two, int_info, asked),
	TP_STRUCT__entry(
		__field(unsigned int, exit_reason)
		__field(unsigned long, guest_rip)
		__field(u32, isa)
		__field(u64, info1)
		__field(u64, info2)
		__field(u32, intr_info)
		__field(u32, error_code)
		__field(unsigned int, vcpu_id)
#ifdef HSAVE_MORE_OF_ENTRIES
		__field(u64, requests)
#endif
	),
	TP_fast_assign(
		__entry->exit_reason = code;
		__entry->guest_rip = at;
		__entry->isa = HSAVE_ISA_SVM;
		__entry->info1 = one;
		__entry->info2 = two;
		__entry->intr_info = int_info;
		__entry->error_code = hsave_error_code(int_info);
		__entry->vcpu_id = vcpu;
#ifdef HSAVE_MORE_OF_ENTRIES
		__entry->requests = asked;
#endif
	),
#ifdef HSAVE_MORE_OF_ENTRIES
	TP_printk("vcpu %u reason %s%s%s rip 0x%lx info1 0x%016llx info2 0x%016llx intr_info 0x%08x error_code 0x%08x requests 0x%016llx",
		  __entry->vcpu_id, HSAVE_EXIT_REASON(exit_reason), __entry->guest_rip, __entry->info1, __entry->info2,
		  __entry->intr_info, __entry->error_code, __entry->requests)
#else
	TP_printk("vcpu %u reason %s%s%s rip 0x%lx info1 0x%016llx info2 0x%016llx intr_info 0x%08x error_code 0x%08x",
		  __entry->vcpu_id, HSAVE_EXIT_REASON(exit_reason), __entry->guest_rip, __entry->info1, __entry->info2,
		  __entry->intr_info, __entry->error_code)
#endif
);

RUN_EVENT(kvm_mmio,
	TP_PROTO(u32 kind, u32 bytes, u64 address, u64 value),
	TP_ARGS(kind, bytes, address, value),
	TP_STRUCT__entry(
		__field(u32, type)
		__field(u32, len)
		__field(u64, gpa)
		__field(u64, val)
	),
	TP_fast_assign(
		__entry->type = kind;
		__entry->len = bytes;
		__entry->gpa = address;
		__entry->val = value;
	),
	TP_printk("mmio %s len %u gpa 0x%llx val 0x%llx", __print_symbolic(__entry->type, HSAVE_MMIO_TYPES),
		  __entry->len, __entry->gpa, __entry->val)
);

RUN_EVENT(kvm_pio,
	TP_PROTO(bool write, u32 at, u32 bytes, u32 times, u32 value),
	TP_ARGS(write, at, bytes, times, value),
	TP_STRUCT__entry(
		__field(unsigned int, rw)
		__field(unsigned int, port)
		__field(unsigned int, size)
		__field(unsigned int, count)
		__field(unsigned int, val)
	),
	TP_fast_assign(
		__entry->rw = write;
		__entry->port = at;
		__entry->size = bytes;
		__entry->count = times;
		__entry->val = value;
	),
	TP_printk("pio_%s at 0x%x size %d count %d val 0x%x %s", __entry->rw ? "write" : "read", __entry->port,
		  __entry->size, __entry->count, __entry->val, __entry->count > 1 ? "(...)" : "")
);

RUN_EVENT(kvm_msr,
	TP_PROTO(bool writes, u32 index, u64 value, bool fault),
	TP_ARGS(writes, index, value, fault),
	TP_STRUCT__entry(
		__field(unsigned, write)
		__field(u32, ecx)
		__field(u64, data)
		__field(u8, exception)
	),
	TP_fast_assign(
		__entry->write = writes;
		__entry->ecx = index;
		__entry->data = value;
		__entry->exception = fault;
	),
	TP_printk("msr_%s %x = 0x%llx%s", __entry->write ? "write" : "read", __entry->ecx, __entry->data,
		  __entry->exception ? " (#GP)" : "")
);

RUN_EVENT(kvm_cr,
	TP_PROTO(bool write, u32 number, u64 value),
	TP_ARGS(write, number, value),
	TP_STRUCT__entry(
		__field(unsigned int, rw)
		__field(unsigned int, cr)
		__field(unsigned long, val)
	),
	TP_fast_assign(
		__entry->rw = write;
		__entry->cr = number;
		__entry->val = value;
	),
	TP_printk("cr_%s %x = 0x%lx", __entry->rw ? "write" : "read", __entry->cr, __entry->val)
);

RUN_EVENT(kvm_cpuid,
	TP_PROTO(u32 leaf, u32 subleaf, const u32 *regs, bool is_there, bool max),
	TP_ARGS(leaf, subleaf, regs, is_there, max),
	TP_STRUCT__entry(
		__field(unsigned int, function)
		__field(unsigned int, index)
		__field(unsigned long, rax)
		__field(unsigned long, rbx)
		__field(unsigned long, rcx)
		__field(unsigned long, rdx)
		__field(bool, found)
		__field(bool, used_max_basic)
	),
	TP_fast_assign(
		__entry->function = leaf;
		__entry->index = subleaf;
		__entry->rax = regs[0];
		__entry->rbx = regs[1];
		__entry->rcx = regs[2];
		__entry->rdx = regs[3];
		__entry->found = is_there;
		__entry->used_max_basic = max;
	),
	TP_printk("func %x idx %x rax %lx rbx %lx rcx %lx rdx %lx, cpuid entry %s%s", __entry->function, __entry->index,
		  __entry->rax, __entry->rbx, __entry->rcx, __entry->rdx, __entry->found ? "found" : "not found",
		  __entry->used_max_basic ? ", used max basic" : "")
);

RUN_EVENT(kvm_inj_virq,
	TP_PROTO(u8 number, bool software, bool again),
	TP_ARGS(number, software, again),
	TP_STRUCT__entry(
		__field(unsigned int, vector)
		__field(bool, soft)
		__field(bool, reinjected)
	),
	TP_fast_assign(
		__entry->vector = number;
		__entry->soft = software;
		__entry->reinjected = again;
	),
	TP_printk("%s 0x%x%s", __entry->soft ? "Soft/INTn" : "IRQ", __entry->vector,
		  __entry->reinjected ? " [reinjected]" : "")
);

RUN_EVENT(kvm_inj_exception,
	TP_PROTO(u8 vector, bool with_code, u32 code, bool again),
	TP_ARGS(vector, with_code, code, again),
	TP_STRUCT__entry(
		__field(u8, exception)
		__field(u8, has_error)
		__field(u32, error_code)
		__field(bool, reinjected)
	),
	TP_fast_assign(
		__entry->exception = vector;
		__entry->has_error = with_code;
		__entry->error_code = code;
		__entry->reinjected = again;
	),
	TP_printk("%s%s%s%s%s", __print_symbolic(__entry->exception, HSAVE_VECTORS), !__entry->has_error ? "" : " (",
		  !__entry->has_error ? "" : HSAVE_ERROR_CODE, !__entry->has_error ? "" : ")",
		  __entry->reinjected ? " [reinjected]" : "")
);

RUN_EVENT(kvm_page_fault,
	TP_PROTO(u32 vcpu, u64 at, u64 address, u64 code),
	TP_ARGS(vcpu, at, address, code),
	TP_STRUCT__entry(
		__field(unsigned int, vcpu_id)
		__field(unsigned long, guest_rip)
		__field(u64, fault_address)
		__field(u64, error_code)
	),
	TP_fast_assign(
		__entry->vcpu_id = vcpu;
		__entry->guest_rip = at;
		__entry->fault_address = address;
		__entry->error_code = code;
	),
	TP_printk("vcpu %u rip 0x%lx address 0x%016llx error_code 0x%llx", __entry->vcpu_id, __entry->guest_rip,
		  __entry->fault_address, __entry->error_code)
);

RUN_EVENT(kvm_apic,
	TP_PROTO(bool write, u32 offset, u64 value),
	TP_ARGS(write, offset, value),
	TP_STRUCT__entry(
		__field(unsigned int, rw)
		__field(unsigned int, reg)
		__field(u64, val)
	),
	TP_fast_assign(
		__entry->rw = write;
		__entry->reg = offset;
		__entry->val = value;
	),
	TP_printk("apic_%s %s = 0x%llx", __entry->rw ? "write" : "read",
		  __print_symbolic(__entry->reg, HSAVE_APIC_REGISTERS), __entry->val)
);

RUN_EVENT(kvm_apic_ipi,
	TP_PROTO(u32 low, u32 destination),
	TP_ARGS(low, destination),
	TP_STRUCT__entry(
		__field(__u32, icr_low)
		__field(__u32, dest_id)
	),
	TP_fast_assign(
		__entry->icr_low = low;
		__entry->dest_id = destination;
	),
	TP_printk("dst %x vec %u (%s|%s|%s|%s|%s)", __entry->dest_id, (u8)__entry->icr_low,
		  __print_symbolic((__entry->icr_low >> 8 & 0x7), HSAVE_DELIVERY_MODES),
		  (__entry->icr_low & (1<<11)) ? "logical" : "physical",
		  (__entry->icr_low & (1<<14)) ? "assert" : "de-assert", (__entry->icr_low & (1<<15)) ? "level" : "edge",
		  __print_symbolic((__entry->icr_low >> 18 & 0x3), HSAVE_SHORTHANDS))
);

RUN_EVENT(kvm_apic_accept_irq,
	TP_PROTO(u32 id, u16 mode, u16 trigger, u8 vector),
	TP_ARGS(id, mode, trigger, vector),
	TP_STRUCT__entry(
		__field(__u32, apicid)
		__field(__u16, dm)
		__field(__u16, tm)
		__field(__u8, vec)
	),
	TP_fast_assign(
		__entry->apicid = id;
		__entry->dm = mode;
		__entry->tm = trigger;
		__entry->vec = vector;
	),
	TP_printk("apicid %x vec %u (%s|%s)", __entry->apicid, __entry->vec,
		  __print_symbolic((__entry->dm >> 8 & 0x7), HSAVE_DELIVERY_MODES), __entry->tm ? "level" : "edge")
);

#define HSAVE_EOI_EVENT(name)                                                                        \
	RUN_EVENT(name,                                                                              \
		TP_PROTO(u32 id, int number),                                                        \
		TP_ARGS(id, number),                                                                 \
		TP_STRUCT__entry(                                                                    \
			__field(__u32, apicid)                                                       \
			__field(int, vector)                                                         \
		),                                                                                   \
		TP_fast_assign(                                                                      \
			__entry->apicid = id;                                                        \
			__entry->vector = number;                                                    \
		),                                                                                   \
		TP_printk("apicid %x vector %d", __entry->apicid, __entry->vector)                   \
	)
HSAVE_EOI_EVENT(kvm_eoi);
HSAVE_EOI_EVENT(kvm_pv_eoi);

RUN_EVENT(kvm_hypercall,
	TP_PROTO(u64 number, const u64 *args),
	TP_ARGS(number, args),
	TP_STRUCT__entry(
		__field(unsigned long, nr)
		__field(unsigned long, a0)
		__field(unsigned long, a1)
		__field(unsigned long, a2)
		__field(unsigned long, a3)
	),
	TP_fast_assign(
		__entry->nr = number;
		__entry->a0 = args[0];
		__entry->a1 = args[1];
		__entry->a2 = args[2];
		__entry->a3 = args[3];
	),
	TP_printk("nr 0x%lx a0 0x%lx a1 0x%lx a2 0x%lx a3 0x%lx", __entry->nr, __entry->a0, __entry->a1, __entry->a2,
		  __entry->a3)
);

/* Bits of the control word: the Hypervisor Top-Level Functional Specification, "Hypercall Inputs". */
RUN_EVENT(kvm_hv_hypercall,
	TP_PROTO(u64 control, u64 input, u64 output),
	TP_ARGS(control, input, output),
	TP_STRUCT__entry(
		__field(__u16, rep_cnt)
		__field(__u16, rep_idx)
		__field(__u64, ingpa)
		__field(__u64, outgpa)
		__field(__u16, code)
		__field(__u16, var_cnt)
		__field(bool, fast)
	),
	TP_fast_assign(
		__entry->rep_cnt = control >> 32 & 0xfff;
		__entry->rep_idx = control >> 48 & 0xfff;
		__entry->ingpa = input;
		__entry->outgpa = output;
		__entry->code = control;
		__entry->var_cnt = control >> 17 & 0x3ff;
		__entry->fast = control >> 16 & 1;
	),
	TP_printk("code 0x%x %s var_cnt 0x%x rep_cnt 0x%x idx 0x%x in 0x%llx out 0x%llx", __entry->code,
		  __entry->fast ? "fast" : "slow", __entry->var_cnt, __entry->rep_cnt, __entry->rep_idx, __entry->ingpa,
		  __entry->outgpa)
);

RUN_EVENT(kvm_halt_poll_ns,
	TP_PROTO(bool grows, u32 vcpu, u32 now, u32 before),
	TP_ARGS(grows, vcpu, now, before),
	TP_STRUCT__entry(
		__field(bool, grow)
		__field(unsigned int, vcpu_id)
		__field(unsigned int, new)
		__field(unsigned int, old)
	),
	TP_fast_assign(
		__entry->grow = grows;
		__entry->vcpu_id = vcpu;
		__entry->new = now;
		__entry->old = before;
	),
	TP_printk("vcpu %u: halt_poll_ns %u (%s %u)", __entry->vcpu_id, __entry->new, __entry->grow ? "grow" : "shrink",
		  __entry->old)
);

RUN_EVENT(kvm_vcpu_wakeup,
	TP_PROTO(u64 time, bool slept, bool good),
	TP_ARGS(time, slept, good),
	TP_STRUCT__entry(
		__field(__u64, ns)
		__field(bool, waited)
		__field(bool, valid)
	),
	TP_fast_assign(
		__entry->ns = time;
		__entry->waited = slept;
		__entry->valid = good;
	),
	TP_printk("%s time %lld ns, polling %s", __entry->waited ? "wait" : "poll", __entry->ns,
		  __entry->valid ? "valid" : "invalid")
);

RUN_EVENT(kvm_ple_window_update,
	TP_PROTO(u32 vcpu, u32 now, u32 before),
	TP_ARGS(vcpu, now, before),
	TP_STRUCT__entry(
		__field(unsigned int, vcpu_id)
		__field(unsigned int, new)
		__field(unsigned int, old)
	),
	TP_fast_assign(
		__entry->vcpu_id = vcpu;
		__entry->new = now;
		__entry->old = before;
	),
	TP_printk("vcpu %u old %u new %u (%s)", __entry->vcpu_id, __entry->old, __entry->new,
		  __entry->old < __entry->new ? "growed" : "shrinked")
);

RUN_EVENT(kvm_userspace_exit,
	TP_PROTO(u32 why, int error),
	TP_ARGS(why, error),
	TP_STRUCT__entry(
		__field(__u32, reason)
		__field(int, errno)
	),
	TP_fast_assign(
		__entry->reason = why;
		__entry->errno = error;
	),
	TP_printk("reason %s (%d)", __entry->errno < 0 ? (__entry->errno == -EINTR ? "restart" : "error") :
		  __print_symbolic(__entry->reason, HSAVE_USER_REASONS),
		  __entry->errno < 0 ? -__entry->errno : __entry->reason)
);

/* What follows is told where it happens. */

PLACE_EVENT(kvm_set_irq,
	TP_PROTO(unsigned int line, int value, int source),
	TP_ARGS(line, value, source),
	TP_STRUCT__entry(
		__field(unsigned int, gsi)
		__field(int, level)
		__field(int, irq_source_id)
	),
	TP_fast_assign(
		__entry->gsi = line;
		__entry->level = value;
		__entry->irq_source_id = source;
	),
	TP_printk("gsi %u level %d source %d", __entry->gsi, __entry->level, __entry->irq_source_id)
);

PLACE_EVENT(kvm_msi_set_irq,
	TP_PROTO(u64 where, u64 what),
	TP_ARGS(where, what),
	TP_STRUCT__entry(
		__field(__u64, address)
		__field(__u64, data)
	),
	TP_fast_assign(
		__entry->address = where;
		__entry->data = what;
	),
	TP_printk("dst %llx vec %u (%s|%s|%s%s)",
		  (u8)(__entry->address >> 12) | ((__entry->address >> 32) & 0xffffff00), (u8)__entry->data,
		  __print_symbolic((__entry->data >> 8 & 0x7), HSAVE_DELIVERY_MODES),
		  (__entry->address & (1<<2)) ? "logical" : "physical", (__entry->data & (1<<15)) ? "level" : "edge",
		  (__entry->address & (1<<3)) ? "|rh" : "")
);

PLACE_EVENT(kvm_ioapic_set_irq,
	TP_PROTO(u64 redirection, int number, bool merged),
	TP_ARGS(redirection, number, merged),
	TP_STRUCT__entry(
		__field(__u64, e)
		__field(int, pin)
		__field(bool, coalesced)
	),
	TP_fast_assign(
		__entry->e = redirection;
		__entry->pin = number;
		__entry->coalesced = merged;
	),
	TP_printk("pin %u dst %x vec %u (%s|%s|%s%s)%s", __entry->pin, (u8)(__entry->e >> 56), (u8)__entry->e,
		  __print_symbolic((__entry->e >> 8 & 0x7), HSAVE_DELIVERY_MODES),
		  (__entry->e & (1<<11)) ? "logical" : "physical", (__entry->e & (1<<15)) ? "level" : "edge",
		  (__entry->e & (1<<16)) ? "|masked" : "", __entry->coalesced ? " (coalesced)" : "")
);

PLACE_EVENT(kvm_pic_set_irq,
	TP_PROTO(u8 number, u8 levels, u8 mask, bool merged),
	TP_ARGS(number, levels, mask, merged),
	TP_STRUCT__entry(
		__field(__u8, chip)
		__field(__u8, pin)
		__field(__u8, elcr)
		__field(__u8, imr)
		__field(bool, coalesced)
	),
	TP_fast_assign(
		__entry->chip = number >> 3;
		__entry->pin = number & 7;
		__entry->elcr = levels;
		__entry->imr = mask;
		__entry->coalesced = merged;
	),
	TP_printk("chip %u pin %u (%s%s)%s", __entry->chip, __entry->pin,
		  (__entry->elcr & (1 << __entry->pin)) ? "level":"edge",
		  (__entry->imr & (1 << __entry->pin)) ? "|masked":"", __entry->coalesced ? " (coalesced)" : "")
);

PLACE_EVENT(kvm_ack_irq,
	TP_PROTO(unsigned int chip, unsigned int number),
	TP_ARGS(chip, number),
	TP_STRUCT__entry(
		__field(unsigned int, irqchip)
		__field(unsigned int, pin)
	),
	TP_fast_assign(
		__entry->irqchip = chip;
		__entry->pin = number;
	),
	TP_printk("irqchip %s pin %u", __print_symbolic(__entry->irqchip, HSAVE_IRQCHIPS), __entry->pin)
);

PLACE_EVENT(kvm_smm_transition,
	TP_PROTO(unsigned int vcpu, u64 base, bool enters),
	TP_ARGS(vcpu, base, enters),
	TP_STRUCT__entry(
		__field(unsigned int, vcpu_id)
		__field(u64, smbase)
		__field(bool, entering)
	),
	TP_fast_assign(
		__entry->vcpu_id = vcpu;
		__entry->smbase = base;
		__entry->entering = enters;
	),
	TP_printk("vcpu %u: %s SMM, smbase 0x%llx", __entry->vcpu_id, __entry->entering ? "entering" : "leaving",
		  __entry->smbase)
);

PLACE_EVENT(kvm_dirty_ring_push,
	TP_PROTO(u32 number, u32 dirty, u32 reset, u32 of, u64 page),
	TP_ARGS(number, dirty, reset, of, page),
	TP_STRUCT__entry(
		__field(int, index)
		__field(u32, dirty_index)
		__field(u32, reset_index)
		__field(u32, slot)
		__field(u64, offset)
	),
	TP_fast_assign(
		__entry->index = number;
		__entry->dirty_index = dirty;
		__entry->reset_index = reset;
		__entry->slot = of;
		__entry->offset = page;
	),
	TP_printk("ring %d: dirty 0x%x reset 0x%x slot %u offset 0x%llx (used %u)", __entry->index, __entry->dirty_index,
		  __entry->reset_index, __entry->slot, __entry->offset, __entry->dirty_index - __entry->reset_index)
);

PLACE_EVENT(kvm_dirty_ring_reset,
	TP_PROTO(u32 number, u32 dirty, u32 reset),
	TP_ARGS(number, dirty, reset),
	TP_STRUCT__entry(
		__field(int, index)
		__field(u32, dirty_index)
		__field(u32, reset_index)
	),
	TP_fast_assign(
		__entry->index = number;
		__entry->dirty_index = dirty;
		__entry->reset_index = reset;
	),
	TP_printk("ring %d: dirty 0x%x reset 0x%x (used %u)", __entry->index, __entry->dirty_index, __entry->reset_index,
		  __entry->dirty_index - __entry->reset_index)
);

PLACE_EVENT(kvm_dirty_ring_exit,
	TP_PROTO(u32 vcpu),
	TP_ARGS(vcpu),
	TP_STRUCT__entry(
		__field(int, vcpu_id)
	),
	TP_fast_assign(
		__entry->vcpu_id = vcpu;
	),
	TP_printk("vcpu %d", __entry->vcpu_id)
);

/* Where nested paging is all there is, the "gva" of these is a guest physical address. */
#define HSAVE_PAGE_IN_EVENT(name)                                                                    \
	PLACE_EVENT(name,                                                                            \
		TP_PROTO(u64 address, u64 frame),                                                    \
		TP_ARGS(address, frame),                                                             \
		TP_STRUCT__entry(                                                                    \
			__field(__u64, gva)                                                          \
			__field(u64, gfn)                                                            \
		),                                                                                   \
		TP_fast_assign(                                                                      \
			__entry->gva = address;                                                      \
			__entry->gfn = frame;                                                        \
		),                                                                                   \
		TP_printk("gva = %#llx, gfn = %#llx", __entry->gva, __entry->gfn)                    \
	)
HSAVE_PAGE_IN_EVENT(kvm_try_async_get_page);
HSAVE_PAGE_IN_EVENT(kvm_async_pf_repeated_fault);

#define HSAVE_TOKEN_EVENT(name)                                                                      \
	PLACE_EVENT(name,                                                                            \
		TP_PROTO(u64 number, u64 address),                                                   \
		TP_ARGS(number, address),                                                            \
		TP_STRUCT__entry(                                                                    \
			__field(__u64, token)                                                        \
			__field(__u64, gva)                                                          \
		),                                                                                   \
		TP_fast_assign(                                                                      \
			__entry->token = number;                                                     \
			__entry->gva = address;                                                      \
		),                                                                                   \
		TP_printk("token %#llx gva %#llx", __entry->token, __entry->gva)                     \
	)
HSAVE_TOKEN_EVENT(kvm_async_pf_not_present);
HSAVE_TOKEN_EVENT(kvm_async_pf_ready);

PLACE_EVENT(kvm_write_tsc_offset,
	TP_PROTO(unsigned int vcpu, u64 before, u64 now),
	TP_ARGS(vcpu, before, now),
	TP_STRUCT__entry(
		__field(unsigned int, vcpu_id)
		__field(__u64, previous_tsc_offset)
		__field(__u64, next_tsc_offset)
	),
	TP_fast_assign(
		__entry->vcpu_id = vcpu;
		__entry->previous_tsc_offset = before;
		__entry->next_tsc_offset = now;
	),
	TP_printk("vcpu=%u prev=%llu next=%llu", __entry->vcpu_id, __entry->previous_tsc_offset, __entry->next_tsc_offset)
);

PLACE_EVENT(kvm_pvclock_update,
	TP_PROTO(unsigned int vcpu, u32 number, u64 tsc, u64 time, u32 mul, u8 shift, u8 bits),
	TP_ARGS(vcpu, number, tsc, time, mul, shift, bits),
	TP_STRUCT__entry(
		__field(unsigned int, vcpu_id)
		__field(__u32, version)
		__field(__u64, tsc_timestamp)
		__field(__u64, system_time)
		__field(__u32, tsc_to_system_mul)
		__field(__s8, tsc_shift)
		__field(__u8, flags)
	),
	TP_fast_assign(
		__entry->vcpu_id = vcpu;
		__entry->version = number;
		__entry->tsc_timestamp = tsc;
		__entry->system_time = time;
		__entry->tsc_to_system_mul = mul;
		__entry->tsc_shift = shift;
		__entry->flags = bits;
	),
	TP_printk("vcpu_id %u, pvclock { version %u, tsc_timestamp 0x%llx, system_time 0x%llx, tsc_to_system_mul 0x%x, tsc_shift %d, flags 0x%x }",
		  __entry->vcpu_id, __entry->version, __entry->tsc_timestamp, __entry->system_time,
		  __entry->tsc_to_system_mul, __entry->tsc_shift, __entry->flags)
);

TRACE_EVENT(kvm_fpu,
	TP_PROTO(int loads),
	TP_ARGS(loads),
	TP_STRUCT__entry(
		__field(u32, load)
	),
	TP_fast_assign(
		__entry->load = loads;
	),
	TP_printk("%s", __print_symbolic(__entry->load, {0, "unload"}, {1, "load"}))
);

TRACE_EVENT(kvm_unmap_hva_range,
	TP_PROTO(unsigned long from, unsigned long to),
	TP_ARGS(from, to),
	TP_STRUCT__entry(
		__field(unsigned long, start)
		__field(unsigned long, end)
	),
	TP_fast_assign(
		__entry->start = from;
		__entry->end = to;
	),
	TP_printk("mmu notifier unmap range: %#016lx -- %#016lx", __entry->start, __entry->end)
);

TRACE_EVENT(kvm_age_hva,
	TP_PROTO(unsigned long from, unsigned long to),
	TP_ARGS(from, to),
	TP_STRUCT__entry(
		__field(unsigned long, start)
		__field(unsigned long, end)
	),
	TP_fast_assign(
		__entry->start = from;
		__entry->end = to;
	),
	TP_printk("mmu notifier age hva: %#016lx -- %#016lx", __entry->start, __entry->end)
);

TRACE_EVENT(kvm_test_age_hva,
	TP_PROTO(unsigned long address),
	TP_ARGS(address),
	TP_STRUCT__entry(
		__field(unsigned long, hva)
	),
	TP_fast_assign(
		__entry->hva = address;
	),
	TP_printk("mmu notifier test age hva: %#016lx", __entry->hva)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE kvm_trace
#include <trace/define_trace.h>
