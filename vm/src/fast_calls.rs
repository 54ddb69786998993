//! SYSENTER and SYSEXIT in long mode, where AMD's processors do not have them (APM volume 3), for a guest that takes its
//! processor for one of Intel's: 32-bit programs under a 64-bit kernel make their system calls so.

use crate::Ctx;
use crate::run::Next;
use arch::cr::{Efer, Rflags};
use arch::msr::{SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP};
use arch::{Exception, Segment, SegmentAttr};
use host::{Cpu, Host};

const RCX: u8 = 1;
const RDX: u8 = 2;
const RSP: u8 = 4;
const CS: u8 = 1;
const SS: u8 = 2;

/// Which of them it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FastCall {
    /// SYSENTER.
    Enter,
    /// SYSEXIT, to 64-bit or to 32-bit code.
    Exit {
        /// With REX.W.
        to_64bit: bool,
    },
}

impl FastCall {
    /// From the bytes at RIP.
    pub(crate) fn of(code: &[u8]) -> Option<Self> {
        match *code {
            [0x0f, 0x34, ..] => Some(Self::Enter),
            [0x0f, 0x35, ..] => Some(Self::Exit { to_64bit: false }),
            // In 32-bit code this would be an INC or DEC, which is not #UD.
            [rex @ 0x40..=0x4f, 0x0f, 0x35, ..] => Some(Self::Exit { to_64bit: rex & 8 != 0 }),
            _ => None,
        }
    }
}

/// A flat segment.
fn flat(selector: u16, code: bool, dpl: u8, long: bool) -> Segment {
    let kind = if code { 0xb } else { 3 };
    let attrib = SegmentAttr::new(kind, 1, dpl, 1, 0, long.into(), (!long).into(), 1);
    Segment { selector, attrib, limit: u32::MAX, base: 0 }
}

/// Is the address one that 48 bits hold, sign extended?
const fn is_canonical(address: u64) -> bool {
    (address << 16) as i64 >> 16 == address as i64
}

impl<H: Host> Ctx<'_, H> {
    /// Does the guest expect instructions that the processor does not have in this mode?
    pub(crate) fn lacks_fast_calls(&self) -> bool {
        !self.core.cpuid.flags().is_amd && self.core.cpu.save().efer & Efer::LMA.bits() != 0
    }

    fn fast_call_msr(&mut self, index: u32) -> u64 {
        self.get_msr(index).unwrap_or(0)
    }

    /// Into 64-bit code of the kernel's.
    pub(crate) fn sysenter(&mut self) -> Next {
        let selector = self.fast_call_msr(SYSENTER_CS) as u16 & !3;
        if selector == 0 {
            return self.fault(Exception::gp(0));
        }
        let (rip, rsp) = (self.fast_call_msr(SYSENTER_EIP), self.fast_call_msr(SYSENTER_ESP));
        self.core.set_segment(CS, flat(selector, true, 0, true));
        self.core.set_segment(SS, flat(selector.wrapping_add(8), false, 0, false));
        self.core.cpu.set_gpr(RSP, rsp);
        self.core.cpu.save_mut(arch::CleanBits::empty()).rflags &= !(Rflags::VM | Rflags::IF).bits();
        self.advance(rip)
    }

    /// Back to user code: RIP is in RDX, RSP in RCX.
    pub(crate) fn sysexit(&mut self, to_64bit: bool) -> Next {
        let base = self.fast_call_msr(SYSENTER_CS) as u16;
        let wide = |v: u64| if to_64bit { v } else { v & 0xffff_ffff };
        let (rip, rsp) = (wide(self.core.cpu.gpr(RDX)), wide(self.core.cpu.gpr(RCX)));
        if self.core.cpu.save().cpl != 0 || base & !3 == 0 || !is_canonical(rip) || !is_canonical(rsp) {
            return self.fault(Exception::gp(0));
        }
        let selector = base.wrapping_add(if to_64bit { 32 } else { 16 }) | 3;
        self.core.set_segment(CS, flat(selector, true, 3, to_64bit));
        self.core.set_segment(SS, flat(selector.wrapping_add(8), false, 3, false));
        self.core.cpu.set_gpr(RSP, rsp);
        self.advance(rip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_by_their_bytes() {
        assert_eq!(FastCall::of(&[0x0f, 0x34]), Some(FastCall::Enter));
        assert_eq!(FastCall::of(&[0x0f, 0x35, 0]), Some(FastCall::Exit { to_64bit: false }));
        assert_eq!(FastCall::of(&[0x48, 0x0f, 0x35]), Some(FastCall::Exit { to_64bit: true }));
        assert_eq!(FastCall::of(&[0x41, 0x0f, 0x35]), Some(FastCall::Exit { to_64bit: false }));
        for other in [&[0x0f][..], &[0x0f, 0x0b], &[0x48], &[], &[0x48, 0x0f, 0x0b]] {
            assert_eq!(FastCall::of(other), None);
        }
    }

    #[test]
    fn canonical_addresses() {
        assert!(is_canonical(0) && is_canonical(0x7fff_ffff_ffff) && is_canonical(0xffff_8000_0000_0000));
        assert!(!is_canonical(0x8000_0000_0000) && !is_canonical(0xfffe_0000_0000_0000));
    }
}
