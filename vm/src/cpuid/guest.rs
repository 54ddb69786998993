//! One guest's CPUID: the entries of KVM_SET_CPUID2, found fast.
//!
//! CPUID always exits, so its handler is the hottest of all. Bits that show processor state (OSXSAVE and the like)
//! are therefore written into the entries when that state changes, and [`GuestCpuid::lookup`] only finds an entry: a
//! table leads from the function to the first entry, a chain from there to the others with the same function.

use super::feature::Feature;
use super::flags::{Flags, is_vendor};
use super::{Caps, KVM_PV_UNHALT};
use crate::state::{CPUID_SUBLEAF_MATTERS, CpuidEntry};
use alloc::vec::Vec;
use arch::GuestIndexed;
use arch::cpuid::{KVM_FEATURES as FEATURES_LEAF, KVM_SIGNATURE};
use arch::cr::{Cr4, Xcr0};
use host::{Errno, linux_version, try_filled};

/// Most entries that KVM_SET_CPUID2 takes (KVM_MAX_CPUID_ENTRIES).
pub const MAX_ENTRIES: usize = 256;

/// Functions with a place in the table: 0..32, 0x40000000..+16, 0x80000000..+64.
const SLOTS: usize = 32 + 16 + 64;
/// No entry.
const NONE: u16 = u16::MAX;
/// AMX tile data, which needs a permission that this hypervisor never has.
const DYNAMIC_XFEATURES: u32 = 1 << 18;

/// Processor state that CPUID shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// The guest's CR4: OSXSAVE and PKE.
    pub cr4: u64,
    /// IA32_APIC_BASE bit 11.
    pub apic_enabled: bool,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// IA32_MISC_ENABLE bit 18; None while KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT is on, which leaves the bit alone.
    pub mwait: Option<bool>,
    /// KVM_X86_DISABLE_EXITS_HLT: nobody waits for a kick.
    pub hlt_in_guest: bool,
}

/// The entries of one vCPU and what follows from them.
pub struct GuestCpuid {
    entries: Vec<CpuidEntry>,
    /// For each entry the next one with the same function.
    chain: Vec<u16>,
    first: GuestIndexed<[u16; SLOTS]>,
    flags: Flags,
    caps: Caps,
    /// They were set, if to none.
    set: bool,
}

/// The entries as they are, with processor state in them. The table is made anew, and so is what follows for the rest of the
/// hypervisor: another engine may offer something else.
impl state::State for GuestCpuid {
    fn save(&self, w: &mut state::Writer) {
        let Self { entries, chain: _, first: _, flags: _, caps: _, set } = self;
        entries.save(w);
        // Entries say of themselves that they were set.
        if w.since(3, *set && entries.is_empty()) {
            set.save(w);
        }
    }
    fn load(&mut self, r: &mut state::Reader<'_>) -> Result<(), state::Refused> {
        let entries: Vec<CpuidEntry> = r.value()?;
        if entries.len() > MAX_ENTRIES {
            return Err(r.bad("the number of CPUID entries"));
        }
        self.chain = try_filled(NONE, entries.len()).map_err(|_| r.refuse(state::Why::NoMemory))?;
        self.first = GuestIndexed::new([NONE; SLOTS]);
        self.entries = entries;
        self.set = if r.version() >= 3 { r.value()? } else { !self.entries.is_empty() };
        self.index();
        self.flags = if self.set { Flags::new(self) } else { Flags::without_entries(self) };
        Ok(())
    }
}

/// Place of a function in the table.
#[inline]
const fn slot(function: u32) -> Option<usize> {
    let (low, start, size) = match function >> 30 {
        0 => (function, 0, 32),
        1 => (function & 0x3fff_ffff, 32, 16),
        2 => (function & 0x3fff_ffff, 48, 64),
        _ => return None,
    };
    if low < size { Some((start + low) as usize) } else { None }
}

impl GuestCpuid {
    /// No entries: every leaf reads zero.
    pub fn new(caps: &Caps) -> Self {
        let mut cpuid = Self {
            entries: Vec::new(),
            chain: Vec::new(),
            first: GuestIndexed::new([NONE; SLOTS]),
            flags: Flags::default(),
            caps: *caps,
            set: false,
        };
        cpuid.flags = Flags::without_entries(&cpuid);
        cpuid
    }

    /// KVM_SET_CPUID2. After the first KVM_RUN only what is there already may be set again.
    ///
    /// Errors: E2BIG (more than [`MAX_ENTRIES`]), EINVAL (linear address size other than 0, 48 or 57; a change after
    /// the first KVM_RUN), EPERM (AMX), ENOMEM.
    pub fn set(&mut self, entries: &[CpuidEntry], now: &Runtime, has_run: bool) -> Result<(), Errno> {
        if entries.len() > MAX_ENTRIES {
            return Err(Errno::E2BIG);
        }
        let mut fresh = Self {
            entries: try_filled(CpuidEntry::default(), entries.len())?,
            chain: try_filled(NONE, entries.len())?,
            first: GuestIndexed::new([NONE; SLOTS]),
            flags: Flags::default(),
            caps: self.caps,
            set: true,
        };
        for (to, from) in fresh.entries.iter_mut().zip(entries) {
            *to = *from;
        }
        fresh.index();
        fresh.update(now);
        if has_run {
            return if fresh.entries == self.entries { Ok(()) } else { Err(Errno::EINVAL) };
        }
        fresh.check()?;
        fresh.flags = Flags::new(&fresh);
        *self = fresh;
        Ok(())
    }

    fn check(&self) -> Result<(), Errno> {
        let linear_bits = self.leaf(0x8000_0008).map_or(0, |e| e.regs[0] >> 8 & 0xff);
        if !matches!(linear_bits, 0 | 48 | 57) {
            return Err(Errno::EINVAL);
        }
        match self.get(0xd, 0) {
            Some(e) if e.regs[0] & DYNAMIC_XFEATURES != 0 => Err(Errno::EPERM),
            _ => Ok(()),
        }
    }

    /// Builds table and chain, last entry first, so that of two equal entries the first is found.
    fn index(&mut self) {
        let Self { entries, chain, first, .. } = self;
        for (i, (entry, next)) in entries.iter().zip(chain.iter_mut()).enumerate().rev() {
            if let Some(head) = slot(entry.function).and_then(|s| first.get_nospec_mut(s)) {
                *next = *head;
                *head = i as u16;
            }
        }
    }

    /// KVM_GET_CPUID2: the entries in the order in which they were set, with the current state in them.
    pub fn entries(&self) -> &[CpuidEntry] {
        &self.entries
    }

    /// The entry for a leaf: the first whose function matches and whose index matches if it matters.
    #[inline]
    pub fn get(&self, function: u32, index: u32) -> Option<&CpuidEntry> {
        let position = self.position(function, index)?;
        // INDEX: a place that `position` has found.
        self.entries.get(position)
    }

    /// The entry for a leaf that has no subleaves: the first with this function. One that says that its index matters
    /// is found, too, whatever that is, as on stock, which hides it from CPUID and from questions about features alone.
    pub fn leaf(&self, function: u32) -> Option<&CpuidEntry> {
        // INDEX: a place that `leaf_position` has found.
        self.leaf_position(function).and_then(|p| self.entries.get(p))
    }

    fn leaf_position(&self, function: u32) -> Option<usize> {
        match slot(function) {
            Some(slot) => self.first.get_nospec(slot).map(|at| usize::from(*at)),
            None => self.entries.iter().position(|e| e.function == function),
        }
    }

    #[inline]
    fn position(&self, function: u32, index: u32) -> Option<usize> {
        let Some(slot) = slot(function) else { return self.scan(function, index) };
        let mut at = usize::from(*self.first.get_nospec(slot)?);
        loop {
            // INDEX: a place from the table or the chain, which are ours.
            let e = self.entries.get(at)?;
            if e.flags & CPUID_SUBLEAF_MATTERS == 0 || e.index == index {
                return Some(at);
            }
            // INDEX: as above.
            at = usize::from(*self.chain.get(at)?);
        }
    }

    #[cold]
    fn scan(&self, function: u32, index: u32) -> Option<usize> {
        self.entries
            .iter()
            .position(|e| e.function == function && (e.flags & CPUID_SUBLEAF_MATTERS == 0 || e.index == index))
    }

    /// What the CPUID instruction returns: `[eax, ebx, ecx, edx]`.
    #[inline]
    pub fn lookup(&self, function: u32, index: u32) -> [u32; 4] {
        match self.get(function, index) {
            Some(e) => e.regs,
            None => self.absent(function, index),
        }
    }

    /// Is a function without entry answered as the highest basic leaf?
    pub(crate) fn answers_as_highest(&self, function: u32) -> bool {
        self.intel_highest(function).is_some()
    }

    /// A leaf without entry. On AMD it reads zero (APM volume 3, CPUID); on Intel a function beyond the range's limit
    /// reads as the highest basic leaf. The topology leaves give the x2APIC ID for every index, also as the highest.
    #[cold]
    fn absent(&self, function: u32, index: u32) -> [u32; 4] {
        let function = self.intel_highest(function).unwrap_or(function);
        match (self.get(function, index), function) {
            (Some(e), _) => e.regs,
            (None, 0xb | 0x1f) => self.get(function, 1).map_or([0; 4], |e| [0, 0, index & 0xff, e.regs[3]]),
            (None, _) => [0; 4],
        }
    }

    /// The leaf that answers for an out-of-range function, if the guest's vendor does it like Intel.
    fn intel_highest(&self, function: u32) -> Option<u32> {
        let basic = self.leaf(0)?;
        let [max, b, c, d] = basic.regs;
        if [b"AuthenticAMD", b"AMDisbetter!", b"HygonGenuine"].iter().any(|v| is_vendor(v, b, d, c)) {
            return None;
        }
        let range = match function {
            0x4000_0000..=0x4fff_ffff => function & 0xffff_ff00,
            0xc000_0000.. => 0xc000_0000,
            _ => function & 0x8000_0000,
        };
        match self.leaf(range) {
            Some(limit) if function <= limit.regs[0] => None,
            _ => Some(max),
        }
    }

    /// EAX of KVM's feature leaf. Its signature may lie at 0x40000000 or at a multiple of 0x100 above, behind
    /// Hyper-V's.
    pub(super) fn kvm_features(&self) -> u32 {
        self.kvm_features_function().and_then(|f| self.leaf(f)).map_or(0, |e| e.regs[0])
    }

    fn kvm_features_function(&self) -> Option<u32> {
        let base = (KVM_SIGNATURE..KVM_SIGNATURE + 0x1_0000).step_by(0x100).find(|&base| {
            let [_, b, c, d] = self.leaf(base).map_or([0; 4], |e| e.regs);
            // Unlike a vendor string, it goes on in ECX before EDX.
            is_vendor(b"KVMKVMKVM\0\0\0", b, c, d)
        })?;
        Some(base | FEATURES_LEAF & 0xff)
    }

    /// Writes processor state into the entries: after CR4, XCR0, XSS, IA32_APIC_BASE or IA32_MISC_ENABLE changed.
    pub fn update(&mut self, now: &Runtime) {
        let cr4 = Cr4::from_bits_retain(now.cr4);
        let host_xsave = self.caps.has(Feature::XSAVE);
        let host_pku = self.caps.has(Feature::PKU);
        let xstate = *self.caps.xstate();
        self.change(self.leaf_position(1), |r| {
            if host_xsave {
                set_bit(&mut r[2], 27, cr4.contains(Cr4::OSXSAVE));
            }
            set_bit(&mut r[3], 9, now.apic_enabled);
            if let Some(on) = now.mwait {
                set_bit(&mut r[2], 3, on);
            }
        });
        self.change(self.position(7, 0), |r| {
            if host_pku {
                set_bit(&mut r[2], 4, cr4.contains(Cr4::PKE));
            }
        });
        self.change(self.position(0xd, 0), |r| r[1] = xstate.required(now.xcr0, false));
        self.change(self.position(0xd, 1), |r| {
            // XSAVEC or XSAVES.
            if r[0] & 0b1010 != 0 {
                r[1] = xstate.required(now.xcr0 | now.xss, true);
            }
        });
        if now.hlt_in_guest {
            if let Some(function) = self.kvm_features_function() {
                self.change(self.leaf_position(function), |r| r[0] &= !KVM_PV_UNHALT);
            }
            self.flags.kvm_features &= !KVM_PV_UNHALT;
        }
    }

    fn change(&mut self, position: Option<usize>, f: impl FnOnce(&mut [u32; 4])) {
        // INDEX: as above.
        if let Some(e) = position.and_then(|p| self.entries.get_mut(p)) {
            f(&mut e.regs);
        }
    }

    /// What the rest of the hypervisor asks.
    #[inline]
    pub fn flags(&self) -> &Flags {
        &self.flags
    }

    /// What the host and the hypervisor can offer.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Physical address bits of the guest, 1..=52.
    pub fn phys_bits(&self) -> u8 {
        self.flags.phys_bits
    }

    /// May XCR0 have this value (APM 11.5.2: x87 always, wider registers only with the narrower ones)?
    pub fn xcr0_valid(&self, xcr0: u64) -> bool {
        Self::xcr0_fits(xcr0, self.flags.xcr0)
    }

    /// May it on this machine, whatever the guest was told?
    pub(crate) fn xcr0_is_possible(&self, xcr0: u64) -> bool {
        Self::xcr0_fits(xcr0, self.caps().xcr0())
    }

    fn xcr0_fits(xcr0: u64, offered: u64) -> bool {
        let x = Xcr0::from_bits_retain(xcr0);
        let avx512 = Xcr0::OPMASK | Xcr0::ZMM_HI256 | Xcr0::HI16_ZMM;
        x.contains(Xcr0::X87)
            && xcr0 & !(offered | Xcr0::X87.bits()) == 0
            && (!x.contains(Xcr0::AVX) || x.contains(Xcr0::SSE))
            && (!x.intersects(avx512) || x.contains(avx512 | Xcr0::AVX))
    }

    /// Has CR4 no bit that is reserved for this guest?
    pub fn cr4_valid(&self, cr4: u64) -> bool {
        cr4 & self.flags.cr4_reserved == 0
    }

    /// May user space load this EFER (KVM_SET_SREGS)? Before Linux 7.3 whatever the guest was told.
    pub fn efer_valid(&self, efer: u64) -> bool {
        let told = if self.caps.linux_version() >= linux_version(7, 3) { self.flags.efer_reserved } else { 0 };
        efer & (self.flags.efer_reserved_host | told) == 0
    }

    /// What of the guest's CPUID changes the local APIC. With `split`, the IOAPIC is user space's.
    pub fn lapic_features(&self, split: bool) -> irqchip::Features {
        let Flags { x2apic, tsc_deadline, .. } = self.flags;
        irqchip::Features { x2apic, tsc_deadline, directed_eoi: x2apic && split }
    }
}

fn set_bit(word: &mut u32, bit: u32, on: bool) {
    *word = *word & !(1 << bit) | u32::from(on) << bit;
}
