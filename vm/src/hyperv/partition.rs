//! What the vCPUs of a partition share: the MSRs that there is one of for all of them.

use super::number::*;
use super::syndbg::Syndbg;
use super::time::{PageStatus, TscPage};
use super::{Exit, connection::Connections};
use crate::Ctx;
use crate::msr::MsrError;
use arch::{Gpa, GuestIndexed};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use host::{Host, rank};
use lock_api::Mutex;

/// VMMCALL and RET: what a hypercall page begins with.
const HYPERCALL_PAGE: [u8; 4] = [0x0f, 0x01, 0xd9, 0xc3];

/// The VM's part.
pub struct Partition<H: Host> {
    pub(super) msrs: Mutex<H::RawMutex<{ rank::HYPERV }>, Msrs>,
    /// HV_X64_MSR_GUEST_OS_ID; 0: hypercalls are KVM's.
    pub(super) guest_os_id: AtomicU64,
    /// HV_X64_MSR_TSC_INVARIANT_CONTROL.
    pub(super) tsc_invariant: AtomicU64,
    /// vCPUs whose number among the guest's is not their place in the VM's table.
    pub(super) renumbered: AtomicUsize,
    /// KVM_HYPERV_EVENTFD.
    pub(super) connections: Connections<H>,
}

impl<H: Host> Partition<H> {
    /// Has the guest, or user space for it, set anything? Numbers of vCPUs are theirs.
    pub(super) fn is_used(&self) -> bool {
        self.guest_os_id.load(Relaxed) != 0
            || self.tsc_invariant.load(Relaxed) != 0
            || self.connections.is_used()
            || *self.msrs.lock() != Msrs::default()
    }

    /// Of a VM whose guest has set nothing.
    pub(crate) fn new() -> Self {
        Self {
            msrs: Mutex::new(Msrs::default()),
            guest_os_id: AtomicU64::new(0),
            tsc_invariant: AtomicU64::new(0),
            renumbered: AtomicUsize::new(0),
            connections: Connections::new(),
        }
    }
}

/// What is behind the lock, which is held while guest memory is written for it.
#[derive(Default, PartialEq)]
pub(super) struct Msrs {
    hypercall: u64,
    pub tsc: TscPage,
    crash: GuestIndexed<[u64; 5]>,
    crash_ctl: u64,
    reenlightenment: u64,
    tsc_emulation_status: u64,
    pub syndbg: Syndbg,
}

::state::state! {
    place Msrs { hypercall, tsc, crash, crash_ctl, reenlightenment, tsc_emulation_status, syndbg }
}

/// Is there one of it for all vCPUs?
pub(super) fn is_shared(index: u32) -> bool {
    matches!(
        index,
        GUEST_OS_ID
            | HYPERCALL
            | REFERENCE_TSC
            | TIME_REF_COUNT
            | RESET
            | CRASH_P0..=TSC_EMULATION_STATUS
            | TSC_INVARIANT_CONTROL
            | SYNDBG_CONTROL..=SYNDBG_LAST
            | SYNDBG_OPTIONS
    )
}

impl<H: Host> Ctx<'_, H> {
    /// Are the guest's hypercalls Hyper-V's?
    #[inline]
    pub(crate) fn takes_hyperv_calls(&self) -> bool {
        self.core.hyperv.as_ref().is_some_and(|hv| hv.features.is_some())
            && self.vm.partition.guest_os_id.load(Relaxed) != 0
    }

    /// Has CPUID to hide that the TSC is invariant? So it is until a guest that can has asked to see it.
    pub(crate) fn hides_invariant_tsc(&self) -> bool {
        self.core.hyperv.as_ref().and_then(|hv| hv.features).is_some_and(|f| f.msrs & privilege::TSC_INVARIANT != 0)
            && self.vm.partition.tsc_invariant.load(Relaxed) & EXPOSE_INVARIANT_TSC == 0
    }

    pub(super) fn read_shared_msr(&mut self, index: u32, host: bool) -> Result<u64, MsrError> {
        if index == TIME_REF_COUNT {
            return Ok(self.reference_time());
        }
        let debugger = self.has_debugger();
        let partition = &self.vm.partition;
        let msrs = partition.msrs.lock();
        Ok(match index {
            GUEST_OS_ID => partition.guest_os_id.load(Relaxed),
            HYPERCALL => msrs.hypercall,
            REFERENCE_TSC => msrs.tsc.msr,
            CRASH_P0..=CRASH_P4 => {
                msrs.crash.get_nospec((index - CRASH_P0) as usize).copied().ok_or(MsrError::Invalid)?
            }
            CRASH_CTL => msrs.crash_ctl,
            RESET => 0,
            REENLIGHTENMENT_CONTROL => msrs.reenlightenment,
            TSC_EMULATION_CONTROL => msrs.tsc.emulation,
            TSC_EMULATION_STATUS => msrs.tsc_emulation_status,
            TSC_INVARIANT_CONTROL => partition.tsc_invariant.load(Relaxed),
            _ if !debugger && !host => return Err(MsrError::Invalid),
            _ => msrs.syndbg.read(index),
        })
    }

    pub(super) fn write_shared_msr(&mut self, index: u32, value: u64, host: bool) -> Result<(), MsrError> {
        let debugger = self.has_debugger();
        let partition = &self.vm.partition;
        let mut msrs = partition.msrs.lock();
        match index {
            GUEST_OS_ID => {
                partition.guest_os_id.store(value, Relaxed);
                // Who says no more what he is has no hypercall page.
                if value == 0 {
                    msrs.hypercall &= !PAGE_ENABLED;
                }
            }
            HYPERCALL if partition.guest_os_id.load(Relaxed) == 0 => {}
            HYPERCALL => {
                if value & PAGE_ENABLED != 0 {
                    let page = Gpa(value & PAGE_ADDRESS);
                    self.shared_memory().write_phys(page, &HYPERCALL_PAGE).map_err(|_| MsrError::Invalid)?;
                }
                msrs.hypercall = value;
            }
            REFERENCE_TSC => {
                msrs.tsc.msr = value;
                msrs.tsc.status = match (value & PAGE_ENABLED, host) {
                    (0, _) => PageStatus::Unset,
                    (_, true) => PageStatus::HostChanged,
                    (_, false) => PageStatus::GuestChanged,
                };
                drop(msrs);
                self.ring_tsc_page();
            }
            CRASH_P0..=CRASH_P4 => {
                let place = msrs.crash.get_nospec_mut((index - CRASH_P0) as usize);
                *place.ok_or(MsrError::Invalid)? = value;
            }
            CRASH_CTL if host => msrs.crash_ctl = value & CRASH_NOTIFY,
            CRASH_CTL if value & CRASH_NOTIFY != 0 => self.leave_for_hyperv(Exit::Crash),
            RESET if value == 1 => self.leave_for_hyperv(Exit::Reset),
            CRASH_CTL | RESET => {}
            REENLIGHTENMENT_CONTROL => msrs.reenlightenment = value,
            TSC_EMULATION_CONTROL => msrs.tsc.emulation = value,
            TSC_EMULATION_STATUS if value != 0 && !host => return Err(MsrError::Invalid),
            TSC_EMULATION_STATUS => msrs.tsc_emulation_status = value,
            // Read-only; user space may restore it with everything else.
            TIME_REF_COUNT if !host => return Err(MsrError::Invalid),
            TIME_REF_COUNT => {}
            TSC_INVARIANT_CONTROL => {
                let taken_back = value == 0 && partition.tsc_invariant.load(Relaxed) != 0 && !host;
                if value & !EXPOSE_INVARIANT_TSC != 0 || taken_back {
                    return Err(MsrError::Invalid);
                }
                partition.tsc_invariant.store(value, Relaxed);
                self.core.fast.forget_cpuid();
            }
            _ if !debugger && !host => return Err(MsrError::Invalid),
            _ => {
                let leaves = msrs.syndbg.write(index, value).filter(|_| !host);
                drop(msrs);
                if let Some(words) = leaves {
                    self.leave_for_hyperv(Exit::Syndbg(words));
                }
            }
        }
        Ok(())
    }
}
