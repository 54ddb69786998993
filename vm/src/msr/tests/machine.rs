//! A vCPU that is nothing but places where MSRs live.

use crate::clock::VcpuClock;
use crate::cpuid::tests::{FakeHost, generous};
use crate::cpuid::{Caps, GuestCpuid};
use crate::msr::{Clocks, MsrAccess, MsrEffect, MsrError, MsrState, PAT_RESET, VmMsrs};
use arch::{CleanBits, ControlArea, EventInj, Exit, Intercepts, NestedRoot, SaveArea, Zero, cr};
use host::{Cpu, Errno, ExtraRegs, FastExits, VcpuRequests};
use irqchip::Lapic;
use state::{Reader, Refused, Writer};
use std::boxed::Box;

/// A processor that only holds registers.
pub(super) struct Registers {
    pub save: Box<SaveArea>,
    control: Box<ControlArea>,
    pub extra: ExtraRegs,
    pub touched: CleanBits,
}

impl Cpu for Registers {
    fn gpr(&self, _: u8) -> u64 {
        0
    }
    fn set_gpr(&mut self, _: u8, _: u64) {}
    fn save(&self) -> &SaveArea {
        &self.save
    }
    fn save_mut(&mut self, touched: CleanBits) -> &mut SaveArea {
        self.touched |= touched;
        &mut self.save
    }
    fn control(&self) -> &ControlArea {
        &self.control
    }
    fn set_event_inj(&mut self, _: EventInj) {}
    fn set_next_rip(&mut self, _rip: u64) {}
    fn set_virq(&mut self, _: u8, _: u8, _: bool) {}
    fn clear_virq(&mut self) {}
    fn set_vtpr(&mut self, _: u8) {}
    fn set_invpcid_intercept(&mut self, _: bool) {}
    fn set_interrupt_shadow(&mut self, _: bool) {}
    fn set_intercept(&mut self, _: Intercepts, _: bool) {}
    fn set_cr_intercepts(&mut self, _: u16, _: u16) {}
    fn set_exception_intercepts(&mut self, _: u32) {}
    fn set_msr_intercept(&mut self, _: u32, _: bool, _: bool) {}
    fn set_pause_filter(&mut self, _: u16) {}
    fn exit_after_injection(&mut self) {}
    fn set_tsc_offset(&mut self, _: u64) {}
    fn set_root(&mut self, _: NestedRoot) {}
    fn flush_tlb(&mut self) {}
    fn extra(&self) -> &ExtraRegs {
        &self.extra
    }
    fn extra_mut(&mut self) -> &mut ExtraRegs {
        &mut self.extra
    }
    fn begin(&mut self) {}
    fn end(&mut self) {}
    fn tell_entry(&mut self, _: Option<u32>) {}
    fn enter<F: FastExits>(&mut self, _: &VcpuRequests, _: &mut F) -> Exit {
        Exit::None
    }
    // Nobody hands this processor over.
    fn save_state(&mut self, _: &mut Writer) {}
    fn load_state(&mut self, _: &mut Reader<'_>) -> Result<(), Refused> {
        Ok(())
    }
    fn last_cpu(&self) -> u32 {
        0
    }
    fn broken(&self) -> Option<Errno> {
        None
    }
}

/// Time, whether MSRs that do not exist are ignored, and those that the processor has.
pub(super) struct Time(pub u64, pub bool, pub &'static [u32]);

impl Clocks for Time {
    fn host_tsc(&self) -> u64 {
        self.0 * 2
    }
    fn monotonic_ns(&self) -> u64 {
        self.0
    }
    fn has_msr(&self, index: u32) -> bool {
        self.2.contains(&index)
    }
    fn unhandled_wrmsr(&self, _vcpu: u32, _rip: u64, _index: u32, _value: u64) {}
    fn ignores_msr(&self, _index: u32, _write: bool, _value: u64) -> bool {
        self.1
    }
}

pub(super) struct Machine {
    pub time: Time,
    pub cpu: Registers,
    pub lapic: Option<Lapic>,
    apic_base: u64,
    pub cpuid: GuestCpuid,
    pub state: MsrState,
    pub clock: VcpuClock,
    pub vm: VmMsrs,
    pub cr0: u64,
}

impl Machine {
    pub fn with(host: &FakeHost, cpuid: GuestCpuid) -> Self {
        let mut save = Box::new(SaveArea::ZERO);
        save.efer = cr::Efer::SVME.bits();
        save.g_pat = PAT_RESET;
        let mut lapic = Lapic::new(irqchip::Config::new(0, true));
        lapic.set_features(cpuid.lapic_features(false));
        Self {
            time: Time(1_000_000, false, &[]),
            cpu: Registers {
                save,
                control: Box::new(ControlArea::ZERO),
                extra: ExtraRegs::default(),
                touched: CleanBits::empty(),
            },
            lapic: Some(lapic),
            apic_base: 0xfee0_0900,
            cpuid,
            state: MsrState::new(host, &Caps::new(host)),
            clock: VcpuClock::new(2_000_000),
            vm: VmMsrs::default(),
            cr0: 0,
        }
    }

    pub fn generous() -> Self {
        let host = FakeHost::zen3();
        Self::with(&host, generous(&host))
    }

    /// A guest that was shown nothing.
    pub fn bare() -> Self {
        let host = FakeHost::zen3();
        Self::with(&host, GuestCpuid::new(&Caps::new(&host)))
    }

    pub fn access(&mut self) -> MsrAccess<'_, Registers, Time> {
        MsrAccess {
            time: &self.time,
            cpu: &mut self.cpu,
            lapic: self.lapic.as_mut(),
            apic_base: &mut self.apic_base,
            cpuid: &self.cpuid,
            state: &mut self.state,
            clock: &mut self.clock,
            vm: &self.vm,
            cr0: self.cr0,
        }
    }
    pub fn rd(&mut self, msr: u32) -> Result<u64, MsrError> {
        self.access().read(msr, false)
    }
    pub fn wr(&mut self, msr: u32, value: u64) -> Result<MsrEffect, MsrError> {
        self.access().write(msr, value, false)
    }
    pub fn get(&mut self, msr: u32) -> Result<u64, MsrError> {
        self.access().read(msr, true)
    }
    pub fn put(&mut self, msr: u32, value: u64) -> Result<MsrEffect, MsrError> {
        self.access().write(msr, value, true)
    }
}
