//! CPUID feature bits by name, and where each feature word lies (APM volume 3, appendix E; Intel SDM volume 2A, CPUID).

/// A register of a CPUID leaf that holds feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Word {
    /// Fn0000_0001_ECX.
    F1Ecx,
    /// Fn0000_0001_EDX.
    F1Edx,
    /// Fn0000_0007_EBX_x0.
    F7Ebx,
    /// Fn0000_0007_ECX_x0.
    F7Ecx,
    /// Fn0000_0007_EDX_x0.
    F7Edx,
    /// Fn0000_0007_EAX_x1.
    F71Eax,
    /// Fn0000_0007_EDX_x1.
    F71Edx,
    /// Fn0000_000D_EAX_x1.
    Fd1Eax,
    /// Fn8000_0001_ECX.
    X1Ecx,
    /// Fn8000_0001_EDX.
    X1Edx,
    /// Fn8000_0007_EDX.
    X7Edx,
    /// Fn8000_0008_EBX.
    X8Ebx,
    /// Fn8000_0021_EAX.
    X21Eax,
    /// Fn8000_0021_ECX.
    X21Ecx,
}

impl Word {
    /// All of them, in order of their numbers.
    pub const ALL: [Word; 14] = [
        Word::F1Ecx,
        Word::F1Edx,
        Word::F7Ebx,
        Word::F7Ecx,
        Word::F7Edx,
        Word::F71Eax,
        Word::F71Edx,
        Word::Fd1Eax,
        Word::X1Ecx,
        Word::X1Edx,
        Word::X7Edx,
        Word::X8Ebx,
        Word::X21Eax,
        Word::X21Ecx,
    ];

    /// Function, index and register (0 EAX .. 3 EDX).
    pub const fn place(self) -> (u32, u32, usize) {
        match self {
            Word::F1Ecx => (1, 0, 2),
            Word::F1Edx => (1, 0, 3),
            Word::F7Ebx => (7, 0, 1),
            Word::F7Ecx => (7, 0, 2),
            Word::F7Edx => (7, 0, 3),
            Word::F71Eax => (7, 1, 0),
            Word::F71Edx => (7, 1, 3),
            Word::Fd1Eax => (0xd, 1, 0),
            Word::X1Ecx => (0x8000_0001, 0, 2),
            Word::X1Edx => (0x8000_0001, 0, 3),
            Word::X7Edx => (0x8000_0007, 0, 3),
            Word::X8Ebx => (0x8000_0008, 0, 1),
            Word::X21Eax => (0x8000_0021, 0, 0),
            Word::X21Ecx => (0x8000_0021, 0, 2),
        }
    }
}

/// One feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature(pub Word, pub u8);

macro_rules! features {
    ($($name:ident $word:ident $bit:literal;)*) => {
        #[allow(missing_docs)] // The names are the manuals'.
        impl Feature {
            $(pub const $name: Feature = Feature(Word::$word, $bit);)*
        }
    };
}

features! {
    SSE3 F1Ecx 0;
    PCID F1Ecx 17;
    X2APIC F1Ecx 21;
    MOVBE F1Ecx 22;
    TSC_DEADLINE F1Ecx 24;
    XSAVE F1Ecx 26;
    HYPERVISOR F1Ecx 31;
    PSE36 F1Edx 17;
    APIC F1Edx 9;
    MTRR F1Edx 12;
    PAT F1Edx 16;
    FSGSBASE F7Ebx 0;
    TSC_ADJUST F7Ebx 1;
    SMEP F7Ebx 7;
    INVPCID F7Ebx 10;
    SMAP F7Ebx 20;
    UMIP F7Ecx 2;
    PKU F7Ecx 3;
    OSPKE F7Ecx 4;
    LA57 F7Ecx 16;
    RDPID F7Ecx 22;
    SPEC_CTRL F7Edx 26;
    INTEL_STIBP F7Edx 27;
    FLUSH_L1D F7Edx 28;
    ARCH_CAPABILITIES F7Edx 29;
    SPEC_CTRL_SSBD F7Edx 31;
    XSAVEC Fd1Eax 1;
    XSAVES Fd1Eax 3;
    OSVW X1Ecx 9;
    NX X1Edx 20;
    FXSR_OPT X1Edx 25;
    GBPAGES X1Edx 26;
    RDTSCP X1Edx 27;
    LM X1Edx 29;
    INVARIANT_TSC X7Edx 8;
    AMD_IBPB X8Ebx 12;
    AMD_IBRS X8Ebx 14;
    AMD_STIBP X8Ebx 15;
    AMD_STIBP_ALWAYS_ON X8Ebx 17;
    AMD_SSBD X8Ebx 24;
    VIRT_SSBD X8Ebx 25;
    AMD_SSB_NO X8Ebx 26;
    AMD_PSFD X8Ebx 28;
    AMD_IBPB_RET X8Ebx 30;
    LFENCE_RDTSC X21Eax 2;
    NULL_SEL_CLR_BASE X21Eax 6;
    AUTOIBRS X21Eax 8;
    NO_SMM_CTL_MSR X21Eax 9;
    SBPB X21Eax 27;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_at_its_number_and_place() {
        for (i, w) in Word::ALL.iter().enumerate() {
            assert_eq!(*w as usize, i);
            assert!(w.place().2 < 4);
            assert_eq!(Word::ALL.iter().filter(|o| o.place() == w.place()).count(), 1);
        }
    }
}
