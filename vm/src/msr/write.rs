//! WRMSR.

use super::mtrr::pat_valid;
use super::number::*;
use super::{Clocks, MsrAccess, MsrEffect, MsrError};
use crate::cpuid::{
    Feature, KVM_CLOCKSOURCE, KVM_CLOCKSOURCE2, KVM_GUEST_POLLS, KVM_PV_ASYNC_PF, KVM_PV_ASYNC_PF_INT,
    KVM_PV_ASYNC_PF_VMEXIT, KVM_PV_EOI, KVM_PV_STEAL_TIME,
};
use crate::pv::async_pf;
use arch::CleanBits;
use arch::cr::{Cr0, Efer};
use arch::msr::*;
use core::sync::atomic::Ordering::Relaxed;
use host::{Command, Cpu};

type Written = Result<MsrEffect, MsrError>;

const DONE: Written = Ok(MsrEffect::None);
const INVALID: Written = Err(MsrError::Invalid);

/// Sign-extends from bit `bits - 1`; `bits` is 48 or 57.
fn canonical(value: u64, bits: u32) -> u64 {
    let unused = 64 - bits;
    ((value << unused) as i64 >> unused) as u64
}

impl<C: Cpu, T: Clocks> MsrAccess<'_, C, T> {
    pub(super) fn write_known(&mut self, index: u32, value: u64, host: bool) -> Written {
        match index {
            // The hot ones first: every interrupt and every timer tick of a guest ends here.
            X2APIC_BASE..=X2APIC_LAST => {
                let lapic = self.lapic.as_mut().ok_or(MsrError::Invalid)?;
                let effect = lapic.msr_write(index, value, self.time.monotonic_ns());
                return effect.map(MsrEffect::Lapic).map_err(|_| MsrError::Invalid);
            }
            TSC_DEADLINE => {
                return Ok(match &mut self.lapic {
                    Some(lapic) => MsrEffect::Timer(lapic.set_tsc_deadline(value)),
                    None => MsrEffect::None,
                });
            }
            TSC | TSC_ADJUST => return self.write_tsc(index, value, host),
            APIC_BASE => return self.write_apic_base(value, host),
            EFER => return self.write_efer(value, host),
            STAR | LSTAR | CSTAR | SYSCALL_MASK | FS_BASE | GS_BASE | KERNEL_GS_BASE | SYSENTER_CS | SYSENTER_ESP
            | SYSENTER_EIP | PAT => return self.write_save(index, value),
            SPEC_CTRL | PRED_CMD | FLUSH_CMD | VIRT_SPEC_CTRL => return self.write_speculation(index, value, host),
            KVM_WALL_CLOCK | KVM_WALL_CLOCK_NEW | KVM_SYSTEM_TIME | KVM_SYSTEM_TIME_NEW | KVM_POLL_CONTROL
            | KVM_STEAL_TIME | KVM_PV_EOI_EN | KVM_ASYNC_PF_EN | KVM_ASYNC_PF_INT | KVM_ASYNC_PF_ACK => {
                return self.write_paravirtual(index, value, host);
            }
            MISC_ENABLE => return self.write_misc_enable(value, host),
            _ => {}
        }
        let flags = self.cpuid.flags();
        match index {
            TSC_AUX => {
                let has = self.state.has_tsc_aux && (host || flags.rdtscp || flags.rdpid);
                // AMD ignores the upper half, Intel reserves it.
                if !has || !flags.is_amd && value >> 32 != 0 {
                    return INVALID;
                }
                self.cpu.extra_mut().tsc_aux = value & 0xffff_ffff;
            }
            XSS if value != 0 || !(host || flags.xsaves) => return INVALID,
            XSS => self.cpu.extra_mut().xss = 0,
            ARCH_CAPABILITIES | PERF_CAPABILITIES if self.lacks_bit_of(index) => return Err(MsrError::Unknown),
            ARCH_CAPABILITIES if host => self.state.arch_capabilities = value,
            // Whether a guest that cannot write it has it has changed.
            ARCH_CAPABILITIES if !self.since(6, 13) => return INVALID,

            MTRR_PHYS_BASE0..=MTRR_FIX4K_F8 | MTRR_DEF_TYPE => {
                if !self.state.mtrr.write(index, value, flags.reserved_gpa_bits) {
                    return INVALID;
                }
            }
            MCG_STATUS | MCG_CTL | MC0_CTL..=0x47f => {
                let hwcr = if flags.is_amd { self.state.hwcr } else { 0 };
                if !self.state.mce.write(index, value, host, hwcr) {
                    return INVALID;
                }
            }
            BIOS_SIGN_ID if host => self.state.patch_level = value,
            BIOS_SIGN_ID | BIOS_UPDT_TRIG => {}
            PLATFORM_INFO => {
                let takes_away = value & PLATFORM_INFO_CPUID_FAULT == 0 && self.state.cpuid_faulting();
                // From Linux 6.13 on it describes the processor, and may be restored in any order.
                if !host || takes_away && !self.since(6, 13) {
                    return INVALID;
                }
                self.state.platform_info = value;
            }
            MISC_FEATURES_ENABLES => {
                let can_fault = self.state.platform_info & PLATFORM_INFO_CPUID_FAULT != 0;
                if value & !FEATURES_CPUID_FAULT != 0 || value != 0 && !can_fault {
                    return INVALID;
                }
                self.state.misc_features = value;
                // It faults from now on, or no longer.
                return Ok(MsrEffect::CpuidChanged);
            }
            POWER_CTL => self.state.power_ctl = value,
            SMBASE | SMI_COUNT if !host => return INVALID,
            SMBASE => self.state.smbase = value,
            SMI_COUNT => self.state.smi_count = value,
            XFD | XFD_ERR | PERF_CAPABILITIES if !host || value != 0 => return INVALID,
            XFD | XFD_ERR | PERF_CAPABILITIES => {}
            MC0_CTL2..=0x29f => {
                if !host || value != 0 || !self.state.mce.has_bank((index - MC0_CTL2) as usize) {
                    return INVALID;
                }
            }

            HWCR => {
                // The cache disables and IGNNE emulation do nothing here; two more bits are kept, the rest is unknown.
                let value = value & !(HWCR_FF_DIS | HWCR_IGNNE_EM | HWCR_TLB_CACHE_DIS);
                if value & !(HWCR_MCI_STATUS_WR_EN | HWCR_TSC_FREQ_SEL) != 0 {
                    self.unhandled(index, value);
                    return INVALID;
                }
                self.state.hwcr = value;
            }
            DE_CFG if value & !self.state.de_cfg_supported != 0 => return INVALID,
            DE_CFG => self.state.de_cfg = value,
            VM_CR => {
                if value & !VM_CR_VALID != 0 {
                    return INVALID;
                }
                let fixed = if self.state.vm_cr & VM_CR_SVM_DISABLE != 0 { VM_CR_LOCKED } else { 0 };
                self.state.vm_cr = self.state.vm_cr & fixed | value & !fixed;
            }
            VM_HSAVE_PA => {
                // User space may restore what an older hypervisor let through.
                if !host && value & (flags.reserved_gpa_bits | 0xfff) != 0 {
                    return INVALID;
                }
                self.state.hsave_pa = value & !0xfff;
            }
            OSVW_ID_LENGTH | OSVW_STATUS if !flags.osvw => return INVALID,
            OSVW_ID_LENGTH => self.state.osvw.0 = value,
            OSVW_STATUS => self.state.osvw.1 = value,
            // Without TSC scaling it stays 1:1; some user spaces write zero for "none".
            TSC_RATIO if !host || !matches!(value, 0 | TSC_RATIO_DEFAULT) => return INVALID,
            MMIO_CONF_BASE if value != 0 => {
                self.unhandled(index, value);
                return INVALID;
            }

            // No counters, no branch records, nothing to configure. The log says so where it may matter to the guest.
            PERF_EVT_SEL0..=K7_PERFCTR3 | P6_PERFCTR0 | P6_PERFCTR1 | P6_EVNTSEL0 | P6_EVNTSEL1 if value == 0 => {}
            PERF_EVT_SEL0..=K7_PERFCTR3
            | P6_PERFCTR0
            | P6_PERFCTR1
            | P6_EVNTSEL0
            | P6_EVNTSEL1
            | DEBUGCTL
            | BBL_CR_CTL3
            | IGNNE => self.unhandled(index, value),
            TSC_RATIO | MMIO_CONF_BASE | K7_CLK_CTL | NB_CFG | PATCH_LOADER | BU_CFG2 | DC_CFG | TW_CFG | EX_CFG => {}
            _ => return Err(MsrError::Unknown),
        }
        DONE
    }

    /// Stock logs the same writes.
    #[cold]
    fn unhandled(&self, index: u32, value: u64) {
        self.time.unhandled_wrmsr(self.state.vcpu_id, self.cpu.save().rip, index, value);
    }

    /// TSC and TSC_ADJUST: each moves with the other (Intel SDM 18.17.3). User space's values are taken as they are.
    fn write_tsc(&mut self, index: u32, value: u64, host: bool) -> Written {
        let by = match (index, host) {
            (TSC, true) => return Ok(MsrEffect::SyncTsc(value)),
            (TSC, false) => value.wrapping_sub(self.clock.guest_tsc(self.time.host_tsc())),
            _ if !self.cpuid.flags().tsc_adjust => return DONE,
            (_, true) => {
                self.state.tsc_adjust = value;
                return DONE;
            }
            (_, false) => value.wrapping_sub(self.state.tsc_adjust),
        };
        self.state.tsc_adjust = self.state.tsc_adjust.wrapping_add(by);
        self.clock.adjust_tsc(by);
        Ok(MsrEffect::TscOffset)
    }

    fn write_apic_base(&mut self, value: u64, host: bool) -> Written {
        let flags = self.cpuid.flags();
        let (reserved, x2apic) = (flags.reserved_gpa_bits, flags.x2apic);
        match &mut self.lapic {
            Some(lapic) => lapic.set_base(value, host, reserved).map_err(|_| MsrError::Invalid)?,
            None => {
                let checked = irqchip::checked_base(*self.apic_base, value, host, x2apic, reserved);
                checked.map_err(|_| MsrError::Invalid)?;
                *self.apic_base = value;
            }
        }
        Ok(MsrEffect::ApicBase)
    }

    /// APM 3.1.7. LMA is the processor's; SVME is always set underneath and never the guest's.
    fn write_efer(&mut self, value: u64, host: bool) -> Written {
        let flags = self.cpuid.flags();
        let old = self.cpu.save().efer & !Efer::SVME.bits();
        let long_changes = (old ^ value) & Efer::LME.bits() != 0 && self.cr0 & Cr0::PG.bits() != 0;
        if value & flags.efer_reserved_host != 0 || !host && (value & flags.efer_reserved != 0 || long_changes) {
            return INVALID;
        }
        let lma = Efer::LMA.bits();
        let new = value & !lma | old & lma;
        if new == old {
            return DONE;
        }
        self.cpu.save_mut(CleanBits::CRX).efer = new | Efer::SVME.bits();
        Ok(MsrEffect::Efer { old })
    }

    /// Those that lie in the save area.
    fn write_save(&mut self, index: u32, value: u64) -> Written {
        let flags = self.cpuid.flags();
        // The processor goes by what it has, and guests write these without an exit: CR4.LA57 and the guest's CPUID do
        // not matter.
        let la57 = self.cpuid.caps().has(Feature::LA57);
        let proper = canonical(value, if la57 { 57 } else { 48 });
        let is_address = matches!(index, LSTAR | CSTAR | FS_BASE | GS_BASE | KERNEL_GS_BASE);
        if is_address && proper != value || index == PAT && !pat_valid(value) {
            return INVALID;
        }
        // Only PAT is cached between entries; VMLOAD fetches the others (APM 15.15.3).
        let touched = if index == PAT { CleanBits::NP } else { CleanBits::empty() };
        let save = self.cpu.save_mut(touched);
        // AMD has SYSENTER in legacy mode only and keeps 32 bits; a guest that believes to be on Intel reads back 64.
        let (low, high) = (proper & 0xffff_ffff, if flags.is_amd { 0 } else { (proper >> 32) as u32 });
        match index {
            STAR => save.star = value,
            LSTAR => save.lstar = value,
            CSTAR => save.cstar = value,
            SYSCALL_MASK => save.sfmask = value,
            FS_BASE => save.fs.base = value,
            GS_BASE => save.gs.base = value,
            KERNEL_GS_BASE => save.kernel_gs_base = value,
            SYSENTER_CS => save.sysenter_cs = value,
            SYSENTER_ESP => {
                save.sysenter_esp = low;
                self.state.sysenter_high.0 = high;
            }
            SYSENTER_EIP => {
                save.sysenter_eip = low;
                self.state.sysenter_high.1 = high;
            }
            PAT => (save.g_pat, self.state.pat) = (value, value),
            _ => return Err(MsrError::Unknown),
        }
        DONE
    }

    /// SPEC_CTRL, PRED_CMD, FLUSH_CMD, VIRT_SPEC_CTRL (APM 3.2.9).
    fn write_speculation(&mut self, index: u32, value: u64, host: bool) -> Written {
        let flags = self.cpuid.flags();
        match index {
            SPEC_CTRL => {
                if !(host || flags.spec_ctrl) || value & !self.state.spec_ctrl_supported != 0 {
                    return INVALID;
                }
                self.cpu.extra_mut().spec_ctrl = value;
                if value == 0 || self.state.spec_ctrl_used {
                    return DONE;
                }
                self.state.spec_ctrl_used = true;
                Ok(MsrEffect::SpecCtrl)
            }
            PRED_CMD => {
                let mut allowed = self.state.pred_cmd_supported;
                if !host {
                    for (has, bit) in [(flags.ibpb, PRED_CMD_IBPB), (flags.sbpb, PRED_CMD_SBPB)] {
                        if !has {
                            allowed &= !bit;
                        }
                    }
                    if !flags.ibpb && !flags.sbpb {
                        return INVALID;
                    }
                }
                match value {
                    0 => DONE,
                    v if v & !allowed != 0 => INVALID,
                    v => Ok(MsrEffect::Command(Command::Prediction(v))),
                }
            }
            FLUSH_CMD => {
                let allowed = self.cpuid.caps().has(Feature::FLUSH_L1D) && (host || flags.flush_l1d);
                match value {
                    _ if !allowed || value & !FLUSH_CMD_L1D != 0 => INVALID,
                    0 => DONE,
                    _ => Ok(MsrEffect::Command(Command::FlushL1d)),
                }
            }
            _ if !(host || flags.virt_ssbd) || value & !SPEC_CTRL_SSBD != 0 => INVALID,
            _ => {
                self.cpu.extra_mut().virt_spec_ctrl = value;
                DONE
            }
        }
    }

    /// KVM's own (KVM's MSR document).
    fn write_paravirtual(&mut self, index: u32, value: u64, host: bool) -> Written {
        let old = matches!(index, KVM_WALL_CLOCK | KVM_SYSTEM_TIME);
        match index {
            KVM_POLL_CONTROL => {
                self.pv(KVM_GUEST_POLLS)?;
                if value > 1 {
                    return INVALID;
                }
                self.state.poll_control = value;
                return DONE;
            }
            KVM_STEAL_TIME => {
                self.pv(KVM_PV_STEAL_TIME)?;
                // Bits 5:1 are reserved: the structure is 64 bytes, aligned.
                if !self.state.has_steal_time || value & 0x3e != 0 {
                    return INVALID;
                }
                self.state.steal_time = value;
                return Ok(MsrEffect::StealTime);
            }
            KVM_PV_EOI_EN => {
                self.pv(KVM_PV_EOI)?;
                return if value & 2 != 0 { INVALID } else { Ok(MsrEffect::PvEoi(value)) };
            }
            KVM_ASYNC_PF_EN | KVM_ASYNC_PF_INT | KVM_ASYNC_PF_ACK => return self.write_async_pf(index, value),
            _ => self.pv(if old { KVM_CLOCKSOURCE } else { KVM_CLOCKSOURCE2 })?,
        }
        if let KVM_WALL_CLOCK | KVM_WALL_CLOCK_NEW = index {
            self.vm.wall_clock.store(value, Relaxed);
            return Ok(MsrEffect::WallClock(value));
        }
        self.clock.set_system_time_msr(value);
        Ok(MsrEffect::SystemTime { old_msr: (!host).then_some(old) })
    }

    fn write_async_pf(&mut self, index: u32, value: u64) -> Written {
        self.pv(if index == KVM_ASYNC_PF_EN { KVM_PV_ASYNC_PF } else { KVM_PV_ASYNC_PF_INT })?;
        let has_lapic = self.lapic.is_some();
        match index {
            KVM_ASYNC_PF_EN => {
                let lacks = |feature, bit| value & bit != 0 && self.pv(feature).is_err();
                if value & async_pf::RESERVED != 0
                    || lacks(KVM_PV_ASYNC_PF_VMEXIT, async_pf::DELIVERY_AS_PF_VMEXIT)
                    || lacks(KVM_PV_ASYNC_PF_INT, async_pf::DELIVERY_AS_INT)
                    || !has_lapic && value != 0
                {
                    return INVALID;
                }
                Ok(MsrEffect::AsyncPf(value))
            }
            KVM_ASYNC_PF_INT => {
                let vector = u8::try_from(value).map_err(|_| MsrError::Invalid)?;
                if !has_lapic {
                    return INVALID;
                }
                self.state.async_pf_vector = vector;
                DONE
            }
            _ => Ok(if value & 1 != 0 { MsrEffect::AsyncPfAck } else { MsrEffect::None }),
        }
    }

    fn write_misc_enable(&mut self, value: u64, host: bool) -> Written {
        let old = self.state.misc_enable;
        let mut value = value;
        if !host {
            if (old ^ value) & MISC_ENABLE_NO_BTS_PEBS != 0 {
                return INVALID;
            }
            value = value & !MISC_ENABLE_EMON | old & MISC_ENABLE_EMON;
        }
        let mwait = (old ^ value) & MISC_ENABLE_MWAIT != 0 && self.vm.misc_enable_mwait.load(Relaxed);
        if mwait && !self.cpuid.flags().sse3 {
            return INVALID;
        }
        self.state.misc_enable = value;
        Ok(if mwait { MsrEffect::CpuidChanged } else { MsrEffect::None })
    }
}
