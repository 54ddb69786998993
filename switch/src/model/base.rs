//! What the base does with a CPU (linux/shim/kvm/cpu.c), for engines that run on the model.
#![cfg(any(test, feature = "model"))]

use super::kernel::{Kernel, script};
use crate::{CpuData, Machine, Pages, Platform, insn, machine::TSC_RATIO_ONE};
use arch::{HostPa, msr};
use core::ptr::{NonNull, with_exposed_provenance_mut};
use host::Errno;

impl Machine<Kernel> {
    /// Allocates the host save area of a CPU; nothing if it has one. Errors: ENOMEM.
    ///
    /// # Safety
    /// `cpu` is the `hsave_cpu_data` of a CPU, and nobody else uses it at the moment: the CPU is not enabled.
    pub unsafe fn prepare_cpu(cpu: NonNull<CpuData>) -> Result<(), Errno> {
        // SAFETY: by contract.
        let cpu = unsafe { cpu.as_ref() };
        if cpu.hsave_va.get() == 0 {
            let pages = Kernel::alloc_pages(0).ok_or(Errno::ENOMEM)?;
            cpu.hsave_va.set(pages.va.as_ptr().expose_provenance());
            cpu.hsave_pa.set(pages.pa);
        }
        Ok(())
    }

    /// Frees what [`prepare_cpu`](Self::prepare_cpu) allocated.
    ///
    /// # Safety
    /// As there; [`disable`](Self::disable) ran on the CPU, or it is gone.
    pub unsafe fn release_cpu(cpu: NonNull<CpuData>) {
        // SAFETY: by contract.
        let cpu = unsafe { cpu.as_ref() };
        if let Some(va) = NonNull::new(with_exposed_provenance_mut(cpu.hsave_va.replace(0))) {
            // SAFETY: these are the pages of `prepare_cpu`; the field is cleared, so this happens once.
            unsafe { Kernel::free_pages(Pages { va, pa: cpu.hsave_pa.replace(HostPa(0)) }, 0) };
        }
    }

    /// Switches SVM on on this CPU: EFER.SVME, VM_HSAVE_PA. Nothing if it is on.
    /// Errors: EBUSY (somebody else uses SVM), ENODEV (the CPU was not prepared).
    pub fn enable(&self) -> Result<(), Errno> {
        // SAFETY: this CPU's own data.
        let cpu = unsafe { Kernel::cpu_data().as_ref() };
        if cpu.enabled.get() {
            return Ok(());
        }
        if cpu.hsave_va.get() == 0 {
            return Err(Errno::ENODEV);
        }
        script(|s| s.svme)?;
        // SAFETY: the page belongs to this CPU and outlives SVM on it (`release_cpu` comes after `disable`).
        unsafe { insn::wrmsr(msr::VM_HSAVE_PA, cpu.hsave_pa.get().0) };
        reset_tsc_ratio(cpu);
        let mut asids = cpu.asids();
        asids.reset(Kernel::cpuid(0x8000_000a, 0)[1].wrapping_sub(1));
        cpu.set_asids(asids);
        // Whatever ran here last is not loaded any more.
        cpu.last_vcpu.set(0);
        cpu.enabled.set(true);
        Ok(())
    }

    /// Switches SVM off on this CPU. No guest runs. Nothing if it is off.
    pub fn disable(&self) {
        // SAFETY: as in `enable`.
        let cpu = unsafe { Kernel::cpu_data().as_ref() };
        if !cpu.enabled.replace(false) {
            return;
        }
        reset_tsc_ratio(cpu);
        // SAFETY: no VMRUN follows on this CPU; GIF is set after it as in any other case.
        unsafe {
            insn::wrmsr(msr::VM_HSAVE_PA, 0);
            insn::stgi();
        }
        super::kernel::svme_off();
    }
}

/// TSC ratio 1.0. All processors here have the MSR, whatever engines make of it.
fn reset_tsc_ratio(cpu: &CpuData) {
    // SAFETY: the ratio applies to guests only.
    unsafe { insn::wrmsr(msr::TSC_RATIO, TSC_RATIO_ONE) };
    cpu.tsc_ratio.set(TSC_RATIO_ONE);
}
