//! Instructions that the processor lacks and a guest may have nevertheless (KVM_GET_EMULATED_CPUID): they are #UD, which is
//! intercepted, and carried out here if the guest's CPUID shows them.

use crate::Ctx;
use crate::run::Next;
use emulator::Op;
use host::{Cpu, Host};

/// REX.W and REX.B make no difference for what RDPID does but for the register.
const REX_B: u8 = 1;

impl<H: Host> Ctx<'_, H> {
    /// Carries out the instruction at RIP, whose bytes are `code`. None: the guest does not have it.
    pub(crate) fn lacking(&mut self, code: &[u8]) -> Option<Next> {
        let flags = self.core.cpuid.flags();
        if flags.emulates_rdpid {
            if let Some((gpr, len)) = rdpid(code, self.in_64bit_mode()) {
                let aux = self.core.cpu.extra().tsc_aux & 0xffff_ffff;
                self.core.cpu.set_gpr(gpr, aux);
                let rip = self.core.cpu.save().rip.wrapping_add(len);
                return Some(self.advance(rip));
            }
        }
        if !self.core.cpuid.flags().emulates_movbe {
            return None;
        }
        let movbe = emulator::fetch(self, &[]).is_ok_and(|insn| insn.op == Op::Movbe);
        // What stopped the look at it stops emulation as well, if it is one.
        self.core.host_stop = None;
        movbe.then(|| self.emulate())
    }
}

/// The register of RDPID (F3 0F C7 /7 with a register operand), and its length.
fn rdpid(code: &[u8], long: bool) -> Option<(u8, u64)> {
    let rest = code.strip_prefix(&[0xf3])?;
    let (rex, rest) = match rest {
        [rex @ 0x40..=0x4f, rest @ ..] if long => (*rex, rest),
        _ => (0, rest),
    };
    let [0x0f, 0xc7, modrm @ 0xf8..=0xff, ..] = rest else { return None };
    let len = if rex == 0 { 4 } else { 5 };
    Some((modrm & 7 | (rex & REX_B) << 3, len))
}

#[cfg(test)]
mod tests {
    use super::rdpid;

    #[test]
    fn known_by_its_bytes() {
        assert_eq!(rdpid(&[0xf3, 0x0f, 0xc7, 0xf8], true), Some((0, 4)));
        assert_eq!(rdpid(&[0xf3, 0x0f, 0xc7, 0xff, 0x90], false), Some((7, 4)));
        assert_eq!(rdpid(&[0xf3, 0x41, 0x0f, 0xc7, 0xfa], true), Some((10, 5)));
        assert_eq!(rdpid(&[0xf3, 0x41, 0x0f, 0xc7, 0xfa], false), None, "INC outside of 64-bit mode");
        assert_eq!(rdpid(&[0x0f, 0xc7, 0xf8], true), None, "RDSEED");
        assert_eq!(rdpid(&[0xf3, 0x0f, 0xc7, 0x38], true), None, "memory");
        assert_eq!(rdpid(&[0xf3, 0x0f], true), None);
    }
}
