// SPDX-License-Identifier: GPL-2.0-only
/*
 * Trace events (kvm_trace.h). Most calls of the functions here find their event on: the run loop looks for what nobody
 * wants only as far as a request of the vCPU's tells it to (docs/decisions/0038).
 */
#include <linux/atomic.h>
#include <linux/bits.h>
#include <linux/build_bug.h>
#include <linux/errno.h>
#include <linux/tracepoint.h>
#include "base.h"

/* The error code in EVENTINJ or EXITINTINFO, if there is one (APM 15.20). */
static inline u32 hsave_error_code(u64 event)
{
	return (event & BIT(31)) && (event & BIT(11)) ? event >> 32 : 0;
}

/* What the run loop is to look for: bits by host::TraceEvent. */
static atomic_t watched = ATOMIC_INIT(0);

u32 hsave_traced(void)
{
	return atomic_read(&watched);
}

/* The tracepoint's first user comes, before it is on, or its last one has gone; under the lock of all tracepoints. */
static void watch(unsigned int event, bool on)
{
	if (on)
		atomic_or(BIT(event), &watched);
	else
		atomic_andnot(BIT(event), &watched);
	hsave_threads_request(HSAVE_REQUEST_TRACE);
}

#define WATCHED(name, event)             \
	static int watch_##name(void)    \
	{                                \
		watch(event, true);      \
		return 0;                \
	}                                \
	static void unwatch_##name(void) \
	{                                \
		watch(event, false);     \
	}

WATCHED(kvm_entry, HSAVE_TRACE_ENTRY)
WATCHED(kvm_exit, HSAVE_TRACE_EXIT)
WATCHED(kvm_mmio, HSAVE_TRACE_MMIO)
WATCHED(kvm_pio, HSAVE_TRACE_PIO)
WATCHED(kvm_msr, HSAVE_TRACE_MSR)
WATCHED(kvm_cr, HSAVE_TRACE_CR)
WATCHED(kvm_cpuid, HSAVE_TRACE_CPUID)
WATCHED(kvm_inj_virq, HSAVE_TRACE_INJ_VIRQ)
WATCHED(kvm_inj_exception, HSAVE_TRACE_INJ_EXCEPTION)
WATCHED(kvm_page_fault, HSAVE_TRACE_PAGE_FAULT)
WATCHED(kvm_apic, HSAVE_TRACE_APIC)
WATCHED(kvm_apic_ipi, HSAVE_TRACE_APIC_IPI)
WATCHED(kvm_apic_accept_irq, HSAVE_TRACE_APIC_ACCEPT_IRQ)
WATCHED(kvm_eoi, HSAVE_TRACE_EOI)
WATCHED(kvm_pv_eoi, HSAVE_TRACE_PV_EOI)
WATCHED(kvm_hypercall, HSAVE_TRACE_HYPERCALL)
WATCHED(kvm_halt_poll_ns, HSAVE_TRACE_HALT_POLL_NS)
WATCHED(kvm_vcpu_wakeup, HSAVE_TRACE_VCPU_WAKEUP)
WATCHED(kvm_ple_window_update, HSAVE_TRACE_PLE_WINDOW)
WATCHED(kvm_userspace_exit, HSAVE_TRACE_USERSPACE_EXIT)
WATCHED(kvm_hv_hypercall, HSAVE_TRACE_HV_HYPERCALL)

atomic_t hsave_listened = ATOMIC_INIT(0);

static int listen(void)
{
	atomic_inc(&hsave_listened);
	return 0;
}

static void unlisten(void)
{
	atomic_dec(&hsave_listened);
}

#define CREATE_TRACE_POINTS
#include <kvm_trace.h>

void hsave_trace_entry(u32 vcpu, u64 rip, bool immediate, u64 event_inj)
{
	trace_kvm_entry(vcpu, rip, immediate, event_inj);
}

void hsave_trace_exit(u32 vcpu, u64 rip, u64 code, u64 info1, u64 info2, u64 int_info, u64 requests)
{
	trace_kvm_exit(vcpu, rip, code, info1, info2, int_info, requests);
}

void hsave_trace_mmio(u32 kind, u32 len, u64 gpa, u64 value)
{
	trace_kvm_mmio(kind, len, gpa, value);
}

void hsave_trace_pio(bool write, u32 port, u32 size, u32 count, u32 value)
{
	trace_kvm_pio(write, port, size, count, value);
}

void hsave_trace_msr(bool write, u32 index, u64 value, bool fault)
{
	trace_kvm_msr(write, index, value, fault);
}

void hsave_trace_cr(bool write, u32 cr, u64 value)
{
	trace_kvm_cr(write, cr, value);
}

/* regs: EAX, EBX, ECX, EDX. */
void hsave_trace_cpuid(u32 function, u32 index, const u32 *regs, bool found, bool used_max_basic)
{
	trace_kvm_cpuid(function, index, regs, found, used_max_basic);
}

void hsave_trace_inj_virq(u8 vector, bool soft, bool reinjected)
{
	trace_kvm_inj_virq(vector, soft, reinjected);
}

void hsave_trace_inj_exception(u8 vector, bool has_error, u32 error_code, bool reinjected)
{
	trace_kvm_inj_exception(vector, has_error, error_code, reinjected);
}

void hsave_trace_page_fault(u32 vcpu, u64 rip, u64 address, u64 error_code)
{
	trace_kvm_page_fault(vcpu, rip, address, error_code);
}

void hsave_trace_apic(bool write, u32 reg, u64 value)
{
	trace_kvm_apic(write, reg, value);
}

void hsave_trace_apic_ipi(u32 icr_low, u32 destination)
{
	trace_kvm_apic_ipi(icr_low, destination);
}

/* Of interrupts that are fixed or of lowest priority: which of them it was is not known where they wait. */
void hsave_trace_apic_accept_irq(u32 apic_id, u8 vector, bool level)
{
	trace_kvm_apic_accept_irq(apic_id, 0, level, vector);
}

void hsave_trace_eoi(u32 apic_id, int vector)
{
	trace_kvm_eoi(apic_id, vector);
}

void hsave_trace_pv_eoi(u32 apic_id, int vector)
{
	trace_kvm_pv_eoi(apic_id, vector);
}

void hsave_trace_hypercall(u64 nr, const u64 *args)
{
	trace_kvm_hypercall(nr, args);
}

void hsave_trace_hv_hypercall(u64 control, u64 input, u64 output)
{
	trace_kvm_hv_hypercall(control, input, output);
}

void hsave_trace_halt_poll_ns(bool grow, u32 vcpu, u32 new, u32 old)
{
	trace_kvm_halt_poll_ns(grow, vcpu, new, old);
}

void hsave_trace_vcpu_wakeup(u64 ns, bool waited, bool valid)
{
	trace_kvm_vcpu_wakeup(ns, waited, valid);
}

void hsave_trace_ple_window(u32 vcpu, u32 new, u32 old)
{
	trace_kvm_ple_window_update(vcpu, new, old);
}

void hsave_trace_userspace_exit(u32 reason, int errno)
{
	trace_kvm_userspace_exit(reason, errno);
}

void hsave_trace_set_irq(u32 gsi, bool level)
{
	trace_kvm_set_irq(gsi, level, 0);
}

void hsave_trace_msi_set_irq(u64 address, u32 data)
{
	trace_kvm_msi_set_irq(address, data);
}

void hsave_trace_ioapic_set_irq(u64 entry, u8 pin, bool coalesced)
{
	trace_kvm_ioapic_set_irq(entry, pin, coalesced);
}

void hsave_trace_pic_set_irq(u8 pin, u8 elcr, u8 imr, bool coalesced)
{
	trace_kvm_pic_set_irq(pin, elcr, imr, coalesced);
}

void hsave_trace_ack_irq(u32 chip, u32 pin)
{
	trace_kvm_ack_irq(chip, pin);
}

void hsave_trace_smm_transition(u32 vcpu, u64 smbase, bool entering)
{
	trace_kvm_smm_transition(vcpu, smbase, entering);
}

void hsave_trace_dirty_ring_push(u32 index, u32 dirty, u32 reset, u32 slot, u64 offset)
{
	trace_kvm_dirty_ring_push(index, dirty, reset, slot, offset);
}

void hsave_trace_dirty_ring_reset(u32 index, u32 dirty, u32 reset)
{
	trace_kvm_dirty_ring_reset(index, dirty, reset);
}

void hsave_trace_dirty_ring_exit(u32 vcpu)
{
	trace_kvm_dirty_ring_exit(vcpu);
}

void hsave_trace_try_async_get_page(u64 gva, u64 gfn)
{
	trace_kvm_try_async_get_page(gva, gfn);
}

void hsave_trace_async_pf_repeated_fault(u64 gva, u64 gfn)
{
	trace_kvm_async_pf_repeated_fault(gva, gfn);
}

void hsave_trace_async_pf_not_present(u64 token, u64 gva)
{
	trace_kvm_async_pf_not_present(token, gva);
}

void hsave_trace_async_pf_ready(u64 token, u64 gva)
{
	trace_kvm_async_pf_ready(token, gva);
}

void hsave_trace_write_tsc_offset(u32 vcpu, u64 previous, u64 next)
{
	trace_kvm_write_tsc_offset(vcpu, previous, next);
}

/* shift: of two's complement. */
void hsave_trace_pvclock_update(u32 vcpu, u32 version, u64 tsc_timestamp, u64 system_time, u32 mul, u8 shift, u8 flags)
{
	trace_kvm_pvclock_update(vcpu, version, tsc_timestamp, system_time, mul, shift, flags);
}
