//! Per-CPU state of the world switch.
//!
//! The shim reserves it as a per-CPU variable, because the assembly has to reach it through GS; its layout is this
//! struct's. Only its own CPU touches it, with interrupts off (or before the CPU is enabled); fields are cells
//! because the kernel's callbacks on the same CPU write some of them, too.

use crate::Asids;
use arch::HostPa;
use core::cell::Cell;

/// Bytes that the shim reserves for [`CpuData`], aligned to 64.
pub const CPU_DATA_SIZE: usize = 256;

/// State of one CPU: `hsave_cpu_data` in the shim, zeroed at load except `this` and `number`.
///
/// The first four fields are the shim's to know by offset; the rest is the switch's own.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct CpuData {
    /// Offset 0: the address of this very struct, so that one GS-relative load finds it. Written by the shim before
    /// anything else is called.
    pub this: *mut CpuData,
    /// Offset 8: physical address of the host save area (VM_HSAVE_PA), which the assembly fetches before entry.
    pub hsave_pa: Cell<HostPa>,
    /// Offset 16: what TSC_AUX holds now; kept by
    /// [`set_user_return_tsc_aux`](crate::Platform::set_user_return_tsc_aux) and its counterpart on return to user.
    pub tsc_aux: Cell<u64>,
    /// Offset 24: this CPU's number. Written by the shim together with `this`.
    pub number: u32,
    /// EFER.SVME and VM_HSAVE_PA are set.
    pub(crate) enabled: Cell<bool>,
    /// The LDTR that the host save area holds is not null.
    pub(crate) ldt_saved: Cell<bool>,
    /// The kernel address of the host save area, to be freed.
    pub(crate) hsave_va: Cell<usize>,
    /// The vCPU that ran last on this CPU, by its id; 0 is none. Ids are never reused, so this never names another.
    pub(crate) last_vcpu: Cell<u64>,
    /// The TSC ratio MSR.
    pub(crate) tsc_ratio: Cell<u64>,
    /// ASIDs of this CPU.
    pub(crate) asids: Cell<Asids>,
}

impl CpuData {
    /// Offset of the kernel address of the host save area in bytes, for the checker of the SEV-ES variant.
    pub const HSAVE_VA: usize = core::mem::offset_of!(CpuData, hsave_va);
}

const _: () = {
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<CpuData>() <= CPU_DATA_SIZE && align_of::<CpuData>() <= 64);
    assert!(offset_of!(CpuData, this) == 0);
    assert!(offset_of!(CpuData, hsave_pa) == 8);
    assert!(offset_of!(CpuData, tsc_aux) == 16);
    assert!(offset_of!(CpuData, number) == 24);
};
