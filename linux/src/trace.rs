//! Trace events: linux/shim/kvm/trace.c.

use crate::shim;
use core::sync::atomic::Ordering::Relaxed;
use host::{Trace, TraceEvent};

// The shim has the same numbers.
const _: () = {
    assert!(shim::TRACE_ENTRY == TraceEvent::Entry as u32);
    assert!(shim::TRACE_EXIT == TraceEvent::Exit as u32);
    assert!(shim::TRACE_MMIO == TraceEvent::Mmio as u32);
    assert!(shim::TRACE_PIO == TraceEvent::Pio as u32);
    assert!(shim::TRACE_MSR == TraceEvent::Msr as u32);
    assert!(shim::TRACE_CR == TraceEvent::Cr as u32);
    assert!(shim::TRACE_CPUID == TraceEvent::Cpuid as u32);
    assert!(shim::TRACE_INJ_VIRQ == TraceEvent::InjVirq as u32);
    assert!(shim::TRACE_INJ_EXCEPTION == TraceEvent::InjException as u32);
    assert!(shim::TRACE_PAGE_FAULT == TraceEvent::PageFault as u32);
    assert!(shim::TRACE_APIC == TraceEvent::Apic as u32);
    assert!(shim::TRACE_APIC_IPI == TraceEvent::ApicIpi as u32);
    assert!(shim::TRACE_APIC_ACCEPT_IRQ == TraceEvent::ApicAcceptIrq as u32);
    assert!(shim::TRACE_EOI == TraceEvent::Eoi as u32);
    assert!(shim::TRACE_PV_EOI == TraceEvent::PvEoi as u32);
    assert!(shim::TRACE_HYPERCALL == TraceEvent::Hypercall as u32);
    assert!(shim::TRACE_HALT_POLL_NS == TraceEvent::HaltPollNs as u32);
    assert!(shim::TRACE_VCPU_WAKEUP == TraceEvent::VcpuWakeup as u32);
    assert!(shim::TRACE_PLE_WINDOW == TraceEvent::PleWindow as u32);
    assert!(shim::TRACE_USERSPACE_EXIT == TraceEvent::UserspaceExit as u32);
    assert!(shim::TRACE_HV_HYPERCALL == TraceEvent::HvHypercall as u32);
    assert!(shim::TRACE_HV_HYPERCALL + 1 == TraceEvent::COUNT as u32);
};

/// See [`host::Host::listens`].
#[inline]
pub fn listens() -> bool {
    shim::hsave_listened.load(Relaxed) != 0
}

/// See [`host::Host::trace`].
#[inline]
pub fn tell(what: Trace) {
    match what {
        Trace::Entry { vcpu, rip, immediate, event_inj } => shim::hsave_trace_entry(vcpu, rip, immediate, event_inj),
        Trace::Exit { vcpu, rip, code, info1, info2, int_info, requests } => {
            shim::hsave_trace_exit(vcpu, rip, code, info1, info2, int_info, requests);
        }
        Trace::Mmio { kind, len, gpa, value } => shim::hsave_trace_mmio(kind as u32, len, gpa, value),
        Trace::Pio { write, port, size, count, value } => {
            shim::hsave_trace_pio(write, port.into(), size.into(), count, value);
        }
        Trace::Msr { write, index, value, fault } => shim::hsave_trace_msr(write, index, value, fault),
        Trace::Cr { write, cr, value } => shim::hsave_trace_cr(write, cr.into(), value),
        Trace::Cpuid { function, index, regs, found, used_max_basic } => {
            // SAFETY: four numbers.
            unsafe { shim::hsave_trace_cpuid(function, index, regs.as_ptr(), found, used_max_basic) }
        }
        Trace::InjVirq { vector, soft, reinjected } => shim::hsave_trace_inj_virq(vector, soft, reinjected),
        Trace::InjException { vector, error_code, reinjected } => {
            shim::hsave_trace_inj_exception(vector, error_code.is_some(), error_code.unwrap_or(0), reinjected);
        }
        Trace::PageFault { vcpu, rip, address, error_code } => {
            shim::hsave_trace_page_fault(vcpu, rip, address, error_code);
        }
        Trace::Apic { write, register, value } => shim::hsave_trace_apic(write, register, value),
        Trace::ApicIpi { icr_low, destination } => shim::hsave_trace_apic_ipi(icr_low, destination),
        Trace::ApicAcceptIrq { apic_id, vector, level } => shim::hsave_trace_apic_accept_irq(apic_id, vector, level),
        Trace::Eoi { apic_id, vector } => shim::hsave_trace_eoi(apic_id, vector),
        Trace::PvEoi { apic_id, vector } => shim::hsave_trace_pv_eoi(apic_id, vector),
        // SAFETY: four numbers.
        Trace::Hypercall { nr, args } => unsafe { shim::hsave_trace_hypercall(nr, args.as_ptr()) },
        Trace::HvHypercall { control, input, output } => shim::hsave_trace_hv_hypercall(control, input, output),
        Trace::HaltPollNs { grow, vcpu, new, old } => shim::hsave_trace_halt_poll_ns(grow, vcpu, new, old),
        Trace::VcpuWakeup { ns, waited, valid } => shim::hsave_trace_vcpu_wakeup(ns, waited, valid),
        Trace::PleWindowUpdate { vcpu, new, old } => shim::hsave_trace_ple_window(vcpu, new, old),
        Trace::UserspaceExit { reason, errno } => shim::hsave_trace_userspace_exit(reason, errno),
        Trace::SetIrq { gsi, level } => shim::hsave_trace_set_irq(gsi, level),
        Trace::MsiSetIrq { address, data } => shim::hsave_trace_msi_set_irq(address, data),
        Trace::IoapicSetIrq { entry, pin, coalesced } => shim::hsave_trace_ioapic_set_irq(entry, pin, coalesced),
        Trace::PicSetIrq { pin, elcr, imr, coalesced } => shim::hsave_trace_pic_set_irq(pin, elcr, imr, coalesced),
        Trace::AckIrq { chip, pin } => shim::hsave_trace_ack_irq(chip, pin),
        Trace::SmmTransition { vcpu, smbase, entering } => shim::hsave_trace_smm_transition(vcpu, smbase, entering),
        Trace::DirtyRingPush { index, dirty, reset, slot, offset } => {
            shim::hsave_trace_dirty_ring_push(index, dirty, reset, slot, offset);
        }
        Trace::DirtyRingReset { index, dirty, reset } => shim::hsave_trace_dirty_ring_reset(index, dirty, reset),
        Trace::DirtyRingExit { vcpu } => shim::hsave_trace_dirty_ring_exit(vcpu),
        Trace::TryAsyncGetPage { gva, gfn } => shim::hsave_trace_try_async_get_page(gva, gfn),
        Trace::AsyncPfRepeatedFault { gva, gfn } => shim::hsave_trace_async_pf_repeated_fault(gva, gfn),
        Trace::AsyncPfNotPresent { token, gva } => shim::hsave_trace_async_pf_not_present(token, gva),
        Trace::AsyncPfReady { token, gva } => shim::hsave_trace_async_pf_ready(token, gva),
        Trace::WriteTscOffset { vcpu, previous, next } => shim::hsave_trace_write_tsc_offset(vcpu, previous, next),
        Trace::PvclockUpdate { vcpu, version, tsc_timestamp, system_time, mul, shift, flags } => {
            let (shift, flags) = (shift as u8, flags);
            shim::hsave_trace_pvclock_update(vcpu, version, tsc_timestamp, system_time, mul, shift, flags);
        }
    }
}
