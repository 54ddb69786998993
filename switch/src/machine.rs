//! The processors under us: what they can do. Switching SVM on and off is the base's (linux/shim/kvm/cpu.c).

use crate::{Platform, insn, pages::Block};
use arch::{HostPa, msr};
use host::{CpuFeatures, Errno};

/// Why the machine cannot run guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// The processor has no SVM (CPUID `Fn8000_0001_ECX[2]`).
    NoSvm,
    /// The firmware switched SVM off (VM_CR.SVMDIS, APM 15.4).
    Disabled,
    /// No nested paging (`Fn8000_000A_EDX[0]`).
    NoNestedPaging,
    /// Fewer than two ASIDs: none for a guest.
    NoAsids,
    /// Not the processor's fault: no memory.
    NoMemory,
}

impl Unsupported {
    /// What loading the module fails with.
    pub fn errno(self) -> Errno {
        if self == Self::NoMemory { Errno::ENOMEM } else { Errno::EOPNOTSUPP }
    }

    /// The same for people.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoSvm => "the processor has no SVM, which hsave needs",
            Self::Disabled => "SVM is disabled by the firmware (VM_CR): switch it on in the firmware's setup",
            Self::NoNestedPaging => "the processor has no nested paging, which hsave needs",
            Self::NoAsids => "the processor has no ASID for a guest, without which hsave cannot run one",
            Self::NoMemory => "out of memory",
        }
    }
}

/// What all CPUs and vCPUs share: made once at load, dropped when no vCPU is left.
pub struct Machine<P: Platform> {
    pub(crate) features: CpuFeatures,
    /// Exits may be handled while the guest's state is loaded (docs/decisions/0014).
    pub(crate) fast: bool,
    /// XCR0 of the host; 0 where the kernel does not use XSAVE.
    pub(crate) host_xcr0: u64,
    /// IA32_XSS of the host; None where the processor has none.
    pub(crate) host_xss: Option<u64>,
    /// The kernel has protection keys on (CR4.PKE).
    pub(crate) pku: bool,
    iopm: Block<P, 2>,
}

// SAFETY: nothing in it changes after `new`; the map is read by hardware only.
unsafe impl<P: Platform> Send for Machine<P> {}
// SAFETY: as above.
unsafe impl<P: Platform> Sync for Machine<P> {}

const _: () = assert!(arch::iopm::IOPM_SIZE <= 4 * host::PAGE_SIZE);

impl<P: Platform> Machine<P> {
    /// Looks at the processor (APM 15.4) and makes what all vCPUs share. Task context.
    pub fn new() -> Result<Self, Unsupported> {
        if P::cpuid(0x8000_0000, 0)[0] < 0x8000_000a || P::cpuid(0x8000_0001, 0)[2] & 1 << 2 == 0 {
            return Err(Unsupported::NoSvm);
        }
        if P::read_msr(msr::VM_CR).is_some_and(|v| v & msr::VM_CR_SVM_DISABLE != 0) {
            return Err(Unsupported::Disabled);
        }
        let [_, asids, _, svm] = P::cpuid(0x8000_000a, 0);
        if svm & 1 == 0 {
            return Err(Unsupported::NoNestedPaging);
        }
        if asids < 2 {
            return Err(Unsupported::NoAsids);
        }
        let mut iopm = Block::new().map_err(|_| Unsupported::NoMemory)?;
        iopm.bytes().fill(0xff);
        let basic = P::cpuid(1, 0)[2];
        let xsave = basic & 1 << 27 != 0; // OSXSAVE: the kernel uses it.
        let xsaves = xsave && P::cpuid(0xd, 1)[0] & 1 << 3 != 0;
        let features = features::<P>(svm);
        Ok(Self {
            features,
            // With Branch Type Confusion a branch of any kind can be led astray by what the guest trained, and on
            // the way to the handlers there are more of them than between #VMEXIT and the untraining.
            fast: features.nrips && !P::has_retbleed(),
            // SAFETY: CR4.OSXSAVE is set, says CPUID.
            host_xcr0: if xsave { unsafe { insn::xgetbv() } } else { 0 },
            host_xss: if xsaves { P::read_msr(msr::XSS) } else { None },
            pku: P::cpuid(0, 0)[0] >= 7 && P::cpuid(7, 0)[2] & 1 << 4 != 0,
            iopm,
        })
    }

    /// What the processor can do.
    pub fn features(&self) -> CpuFeatures {
        self.features
    }

    pub(crate) fn iopm_pa(&self) -> HostPa {
        self.iopm.pa()
    }
}

/// TSC ratio 1.0 (APM 15.30.5).
pub(crate) const TSC_RATIO_ONE: u64 = 1 << 32;

/// The features, from CPUID Fn8000_000A_EDX (`svm`) and the leaves around it.
fn features<P: Platform>(svm: u32) -> CpuFeatures {
    let max = P::cpuid(0x8000_0000, 0)[0];
    let basic_max = P::cpuid(0, 0)[0];
    let extended = P::cpuid(0x8000_0001, 0)[3];
    let [sizes, speculation, ..] = if max >= 0x8000_0008 { P::cpuid(0x8000_0008, 0) } else { [36, 0, 0, 0] };
    let rdpid = basic_max >= 7 && P::cpuid(7, 0)[2] & 1 << 22 != 0;
    let has = |bit: u32| svm & 1 << bit != 0;
    CpuFeatures {
        nrips: has(3),
        tsc_scaling: has(4),
        vmcb_clean: has(5),
        flush_by_asid: has(6),
        decode_assists: has(7),
        pause_filter: has(10),
        pause_filter_threshold: has(12),
        vgif: has(16),
        v_spec_ctrl: has(20),
        virt_ssbd: P::has_virt_ssbd(),
        ts_guards_fpu: !is_emulated::<P>(),
        // IBRS, STIBP or SSBD: any of them brings the MSR.
        spec_ctrl: speculation & (1 << 14 | 1 << 15 | 1 << 24) != 0,
        tsc_aux: extended & 1 << 27 != 0 || rdpid,
        page_1g: extended & 1 << 26 != 0,
        nx: extended & 1 << 20 != 0,
        phys_bits: sizes as u8,
    }
}

/// Is the processor QEMU's emulation of one (TCG)? It says so in the hypervisor's leaf, or hides that leaf, which no
/// hypervisor that leaves the guest's instructions to the processor does.
fn is_emulated<P: Platform>() -> bool {
    const HYPERVISOR: u32 = 1 << 31;
    let [_, b, c, d] = P::cpuid(0x4000_0000, 0);
    P::cpuid(1, 0)[2] & HYPERVISOR != 0 && (matches!([b, c, d], [0, 0, 0]) || [b, c, d] == TCG)
}

/// "TCGTCGTCGTCG", as EBX, ECX and EDX have it.
const TCG: [u32; 3] = [u32::from_le_bytes(*b"TCGT"), u32::from_le_bytes(*b"CGTC"), u32::from_le_bytes(*b"GTCG")];
