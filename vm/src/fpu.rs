//! The guest's FPU state is in the registers only while the guest uses it (docs/decisions/0009).
//!
//! Bringing it there and back costs more than all else that an exit to user space does here, and a KVM_RUN that serves a
//! device seldom touches it. So a KVM_RUN begins with the task's own state left in the registers and the guest kept away
//! from it: the hardware's CR0 has TS and MP set, so that every instruction which looks at that state, FWAIT included, is
//! #NM (APM 11.3, 11.5), and #NM exits. The first one loads the state and runs again, undisturbed for the rest of the
//! KVM_RUN. The guest's own TS and MP are in `Core::guest_cr0` meanwhile, and every access to CR0 exits.
//!
//! A guest that uses its FPU all the time must not pay for an exit each time: after each such exit a number of KVM_RUNs
//! load the state at once, more of them the more often it was needed.
//!
//! Where CR0.TS does not guard all that touches the state ([`ts_guards_fpu`](host::CpuFeatures::ts_guards_fpu)) this is
//! right only as long as the guest has none: [`settle_fpu`](Core::settle_fpu).

use crate::{Ctx, vcpu::Core};
use arch::cr::{Cr0, Cr4};
use arch::event::vector;
use host::{Cpu, Errno, Fpu, Host};

/// How many KVM_RUNs load the state at once after it was needed, at least and at most.
const EAGER: (u8, u8) = (4, 128);
/// The XMM registers in the FXSAVE and XSAVE areas, bytes (APM 11.4.4).
const XMM: core::ops::Range<usize> = 160..416;

/// Whose state is in the registers, and whose will be at the next KVM_RUN.
pub struct FpuUse {
    /// The guest's state is in the registers.
    loaded: bool,
    /// The guest is kept away from the registers.
    trapping: bool,
    /// KVM_RUNs that will load the state at once.
    eager: u8,
    /// What `eager` will be set to when the state is needed.
    next: u8,
    /// Every KVM_RUN loads the state at once.
    settled: bool,
}

::state::state! {
    place FpuUse { loaded, trapping, eager, next, settled }
}

impl FpuUse {
    /// A vCPU that has not used its FPU.
    pub const fn new() -> Self {
        Self { loaded: false, trapping: false, eager: 0, next: EAGER.0, settled: false }
    }

    /// Is the guest's state in the registers, or goes back there when KVM_RUN goes on?
    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// How many KVM_RUNs will load the state at once.
    pub fn eager(&self) -> u8 {
        self.eager
    }

    /// Bits of CR0 that the hardware runs with whatever the guest has set.
    pub(crate) fn forced(&self) -> u64 {
        if self.trapping { (Cr0::TS | Cr0::MP).bits() } else { 0 }
    }

    /// Are TS and MP in the hardware's CR0 not the guest's?
    #[inline]
    pub(crate) fn trapping(&self) -> bool {
        self.trapping
    }

    /// Bits of CR4 that the hardware runs without whatever the guest has set. XGETBV does not look at TS, and with ECX = 1 it
    /// shows which components of the registers are in use (XINUSE): those of the task.
    pub(crate) fn hidden(&self) -> u64 {
        if self.trapping { Cr4::OSXSAVE.bits() } else { 0 }
    }

    /// Exceptions to intercept.
    pub(crate) fn exceptions(&self) -> u32 {
        if self.trapping { 1 << vector::NM } else { 0 }
    }
}

impl<H: Host> Core<H> {
    /// KVM_RUN begins.
    #[inline]
    pub(crate) fn begin_fpu(&mut self) {
        if self.fpu_use.settled {
            return self.load_fpu();
        }
        match self.fpu_use.eager.checked_sub(1) {
            None => self.trap_fpu(true),
            Some(less) => {
                self.fpu_use.eager = less;
                self.load_fpu();
            }
        }
    }

    /// KVM_RUN ends. Was the guest's state loaded?
    #[inline]
    pub(crate) fn end_fpu(&mut self) -> bool {
        let u = &mut self.fpu_use;
        let loaded = core::mem::replace(&mut u.loaded, false);
        if loaded {
            self.fpu.put();
        } else {
            u.next = (u.next / 2).max(EAGER.0);
        }
        loaded
    }

    /// KVM_RUN is left for a handover: where the guest's state was is remembered.
    pub(crate) fn pause_fpu(&mut self) {
        if self.fpu_use.loaded {
            self.fpu.put();
        }
    }

    /// And goes on.
    pub(crate) fn resume_fpu(&mut self) {
        if self.fpu_use.loaded {
            self.fpu.load();
        }
    }

    /// #NM while the guest is kept away, or an instruction that is emulated needs a register. Within KVM_RUN.
    #[inline]
    pub(crate) fn need_fpu(&mut self) {
        if !self.fpu_use.loaded {
            self.first_use();
        }
    }

    /// The guest has used the state, or user space brought some: unless every use of it faults, the guest must not be kept away
    /// from it from the next KVM_RUN on.
    pub(crate) fn settle_fpu(&mut self) {
        self.fpu_use.settled = !self.features.ts_guards_fpu;
    }

    /// Is #UD perhaps that of an instruction which wants CR4.OSXSAVE, while the guest has it and the hardware has not?
    pub(crate) fn hides_osxsave(&self) -> bool {
        self.guest_cr4 & self.fpu_use.hidden() != 0
    }

    #[cold]
    fn first_use(&mut self) {
        self.settle_fpu();
        let u = &mut self.fpu_use;
        u.eager = u.next;
        u.next = u.next.saturating_mul(2).min(EAGER.1);
        self.load_fpu();
    }

    fn load_fpu(&mut self) {
        self.fpu.load();
        self.fpu_use.loaded = true;
        self.trap_fpu(false);
    }

    /// Keeps the guest away from the registers, or lets it.
    #[inline]
    fn trap_fpu(&mut self, on: bool) {
        if self.fpu_use.trapping != on {
            self.switch_trap(on);
        }
    }

    #[cold]
    fn switch_trap(&mut self, on: bool) {
        let cr0 = self.cr0();
        self.fpu_use.trapping = on;
        self.load_cr0(cr0);
        self.load_cr4(self.guest_cr4);
        self.load_exception_intercepts();
    }
}

impl<H: Host> Ctx<'_, H> {
    /// KVM_GET_XSAVE(2); `buf` is cut to the buffer's size. Only what the guest has is there: a component that this host has and
    /// the guest's CPUID does not could not be set on a host without it.
    pub fn get_xsave(&self, buf: &mut [u8]) {
        self.core.fpu.get(buf, self.core.cpuid.flags().xcr0, self.core.cpu.extra().pkru);
    }

    /// The same with all that the kernel keeps, to be changed and put back.
    pub fn whole_xsave(&self, buf: &mut [u8]) {
        self.core.fpu.get(buf, self.core.cpuid.caps().xcr0(), self.core.cpu.extra().pkru);
    }

    /// KVM_SET_XSAVE: whatever some guest could have, as on stock. Errors: EINVAL (components or MXCSR bits that are not supported).
    pub fn set_xsave(&mut self, buf: &[u8]) -> Result<(), Errno> {
        let supported = self.core.cpuid.caps().xcr0();
        let mut pkru = self.core.cpu.extra().pkru;
        self.core.fpu.set(buf, supported, &mut pkru)?;
        self.core.cpu.extra_mut().pkru = pkru;
        // The registers that the SHA instructions work on; those of reset are all zero.
        if buf.get(XMM).is_some_and(|registers| registers.iter().any(|byte| *byte != 0)) {
            self.core.settle_fpu();
        }
        Ok(())
    }
}
