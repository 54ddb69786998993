//! IA32_APIC_BASE (MSR 0x1b): enabling, disabling and relocating the APIC. APM volume 2 sections 16.3.1 and 16.9.

use super::{Gp, Lapic};

/// IA32_APIC_BASE: the bootstrap processor.
pub const APIC_BASE_BSP: u64 = 1 << 8;
const EXTD: u64 = 1 << 10;
const EN: u64 = 1 << 11;
const DEFAULT_GPA: u64 = 0xfee0_0000;
/// Bits 7:0 and 9.
const RESERVED: u64 = 0x2ff;

/// How the registers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not at all.
    Disabled,
    /// Through the page at [`Lapic::base_gpa`].
    XApic,
    /// Through MSRs 0x800 to 0x8ff.
    X2Apic,
}

impl Mode {
    /// The mode in an IA32_APIC_BASE value; none for EXTD without EN.
    #[inline(always)]
    fn of(base: u64) -> Option<Mode> {
        match (base & EN != 0, base & EXTD != 0) {
            (false, false) => Some(Mode::Disabled),
            (true, false) => Some(Mode::XApic),
            (true, true) => Some(Mode::X2Apic),
            (false, true) => None,
        }
    }
}

/// May IA32_APIC_BASE become `value` where it is `old`? Ok: the new mode. Errors and arguments: see [`Lapic::set_base`]; also for
/// a processor whose local APIC is elsewhere.
pub fn checked_base(old: u64, value: u64, host: bool, x2apic: bool, reserved_gpa_bits: u64) -> Result<Mode, Gp> {
    let new = Mode::of(value).ok_or(Gp)?;
    let extd = if x2apic { 0 } else { EXTD };
    if value & (RESERVED | reserved_gpa_bits | extd) != 0 {
        return Err(Gp);
    }
    let transition = (Mode::of(old).unwrap_or(Mode::Disabled), new);
    if !host && matches!(transition, (Mode::X2Apic, Mode::XApic) | (Mode::Disabled, Mode::X2Apic)) {
        return Err(Gp);
    }
    Ok(new)
}

impl Lapic {
    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.apic_base
    }

    /// Guest physical address of the register page.
    pub fn base_gpa(&self) -> u64 {
        self.apic_base & !0xfff
    }

    /// The access mode.
    #[inline(always)]
    pub fn mode(&self) -> Mode {
        Mode::of(self.apic_base).unwrap_or(Mode::Disabled)
    }

    /// Is it on, both in IA32_APIC_BASE and in its spurious interrupt register?
    pub fn enabled(&self) -> bool {
        self.hw_enabled && self.sw_enabled()
    }

    /// Writes IA32_APIC_BASE. `reserved_gpa_bits`: the guest's physical address bits that must be zero. `host`: by
    /// userspace, which may change between any two modes; the guest may not go from x2APIC to xAPIC nor from disabled
    /// to x2APIC. Publish [`address`](Self::address) afterwards and update CPUID.1:EDX.APIC.
    pub fn set_base(&mut self, value: u64, host: bool, reserved_gpa_bits: u64) -> Result<(), Gp> {
        let old = self.mode();
        let new = checked_base(self.apic_base, value, host, self.features.x2apic, reserved_gpa_bits)?;
        self.apic_base = value;
        self.hw_enabled = new != Mode::Disabled;
        if new != old {
            match new {
                Mode::Disabled => {}
                // An ID that the guest had changed is back at its initial value.
                Mode::XApic => self.xapic_id = self.cfg.vcpu_id as u8,
                Mode::X2Apic => self.logical_id = 0,
            }
        }
        Ok(())
    }

    pub(super) fn reset_base(&mut self) {
        self.apic_base = DEFAULT_GPA | EN | if self.cfg.bsp { APIC_BASE_BSP } else { 0 };
        self.hw_enabled = true;
    }
}
