//! What a guest's CPUID means for the rest of the hypervisor, in a form that costs nothing to ask.

use super::caps::{family, model};
use super::feature::Feature;
use super::{Caps, GuestCpuid};
use arch::cr::{Cr4, Efer};
use host::linux_version;

/// Properties of one guest. A feature is true when the guest was shown it and the hypervisor can offer it.
#[allow(missing_docs)] // The bools are CPUID features by their manual names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub nx: bool,
    pub lm: bool,
    pub sse3: bool,
    pub xsave: bool,
    pub xsaves: bool,
    pub rdtscp: bool,
    pub rdpid: bool,
    /// The guest has RDPID, and the processor does not.
    pub emulates_rdpid: bool,
    /// The same for MOVBE.
    pub emulates_movbe: bool,
    pub apic: bool,
    pub x2apic: bool,
    pub tsc_deadline: bool,
    pub tsc_adjust: bool,
    pub pcid: bool,
    pub invpcid: bool,
    /// The processor has INVPCID, and the guest was not shown it.
    pub hides_invpcid: bool,
    pub smep: bool,
    pub smap: bool,
    pub umip: bool,
    pub fsgsbase: bool,
    pub pku: bool,
    pub la57: bool,
    pub page_1g: bool,
    pub pse36: bool,
    pub mtrr: bool,
    pub pat: bool,
    pub osvw: bool,
    pub fxsr_opt: bool,
    pub auto_ibrs: bool,
    pub arch_capabilities: bool,
    /// SPEC_CTRL exists: one of IBRS, STIBP, SSBD under any of their names.
    pub spec_ctrl: bool,
    /// PRED_CMD.IBPB.
    pub ibpb: bool,
    /// PRED_CMD.SBPB.
    pub sbpb: bool,
    pub virt_ssbd: bool,
    pub flush_l1d: bool,
    /// The vendor string is AuthenticAMD or HygonGenuine; otherwise the guest believes to be on Intel.
    pub is_amd: bool,
    /// Family of Fn0000_0001_EAX.
    pub family: u32,
    /// Model of Fn0000_0001_EAX.
    pub model: u32,
    /// Physical address bits, 1..=52.
    pub phys_bits: u8,
    /// Bits of a guest physical address that are reserved.
    pub reserved_gpa_bits: u64,
    /// CR4 bits that fault.
    pub cr4_reserved: u64,
    /// EFER bits that no guest of this host may set.
    pub efer_reserved_host: u64,
    /// EFER bits that this guest's WRMSR may not set.
    pub efer_reserved: u64,
    /// XCR0 bits that may be set; 0 without XSAVE.
    pub xcr0: u64,
    /// EAX of KVM's feature leaf, limited to what is offered.
    pub kvm_features: u32,
}

/// CR4 bits of processors that SVM knows, without VMXE and SMXE.
const CR4_ALWAYS: Cr4 = Cr4::VME
    .union(Cr4::PVI)
    .union(Cr4::TSD)
    .union(Cr4::DE)
    .union(Cr4::PSE)
    .union(Cr4::PAE)
    .union(Cr4::MCE)
    .union(Cr4::PGE)
    .union(Cr4::PCE)
    .union(Cr4::OSFXSR)
    .union(Cr4::OSXMMEXCPT);

impl Flags {
    /// Derives them.
    pub fn new(guest: &GuestCpuid) -> Self {
        let caps = guest.caps();
        let has = |f: Feature| caps.has(f) && guest.shows(f);
        let emulates_rdpid = guest.shows(Feature::RDPID) && !caps.has(Feature::RDPID) && caps.has(Feature::RDTSCP);
        let mut f = Self {
            nx: has(Feature::NX),
            lm: has(Feature::LM),
            sse3: has(Feature::SSE3),
            xsave: has(Feature::XSAVE),
            xsaves: has(Feature::XSAVES) && has(Feature::XSAVE),
            rdtscp: has(Feature::RDTSCP),
            rdpid: has(Feature::RDPID) || emulates_rdpid,
            emulates_rdpid,
            emulates_movbe: guest.shows(Feature::MOVBE) && !caps.has(Feature::MOVBE),
            // The bit in the guest's leaf follows IA32_APIC_BASE, so it does not say whether there is an APIC.
            apic: caps.has(Feature::APIC),
            x2apic: has(Feature::X2APIC),
            tsc_deadline: has(Feature::TSC_DEADLINE),
            tsc_adjust: has(Feature::TSC_ADJUST),
            pcid: has(Feature::PCID),
            invpcid: has(Feature::INVPCID),
            hides_invpcid: caps.has(Feature::INVPCID) && !guest.shows(Feature::INVPCID),
            smep: has(Feature::SMEP),
            smap: has(Feature::SMAP),
            umip: has(Feature::UMIP),
            fsgsbase: has(Feature::FSGSBASE),
            pku: has(Feature::PKU),
            la57: has(Feature::LA57),
            page_1g: has(Feature::GBPAGES),
            pse36: has(Feature::PSE36),
            mtrr: has(Feature::MTRR),
            pat: has(Feature::PAT),
            osvw: has(Feature::OSVW),
            fxsr_opt: has(Feature::FXSR_OPT),
            auto_ibrs: has(Feature::AUTOIBRS),
            arch_capabilities: has(Feature::ARCH_CAPABILITIES),
            spec_ctrl: [
                Feature::SPEC_CTRL,
                Feature::INTEL_STIBP,
                Feature::SPEC_CTRL_SSBD,
                Feature::AMD_IBRS,
                Feature::AMD_STIBP,
                Feature::AMD_SSBD,
            ]
            .into_iter()
            .any(has),
            ibpb: has(Feature::AMD_IBPB) || has(Feature::SPEC_CTRL),
            sbpb: has(Feature::SBPB),
            virt_ssbd: has(Feature::VIRT_SSBD),
            flush_l1d: has(Feature::FLUSH_L1D),
            ..Self::default()
        };
        f.is_amd = guest.leaf(0).is_some_and(|e| {
            let [_, b, c, d] = e.regs;
            is_vendor(b"AuthenticAMD", b, d, c) || is_vendor(b"HygonGenuine", b, d, c)
        });
        let signature = guest.leaf(1).map_or(0, |e| e.regs[0]);
        (f.family, f.model) = (family(signature), model(signature));
        f.phys_bits = phys_bits(guest);
        f.reserved_gpa_bits = !0 << f.phys_bits;
        f.cr4_reserved = !f.cr4().bits();
        (f.efer_reserved_host, f.efer_reserved) = efer_reserved(caps, &f);
        f.xcr0 = guest.get(0xd, 0).map_or(0, |e| u64::from(e.regs[0]) | u64::from(e.regs[3]) << 32) & caps.xcr0();
        f.kvm_features = guest.kvm_features() & super::KVM_FEATURES;
        f
    }

    /// Before KVM_SET_CPUID2: the guest has nothing, but before Linux 6.14 CR4 may hold whatever some guest could have, as on stock.
    pub fn without_entries(guest: &GuestCpuid) -> Self {
        let caps = guest.caps();
        if caps.linux_version() >= linux_version(6, 14) {
            return Self::new(guest);
        }
        let offered = Self {
            xsave: caps.has(Feature::XSAVE),
            smep: caps.has(Feature::SMEP),
            smap: caps.has(Feature::SMAP),
            fsgsbase: caps.has(Feature::FSGSBASE),
            pku: caps.has(Feature::PKU),
            la57: caps.has(Feature::LA57),
            umip: caps.has(Feature::UMIP),
            pcid: caps.has(Feature::PCID),
            ..Self::default()
        };
        Self { cr4_reserved: !offered.cr4().bits(), ..Self::new(guest) }
    }

    fn cr4(&self) -> Cr4 {
        let mut allowed = CR4_ALWAYS;
        for (on, bit) in [
            (self.xsave, Cr4::OSXSAVE),
            (self.smep, Cr4::SMEP),
            (self.smap, Cr4::SMAP),
            (self.fsgsbase, Cr4::FSGSBASE),
            (self.pku, Cr4::PKE),
            (self.la57, Cr4::LA57),
            (self.umip, Cr4::UMIP),
            (self.pcid, Cr4::PCIDE),
        ] {
            if on {
                allowed |= bit;
            }
        }
        allowed
    }
}

/// EFER bits that are reserved for every guest, and those that are for this one (APM 3.1.7). SVME and LMSLE come with
/// nested virtualization only.
fn efer_reserved(caps: &Caps, f: &Flags) -> (u64, u64) {
    let mask = |nx, ffxsr, auto_ibrs, long| {
        let mut allowed = Efer::SCE;
        for (on, bits) in
            [(nx, Efer::NXE), (ffxsr, Efer::FFXSR), (auto_ibrs, Efer::AUTOIBRS), (long, Efer::LME.union(Efer::LMA))]
        {
            if on {
                allowed |= bits;
            }
        }
        !allowed.bits()
    };
    (
        mask(caps.has(Feature::NX), caps.has(Feature::FXSR_OPT), caps.has(Feature::AUTOIBRS), true),
        mask(f.nx, f.fxsr_opt, f.auto_ibrs, f.lm),
    )
}

/// Does a vendor string, in the order EBX, EDX, ECX, equal `name`?
pub(super) fn is_vendor(name: &[u8; 12], b: u32, d: u32, c: u32) -> bool {
    [b, d, c].iter().flat_map(|w| w.to_le_bytes()).eq(*name)
}

/// Physical address bits that the guest was told: 36 unless Fn8000_0008 exists, at most the architecture's 52.
fn phys_bits(guest: &GuestCpuid) -> u8 {
    let has_leaf = guest.leaf(0x8000_0000).is_some_and(|e| e.regs[0] >= 0x8000_0008);
    let told = if has_leaf { guest.leaf(0x8000_0008).map(|e| e.regs[0] as u8) } else { None };
    told.unwrap_or(36).clamp(1, 52)
}

impl GuestCpuid {
    /// Does the guest see the bit, whatever the hypervisor can do?
    pub fn shows(&self, f: Feature) -> bool {
        let (function, index, register) = f.0.place();
        // INDEX: a constant of ours.
        let word = self.get(function, index).and_then(|e| e.regs.get(register)).copied().unwrap_or(0);
        word >> (f.1 & 31) & 1 != 0
    }
}
