//! Access through MSRs 0x800 to 0x8ff (x2APIC mode). APM volume 2 sections 16.9 to 16.12.

use super::regs::{EOI, ICR, TPR};
use super::{Effect, Gp, Lapic, Mode};

const EOI_MSR: u32 = 0x80b;
const ICR_MSR: u32 = 0x830;

/// The registers that Hyper-V's guests have as MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vapic {
    /// End of interrupt.
    Eoi,
    /// Interrupt command, all 64 bits.
    Icr,
    /// Task priority.
    Tpr,
}

impl Lapic {
    /// RDMSR. #GP outside x2APIC mode, and for registers that do not exist or cannot be read.
    pub fn msr_read(&mut self, msr: u32, now_ns: u64) -> Result<u64, Gp> {
        let offset = self.msr_offset(msr)?;
        let low = self.read(offset, now_ns).ok_or(Gp)?;
        let high = if offset == ICR { self.icr_high } else { 0 };
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// WRMSR. #GP outside x2APIC mode, for registers that do not exist or are read-only, and for set bits 63:32 except
    /// in ICR. Like KVM, and unlike the manual, EOI takes any 32-bit value and reserved low bits of TPR, SVR, LVT and
    /// the timer registers are ignored.
    #[inline]
    pub fn msr_write(&mut self, msr: u32, value: u64, now_ns: u64) -> Result<Effect, Gp> {
        let offset = self.msr_offset(msr)?;
        if msr == ICR_MSR {
            return self.write_icr64(value);
        }
        let value = u32::try_from(value).map_err(|_| Gp)?;
        match (msr, offset) {
            (EOI_MSR, _) => Ok(self.eoi().map_or(Effect::None, Effect::Eoi)),
            (_, TPR) => {
                self.set_tpr(value as u8);
                Ok(Effect::None)
            }
            _ => self.write(offset, value, now_ns),
        }
    }

    /// Reads one of the registers that Hyper-V's guests have as MSRs in either mode. #GP: it cannot be read.
    pub fn vapic_read(&self, register: Vapic) -> Result<u64, Gp> {
        match register {
            Vapic::Eoi => Err(Gp),
            Vapic::Icr => Ok(u64::from(self.icr_high) << 32 | u64::from(self.icr_low)),
            Vapic::Tpr => Ok(self.tpr.into()),
        }
    }

    /// Writes one of them. #GP: bits that have to be zero.
    pub fn vapic_write(&mut self, register: Vapic, value: u64, now_ns: u64) -> Result<Effect, Gp> {
        let offset = match register {
            Vapic::Icr => return self.write_icr64(value),
            Vapic::Eoi => EOI,
            Vapic::Tpr => TPR,
        };
        self.write(offset, u32::try_from(value).map_err(|_| Gp)?, now_ns)
    }

    fn msr_offset(&self, msr: u32) -> Result<u32, Gp> {
        match msr {
            0x800..=0x8ff if self.mode() == Mode::X2Apic => Ok((msr & 0xff) << 4),
            _ => Err(Gp),
        }
    }
}
