//! Machine check registers (APM 9.3) and KVM_X86_SETUP_MCE, KVM_X86_SET_MCE (KVM API document 4.105, 4.106).

use super::number::HWCR_MCI_STATUS_WR_EN;
use arch::GuestIndexed;
use arch::msr::{MC0_CTL, MCG_CAP, MCG_CTL, MCG_STATUS};
use host::Errno;

/// KVM_X86_GET_MCE_CAP_SUPPORTED: MCG_CTL exists (bit 8), software error recovery (bit 24).
pub const MCE_CAP_SUPPORTED: u64 = CTL_P | 1 << 24;
/// Most banks of a vCPU (KVM_MAX_MCE_BANKS).
pub const BANKS: usize = 32;

const CTL_P: u64 = 1 << 8;
/// MCG_STATUS: a machine check is being handled.
const MCIP: u64 = 1 << 2;
/// MCi_STATUS: valid, overflow, uncorrected.
const VAL: u64 = 1 << 63;
const OVER: u64 = 1 << 62;
const UC: u64 = 1 << 61;
/// MCi_STATUS: processor context corrupt, and whether an uncorrected error was signalled and wants an action.
const ACTION: u64 = 1 << 57 | 1 << 56 | 1 << 55;

/// One bank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bank {
    ctl: u64,
    status: u64,
    addr: u64,
    misc: u64,
}

/// Machine check state of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mce {
    cap: u64,
    ctl: u64,
    status: u64,
    banks: GuestIndexed<[Bank; BANKS]>,
}

/// KVM_X86_SET_MCE (`struct kvm_x86_mce`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineCheck {
    /// MCi_STATUS.
    pub status: u64,
    /// MCi_ADDR.
    pub addr: u64,
    /// MCi_MISC.
    pub misc: u64,
    /// MCG_STATUS.
    pub mcg_status: u64,
    /// Bank.
    pub bank: u8,
}

/// What a reported error does to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MceOutcome {
    /// Nothing more: it is noted, or reporting is off.
    Noted,
    /// #MC.
    Exception,
    /// Shutdown: a machine check while one is handled, or with CR4.MCE clear.
    TripleFault,
}

::state::state! {
    place Bank { ctl, status, addr, misc }
    place Mce { cap, ctl, status, banks }
}

impl Default for Mce {
    fn default() -> Self {
        Self { cap: BANKS as u64, ctl: 0, status: 0, banks: GuestIndexed::new([Bank::default(); BANKS]) }
    }
}

impl Mce {
    /// KVM_X86_SETUP_MCE: the number of banks (1 to 32) and capabilities. Errors: EINVAL.
    pub fn setup(&mut self, cap: u64) -> Result<(), Errno> {
        let banks = (cap & 0xff) as usize;
        // Bits 23:16 count extended registers that nothing here has; stock lets them pass.
        if banks == 0 || banks > BANKS || cap & !(MCE_CAP_SUPPORTED | 0xff_00ff) != 0 {
            return Err(Errno::EINVAL);
        }
        self.cap = cap;
        if cap & CTL_P != 0 {
            self.ctl = !0;
        }
        for b in self.banks.iter_mut().take(banks) {
            b.ctl = !0;
        }
        Ok(())
    }

    /// Is there a bank with this number?
    pub fn has_bank(&self, n: usize) -> bool {
        n < self.count()
    }

    /// Number of banks, 1..=32.
    fn count(&self) -> usize {
        (self.cap & 0xff) as usize
    }

    /// The register that an MSR of the banks is.
    fn register(&mut self, msr: u32) -> Option<&mut u64> {
        let n = msr.checked_sub(MC0_CTL)? as usize;
        let count = self.count();
        let bank = self.banks.get_nospec_mut(n / 4).filter(|_| n / 4 < count)?;
        Some(match n % 4 {
            0 => &mut bank.ctl,
            1 => &mut bank.status,
            2 => &mut bank.addr,
            _ => &mut bank.misc,
        })
    }

    /// RDMSR; None is #GP.
    pub fn read(&mut self, msr: u32, host: bool) -> Option<u64> {
        match msr {
            MCG_CAP => Some(self.cap),
            MCG_STATUS => Some(self.status),
            MCG_CTL => (self.cap & CTL_P != 0 || host).then_some(self.ctl),
            _ => self.register(msr).map(|r| *r),
        }
    }

    /// WRMSR; false is #GP. `hwcr`: AMD lets software write any status with HWCR.McStatusWrEn; zero otherwise.
    pub fn write(&mut self, msr: u32, value: u64, host: bool, hwcr: u64) -> bool {
        let has_ctl = self.cap & CTL_P != 0;
        match msr {
            MCG_STATUS => self.status = value,
            MCG_CTL if (!has_ctl && (value != 0 || !host)) || !matches!(value, 0 | u64::MAX) => return false,
            MCG_CTL => self.ctl = value,
            _ => {
                // MCi_CTL takes all or nothing; kernels that leave out bit 10 (GART errors on K8) or bit 0 are let be.
                let control_ok = value == 0 || value | 1 << 10 | 1 == u64::MAX;
                let status_ok = host || value == 0 || hwcr & HWCR_MCI_STATUS_WR_EN != 0;
                let ok = match msr % 4 {
                    0 => control_ok,
                    1 => status_ok,
                    _ => true,
                };
                match self.register(msr) {
                    Some(r) if ok => *r = value,
                    _ => return false,
                }
            }
        }
        true
    }

    /// KVM_X86_SET_MCE: reports an error. `enabled`: CR4.MCE. Errors: EINVAL (no such bank, status not valid).
    pub fn report(&mut self, e: &MachineCheck, enabled: bool) -> Result<MceOutcome, Errno> {
        let (count, mcg_on) = (self.count(), self.cap & CTL_P == 0 || self.ctl == !0);
        let bank =
            self.banks.get_nospec_mut(e.bank.into()).filter(|_| usize::from(e.bank) < count).ok_or(Errno::EINVAL)?;
        if e.status & VAL == 0 {
            return Err(Errno::EINVAL);
        }
        let fill = |bank: &mut Bank| {
            let over = if bank.status & VAL != 0 { OVER } else { 0 };
            (bank.status, bank.addr, bank.misc) = (e.status | over, e.addr, e.misc);
        };
        // Uncorrected, but nobody has to act: noted, without an exception.
        if e.status & (UC | ACTION) == UC && e.mcg_status == 0 {
            (bank.status, bank.addr, bank.misc) = (e.status, e.addr, e.misc);
            self.status = 0;
            return Ok(MceOutcome::Noted);
        }
        if e.status & UC == 0 {
            // A corrected error does not push an uncorrected one out.
            if bank.status & (VAL | UC) == VAL | UC {
                bank.status |= OVER;
            } else {
                fill(bank);
            }
            return Ok(MceOutcome::Noted);
        }
        if !mcg_on || bank.ctl != !0 {
            return Ok(MceOutcome::Noted);
        }
        if self.status & MCIP != 0 || !enabled {
            return Ok(MceOutcome::TripleFault);
        }
        fill(bank);
        self.status = e.mcg_status;
        Ok(MceOutcome::Exception)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = u64::MAX;

    #[test]
    fn setup_checks() {
        let mut m = Mce::default();
        for (cap, ok) in [
            (0, false),
            (1, true),
            (32, true),
            (33, false),
            (0x100_010a, true),
            (10 | 1 << 10, false),
            (10 | 1 << 27, false),
            (0xff_000a, true),
        ] {
            assert_eq!(m.setup(cap).is_ok(), ok, "{cap:#x}");
        }
    }

    #[test]
    fn registers() {
        let mut m = Mce::default();
        m.setup(0x10a).unwrap();
        assert_eq!(m.read(MCG_CAP, false), Some(0x10a));
        assert_eq!(m.read(MCG_CTL, false), Some(M));
        assert_eq!(m.read(0x400, false), Some(M));
        assert_eq!(m.read(0x427, false), Some(0));
        assert_eq!(m.read(0x428, true), None, "ten banks");
        for (msr, value, host, hwcr, ok) in [
            (MCG_CTL, 1, true, 0, false),
            (MCG_CTL, 0, false, 0, true),
            (MCG_STATUS, 4, false, 0, true),
            (0x400, M, false, 0, true),
            (0x400, M - 1, false, 0, true),
            (0x410, !(1 << 10), false, 0, true),
            (0x400, 5, false, 0, false),
            (0x401, 5, false, 0, false),
            (0x401, 0, false, 0, true),
            (0x401, 5, true, 0, true),
            (0x401, 6, false, 1 << 18, true),
            (0x402, 7, false, 0, true),
            (0x403, 8, false, 0, true),
            (0x428, 0, true, 0, false),
            (MCG_CAP, 0, true, 0, false),
        ] {
            assert_eq!(m.write(msr, value, host, hwcr), ok, "{msr:#x} {value:#x}");
        }
        assert_eq!([0x401, 0x402, 0x403].map(|n| m.read(n, false).unwrap()), [6, 7, 8]);
        let mut m = Mce::default();
        assert_eq!((m.read(MCG_CTL, false), m.read(MCG_CTL, true)), (None, Some(0)));
        assert!(!m.write(MCG_CTL, 0, false, 0) && m.write(MCG_CTL, 0, true, 0));
    }

    #[test]
    fn reports() {
        let mut m = Mce::default();
        m.setup(0x10a).unwrap();
        let e = MachineCheck { status: VAL | UC | 1, addr: 2, misc: 3, mcg_status: 5, bank: 9 };
        assert_eq!(m.report(&MachineCheck { bank: 10, ..e }, true), Err(Errno::EINVAL));
        assert_eq!(m.report(&MachineCheck { status: UC, ..e }, true), Err(Errno::EINVAL));
        assert_eq!(m.report(&e, false), Ok(MceOutcome::TripleFault));
        assert_eq!(m.report(&e, true), Ok(MceOutcome::Exception));
        assert_eq!((m.read(0x425, false), m.read(MCG_STATUS, false)), (Some(VAL | UC | 1), Some(5)));
        assert_eq!(m.report(&e, true), Ok(MceOutcome::TripleFault), "MCIP is set");
        assert_eq!(m.report(&MachineCheck { status: VAL | 7, ..e }, true), Ok(MceOutcome::Noted));
        assert_eq!(m.read(0x425, false), Some(VAL | UC | OVER | 1), "kept, with overflow");
        m.write(MCG_CTL, 0, true, 0);
        m.write(MCG_STATUS, 0, true, 0);
        assert_eq!(m.report(&e, true), Ok(MceOutcome::Noted), "reporting is off");
    }
}
