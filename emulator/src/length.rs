//! The length of an instruction whose intercept already says what it is, for CPUs that do not save the next RIP
//! (CPUID Fn8000_000A_EDX[NRIPS] = 0). It runs on every such exit: it skips prefixes and compares, no more.

use crate::insn::Mode;

/// Intercepted instructions of one fixed opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the mnemonics
#[rustfmt::skip]
pub enum Known {
    Cpuid, Rdmsr, Wrmsr, Hlt, Vmmcall, Invd, Wbinvd, Xsetbv, Pause, Monitor, Mwait,
}

impl Known {
    /// The opcode bytes.
    const fn opcode(self) -> &'static [u8] {
        match self {
            Known::Cpuid => &[0x0f, 0xa2],
            Known::Rdmsr => &[0x0f, 0x32],
            Known::Wrmsr => &[0x0f, 0x30],
            Known::Hlt => &[0xf4],
            Known::Vmmcall => &[0x0f, 0x01, 0xd9],
            Known::Invd => &[0x0f, 0x08],
            Known::Wbinvd => &[0x0f, 0x09],
            Known::Xsetbv => &[0x0f, 0x01, 0xd1],
            Known::Pause => &[0x90],
            Known::Monitor => &[0x0f, 0x01, 0xc8],
            Known::Mwait => &[0x0f, 0x01, 0xc9],
        }
    }
}

/// The length in bytes (1 to 15) of the instruction at the start of `bytes` if it is `expected`.
///
/// `None` if it is another one or `bytes` ends too early: then decode, or inject nothing and let the guest execute
/// it again.
#[inline(always)] // `expected` is a constant where it counts: the comparison becomes a word's.
pub fn len_of(bytes: &[u8], mode: Mode, expected: Known) -> Option<u8> {
    let opcode = expected.opcode();
    let mut rest = bytes;
    for prefixes in 0..14_u8 {
        if rest.starts_with(opcode) {
            let len = prefixes.wrapping_add(opcode.len() as u8);
            return if len <= 15 && bytes.len() >= usize::from(len) { Some(len) } else { None };
        }
        rest = match rest {
            [0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3, tail @ ..] => tail,
            [0x40..=0x4f, tail @ ..] if mode.is_long() => tail,
            _ => return None,
        };
    }
    None
}
