//! The processor that the tests run on, and where processors of another make differ.
//!
//! The emulator follows AMD's manual, because guests of hsave run on AMD's processors. A test that compares it with the
//! processor underneath has to pass on Intel's as well, and on AMD's where the manual leaves something open, so it asks here
//! before it calls a difference wrong.

use emulator::{Insn, Op, Operand, Rep};
use std::arch::x86_64::{__cpuid, CpuidResult};

/// Who made a processor, and with whom it therefore agrees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Make {
    Amd,
    Intel,
    /// Another manufacturer's: it may do what either does.
    Other,
}

impl Make {
    /// The make of the processor that the tests run on.
    pub fn of_this_processor() -> Self {
        let leaf = cpuid(0);
        let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
        match vendor.as_slice() {
            // Hygon's processors are AMD's by licence.
            b"AuthenticAMD" | b"HygonGenuine" => Self::Amd,
            b"GenuineIntel" => Self::Intel,
            _ => Self::Other,
        }
    }

    /// Why a processor of this make need not do what the emulator does with `insn`, whose code is `bytes`; `None` where
    /// it has to.
    pub fn differs(self, what: Compared, insn: &Insn, bytes: &[u8]) -> Option<&'static str> {
        let applies = |row: &&Difference| {
            (self == row.make || self == Self::Other)
                && (row.what == what || row.what == Compared::Everything)
                && (row.which)(insn, bytes)
        };
        DIFFERENCES.iter().find(applies).map(|row| row.why)
    }
}

/// What a test compares after an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compared {
    Everything,
    /// The registers, once the instruction has set ZF.
    RegistersWithZf,
}

/// Some instructions that processors of one make carry out in another way than the emulator.
struct Difference {
    make: Make,
    what: Compared,
    which: fn(&Insn, &[u8]) -> bool,
    why: &'static str,
}

const DIFFERENCES: &[Difference] = &[
    Difference {
        make: Make::Intel,
        what: Compared::Everything,
        // A ModRM byte with two registers is never 90, so this is the opcode.
        which: |insn, bytes| {
            insn.op == Op::Xchg
                && insn.rep == Rep::Rep
                && !insn.operands.iter().any(|operand| matches!(operand, Operand::Mem { .. }))
                && bytes.get(usize::from(insn.len).wrapping_sub(1)) == Some(&0x90)
        },
        why: "Intel's take F3 90 as PAUSE whatever REX.B says; on AMD's REX.B makes 90 an XCHG with R8",
    },
    Difference {
        make: Make::Intel,
        what: Compared::Everything,
        which: |insn, _| insn.op == Op::Push && insn.opsize == 4 && matches!(insn.operands[0], Operand::Seg(_)),
        why: "Intel's write 16 bits of the 32 that a PUSH of a segment register takes on the stack; AMD's write zeros above",
    },
    Difference {
        make: Make::Amd,
        what: Compared::Everything,
        which: |insn, _| matches!(insn.op, Op::Loope | Op::Loopne) && insn.rep != Rep::None,
        why: "AMD's (seen on family 19h) take the condition of LOOPE and LOOPNE from an F2 or F3 before it; the manual leaves \
              repeat prefixes undefined there, and the emulator ignores them as stock KVM's does",
    },
    Difference {
        make: Make::Intel,
        what: Compared::RegistersWithZf,
        which: |insn, _| matches!(insn.op, Op::Bsf | Op::Bsr),
        why: "Intel's manual leaves the destination of a BSF or BSR of zero undefined; AMD's says that it stays",
    },
];

fn cpuid(leaf: u32) -> CpuidResult {
    #[allow(unused_unsafe)] // Safe on newer compilers.
    // SAFETY: every 64-bit processor has CPUID.
    unsafe {
        __cpuid(leaf)
    }
}

/// Tells which processor the tests run on, as it calls itself, because what passes here may fail on another.
pub fn announce() -> Make {
    let mut name = Vec::new();
    if cpuid(0x8000_0000).eax >= 0x8000_0004 {
        for leaf in 0x8000_0002..=0x8000_0004 {
            let leaf = cpuid(leaf);
            name.extend([leaf.eax, leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat());
        }
    }
    let name = String::from_utf8_lossy(&name).replace('\0', "");
    let signature = cpuid(1).eax;
    let base = signature >> 8 & 0xf;
    let family = if base == 0xf { base + (signature >> 20 & 0xff) } else { base };
    let model = signature >> 4 & 0xf | if base >= 6 { signature >> 12 & 0xf0 } else { 0 };
    let make = Make::of_this_processor();
    println!("the processor: {}, family {family}, model {model}: {make:?}", name.trim());
    make
}

/// Each row of the table for its make alone.
#[test]
fn differences_hold_for_their_make_only() {
    use emulator::{Mode, decode};
    let differs = |make: Make, bytes: &[u8], mode| {
        let insn = decode(bytes, mode).expect("an instruction of this crate");
        make.differs(Compared::RegistersWithZf, &insn, bytes).is_some()
    };
    let intels: [(&[u8], Mode); 3] =
        [(&[0xf3, 0x4f, 0x90], Mode::Long64), (&[0x1e], Mode::Prot32), (&[0x0f, 0xbc, 0xc1], Mode::Long64)];
    for (bytes, mode) in intels {
        assert!(differs(Make::Intel, bytes, mode) && differs(Make::Other, bytes, mode), "{bytes:02x?}");
        assert!(!differs(Make::Amd, bytes, mode), "{bytes:02x?}");
    }
    let amds = &[0xf2, 0xe1, 0xeb];
    assert!(differs(Make::Amd, amds, Mode::Prot32) && !differs(Make::Intel, amds, Mode::Prot32));
    // PAUSE itself, XCHG with another register, by the other opcode, and with memory; PUSH of 16 bits.
    let others: [(&[u8], Mode); 5] = [
        (&[0xf3, 0x90], Mode::Long64),
        (&[0xf3, 0x41, 0x91], Mode::Long64),
        (&[0xf3, 0x41, 0x87, 0xc0], Mode::Long64),
        (&[0xf3, 0x87, 0x90, 0, 0, 0, 0x90], Mode::Long64),
        (&[0x66, 0x1e], Mode::Prot32),
    ];
    for (bytes, mode) in others {
        assert!(!differs(Make::Intel, bytes, mode), "{bytes:02x?}");
    }
}
