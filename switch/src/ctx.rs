//! What the assembly knows of a vCPU.

use crate::fast::Link;
use arch::HostPa;

/// The first argument of the world switch. The assembly takes every field by its offset from here (`offset_of!` as
/// `const` operands), so that text and structure cannot drift apart.
#[repr(C)]
#[derive(Debug, Default)]
pub struct VcpuCtx {
    /// The guest's general registers in the order of their encoding. RAX (0) and RSP (4) are not used: the hardware
    /// keeps those in the VMCB.
    pub regs: [u64; 16],
    /// The VMCB that VMLOAD and VMSAVE use: the vCPU's own.
    pub vmcb01: HostPa,
    /// The VMCB that VMRUN uses: today the same; another while the guest runs a guest.
    pub vmcb: HostPa,
    /// The SPEC_CTRL to run the guest with. Equal to the host's where there is nothing to switch: no such MSR, or
    /// the processor virtualises it.
    pub spec_ctrl: u64,
    /// Set by the assembly if an SVM instruction faulted while the machine was rebooting.
    pub faulted: u32,
    /// The stack pointer of the assembly, while `hsave_fast` has the CPU.
    pub stack: usize,
    /// What `hsave_fast` is given; where there is nothing the assembly does not jump there.
    pub(crate) link: Link,
}

impl VcpuCtx {
    /// Offset of the pointer that is null where the assembly is not to jump to `hsave_fast`.
    pub const FAST: usize = core::mem::offset_of!(Self, link) + core::mem::offset_of!(Link, state);
}

/// The flag of the world switch: the guest may write SPEC_CTRL without an exit, so its value is read back. Computed
/// from the MSR permission map, outside of the region where no code but the switch's own may run.
pub const SPEC_CTRL_NOT_INTERCEPTED: u32 = 1;
