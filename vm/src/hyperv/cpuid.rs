//! The leaves of CPUID from 0x40000000 on: what a guest can be offered (KVM_GET_SUPPORTED_HV_CPUID, KVM API document
//! 4.118), and what one guest was (TLFS, "Feature and Interface Discovery").

use super::number::*;
use crate::cpuid::GuestCpuid;
use crate::state::CpuidEntry;
use host::Host;

/// Number of leaves.
pub const LEAVES: usize = 10;

/// All that is offered. `lapic`: the local APIC is in the kernel, or may be.
pub fn supported_hv_cpuid<H: Host>(host: &H, lapic: bool) -> [CpuidEntry; LEAVES] {
    let [b, c, d] = [*b"Linu", *b"x KV", *b"M Hv"].map(u32::from_le_bytes);
    let msrs = privilege::VP_RUNTIME
        | privilege::TIME_REF_COUNT
        | privilege::SYNIC
        | privilege::SYNTIMER
        | privilege::APIC_ACCESS
        | privilege::HYPERCALL
        | privilege::VP_INDEX
        | privilege::RESET
        | privilege::REFERENCE_TSC
        | privilege::FREQUENCY
        | privilege::REENLIGHTENMENT
        | privilege::TSC_INVARIANT;
    let calls = calls::POST_MESSAGES | calls::SIGNAL_EVENTS | calls::DEBUGGING | calls::EXTENDED;
    let features = feature::GUEST_DEBUGGING
        | feature::XMM_INPUT
        | feature::FREQUENCY_MSRS
        | feature::CRASH_MSRS
        | feature::DEBUG_MSRS
        | feature::EXT_GVA_RANGES_FLUSH
        | if lapic { feature::STIMER_DIRECT } else { 0 };
    let hints = hint::REMOTE_TLB_FLUSH
        | hint::APIC_ACCESS
        | hint::RELAXED_TIMING
        | hint::DEPRECATING_AEOI
        | hint::EX_PROCESSOR_MASKS
        | if lapic { hint::CLUSTER_IPI } else { 0 }
        | if host.smt_possible() { 0 } else { hint::NO_NONARCH_CORESHARING };
    [
        (0x4000_0000, [0x4000_0082, b, c, d]),
        (0x4000_0001, [INTERFACE, 0, 0, 0]),
        // The version whose functions these are, that of 2016: build, and major and minor number.
        (0x4000_0002, [0x3839, 0x000a_0000, 0, 0]),
        (0x4000_0003, [msrs, calls, 0, features]),
        // As often does a guest try for a lock before it says so.
        (0x4000_0004, [hints, 0xfff, 0, 0]),
        (0x4000_0005, [crate::MAX_VCPUS as u32, 64, 0, 0]),
        (0x4000_0080, [0, b, c, d]),
        (0x4000_0081, [u32::from_le_bytes(*b"VS#1"), 0, 0, 0]),
        (0x4000_0082, [SYNDBG_ALLOWED, 0, 0, 0]),
        // To ignore what it says about its bitmap is always right (docs/decisions/0027).
        (0x4000_000a, [NESTED_MSR_BITMAP, 0, 0, 0]),
    ]
    .map(|(function, regs)| CpuidEntry { function, index: 0, flags: 0, regs })
}

/// Do these entries make the guest one of Hyper-V's?
pub fn is_hyperv(entries: &[CpuidEntry]) -> bool {
    entries.iter().find(|e| e.function == 0x4000_0001).is_some_and(|e| {
        let [eax, ..] = e.regs;
        eax == INTERFACE
    })
}

/// What one guest was shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// [`privilege`].
    pub msrs: u32,
    /// [`calls`].
    pub calls: u32,
    /// [`feature`].
    pub others: u32,
    /// [`hint`].
    pub hints: u32,
    /// As often it may try for a lock; all ones: for ever.
    pub spins: u32,
    /// [`SYNDBG_ALLOWED`].
    pub syndbg: bool,
}

impl Features {
    /// From a guest's leaves. None: it is no guest of Hyper-V's.
    pub fn of(cpuid: &GuestCpuid) -> Option<Self> {
        let leaf = |function| cpuid.leaf(function).map_or([0; 4], |e| e.regs);
        let [interface, ..] = leaf(0x4000_0001);
        let ([msrs, calls, _, others], [hints, spins, ..], [syndbg, ..]) =
            (leaf(0x4000_0003), leaf(0x4000_0004), leaf(0x4000_0082));
        let syndbg = syndbg & SYNDBG_ALLOWED != 0;
        (interface == INTERFACE).then_some(Self { msrs, calls, others, hints, spins, syndbg })
    }

    /// May the guest access this MSR? Asked only where user space wants it enforced.
    pub fn has_msr(&self, index: u32) -> bool {
        let (word, bit) = match index {
            GUEST_OS_ID | HYPERCALL => (self.msrs, privilege::HYPERCALL),
            VP_RUNTIME => (self.msrs, privilege::VP_RUNTIME),
            TIME_REF_COUNT => (self.msrs, privilege::TIME_REF_COUNT),
            VP_INDEX => (self.msrs, privilege::VP_INDEX),
            RESET => (self.msrs, privilege::RESET),
            REFERENCE_TSC => (self.msrs, privilege::REFERENCE_TSC),
            SCONTROL..=EOM | SINT0..=SINT15 => (self.msrs, privilege::SYNIC),
            STIMER0_CONFIG..=STIMER3_COUNT => (self.msrs, privilege::SYNTIMER),
            EOI..=VP_ASSIST_PAGE => (self.msrs, privilege::APIC_ACCESS),
            TSC_FREQUENCY | APIC_FREQUENCY => (self.msrs, privilege::FREQUENCY),
            REENLIGHTENMENT_CONTROL..=TSC_EMULATION_STATUS => (self.msrs, privilege::REENLIGHTENMENT),
            TSC_INVARIANT_CONTROL => (self.msrs, privilege::TSC_INVARIANT),
            CRASH_P0..=CRASH_CTL => (self.others, feature::CRASH_MSRS),
            SYNDBG_CONTROL..=SYNDBG_LAST | SYNDBG_OPTIONS => (self.others, feature::DEBUG_MSRS),
            _ => return false,
        };
        word & bit != 0
    }

    /// May the guest make this hypercall? Asked only where user space wants it enforced.
    pub fn has_call(&self, code: u16) -> bool {
        let hints = |bits| self.hints & bits == bits;
        match code {
            call::NOTIFY_LONG_SPIN_WAIT => self.spins != 0 && self.spins != u32::MAX,
            call::POST_MESSAGE => self.calls & calls::POST_MESSAGES != 0,
            call::SIGNAL_EVENT => self.calls & calls::SIGNAL_EVENTS != 0,
            // Where there is no debugger the answer is that there is no such call.
            call::POST_DEBUG_DATA..=call::RESET_DEBUG_SESSION => !self.syndbg || self.calls & calls::DEBUGGING != 0,
            call::FLUSH_ADDRESS_LIST | call::FLUSH_ADDRESS_SPACE => hints(hint::REMOTE_TLB_FLUSH),
            call::FLUSH_ADDRESS_LIST_EX | call::FLUSH_ADDRESS_SPACE_EX => {
                hints(hint::REMOTE_TLB_FLUSH | hint::EX_PROCESSOR_MASKS)
            }
            call::SEND_IPI => hints(hint::CLUSTER_IPI),
            call::SEND_IPI_EX => hints(hint::CLUSTER_IPI | hint::EX_PROCESSOR_MASKS),
            call::EXTENDED_FIRST..=call::EXTENDED_LAST => self.calls & calls::EXTENDED != 0,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_is_shown_nothing_has_nothing() {
        let none = Features::default();
        for index in 0x4000_0000..0x4000_0200 {
            assert!(!none.has_msr(index), "{index:x}");
        }
        for code in 0..=u16::MAX {
            let known = matches!(code, 2 | 3 | 8 | 0xb | 0x13..=0x15 | 0x5c | 0x5d | 0x8001..=0x8041);
            assert_eq!(none.has_call(code), !known, "{code:x}");
        }
    }

    #[test]
    fn each_msr_hangs_on_one_bit() {
        let all = Features { msrs: !0, calls: !0, others: !0, hints: !0, spins: 0xfff, syndbg: true };
        for index in super::super::msr::SAVED {
            assert!(all.has_msr(index), "{index:x}");
            let words = [(0, 0), (1, 0), (0, 1)].map(|(m, o)| {
                let bits = |on: u32| if on == 0 { 0..0 } else { 0..32u32 };
                bits(m).filter(|b| Features { msrs: 1 << b, ..none() }.has_msr(index)).count()
                    + bits(o).filter(|b| Features { others: 1 << b, ..none() }.has_msr(index)).count()
            });
            let [_, msrs, others] = words;
            assert_eq!(msrs + others, 1, "{index:x}");
        }
        assert!(!all.has_msr(0x4000_0004));
    }

    fn none() -> Features {
        Features::default()
    }

    #[test]
    fn wider_calls_want_more() {
        let flush = Features { hints: hint::REMOTE_TLB_FLUSH | hint::CLUSTER_IPI, ..none() };
        assert!([2, 3, 0xb].into_iter().all(|c| flush.has_call(c)));
        assert!([0x13, 0x14, 0x15].into_iter().all(|c| !flush.has_call(c)));
        let wide = Features { hints: flush.hints | hint::EX_PROCESSOR_MASKS, ..none() };
        assert!([0x13, 0x14, 0x15].into_iter().all(|c| wide.has_call(c)));
        assert!([0, u32::MAX].into_iter().all(|spins| !Features { spins, ..none() }.has_call(8)));
        assert!(Features { spins: 1, ..none() }.has_call(8));
        // Without a debugger it is no question of access.
        assert!(none().has_call(0x69) && !Features { syndbg: true, ..none() }.has_call(0x69));
    }
}
