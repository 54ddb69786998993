//! The local APIC of one vCPU. APM volume 2 chapter 16; where KVM differs from the manual on purpose (what userspace
//! and guests have come to rely on) a comment says so.
//!
//! The state belongs to the thread that runs the vCPU. Others reach it through [`Pir`](crate::Pir) and see its
//! [`Address`].
//!
//! - `regs`: register numbers, LVT bits, the reads and writes that both access modes share
//! - `mmio`, `msr`: the two access modes; `base`: switching between them
//! - `deliver`: IRR, ISR, priorities, EOI, errors; `timer`; `state`: KVM_GET_LAPIC and KVM_SET_LAPIC

mod base;
mod deliver;
mod mmio;
mod msr;
mod regs;
mod state;
mod timer;

use crate::address::{Address, Parts};
use crate::bits::Bits256;
use crate::message::Message;
use arch::GuestIndexed;

pub use base::{APIC_BASE_BSP, Mode, checked_base};
pub use deliver::Lint0;
pub use msr::Vapic;
pub use regs::Lvt;
use regs::{LVT_ENTRIES, LVT_MASKED};
pub use state::InvalidState;
use timer::Timer;
pub use timer::TimerEffect;

/// What does not change while the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The x2APIC ID, and the initial xAPIC ID (its low 8 bits).
    pub vcpu_id: u32,
    /// This vCPU starts the others (KVM_SET_BOOT_CPU_ID).
    pub bsp: bool,
    /// Timer input period in ns: KVM_CAP_X86_APIC_BUS_CYCLES_NS, 1 by default (1 GHz).
    pub bus_cycle_ns: u32,
    /// Shortest period of a periodic timer in ns: stock's `min_timer_period_us`, 200 us by default.
    pub min_period_ns: u64,
    /// KVM_X86_QUIRK_LINT0_REENABLED: LINT0 of the BSP starts unmasked as ExtINT. On by default.
    pub lint0_reenabled: bool,
}

impl Config {
    /// The defaults for a vCPU.
    pub const fn new(vcpu_id: u32, bsp: bool) -> Self {
        Config { vcpu_id, bsp, bus_cycle_ns: 1, min_period_ns: 200_000, lint0_reenabled: true }
    }
}

/// What the guest's CPUID and the VM's interrupt controllers allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// CPUID.1:ECX.X2APIC.
    pub x2apic: bool,
    /// CPUID.1:ECX.TSC_DEADLINE.
    pub tsc_deadline: bool,
    /// Version register bit 24 and SVR bit 12: x2APIC and no IOAPIC in the kernel.
    pub directed_eoi: bool,
}

/// What a register write asks the caller to do.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// An interrupt ended: tell the IOAPIC or userspace.
    Eoi(Eoi),
    /// Send this. Plain interrupts to oneself by shorthand are already in IRR and do not appear here.
    Ipi(Message),
    /// Program the host's timer.
    Timer(TimerEffect),
    /// Publish [`Lapic::address`] and [`Lapic::lint0`] anew.
    AddressChanged,
}

/// The end of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eoi {
    /// The vector that left ISR.
    pub vector: u8,
    /// It was level-triggered (TMR).
    pub level: bool,
    /// SVR bit 12: the guest ends level interrupts at the IOAPIC itself.
    pub suppressed: bool,
}

/// The access raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// One local APIC.
#[derive(Clone, Debug)]
pub struct Lapic {
    // What every guest entry looks at comes first.
    /// Highest vector in IRR, 0 when empty (vectors below 16 never get there).
    irr_max: u8,
    /// Highest vector in ISR, 0 when empty.
    isr_max: u8,
    ppr: u8,
    tpr: u8,
    hw_enabled: bool,
    irr: Bits256,
    isr: Bits256,
    tmr: Bits256,
    timer: Timer,
    lvt: GuestIndexed<[u32; LVT_ENTRIES]>,
    svr: u32,
    /// ICR bits 31:0, delivery status always 0.
    icr_low: u32,
    /// Register 0x310: the destination in bits 31:24 (xAPIC) or 31:0 (x2APIC).
    icr_high: u32,
    xapic_id: u8,
    logical_id: u8,
    dfr: u32,
    /// What ESR reads as.
    esr: u32,
    /// Errors since the last write to ESR.
    errors: u32,
    apic_base: u64,
    cfg: Config,
    features: Features,
}

::state::state! {
    place Lapic {
        irr_max, isr_max, ppr, tpr, hw_enabled, irr, isr, tmr, timer, lvt, svr, icr_low, icr_high, xapic_id, logical_id, dfr, esr,
        errors, apic_base, cfg, features,
    }
}

impl Lapic {
    /// The state at power-on, without any optional feature.
    pub fn new(cfg: Config) -> Lapic {
        let mut lapic = Lapic {
            irr_max: 0,
            isr_max: 0,
            ppr: 0,
            tpr: 0,
            hw_enabled: false,
            irr: Bits256::EMPTY,
            isr: Bits256::EMPTY,
            tmr: Bits256::EMPTY,
            timer: Timer::default(),
            lvt: GuestIndexed::new([LVT_MASKED; LVT_ENTRIES]),
            svr: 0,
            icr_low: 0,
            icr_high: 0,
            xapic_id: 0,
            logical_id: 0,
            dfr: 0,
            esr: 0,
            errors: 0,
            apic_base: 0,
            cfg,
            features: Features::default(),
        };
        // Nothing is armed yet, so there is nothing to cancel.
        let _ = lapic.reset();
        lapic
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.cfg
    }

    /// For KVM_ENABLE_CAP and KVM_SET_BOOT_CPU_ID, before the vCPU runs.
    pub fn config_mut(&mut self) -> &mut Config {
        &mut self.cfg
    }

    /// What [`set_features`](Self::set_features) set.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Follows KVM_SET_CPUID2.
    pub fn set_features(&mut self, features: Features) {
        self.features = features;
    }

    /// RESET: enabled in xAPIC mode at 0xfee0_0000, software-disabled, ID from the vCPU id.
    pub fn reset(&mut self) -> TimerEffect {
        self.reset_base();
        self.xapic_id = self.cfg.vcpu_id as u8;
        self.init()
    }

    /// INIT: as RESET, but IA32_APIC_BASE and the ID stay. APM volume 2 section 16.3.1.
    pub fn init(&mut self) -> TimerEffect {
        self.lvt = GuestIndexed::new([LVT_MASKED; LVT_ENTRIES]);
        if self.cfg.bsp && self.cfg.lint0_reenabled {
            // Firmware that never programs LINT0 still wants the 8259's interrupts.
            self.set_lvt(Lvt::Lint0, 0x700);
        }
        self.dfr = u32::MAX;
        self.svr = 0xff;
        self.logical_id = 0;
        (self.esr, self.errors) = (0, 0);
        (self.icr_low, self.icr_high) = (0, 0);
        (self.irr, self.isr, self.tmr) = (Bits256::EMPTY, Bits256::EMPTY, Bits256::EMPTY);
        (self.irr_max, self.isr_max) = (0, 0);
        self.tpr = 0;
        self.update_ppr();
        self.timer = Timer::default();
        TimerEffect::Cancel
    }

    /// Identity and mode, to be published to the senders of interrupts.
    pub fn address(&self) -> Address {
        Address::new(Parts {
            x2apic_id: self.cfg.vcpu_id,
            xapic_id: self.xapic_id,
            logical_id: self.logical_id,
            dfr: self.dfr,
            hw_enabled: self.hw_enabled,
            x2apic: self.mode() == Mode::X2Apic,
            sw_enabled: self.sw_enabled(),
        })
    }
}
