//! RDMSR.

use super::mtrr::MTRR_CAP;
use super::number::*;
use super::{Clocks, MsrAccess, MsrError};
use crate::cpuid::{
    KVM_CLOCKSOURCE, KVM_CLOCKSOURCE2, KVM_GUEST_POLLS, KVM_PV_ASYNC_PF, KVM_PV_ASYNC_PF_INT, KVM_PV_EOI,
    KVM_PV_STEAL_TIME,
};
use arch::cr::Efer;
use arch::msr::*;
use core::sync::atomic::Ordering::Relaxed;
use host::Cpu;

/// Err(Invalid) unless the guest has it.
fn only_if(has: bool) -> Result<(), MsrError> {
    if has { Ok(()) } else { Err(MsrError::Invalid) }
}

impl<C: Cpu, T: Clocks> MsrAccess<'_, C, T> {
    pub(super) fn read_known(&mut self, index: u32, host: bool) -> Result<u64, MsrError> {
        let flags = self.cpuid.flags();
        let save = self.cpu.save();
        Ok(match index {
            X2APIC_BASE..=X2APIC_LAST => {
                let lapic = self.lapic.as_mut().ok_or(MsrError::Invalid)?;
                return lapic.msr_read(index, self.time.monotonic_ns()).map_err(|_| MsrError::Invalid);
            }
            TSC_DEADLINE => self.lapic.as_ref().map_or(0, |l| l.tsc_deadline()),
            TSC => self.clock.guest_tsc(self.time.host_tsc()),
            TSC_ADJUST => self.state.tsc_adjust,
            APIC_BASE => self.lapic.as_ref().map_or(*self.apic_base, |l| l.base()),

            EFER => save.efer & !Efer::SVME.bits(),
            STAR => save.star,
            LSTAR => save.lstar,
            CSTAR => save.cstar,
            SYSCALL_MASK => save.sfmask,
            FS_BASE => save.fs.base,
            GS_BASE => save.gs.base,
            KERNEL_GS_BASE => save.kernel_gs_base,
            SYSENTER_CS => save.sysenter_cs,
            SYSENTER_ESP => save.sysenter_esp & 0xffff_ffff | u64::from(self.state.sysenter_high.0) << 32,
            SYSENTER_EIP => save.sysenter_eip & 0xffff_ffff | u64::from(self.state.sysenter_high.1) << 32,
            PAT => save.g_pat,

            TSC_AUX => {
                only_if(self.state.has_tsc_aux && (host || flags.rdtscp || flags.rdpid))?;
                self.cpu.extra().tsc_aux & 0xffff_ffff
            }
            SPEC_CTRL => {
                only_if(host || flags.spec_ctrl)?;
                self.cpu.extra().spec_ctrl
            }
            VIRT_SPEC_CTRL => {
                only_if(host || flags.virt_ssbd)?;
                self.cpu.extra().virt_spec_ctrl
            }
            XSS => {
                only_if(host || flags.xsaves)?;
                self.cpu.extra().xss
            }
            ARCH_CAPABILITIES | PERF_CAPABILITIES if self.lacks_bit_of(index) => return Err(MsrError::Unknown),
            ARCH_CAPABILITIES => {
                only_if(host || flags.arch_capabilities)?;
                self.state.arch_capabilities
            }

            MTRRCAP => MTRR_CAP,
            MTRR_PHYS_BASE0..=MTRR_FIX4K_F8 | MTRR_DEF_TYPE => self.state.mtrr.read(index).ok_or(MsrError::Invalid)?,
            P5_MC_ADDR | P5_MC_TYPE => 0,
            // Corrected errors raise no interrupt: the control of that is there for user space only, and zero.
            MC0_CTL2..=0x29f => {
                only_if(host && self.state.mce.has_bank((index - MC0_CTL2) as usize))?;
                0
            }
            MCG_CAP | MCG_STATUS | MCG_CTL | MC0_CTL..=0x47f => {
                self.state.mce.read(index, host).ok_or(MsrError::Invalid)?
            }
            BIOS_SIGN_ID => self.state.patch_level,
            MISC_ENABLE => self.state.misc_enable,
            MISC_FEATURES_ENABLES => self.state.misc_features,
            PLATFORM_INFO => {
                only_if(host || !self.vm.platform_info_hidden.load(Relaxed))?;
                self.state.platform_info
            }
            POWER_CTL => self.state.power_ctl,
            SMBASE => {
                only_if(host)?;
                self.state.smbase
            }
            SMI_COUNT => self.state.smi_count,
            // Neither AMX nor performance monitoring: zero, and for user space alone.
            XFD | XFD_ERR | PERF_CAPABILITIES => {
                only_if(host)?;
                0
            }

            HWCR => self.state.hwcr,
            DE_CFG => self.state.de_cfg,
            VM_CR => self.state.vm_cr,
            VM_HSAVE_PA => self.state.hsave_pa,
            OSVW_ID_LENGTH | OSVW_STATUS => {
                only_if(flags.osvw)?;
                let (length, status) = self.state.osvw;
                if index == OSVW_ID_LENGTH { length } else { status }
            }
            TSC_RATIO => {
                only_if(host)?;
                TSC_RATIO_DEFAULT
            }
            // A workaround bit of family 15h, which Windows wants to find set.
            IC_CFG if flags.family == 0x15 && (2..0x20).contains(&flags.model) => 0x1e,
            IC_CFG => 0,
            K7_CLK_CTL => 0x2000_0000,

            KVM_WALL_CLOCK | KVM_WALL_CLOCK_NEW => {
                self.pv(if index == KVM_WALL_CLOCK { KVM_CLOCKSOURCE } else { KVM_CLOCKSOURCE2 })?;
                self.vm.wall_clock.load(Relaxed)
            }
            KVM_SYSTEM_TIME | KVM_SYSTEM_TIME_NEW => {
                self.pv(if index == KVM_SYSTEM_TIME { KVM_CLOCKSOURCE } else { KVM_CLOCKSOURCE2 })?;
                self.clock.system_time_msr()
            }
            KVM_STEAL_TIME => {
                self.pv(KVM_PV_STEAL_TIME)?;
                self.state.steal_time
            }
            KVM_PV_EOI_EN => {
                self.pv(KVM_PV_EOI)?;
                self.state.pv_eoi
            }
            KVM_ASYNC_PF_EN => {
                self.pv(KVM_PV_ASYNC_PF)?;
                self.state.async_pf
            }
            KVM_ASYNC_PF_INT | KVM_ASYNC_PF_ACK => {
                self.pv(KVM_PV_ASYNC_PF_INT)?;
                if index == KVM_ASYNC_PF_INT { self.state.async_pf_vector.into() } else { 0 }
            }
            KVM_POLL_CONTROL => {
                self.pv(KVM_GUEST_POLLS)?;
                self.state.poll_control
            }

            // Values that old kernels compute frequencies from.
            FSB_FREQ => 3,
            EBC_FREQUENCY_ID => 1 << 24,
            PERF_STATUS => 1000 | 4 << 40,
            BBL_CR_CTL3 => 0xbe70_2111,
            // Performance counters that are not there, and machine-specific registers that read zero.
            PERF_EVT_SEL0..=K7_PERFCTR3 | P6_PERFCTR0 | P6_PERFCTR1 | P6_EVNTSEL0 | P6_EVNTSEL1 => 0,
            PLATFORM_ID | EBL_CR_POWERON | PERF_CTL => 0,
            DEBUGCTL | LASTBRANCH_FROM | LASTBRANCH_TO | LASTINT_FROM | LASTINT_TO => 0,
            RAPL_POWER_UNIT | PKG_ENERGY_STATUS | DRAM_ENERGY_STATUS | PP0_ENERGY_STATUS | PP1_ENERGY_STATUS => 0,
            SYSCFG | NB_CFG | TSEG_ADDR | TSEG_MASK | INT_PENDING_MSG | MMIO_CONF_BASE => 0,
            BU_CFG2 | DC_CFG | TW_CFG | EX_CFG => 0,
            _ => return Err(MsrError::Unknown),
        })
    }
}
