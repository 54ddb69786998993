//! Per-CPU state of the world switch.
//!
//! The base keeps it (linux/shim/kvm/cpu.c), as a per-CPU variable, because the assembly has to reach it through GS: it is
//! what all engines share of a CPU, so that whatever one of them has changed there the next one knows. Its layout is this
//! struct's, in C too. Only its own CPU touches it, with interrupts off (or before the CPU is enabled); fields are cells
//! because the kernel's callbacks on the same CPU write some of them, too.

use crate::Asids;
use arch::HostPa;
use core::cell::Cell;

/// Bytes that the shim reserves for [`CpuData`], aligned to 64.
pub const CPU_DATA_SIZE: usize = 256;

/// State of one CPU: `hsave_cpu_data` in the base, zeroed at load except `this` and `number`.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct CpuData {
    /// Offset 0: the address of this very struct, so that one GS-relative load finds it. Written by the base before
    /// anything else is called.
    pub this: *mut CpuData,
    /// Offset 8: physical address of the host save area (VM_HSAVE_PA), which the assembly fetches before entry.
    pub hsave_pa: Cell<HostPa>,
    /// Offset 16: what TSC_AUX holds now; kept by
    /// [`set_user_return_tsc_aux`](crate::Platform::set_user_return_tsc_aux) and its counterpart on return to user.
    pub tsc_aux: Cell<u64>,
    /// Offset 24: this CPU's number. Written by the base together with `this`.
    pub number: u32,
    /// Offset 28: EFER.SVME and VM_HSAVE_PA are set.
    pub enabled: Cell<bool>,
    /// Offset 29: the LDTR that the host save area holds is not null.
    pub ldt_saved: Cell<bool>,
    /// Offset 32: the kernel address of the host save area, to be freed.
    pub hsave_va: Cell<usize>,
    /// Offset 40: whose VMSAVE state the host save area holds: the vCPU that ran last on this CPU, by its token
    /// ([`Platform::new_token`](crate::Platform::new_token)); 0 is none.
    pub last_vcpu: Cell<u64>,
    /// Offset 48: the TSC ratio MSR; 0 where the processor has none. Set by the base when SVM goes on.
    pub tsc_ratio: Cell<u64>,
    /// Offset 56: generation of this CPU's ASIDs; it only grows, also each time that SVM goes on.
    pub asid_generation: Cell<u64>,
    /// Offset 64: the ASID that is handed out next.
    pub asid_next: Cell<u32>,
    /// Offset 68: the last one that there is.
    pub asid_max: Cell<u32>,
}

impl CpuData {
    /// The ASIDs of this CPU.
    #[inline]
    pub(crate) fn asids(&self) -> Asids {
        Asids { generation: self.asid_generation.get(), next: self.asid_next.get(), max: self.asid_max.get() }
    }

    pub(crate) fn set_asids(&self, asids: Asids) {
        let Asids { generation, next, max } = asids;
        self.asid_generation.set(generation);
        self.asid_next.set(next);
        self.asid_max.set(max);
    }
}

const _: () = {
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<CpuData>() <= CPU_DATA_SIZE && align_of::<CpuData>() <= 64);
    assert!(offset_of!(CpuData, this) == 0);
    assert!(offset_of!(CpuData, hsave_pa) == 8);
    assert!(offset_of!(CpuData, tsc_aux) == 16);
    assert!(offset_of!(CpuData, number) == 24);
    assert!(offset_of!(CpuData, enabled) == 28);
    assert!(offset_of!(CpuData, ldt_saved) == 29);
    assert!(offset_of!(CpuData, hsave_va) == 32);
    assert!(offset_of!(CpuData, last_vcpu) == 40);
    assert!(offset_of!(CpuData, tsc_ratio) == 48);
    assert!(offset_of!(CpuData, asid_generation) == 56);
    assert!(offset_of!(CpuData, asid_next) == 64);
    assert!(offset_of!(CpuData, asid_max) == 68);
};
