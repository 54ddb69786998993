//! The registers: numbers, masks, and the reads and writes that xAPIC and x2APIC mode share.
//! APM volume 2 sections 16.3.2 (register table), 16.4 (LVT), 16.5 (ICR).

use super::timer::TimerMode;
use super::{Effect, Gp, Lapic, Mode, TimerEffect};
use crate::address::x2apic_logical_id;
use crate::message::{DeliveryMode, Message, Shorthand};

/// Byte offsets in the register page; the x2APIC MSR is 0x800 plus a sixteenth of it.
pub(super) const ID: u32 = 0x20;
pub(super) const VERSION: u32 = 0x30;
pub(super) const TPR: u32 = 0x80;
pub(super) const APR: u32 = 0x90;
pub(super) const PPR: u32 = 0xa0;
pub(super) const EOI: u32 = 0xb0;
pub(super) const LDR: u32 = 0xd0;
pub(super) const DFR: u32 = 0xe0;
pub(super) const SVR: u32 = 0xf0;
pub(super) const ISR: u32 = 0x100;
pub(super) const TMR: u32 = 0x180;
pub(super) const IRR: u32 = 0x200;
pub(super) const ESR: u32 = 0x280;
pub(super) const ICR: u32 = 0x300;
pub(super) const ICR_HIGH: u32 = 0x310;
pub(super) const LVT: u32 = 0x320;
pub(super) const LVT_LAST: u32 = 0x370;
pub(super) const TIMER_INITIAL: u32 = 0x380;
pub(super) const TIMER_CURRENT: u32 = 0x390;
pub(super) const TIMER_DIVIDE: u32 = 0x3e0;
pub(super) const SELF_IPI: u32 = 0x3f0;

/// Number of local vector table entries (no CMCI entry).
pub(super) const LVT_ENTRIES: usize = 6;
pub(super) const LVT_MASKED: u32 = 1 << 16;
/// Vector, delivery status, mask.
const LVT_COMMON: u32 = 0xff | 1 << 12 | LVT_MASKED;
const LVT_MODE: u32 = 0x700;
/// Polarity, remote IRR, trigger mode.
const LVT_LINT: u32 = 1 << 13 | 1 << 14 | 1 << 15;
const LVT_PERIODIC: u32 = 1 << 17;
pub(super) const LVT_TSC_DEADLINE: u32 = 1 << 18;

pub(super) const SVR_ENABLED: u32 = 1 << 8;
pub(super) const SVR_DIRECTED_EOI: u32 = 1 << 12;
const ICR_BUSY: u32 = 1 << 12;
/// ICR bits that must be zero in x2APIC mode.
const X2APIC_ICR_RESERVED: u32 = 0xfff << 20 | 3 << 16 | 1 << 13;

/// An entry of the local vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Lvt {
    /// The APIC timer.
    Timer = 0,
    /// Thermal sensor.
    Thermal = 1,
    /// Performance counters.
    Perf = 2,
    /// The pin that the 8259 drives.
    Lint0 = 3,
    /// The NMI pin.
    Lint1 = 4,
    /// Errors in ESR.
    Error = 5,
}

impl Lapic {
    pub(super) fn lvt(&self, entry: Lvt) -> u32 {
        self.lvt.get_nospec(entry as usize).copied().unwrap_or(LVT_MASKED)
    }

    pub(super) fn set_lvt(&mut self, entry: Lvt, value: u32) {
        if let Some(lvt) = self.lvt.get_nospec_mut(entry as usize) {
            *lvt = value;
        }
    }

    /// The bits of LVT entry `index` that can be set.
    pub(super) fn lvt_mask(&self, index: usize) -> u32 {
        match index {
            0 => LVT_COMMON | LVT_PERIODIC | if self.features.tsc_deadline { LVT_TSC_DEADLINE } else { 0 },
            1 | 2 => LVT_COMMON | LVT_MODE,
            3 | 4 => LVT_COMMON | LVT_MODE | LVT_LINT,
            _ => LVT_COMMON,
        }
    }

    pub(super) fn sw_enabled(&self) -> bool {
        self.svr & SVR_ENABLED != 0
    }

    /// The version register: 0x14, and the number of the last LVT entry in bits 23:16.
    pub(super) fn version(&self) -> u32 {
        0x14 | (LVT_ENTRIES as u32 - 1) << 16 | if self.features.directed_eoi { 1 << 24 } else { 0 }
    }

    /// The register at `offset`, as a read gives it, without what the read does.
    pub fn peek(&self, offset: u32, now_ns: u64) -> Option<u32> {
        self.read(offset & !0xf, now_ns)
    }

    /// Reads the register at `offset` (a multiple of 16). None: there is no such register in this mode.
    pub(super) fn read(&self, offset: u32, now_ns: u64) -> Option<u32> {
        let x2apic = self.mode() == Mode::X2Apic;
        Some(match offset {
            ID if x2apic => self.cfg.vcpu_id,
            ID => u32::from(self.xapic_id) << 24,
            VERSION => self.version(),
            TPR => self.tpr.into(),
            // Arbitration has no meaning without an APIC bus.
            APR if !x2apic => 0,
            PPR => self.ppr.into(),
            LDR if x2apic => x2apic_logical_id(self.cfg.vcpu_id),
            LDR => u32::from(self.logical_id) << 24,
            DFR if !x2apic => self.dfr,
            SVR => self.svr,
            ISR..TMR => self.isr.register((offset - ISR) as usize >> 4),
            TMR..IRR => self.tmr.register((offset - TMR) as usize >> 4),
            IRR..ESR => self.irr.register((offset - IRR) as usize >> 4),
            ESR => self.esr,
            ICR => self.icr_low,
            ICR_HIGH if !x2apic => self.icr_high,
            LVT..=LVT_LAST => self.lvt.get_nospec((offset - LVT) as usize >> 4).copied()?,
            TIMER_INITIAL => self.timer.initial,
            TIMER_CURRENT => self.current_count(now_ns),
            TIMER_DIVIDE => self.timer.divide,
            _ => return None,
        })
    }

    /// Writes the register at `offset` (a multiple of 16). Bits that cannot be set are dropped, in x2APIC mode too, as
    /// KVM does. An error: no such register in this mode, or read-only.
    pub(super) fn write(&mut self, offset: u32, value: u32, now_ns: u64) -> Result<Effect, Gp> {
        let x2apic = self.mode() == Mode::X2Apic;
        Ok(match offset {
            EOI => self.eoi().map_or(Effect::None, Effect::Eoi),
            TPR => {
                self.set_tpr(value as u8);
                Effect::None
            }
            ICR if x2apic => return Err(Gp),
            ICR => self.write_icr(value, self.icr_high >> 24),
            ICR_HIGH if !x2apic => {
                self.icr_high = value & 0xff00_0000;
                Effect::None
            }
            TIMER_INITIAL => Effect::Timer(self.write_initial(value, now_ns)),
            TIMER_DIVIDE => Effect::Timer(self.write_divide(value & 0xb, now_ns)),
            LVT..=LVT_LAST => {
                let index = (offset - LVT) as usize >> 4;
                let timer = self.write_lvt(index, value);
                if index == Lvt::Lint0 as usize { Effect::AddressChanged } else { Effect::Timer(timer) }
            }
            ID if !x2apic => {
                self.xapic_id = (value >> 24) as u8;
                Effect::AddressChanged
            }
            LDR if !x2apic => {
                self.logical_id = (value >> 24) as u8;
                Effect::AddressChanged
            }
            DFR if !x2apic => {
                self.dfr = value | 0x0fff_ffff;
                Effect::AddressChanged
            }
            SVR => self.write_svr(value),
            ESR if x2apic && value != 0 => return Err(Gp),
            ESR => {
                (self.esr, self.errors) = (self.errors, 0);
                Effect::None
            }
            SELF_IPI if x2apic && value <= 0xff => self.write_icr(1 << 18 | value, 0),
            _ => return Err(Gp),
        })
    }

    /// A 64-bit write to ICR, which x2APIC mode has, and Hyper-V's guests in any mode.
    pub(super) fn write_icr64(&mut self, value: u64) -> Result<Effect, Gp> {
        let low = value as u32;
        if low & X2APIC_ICR_RESERVED != 0 {
            return Err(Gp);
        }
        self.icr_high = (value >> 32) as u32;
        let dest = if self.mode() == Mode::X2Apic { self.icr_high } else { self.icr_high >> 24 };
        let effect = self.write_icr(low, dest);
        // Unlike a self IPI, which leaves ICR alone.
        self.icr_low = low & !ICR_BUSY;
        Ok(effect)
    }

    /// Sends what `low` describes to `dest`. In xAPIC mode this is the write of ICR itself.
    fn write_icr(&mut self, low: u32, dest: u32) -> Effect {
        if self.mode() != Mode::X2Apic {
            self.icr_low = low & !ICR_BUSY;
        }
        let message = Message::from_icr(low, dest);
        let plain = matches!(message.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if plain && message.vector < 16 {
            self.send_illegal_vector();
            return Effect::None;
        }
        if plain && message.shorthand == Shorthand::SelfOnly {
            let _ = self.accept(&message);
            return Effect::None;
        }
        Effect::Ipi(message)
    }

    fn write_svr(&mut self, value: u32) -> Effect {
        let directed_eoi = if self.features.directed_eoi { SVR_DIRECTED_EOI } else { 0 };
        self.svr = value & (0x3ff | directed_eoi);
        if !self.sw_enabled() {
            // APM volume 2 section 16.4.7: all LVT entries are masked. The timer runs on, unheard.
            for lvt in self.lvt.iter_mut() {
                *lvt |= LVT_MASKED;
            }
        }
        Effect::AddressChanged
    }

    fn write_lvt(&mut self, index: usize, value: u32) -> TimerEffect {
        let forced = if self.sw_enabled() { 0 } else { LVT_MASKED };
        let value = (value | forced) & self.lvt_mask(index);
        let old = TimerMode::of(self.lvt(Lvt::Timer));
        if let Some(lvt) = self.lvt.get_nospec_mut(index) {
            *lvt = value;
        }
        if index == Lvt::Timer as usize { self.timer_mode_changed(old) } else { TimerEffect::Keep }
    }
}
