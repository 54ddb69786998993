//! Exits that need nothing of the host: handled between #VMEXIT and the next VMRUN, without leaving the guest's context.

use arch::{ControlArea, SaveArea};

/// The guest at such an exit.
pub struct FastExit<'a> {
    /// General registers in the order of their encoding, but RAX and RSP (0 and 4), which are in `save`.
    pub regs: &'a mut [u64; 16],
    /// The save area.
    pub save: &'a mut SaveArea,
    /// The control area: what the exit is about.
    pub control: &'a ControlArea,
}

impl FastExit<'_> {
    /// EAX.
    #[inline(always)]
    pub fn eax(&self) -> u32 {
        self.save.rax as u32
    }

    /// ECX.
    #[inline(always)]
    pub fn ecx(&self) -> u32 {
        let [_, rcx, ..] = *self.regs;
        rcx as u32
    }

    /// EDX.
    #[inline(always)]
    pub fn edx(&self) -> u32 {
        let [_, _, rdx, ..] = *self.regs;
        rdx as u32
    }

    /// EDX:EAX.
    #[inline(always)]
    pub fn edx_eax(&self) -> u64 {
        u64::from(self.edx()) << 32 | u64::from(self.eax())
    }

    /// Writes a general register by its number, of which the upper bits do not count.
    #[inline(always)]
    pub fn set_gpr(&mut self, n: u8, value: u64) {
        match n & 15 {
            0 => self.save.rax = value,
            4 => self.save.rsp = value,
            n => {
                if let Some(register) = self.regs.get_mut(usize::from(n)) {
                    *register = value;
                }
            }
        }
    }

    /// Writes EAX, EBX, ECX and EDX; the upper halves are zeroed.
    #[inline(always)]
    pub fn set_all(&mut self, [a, b, c, d]: [u32; 4]) {
        let [_, rcx, rdx, rbx, ..] = self.regs;
        self.save.rax = a.into();
        (*rbx, *rcx, *rdx) = (b.into(), c.into(), d.into());
    }

    /// Writes EDX:EAX; the upper halves are zeroed.
    #[inline(always)]
    pub fn set_edx_eax(&mut self, value: u64) {
        let [_, _, rdx, ..] = self.regs;
        self.save.rax = value & 0xffff_ffff;
        *rdx = value >> 32;
    }
}

/// What handles such exits. It runs with GIF clear while the guest's segments, system-call MSRs and SPEC_CTRL are still
/// loaded and before return prediction is the host's again. So all of it is inlined into one function, which makes no
/// call and no indirect branch, has no loop, touches nothing but the vCPU's own memory, and masks what the guest can use
/// as an index. The checker of the module proves what of this can be seen in the binary.
pub trait FastExits: 'static {
    /// Handles an intercepted instruction and leaves the guest as after it; RIP and the interrupt shadow are the caller's.
    /// False: not one of those, and nothing was changed.
    fn handle(&mut self, guest: &mut FastExit<'_>) -> bool;
}
