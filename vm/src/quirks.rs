//! Behaviour that KVM has always had and that user space may switch off (KVM_CAP_DISABLE_QUIRKS2, KVM API document
//! 7.30). Everything is on at first.

use crate::fast_calls::FastCall;
use crate::run::Next;
use crate::{Config, Ctx, Vm};
use core::sync::atomic::Ordering::Relaxed;
use emulator::Access;
use host::{Cpu, Errno, Host, linux_version};

/// KVM_X86_QUIRK_LINT0_REENABLED: after INIT the bootstrap processor takes the 8259's interrupts.
pub const LINT0_REENABLED: u64 = 1 << 0;
/// KVM_X86_QUIRK_LAPIC_MMIO_HOLE: the page of a local APIC that is not in xAPIC mode reads as ones, and swallows writes.
pub const LAPIC_MMIO_HOLE: u64 = 1 << 2;
/// KVM_X86_QUIRK_OUT_7E_INC_RIP: at the exit of an OUT to port 7e RIP is behind it, as QEMU's `kvmvapic` expects, which looks at
/// the guest's code there.
pub const OUT_7E_INC_RIP: u64 = 1 << 3;
/// KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT: MISC_ENABLE bit 18 does not show in CPUID.
pub const MISC_ENABLE_NO_MWAIT: u64 = 1 << 4;
/// KVM_X86_QUIRK_FIX_HYPERCALL_INSN: VMCALL in the guest's code becomes VMMCALL.
pub const FIX_HYPERCALL_INSN: u64 = 1 << 5;
/// KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS: MONITOR and MWAIT do nothing in a guest that does not have them.
pub const MWAIT_NEVER_UD_FAULTS: u64 = 1 << 6;
/// KVM_X86_QUIRK_SLOT_ZAP_ALL, since Linux 6.12: all of the guest's memory is unmapped when a slot goes. Here only the slot's is, in
/// either case, which only those can tell who measure the time.
pub const SLOT_ZAP_ALL: u64 = 1 << 7;

/// Those that can be switched off on every kernel.
const OLD: u64 = LINT0_REENABLED
    | LAPIC_MMIO_HOLE
    | OUT_7E_INC_RIP
    | MISC_ENABLE_NO_MWAIT
    | FIX_HYPERCALL_INSN
    | MWAIT_NEVER_UD_FAULTS;

/// Those that can be switched off.
pub fn all<H: Host>(host: &H) -> u64 {
    if host.linux_version() >= linux_version(6, 12) { OLD | SLOT_ZAP_ALL } else { OLD }
}

const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
/// VMMCALL is 0f 01 d9.
const VMMCALL_END: u8 = 0xd9;

impl Config {
    /// Is the quirk on?
    #[inline]
    pub(crate) fn has_quirk(&self, quirk: u64) -> bool {
        self.quirks_off.load(Relaxed) & quirk == 0
    }
}

impl<H: Host> Vm<H> {
    /// KVM_CAP_DISABLE_QUIRKS2. What is off stays off. Errors: EINVAL (a quirk that is not known).
    pub fn disable_quirks(&self, which: u64) -> Result<(), Errno> {
        if which & !all(&self.host) != 0 {
            return Err(Errno::EINVAL);
        }
        self.config.quirks_off.fetch_or(which, Relaxed);
        if which & MISC_ENABLE_NO_MWAIT != 0 {
            self.msrs.misc_enable_mwait.store(true, Relaxed);
        }
        Ok(())
    }
}

impl<H: Host> Ctx<'_, H> {
    /// #UD, which is intercepted: VMCALL of a guest that takes this processor for Intel's is made the instruction that
    /// it has, and runs again; SYSENTER and SYSEXIT are done here, and what the
    /// processor lacks ([`lacking`](Self::lacking)). Everything else is the guest's exception.
    pub(crate) fn undefined(&mut self) -> Next {
        let linear = self.linear_rip();
        let mut code = [0; 15];
        let mut got = self.fetch_code(linear, &mut code);
        if got < code.len() {
            // A signal, or the VMM's memory, may be why: then it is not known that the guest deserves #UD.
            self.core.host_stop = None;
            let fetched = emulator::fetch(self, &[]);
            if let (Err(stop), Some(_)) = (fetched, &self.core.host_stop) {
                return self.stopped(stop);
            }
            got = self.fetch_code(linear, &mut code);
        }
        let code = code.get(..got).unwrap_or(&[]);
        if code.starts_with(&VMCALL) {
            return self.vmcall(linear);
        }
        match FastCall::of(code).filter(|_| self.lacks_fast_calls()) {
            Some(FastCall::Enter) => self.sysenter(),
            Some(FastCall::Exit { to_64bit }) => self.sysexit(to_64bit),
            None => match self.lacking(code) {
                Some(next) => next,
                None => self.fault(arch::Exception::UD),
            },
        }
    }

    /// VMCALL is privileged, as it would have to be to be carried out.
    fn vmcall(&mut self, linear: u64) -> Next {
        if self.core.cpu.save().cpl != 0 {
            return self.fault(arch::Exception::gp(0));
        }
        if !self.vm.config.has_quirk(FIX_HYPERCALL_INSN) {
            return self.fault(arch::Exception::UD);
        }
        // Only the last byte differs: another vCPU sees the one or the other.
        self.core.mmio_fragments.clear();
        match emulator::Machine::write(self, linear.wrapping_add(2), &[VMMCALL_END], Access::Data) {
            // User space is told where the code is a device's, or memory that is only read.
            Ok(()) => self.flush_writes(),
            Err(stop) => self.stopped(stop),
        }
    }
}
