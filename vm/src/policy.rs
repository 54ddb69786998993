//! What CPUID and the MSRs mean for one vCPU: the thin layer between their pure rules and the processor.

use crate::clock::write_wall_clock;
use crate::cpuid::Runtime;
use crate::fast::Armed;
use crate::guest_time::Pages;
use crate::hyperv;
use crate::msr::{MachineCheck, MceOutcome, MsrEffect, MsrError, MsrFilter, is_fixed_once_run, passthrough};
use crate::quirks::MISC_ENABLE_NO_MWAIT;
use crate::run::Next;
use crate::spin::DISABLE_HLT;
use crate::vcpu::Core;
use crate::{CpuidEntry, Ctx, Vm};
use arch::{Exception, Intercepts, cr::Cr4, event::vector};
use core::sync::atomic::Ordering::Relaxed;
use host::{Cpu, Errno, Host, Request, VcpuThread};
use irqchip::ChipMode;

impl<H: Host> Core<H> {
    fn runtime(&self, vm: &Vm<H>) -> Runtime {
        let extra = self.cpu.extra();
        Runtime {
            cr4: self.guest_cr4,
            apic_enabled: match &self.fast.lapic {
                Some(l) => l.mode() != irqchip::Mode::Disabled,
                None => self.apic_base & 1 << 11 != 0,
            },
            xcr0: extra.xcr0,
            xss: extra.xss,
            mwait: (!vm.config.has_quirk(MISC_ENABLE_NO_MWAIT)).then(|| self.msr.shows_mwait()),
            hlt_in_guest: vm.config.disabled_exits.load(Relaxed) & DISABLE_HLT != 0,
        }
    }

    /// RDTSCP and INVPCID are #UD for a guest that does not have them.
    pub(crate) fn hide_instructions(&mut self) {
        let (rdtscp, invpcid) = (!self.cpuid.flags().rdtscp, self.cpuid.flags().hides_invpcid);
        self.cpu.set_intercept(Intercepts::RDTSCP, rdtscp);
        self.cpu.set_invpcid_intercept(invpcid);
    }

    /// Sets which MSRs pass without an exit.
    pub(crate) fn apply_msr_policy(&mut self, filter: Option<&MsrFilter>) {
        self.fast.forget_msrs();
        self.fast.msrs_free = filter.is_none();
        let cpu = &mut self.cpu;
        passthrough(&self.cpuid, &self.msr, filter, &mut |msr, read, write| cpu.set_msr_intercept(msr, read, write));
    }

    /// What is intercepted, and how fast the processor counts: all of it from the state, in one place.
    pub(crate) fn load_policy(&mut self, filter: Option<&MsrFilter>) {
        let timer_at = self.fast.timer_at;
        self.load_tsc();
        self.fast.timer_at = timer_at;
        self.load_idle_intercepts();
        self.load_exception_intercepts();
        self.load_cr_intercepts();
        self.hide_instructions();
        self.apply_msr_policy(filter);
        self.cpu.set_intercept(Intercepts::VINTR, self.fast.armed == Some(Armed::Window));
        let awaits_iret = self.inject.nmi_masked && self.inject.iret_rip.is_none();
        self.cpu.set_intercept(Intercepts::IRET, awaits_iret);
    }

    /// The processor counts as the clock says.
    pub(crate) fn load_tsc(&mut self) {
        self.cpu.extra_mut().tsc_ratio = self.clock.tsc_ratio();
        self.cpu.set_tsc_offset(self.clock.tsc_offset());
        self.fast.timer_at = 0;
    }
}

impl<H: Host> Ctx<'_, H> {
    /// CPUID shows some state of the processor: after CR4, XCR0, XSS or the APIC base changed.
    pub(crate) fn update_cpuid(&mut self) {
        let now = self.core.runtime(self.vm);
        self.core.cpuid.update(&now);
        self.core.fast.forget_cpuid();
    }

    /// KVM_SET_CPUID2. Errors: E2BIG, EINVAL (what this hypervisor cannot give, or a change once the guest has been entered),
    /// ENOMEM.
    pub fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<(), Errno> {
        let now = self.core.runtime(self.vm);
        self.prepare_hyperv(entries)?;
        self.core.cpuid.set(entries, &now, self.core.has_run)?;
        self.update_hyperv_features();
        self.core.fast.forget_cpuid();
        let features = self.core.cpuid.lapic_features(self.vm.chip_mode() == ChipMode::Split);
        if let Some(lapic) = &mut self.core.fast.lapic {
            lapic.set_features(features);
        }
        self.core.hide_instructions();
        self.apply_msr_policy();
        Ok(())
    }

    /// KVM_GET_CPUID2.
    pub fn cpuid_entries(&self) -> &[CpuidEntry] {
        self.core.cpuid.entries()
    }

    /// KVM_X86_SETUP_MCE. Errors: EINVAL (capabilities that are not supported).
    pub fn setup_mce(&mut self, mcg_cap: u64) -> Result<(), Errno> {
        self.core.msr.setup_mce(mcg_cap)
    }

    /// KVM_X86_SET_MCE: a machine check is found in the guest. Errors: EINVAL (no such bank, status not valid).
    pub fn set_mce(&mut self, e: &MachineCheck) -> Result<(), Errno> {
        let enabled = self.core.guest_cr4 & Cr4::MCE.bits() != 0;
        match self.core.msr.mce.report(e, enabled)? {
            MceOutcome::Noted => {}
            MceOutcome::Exception => self.core.inject.queue(Exception::plain(vector::MC)),
            MceOutcome::TripleFault => self.core.inject.triple_fault = true,
        }
        Ok(())
    }

    /// Sets which MSRs pass without an exit.
    pub(crate) fn apply_msr_policy(&mut self) {
        let filter = self.vm.msr_filter.read();
        self.core.apply_msr_policy(filter.as_ref());
    }

    /// KVM_GET_MSRS, one MSR.
    pub fn get_msr(&mut self, index: u32) -> Result<u64, MsrError> {
        if hyperv::is_msr(index) {
            return self.read_hyperv_msr(index, true);
        }
        self.core.msrs(&self.vm.host, &self.vm.msrs).read(index, true)
    }

    /// KVM_SET_MSRS, one MSR. What describes the processor is fixed once the vCPU has run, as its CPUID is; to write the
    /// same again is no change.
    pub fn set_msr(&mut self, index: u32, value: u64) -> Result<(), MsrError> {
        let linux = self.vm.host.linux_version();
        if self.core.has_run && is_fixed_once_run(index, linux) && self.get_msr(index)? != value {
            return Err(MsrError::Invalid);
        }
        self.write_msr(index, value, true).map(|_| ())
    }

    /// RDMSR by the guest.
    #[inline]
    pub(crate) fn guest_read_msr(&mut self, index: u32) -> Result<u64, MsrError> {
        self.filtered(index, false)?;
        if hyperv::is_msr(index) {
            return self.read_hyperv_msr(index, false);
        }
        self.core.msrs(&self.vm.host, &self.vm.msrs).read(index, false)
    }

    /// WRMSR by the guest. Ok: what the write asks of user space.
    #[inline]
    pub(crate) fn guest_write_msr(&mut self, index: u32, value: u64) -> Result<Next, MsrError> {
        self.filtered(index, true)?;
        self.write_msr(index, value, false)
    }

    #[inline]
    pub(crate) fn write_msr(&mut self, index: u32, value: u64, host: bool) -> Result<Next, MsrError> {
        if hyperv::is_msr(index) {
            return self.write_hyperv_msr(index, value, host);
        }
        match self.core.msrs(&self.vm.host, &self.vm.msrs).write(index, value, host)? {
            MsrEffect::PvEoi(value) if !self.set_pv_eoi(value) => Err(MsrError::Invalid),
            MsrEffect::AsyncPf(value) if !self.set_async_pf(value) => Err(MsrError::Invalid),
            effect => Ok(self.apply_msr_effect(effect)),
        }
    }

    #[inline]
    fn filtered(&self, index: u32, write: bool) -> Result<(), MsrError> {
        if !self.vm.msr_filter_used.load(Relaxed) {
            return Ok(());
        }
        match &*self.vm.msr_filter.read() {
            Some(f) if !f.allowed(index, write) => Err(MsrError::Filtered),
            _ => Ok(()),
        }
    }

    fn apply_msr_effect(&mut self, effect: MsrEffect) -> Next {
        match effect {
            MsrEffect::None | MsrEffect::PvEoi(_) | MsrEffect::AsyncPf(_) => {}
            MsrEffect::AsyncPfAck => self.tell_pages(),
            MsrEffect::StealTime => self.me.thread.requests().make_request(Request::StealUpdate),
            MsrEffect::Command(what) => self.vm.host.command(what),
            MsrEffect::Lapic(e) => return self.apply_effect(e),
            MsrEffect::Timer(t) => self.apply_timer(t),
            MsrEffect::ApicBase => {
                self.update_cpuid();
                self.publish_address();
            }
            MsrEffect::CpuidChanged => self.update_cpuid(),
            MsrEffect::Efer { .. } => self.core.cpu.flush_tlb(),
            MsrEffect::TscOffset => self.tsc_moved(),
            MsrEffect::SyncTsc(value) => {
                let now = self.vm.host.time_point();
                let all = self.vm.clock.lock().write_tsc(&mut self.core.clock, value, now);
                self.tsc_moved();
                self.ring_clock(all);
            }
            MsrEffect::SystemTime { old_msr } => {
                let now = self.vm.host.time_point();
                // The first vCPU's, whichever is the bootstrap processor.
                let boot = self.me.id == 0;
                let all = self.vm.clock.lock().system_time_written(boot, old_msr, now);
                self.ring_clock(all);
            }
            MsrEffect::WallClock(gpa) => {
                let now = self.vm.host.time_point();
                let clock = *self.vm.clock.lock();
                write_wall_clock(&clock, gpa, now, &mut Pages(self.shared_memory()));
            }
            MsrEffect::SpecCtrl => self.apply_msr_policy(),
        }
        Next::Resume
    }
}

impl<H: Host> Vm<H> {
    /// KVM_X86_SET_MSR_FILTER: replaces the filter; None denies nothing.
    pub fn set_msr_filter(&self, filter: Option<crate::msr::MsrFilter>) {
        // A vCPU that is being made has the old filter, and is told of this one; or it has this one.
        let _shape = self.shape.lock();
        self.msr_filter_used.store(filter.is_some(), Relaxed);
        let old = core::mem::replace(&mut *self.msr_filter.write(), filter);
        drop(old);
        self.ring_all(Request::MsrFilter);
    }
}
