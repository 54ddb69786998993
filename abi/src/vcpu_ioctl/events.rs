//! Events and run state (KVM API document 4.31, 4.32, 4.38, 4.39).

use crate::codec::{Field, get, put};
use crate::uapi::*;
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, Host};
use vm::{Ctx, Events, MpState, SmiEvents};

/// KVM_GET_VCPU_EVENTS.
pub fn get_events<H: Host>(ctx: &mut Ctx<'_, H>) -> kvm_vcpu_events {
    let e = ctx.get_events();
    let config = &ctx.vm.config;
    let payloads = config.exception_payload.load(Relaxed);
    let triple_faults = config.triple_fault_event.load(Relaxed);
    let smi = e.smi.unwrap_or_default();
    let mut flags = vcpuevent::VALID_NMI_PENDING | vcpuevent::VALID_SHADOW | vcpuevent::VALID_SMM;
    if payloads {
        flags |= vcpuevent::VALID_PAYLOAD;
    }
    if triple_faults {
        flags |= vcpuevent::VALID_TRIPLE_FAULT;
    }
    kvm_vcpu_events {
        exception: kvm_vcpu_events_exception {
            injected: e.exception_injected.into(),
            nr: e.exception_nr,
            has_error_code: e.exception_error_code.is_some().into(),
            pending: e.exception_pending.into(),
            error_code: e.exception_error_code.unwrap_or(0),
        },
        interrupt: kvm_vcpu_events_interrupt {
            injected: e.interrupt_injected.into(),
            nr: e.interrupt_nr,
            soft: e.interrupt_soft.into(),
            shadow: e.shadow.unwrap_or(0),
        },
        nmi: kvm_vcpu_events_nmi {
            injected: e.nmi_injected.into(),
            pending: e.nmi_pending.unwrap_or(0),
            masked: e.nmi_masked.into(),
            pad: 0,
        },
        flags,
        smi: kvm_vcpu_events_smi {
            smm: smi.smm.into(),
            pending: smi.pending.into(),
            smm_inside_nmi: smi.smm_inside_nmi.into(),
            latched_init: (e.latched_init == Some(true)).into(),
        },
        triple_fault: kvm_vcpu_events_triple_fault { pending: (triple_faults && e.triple_fault == Some(true)).into() },
        exception_has_payload: e.exception_payload.is_some().into(),
        exception_payload: e.exception_payload.unwrap_or(0),
        ..Default::default()
    }
}

/// KVM_SET_VCPU_EVENTS. Errors: EINVAL (unknown flags, parts whose capability is not enabled, an exception that is none,
/// system management mode where INIT was received); nothing is changed then.
pub fn set_events<H: Host>(ctx: &mut Ctx<'_, H>, e: &kvm_vcpu_events) -> Result<(), Errno> {
    let config = &ctx.vm.config;
    let valid = |flag| e.flags & flag != 0;
    let payloads = valid(vcpuevent::VALID_PAYLOAD);
    if e.flags & !vcpuevent::ALL != 0
        || payloads && !config.exception_payload.load(Relaxed)
        || valid(vcpuevent::VALID_TRIPLE_FAULT) && !config.triple_fault_event.load(Relaxed)
    {
        return Err(Errno::EINVAL);
    }
    // Without the payload flag there is only "injected"; with it, "pending" goes before it.
    let pending = payloads && e.exception.pending != 0;
    let events = Events {
        exception_injected: e.exception.injected != 0 && !pending,
        exception_pending: pending,
        exception_nr: e.exception.nr,
        exception_error_code: (e.exception.has_error_code != 0).then_some(e.exception.error_code),
        exception_payload: (pending && e.exception_has_payload != 0).then_some(e.exception_payload),
        interrupt_injected: e.interrupt.injected != 0,
        interrupt_nr: e.interrupt.nr,
        interrupt_soft: e.interrupt.soft != 0,
        shadow: valid(vcpuevent::VALID_SHADOW).then_some(e.interrupt.shadow),
        nmi_injected: e.nmi.injected != 0,
        nmi_pending: valid(vcpuevent::VALID_NMI_PENDING).then_some(e.nmi.pending),
        nmi_masked: e.nmi.masked != 0,
        sipi_vector: valid(vcpuevent::VALID_SIPI_VECTOR).then_some(e.sipi_vector),
        smi: valid(vcpuevent::VALID_SMM).then_some(SmiEvents {
            smm: e.smi.smm != 0,
            pending: e.smi.pending != 0,
            smm_inside_nmi: e.smi.smm_inside_nmi != 0,
        }),
        latched_init: valid(vcpuevent::VALID_SMM).then_some(e.smi.latched_init != 0),
        triple_fault: valid(vcpuevent::VALID_TRIPLE_FAULT).then_some(e.triple_fault.pending != 0),
    };
    ctx.set_events(&events)
}

/// KVM_GET_MP_STATE.
pub fn get_mp_state<H: Host>(ctx: &mut Ctx<'_, H>) -> kvm_mp_state {
    kvm_mp_state { mp_state: ctx.get_mp_state() as u32 }
}

/// KVM_SET_MP_STATE. Errors: EINVAL (a state that x86 does not have, or that needs an in-kernel local APIC).
pub fn set_mp_state<H: Host>(ctx: &mut Ctx<'_, H>, s: &kvm_mp_state) -> Result<(), Errno> {
    let state = match s.mp_state {
        0 => MpState::Runnable,
        1 => MpState::Uninitialized,
        2 => MpState::InitReceived,
        3 => MpState::Halted,
        4 => MpState::SipiReceived,
        9 => MpState::ApResetHold,
        _ => return Err(Errno::EINVAL),
    };
    ctx.set_mp_state(state)
}

/// KVM_GET_NESTED_STATE. Clients that save a vCPU ask for it whether there is nested virtualisation or not; a vCPU that runs no
/// guest of its own has the header alone, with GIF set. Errors: E2BIG (not enough room; `size` says how much), EFAULT.
pub fn get_nested_state<H: Host>(host: &H, arg: u64) -> Result<(), Errno> {
    const SIZE: u32 = kvm_nested_state::SIZE as u32;
    let at = arg.wrapping_add(core::mem::offset_of!(kvm_nested_state, size) as u64);
    if get::<H, u32>(host, at)? < SIZE {
        put(host, at, &SIZE)?;
        return Err(Errno::E2BIG);
    }
    let (flags, format) = (KVM_STATE_NESTED_GIF_SET, KVM_STATE_NESTED_FORMAT_SVM);
    put(host, arg, &kvm_nested_state { flags, format, size: SIZE, hdr: [0; 15] })
}

/// KVM_SET_NESTED_STATE: what [`get_nested_state`] gives. Errors: EINVAL (anything else).
pub fn set_nested_state(s: &kvm_nested_state) -> Result<(), Errno> {
    let known = s.format == KVM_STATE_NESTED_FORMAT_SVM && s.flags == KVM_STATE_NESTED_GIF_SET;
    if known && s.size as usize >= kvm_nested_state::SIZE { Ok(()) } else { Err(Errno::EINVAL) }
}
