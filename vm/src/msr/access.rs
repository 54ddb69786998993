//! One access to an MSR: what it borrows, and what it may lead to.

use super::{MsrState, list};
use crate::clock::VcpuClock;
use crate::cpuid::GuestCpuid;
use crate::vcpu::Core;
use arch::msr::ARCH_CAPABILITIES;
use core::sync::atomic::{AtomicBool, AtomicU64};
use host::{Command, Cpu, Host, linux_version};
use irqchip::{Lapic, TimerEffect};

/// Why an access did not happen. The guest gets #GP(0), unless user space wants to know (KVM_CAP_X86_USER_SPACE_MSR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrError {
    /// There is no such MSR.
    Unknown,
    /// There is, but not for this guest, not in this way or not with this value.
    Invalid,
    /// The filter denies it.
    Filtered,
}

impl MsrError {
    /// KVM_MSR_EXIT_REASON_*.
    pub const fn exit_reason(self) -> u32 {
        match self {
            MsrError::Invalid => 1,
            MsrError::Unknown => 2,
            MsrError::Filtered => 4,
        }
    }
}

/// What has to be done after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrEffect {
    /// Nothing.
    None,
    /// What a register of the local APIC asks for.
    Lapic(irqchip::Effect),
    /// The TSC deadline changed.
    Timer(TimerEffect),
    /// IA32_APIC_BASE changed: what others know of the local APIC, and the APIC bit in CPUID.
    ApicBase,
    /// Something that CPUID shows changed.
    CpuidChanged,
    /// EFER changed; the new value is in the save area.
    Efer {
        /// EFER before, without SVME.
        old: u64,
    },
    /// The TSC offset changed.
    TscOffset,
    /// User space wrote the TSC: [`VmClock::write_tsc`](crate::clock::VmClock::write_tsc) with this value.
    SyncTsc(u64),
    /// The system-time MSR was written: [`VmClock::system_time_written`](crate::clock::VmClock::system_time_written).
    SystemTime {
        /// The guest used the old pair of MSRs (true) or the new one; None if it was user space.
        old_msr: Option<bool>,
    },
    /// The wall clock page at this address is to be written.
    WallClock(u64),
    /// The steal time MSR was written.
    StealTime,
    /// KVM_PV_EOI_EN is to have this value, if there is memory for it.
    PvEoi(u64),
    /// KVM_ASYNC_PF_EN is to have this value, if there is memory for it.
    AsyncPf(u64),
    /// The guest has taken the token of a page that is ready.
    AsyncPfAck,
    /// SPEC_CTRL was used for the first time: it passes through from now on.
    SpecCtrl,
    /// The processor is to do this, asked for by user space or a guest that is intercepted.
    Command(Command),
}

/// MSR state and policy that the vCPUs of a VM share.
#[derive(Debug, Default)]
pub struct VmMsrs {
    /// KVM_WALL_CLOCK.
    pub wall_clock: AtomicU64,
    /// KVM_CAP_MSR_PLATFORM_INFO switched off: guests cannot read PLATFORM_INFO.
    pub platform_info_hidden: AtomicBool,
    /// KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT switched off: MISC_ENABLE bit 18 shows in CPUID.
    pub misc_enable_mwait: AtomicBool,
}

::state::state! {
    place VmMsrs { wall_clock, platform_info_hidden, misc_enable_mwait }
}

/// The clocks that MSRs show, and the host's say in those that do not exist. Every [`Host`] has them.
pub trait Clocks {
    /// Host TSC.
    fn host_tsc(&self) -> u64;
    /// Monotonic time in ns.
    fn monotonic_ns(&self) -> u64;
    /// Can the host's processor read this MSR?
    fn has_msr(&self, index: u32) -> bool;
    /// See [`Host::ignores_msr`].
    fn ignores_msr(&self, index: u32, write: bool, value: u64) -> bool;
    /// See [`Host::unhandled_wrmsr`].
    fn unhandled_wrmsr(&self, vcpu: u32, rip: u64, index: u32, value: u64);
}

impl<H: Host> Clocks for H {
    #[inline]
    fn host_tsc(&self) -> u64 {
        self.tsc()
    }
    #[inline]
    fn monotonic_ns(&self) -> u64 {
        self.now_ns()
    }
    #[cold]
    fn has_msr(&self, index: u32) -> bool {
        self.read_host_msr(index).is_some()
    }
    #[cold]
    fn ignores_msr(&self, index: u32, write: bool, value: u64) -> bool {
        Host::ignores_msr(self, index, write, value)
    }
    #[cold]
    fn unhandled_wrmsr(&self, vcpu: u32, rip: u64, index: u32, value: u64) {
        Host::unhandled_wrmsr(self, vcpu, rip, index, value);
    }
}

/// One vCPU's MSRs, for one access.
pub struct MsrAccess<'a, C: Cpu, T: Clocks> {
    /// Clocks.
    pub time: &'a T,
    /// The processor: MSRs in the save area and those that the world switch swaps.
    pub cpu: &'a mut C,
    /// The local APIC, if it is in the kernel.
    pub lapic: Option<&'a mut Lapic>,
    /// IA32_APIC_BASE if it is not.
    pub apic_base: &'a mut u64,
    /// What the guest was shown.
    pub cpuid: &'a GuestCpuid,
    /// Plain values.
    pub state: &'a mut MsrState,
    /// TSC and clock page.
    pub clock: &'a mut VcpuClock,
    /// What vCPUs share.
    pub vm: &'a VmMsrs,
    /// The guest's CR0.
    pub cr0: u64,
}

impl<H: Host> Core<H> {
    /// Borrows what an MSR access needs.
    #[inline]
    pub fn msrs<'a>(&'a mut self, host: &'a H, vm: &'a VmMsrs) -> MsrAccess<'a, H::Cpu, H> {
        MsrAccess {
            time: host,
            cpu: &mut self.cpu,
            lapic: self.fast.lapic.as_mut(),
            apic_base: &mut self.apic_base,
            cpuid: &self.cpuid,
            state: &mut self.msr,
            clock: &mut self.clock,
            vm,
            cr0: self.guest_cr0,
        }
    }
}

impl<C: Cpu, T: Clocks> MsrAccess<'_, C, T> {
    /// RDMSR, or KVM_GET_MSRS with `host`. The filter is the caller's.
    #[inline]
    pub fn read(&mut self, index: u32, host: bool) -> Result<u64, MsrError> {
        match self.read_known(index, host) {
            // User space may read whatever KVM_GET_MSR_INDEX_LIST names, also when the guest does not have it.
            Err(MsrError::Unknown) if host && self.is_advertised(index) || self.time.ignores_msr(index, false, 0) => {
                Ok(0)
            }
            result => result,
        }
    }

    /// WRMSR, or KVM_SET_MSRS with `host`. The filter is the caller's.
    #[inline]
    pub fn write(&mut self, index: u32, value: u64, host: bool) -> Result<MsrEffect, MsrError> {
        match self.write_known(index, value, host) {
            Err(MsrError::Unknown)
                if host && value == 0 && self.is_advertised(index) || self.time.ignores_msr(index, true, value) =>
            {
                Ok(MsrEffect::None)
            }
            result => result,
        }
    }

    fn is_advertised(&self, index: u32) -> bool {
        list::is_advertised(index, || self.time.has_msr(index))
    }

    /// Is a describing MSR absent for want of its CPUID bit? So it is from Linux 6.13 on, for user space, too. The bit
    /// of PERF_CAPABILITIES is never offered.
    pub(super) fn lacks_bit_of(&self, index: u32) -> bool {
        let has = index == ARCH_CAPABILITIES && self.cpuid.flags().arch_capabilities;
        !has && self.since(6, 13)
    }

    /// Is KVM's interface that of this Linux, or of a later one?
    pub(super) fn since(&self, major: u32, minor: u32) -> bool {
        self.cpuid.caps().linux_version() >= linux_version(major, minor)
    }

    /// Does the guest have the paravirtual feature? Without enforcement, all that are offered exist.
    pub(super) fn pv(&self, feature: u32) -> Result<(), MsrError> {
        let has = !self.state.enforce_pv || self.cpuid.flags().kvm_features & feature != 0;
        if has { Ok(()) } else { Err(MsrError::Unknown) }
    }
}
