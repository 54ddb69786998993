//! The MSRs from 0x40000000 on (TLFS, appendix "Synthetic MSRs"): who may access them, and those that each vCPU has.

use super::number::*;
use super::partition::is_shared;
use super::stimer::UNIT_NS;
use crate::msr::MsrError;
use crate::run::Next;
use crate::{Ctx, MAX_VCPUS};
use arch::Gpa;
use core::sync::atomic::Ordering::Relaxed;
use host::Host;
use irqchip::Vapic;

/// What user space saves and restores, in the order of KVM_GET_MSR_INDEX_LIST. (The sources and the other timers it knows of.)
pub(crate) const SAVED: [u32; 28] = [
    GUEST_OS_ID,
    HYPERCALL,
    TIME_REF_COUNT,
    REFERENCE_TSC,
    TSC_FREQUENCY,
    APIC_FREQUENCY,
    CRASH_P0,
    CRASH_P0 + 1,
    CRASH_P0 + 2,
    CRASH_P0 + 3,
    CRASH_P4,
    CRASH_CTL,
    RESET,
    VP_INDEX,
    VP_RUNTIME,
    SCONTROL,
    STIMER0_CONFIG,
    VP_ASSIST_PAGE,
    REENLIGHTENMENT_CONTROL,
    TSC_EMULATION_CONTROL,
    TSC_EMULATION_STATUS,
    TSC_INVARIANT_CONTROL,
    SYNDBG_OPTIONS,
    SYNDBG_CONTROL,
    SYNDBG_STATUS,
    SYNDBG_SEND_BUFFER,
    SYNDBG_RECV_BUFFER,
    SYNDBG_PENDING_BUFFER,
];

/// Is it one of these? Every access to an MSR asks.
#[inline(always)]
pub(crate) fn is_msr(index: u32) -> bool {
    index.wrapping_sub(GUEST_OS_ID) < 0x200 && exists(index)
}

#[cold]
fn exists(index: u32) -> bool {
    matches!(
        index,
        GUEST_OS_ID..=SINT15
            | STIMER0_CONFIG..=STIMER3_COUNT
            | SYNDBG_CONTROL..=SYNDBG_LAST
            | SYNDBG_OPTIONS
            | CRASH_P0..=TSC_EMULATION_STATUS
            | TSC_INVARIANT_CONTROL
    )
}

/// Number of the timer that an MSR belongs to, and whether it is its count.
fn timer_of(index: u32) -> (usize, bool) {
    let n = index.wrapping_sub(STIMER0_CONFIG);
    ((n / 2) as usize, n % 2 != 0)
}

fn vapic(index: u32) -> Vapic {
    match index {
        EOI => Vapic::Eoi,
        ICR => Vapic::Icr,
        _ => Vapic::Tpr,
    }
}

impl<H: Host> Ctx<'_, H> {
    /// RDMSR, or KVM_GET_MSRS with `host`.
    #[cold]
    pub(crate) fn read_hyperv_msr(&mut self, index: u32, host: bool) -> Result<u64, MsrError> {
        self.check_hyperv_msr(index, host)?;
        if is_shared(index) {
            return self.read_shared_msr(index, host);
        }
        let hv = self.core.hyperv.as_ref().ok_or(MsrError::Invalid)?;
        Ok(match index {
            VP_INDEX => self.me.vp_index().into(),
            EOI | ICR | TPR => {
                let lapic = self.core.fast.lapic.as_ref().ok_or(MsrError::Invalid)?;
                lapic.vapic_read(vapic(index)).map_err(|_| MsrError::Invalid)?
            }
            VP_ASSIST_PAGE => hv.assist_page,
            VP_RUNTIME => (self.vm.host.task_runtime_ns() / UNIT_NS).wrapping_add(hv.runtime_offset),
            SCONTROL..=EOM | SINT0..=SINT15 => self.read_synic_msr(index, host)?,
            STIMER0_CONFIG..=STIMER3_COUNT => {
                let (n, count) = timer_of(index);
                let t = hv.timers.timer(n).ok_or(MsrError::Invalid)?;
                if count { t.count } else { t.config }
            }
            TSC_FREQUENCY => u64::from(self.tsc_khz()) * 1000,
            APIC_FREQUENCY => {
                let period = self.vm.config.apic_bus_cycle_ns.load(Relaxed).max(1);
                1_000_000_000u64.checked_div(period.into()).unwrap_or(0)
            }
            _ => return Err(MsrError::Invalid),
        })
    }

    /// WRMSR, or KVM_SET_MSRS with `host`. Ok: what the write asks of user space at once.
    #[cold]
    pub(crate) fn write_hyperv_msr(&mut self, index: u32, value: u64, host: bool) -> Result<Next, MsrError> {
        self.check_hyperv_msr(index, host)?;
        if is_shared(index) {
            return self.write_shared_msr(index, value, host).map(|()| Next::Resume);
        }
        match index {
            EOI | ICR | TPR => {
                let now = self.vm.host.now_ns();
                let lapic = self.core.fast.lapic.as_mut().ok_or(MsrError::Invalid)?;
                let effect = lapic.vapic_write(vapic(index), value, now).map_err(|_| MsrError::Invalid)?;
                return Ok(self.apply_effect(effect));
            }
            VP_INDEX => self.renumber(value, host)?,
            VP_ASSIST_PAGE => self.set_assist_page(value)?,
            VP_RUNTIME if host => {
                let ours = self.vm.host.task_runtime_ns() / UNIT_NS;
                let hv = self.core.hyperv.as_mut().ok_or(MsrError::Invalid)?;
                hv.runtime_offset = value.wrapping_sub(ours);
            }
            SCONTROL..=EOM | SINT0..=SINT15 => self.write_synic_msr(index, value, host)?,
            STIMER0_CONFIG..=STIMER3_COUNT => self.write_stimer_msr(index, value, host)?,
            // Read-only; user space may restore them with everything else.
            TSC_FREQUENCY | APIC_FREQUENCY if host => {}
            _ => return Err(MsrError::Invalid),
        }
        Ok(Next::Resume)
    }

    fn write_stimer_msr(&mut self, index: u32, value: u64, host: bool) -> Result<(), MsrError> {
        if !self.synic_active() && (!host || value != 0) {
            return Err(MsrError::Invalid);
        }
        let (n, count) = timer_of(index);
        if count {
            self.set_stimer_count(n, value, host);
            return Ok(());
        }
        let hv = self.core.hyperv.as_ref().ok_or(MsrError::Invalid)?;
        let has_direct = hv.features.is_some_and(|f| f.others & feature::STIMER_DIRECT != 0);
        if super::stimer::is_direct(value) && !host && hv.enforce && !has_direct {
            return Err(MsrError::Invalid);
        }
        self.set_stimer_config(n, value);
        Ok(())
    }

    /// User space gives the vCPU another number.
    fn renumber(&mut self, value: u64, host: bool) -> Result<(), MsrError> {
        let number = value as u32;
        let shared = self.me.hyperv_shared().ok_or(MsrError::Invalid)?;
        if !host || number as usize >= MAX_VCPUS {
            return Err(MsrError::Invalid);
        }
        let own = self.me.index as u32;
        let old = shared.vp_index.swap(number, Relaxed);
        let renumbered = &self.vm.partition.renumbered;
        match (old == own, number == own) {
            (true, false) => renumbered.fetch_add(1, Relaxed),
            (false, true) => renumbered.fetch_sub(1, Relaxed),
            _ => 0,
        };
        Ok(())
    }

    /// The first word of the assist page says whether the interrupt in service may be ended without a write of EOI: as KVM's
    /// own guests have it ([`pv`](crate::pv)). The rest of the page is the guest's.
    fn set_assist_page(&mut self, value: u64) -> Result<(), MsrError> {
        if value & PAGE_ENABLED != 0 {
            let page = Gpa(value & PAGE_ADDRESS);
            self.shared_memory().write_phys(page, &[0; 4]).map_err(|_| MsrError::Invalid)?;
            if !self.set_pv_eoi(page.0 | PAGE_ENABLED) {
                return Err(MsrError::Invalid);
            }
        } else {
            self.set_pv_eoi(0);
        }
        let hv = self.core.hyperv.as_mut().ok_or(MsrError::Invalid)?;
        hv.assist_page = value;
        Ok(())
    }
}
