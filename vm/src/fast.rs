//! Exits that are handled before the guest was left for good: CPUID and RDMSR whose answer is known, WRMSR of what the MSR
//! holds anyway, the end of an interrupt that concerns nobody else, a timer that is set to no earlier than the host's, reads
//! of CR0 and CR4, and WBINVD where nothing needs it.
//!
//! What is here runs under the rules of [`FastExits`]. It answers from what the ordinary handlers left in a [`Fast`], and
//! declines whatever they might have to do more for. So each answer is taken back where what it depends on changes:
//! [`forget_cpuid`](Fast::forget_cpuid), [`forget_msrs`](Fast::forget_msrs).

use arch::cr::Efer;
use arch::exit::code;
use arch::vmcb::int_ctl;
use arch::{ControlArea, SegmentAttr, msr};
use host::{Errno, FastExit, FastExits, OneBox, try_box};
use irqchip::{Bits256, Lapic};

/// Answers of CPUID that are kept, a power of two.
const LEAVES: usize = 16;
/// MSRs whose value is kept, a power of two.
const MSRS: usize = 8;
/// EXITINFO1 of an intercepted WRMSR.
const WRITE: u64 = 1;
/// EXITINFO1 of an intercepted MOV from a control register, with the number of the general register in bits 3:0.
const MOV_CR: u64 = 1 << 63;

#[derive(Clone, Copy, Default)]
struct Leaf {
    /// [`Fast::leaves_age`] when it was answered.
    age: u64,
    function: u32,
    index: u32,
    regs: [u32; 4],
}

#[derive(Clone, Copy, Default)]
struct Msr {
    /// [`Fast::msrs_age`] when it was answered.
    age: u64,
    index: u32,
    /// Nothing happens if WRMSR writes the same.
    rewritable: bool,
    value: u64,
}

/// What the ordinary handlers have answered.
#[derive(Default)]
struct Answers {
    leaves: [Leaf; LEAVES],
    msrs: [Msr; MSRS],
}

/// What V_IRQ stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Armed {
    /// A vector of the local APIC.
    Apic(u8),
    /// The userspace PIC's vector.
    External(u8),
    /// Nothing: V_IRQ with the VINTR intercept, to learn when the guest can take an interrupt.
    Window,
}

/// The part of a vCPU's state that such exits work on.
pub struct Fast {
    /// Whether there are any: not while each exit has to be looked at.
    pub enabled: bool,
    /// Exits handled here, since they were last added to the statistics.
    pub exits: u64,
    /// Interrupts that the guest was given since they were last added to the statistics; NMIs, from bit 32 on; and in bit 63
    /// that an SMI waits for this injection.
    pub injections: u64,
    /// A word of the guest's memory has to be looked at after the exit, by which it may have ended the interrupt in service.
    pub apic_shared: bool,
    /// The local APIC; None without in-kernel irqchip.
    pub lapic: Option<Lapic>,
    /// What the processor holds as a virtual interrupt.
    pub armed: Option<Armed>,
    /// Vectors whose EOI goes to somebody who wants to know: an IOAPIC, or a source of the synthetic interrupt controller's.
    pub ioapic_eoi: Bits256,
    /// When the host's timer for the local APIC fires, as the guest's TSC counts; 0: it may not. A later deadline is then
    /// only noted: the timer that fires too early is set anew.
    pub timer_at: u64,
    /// There is no filter on MSRs.
    pub msrs_free: bool,
    /// No device reads memory past the caches, so that WBINVD does nothing.
    pub coherent: bool,
    /// What reads of CR0 that exit give; None: not known without the ordinary handler.
    pub cr0: Option<u64>,
    /// The same of CR4.
    pub cr4: Option<u64>,
    answers: OneBox<Answers>,
    /// How often answers of CPUID were taken back, from 1: older ones are void.
    leaves_age: u64,
    /// The same for MSRs.
    msrs_age: u64,
}

/// In [`Fast::injections`]: an SMI waits.
pub(crate) const SMI_WAITS: u64 = 1 << 63;

::state::state! {
    // The local APIC has a section of its own; what is remembered of answers is asked again.
    place Fast {
        exits, injections, apic_shared, armed, ioapic_eoi, timer_at;
        not enabled, lapic, msrs_free, coherent, cr0, cr4, answers, leaves_age, msrs_age
    }
}

::state::tagged! {
    Armed { 0 = Apic(vector), 1 = External(vector), 2 = Window }
}

/// Below [`LEAVES`] whatever the guest asks for, also where a processor guesses.
#[inline(always)]
const fn leaf_place(function: u32, index: u32) -> usize {
    (function ^ function >> 28 ^ index << 2) as usize & (LEAVES - 1)
}

/// Below [`MSRS`] in the same way.
#[inline(always)]
const fn msr_place(index: u32) -> usize {
    (index ^ index >> 4) as usize & (MSRS - 1)
}

impl Fast {
    /// Nothing is known. `lapic`: see there. Errors: ENOMEM.
    pub fn new(lapic: Option<Lapic>) -> Result<Self, Errno> {
        Ok(Self {
            enabled: false,
            exits: 0,
            injections: 0,
            apic_shared: false,
            lapic,
            armed: None,
            ioapic_eoi: Bits256::default(),
            timer_at: 0,
            msrs_free: true,
            coherent: false,
            cr0: None,
            cr4: None,
            answers: try_box(Answers::default)?,
            leaves_age: 1,
            msrs_age: 1,
        })
    }

    /// What CPUID answered. The same question has the same answer until [`forget_cpuid`](Self::forget_cpuid).
    pub fn know_cpuid(&mut self, function: u32, index: u32, regs: [u32; 4]) {
        if let Some(place) = self.answers.leaves.get_mut(leaf_place(function, index)) {
            *place = Leaf { age: self.leaves_age, function, index, regs };
        }
    }

    /// Something changed that CPUID shows.
    pub fn forget_cpuid(&mut self) {
        self.leaves_age = self.leaves_age.wrapping_add(1);
    }

    /// What RDMSR answers, of an MSR that [is constant](is_constant). `written`: the guest has just written it. What it only reads
    /// user space may have put there, before a KVM_SET_CPUID2 with which the guest can no longer write it.
    pub fn know_msr(&mut self, index: u32, value: u64, written: bool) {
        if let Some(place) = self.answers.msrs.get_mut(msr_place(index)) {
            *place = Msr { age: self.msrs_age, index, rewritable: written && is_rewritable(index), value };
        }
    }

    /// Something changed that an MSR shows.
    pub fn forget_msrs(&mut self) {
        self.msrs_age = self.msrs_age.wrapping_add(1);
    }

    /// Counts interrupts, or `n << 32` NMIs.
    #[inline(always)]
    pub(crate) fn count_injections(&mut self, n: u64) {
        self.injections = self.injections.wrapping_add(n);
    }

    /// An SMI waits until what this entry injects is delivered: it is looked at after the exit.
    pub(crate) fn look_at_smi(&mut self) {
        self.injections |= SMI_WAITS;
    }

    /// Has the guest taken the virtual interrupt? It is not armed any more then, and if it is the local APIC's it is in
    /// service.
    #[inline(always)]
    pub(crate) fn taken(&mut self, control: &ControlArea) -> Option<Armed> {
        let taken = self.armed.filter(|_| control.int_ctl & int_ctl::V_IRQ == 0)?;
        self.armed = None;
        self.count_injections(u64::from(taken != Armed::Window));
        if let (Armed::Apic(vector), Some(lapic)) = (taken, &mut self.lapic) {
            lapic.take(vector);
        }
        Some(taken)
    }

    #[inline(always)]
    fn cpuid(&self, guest: &mut FastExit<'_>) -> bool {
        let (function, index) = (guest.eax(), guest.ecx());
        match self.answers.leaves.get(leaf_place(function, index)) {
            Some(leaf) if leaf.age == self.leaves_age && leaf.function == function && leaf.index == index => {
                guest.set_all(leaf.regs);
                true
            }
            _ => false,
        }
    }

    #[inline(always)]
    fn known(&self, index: u32) -> Option<&Msr> {
        self.answers.msrs.get(msr_place(index)).filter(|msr| msr.age == self.msrs_age && msr.index == index)
    }

    #[inline(always)]
    fn rdmsr(&self, guest: &mut FastExit<'_>) -> bool {
        let Some(msr) = self.known(guest.ecx()) else { return false };
        guest.set_edx_eax(msr.value);
        true
    }

    #[inline(always)]
    fn wrmsr(&mut self, guest: &FastExit<'_>) -> bool {
        match guest.ecx() {
            msr::X2APIC_EOI if guest.edx() == 0 && !self.apic_shared => {
                // It may be what the guest is ending.
                if let Some(Armed::Apic(_)) = self.armed {
                    self.taken(guest.control);
                }
                self.lapic.as_mut().is_some_and(|lapic| lapic.quiet_eoi(&self.ioapic_eoi))
            }
            msr::TSC_DEADLINE if self.msrs_free => match &mut self.lapic {
                Some(lapic) if self.timer_at != 0 && guest.edx_eax() >= self.timer_at => {
                    lapic.postpone(guest.edx_eax())
                }
                _ => false,
            },
            index => {
                let same = |msr: &Msr| msr.rewritable && msr.value == guest.edx_eax();
                self.msrs_free && self.known(index).is_some_and(same)
            }
        }
    }
}

/// MOV from a control register whose value is `known`, where decode assists say to which general register (APM 15.8.1):
/// SMSW, which reads a part of CR0, has no number.
#[inline(always)]
fn read_cr(known: Option<u64>, guest: &mut FastExit<'_>) -> bool {
    let info = guest.control.exit_info_1;
    let (Some(value), true) = (known, info & MOV_CR != 0) else { return false };
    let long = guest.save.efer & Efer::LMA.bits() != 0 && guest.save.cs.attrib.has(SegmentAttr::L);
    guest.set_gpr(info as u8, if long { value } else { value & 0xffff_ffff });
    true
}

impl FastExits for Fast {
    #[inline(always)]
    fn handle(&mut self, guest: &mut FastExit<'_>) -> bool {
        let done = self.enabled
            && match guest.control.exit_code {
                code::CPUID => self.cpuid(guest),
                code::MSR if guest.control.exit_info_1 & WRITE == 0 => self.rdmsr(guest),
                code::MSR => self.wrmsr(guest),
                code::CR0_READ => read_cr(self.cr0, guest),
                code::CR4_READ => read_cr(self.cr4, guest),
                code::WBINVD => self.coherent,
                _ => false,
            };
        self.exits = self.exits.wrapping_add(done.into());
        done
    }
}

/// Is what RDMSR gives for it changed by nothing but WRMSR, and by what user space or another event does between two
/// entries ([`forget_msrs`](Fast::forget_msrs) is called for those)?
pub const fn is_constant(index: u32) -> bool {
    matches!(
        index,
        msr::APIC_BASE
            | msr::EFER
            | msr::PAT
            | msr::MISC_ENABLE
            | msr::TSC_ADJUST
            | msr::BIOS_SIGN_ID
            | msr::MTRRCAP
            | msr::MTRR_PHYS_BASE0
            ..=msr::MTRR_FIX4K_F8 | msr::MTRR_DEF_TYPE | msr::MCG_CAP | msr::HWCR | msr::DE_CFG
    ) || is_constant_of_x2apic(index)
}

/// Of the registers of the local APIC: who it is, and what the guest has set it to. SVR masks the LVT.
const fn is_constant_of_x2apic(index: u32) -> bool {
    matches!(
        index,
        msr::X2APIC_ID | msr::X2APIC_VERSION | msr::X2APIC_LDR | msr::X2APIC_SVR | msr::X2APIC_LVT_TIMER
            ..=msr::X2APIC_LVT_ERROR
    )
}

/// Does WRMSR change none of the answers that are kept? Others have to be [forgotten](Fast::forget_msrs) then.
pub const fn changes_no_answer(index: u32) -> bool {
    matches!(index, msr::X2APIC_BASE..=msr::X2APIC_LAST | msr::TSC_DEADLINE) && !is_constant_of_x2apic(index)
}

/// Of those: does nothing happen if WRMSR writes what it has just written? Others cannot be written, or do something each time.
const fn is_rewritable(index: u32) -> bool {
    matches!(
        index,
        msr::APIC_BASE | msr::EFER | msr::PAT | msr::TSC_ADJUST | msr::MTRR_PHYS_BASE0
            ..=msr::MTRR_FIX4K_F8 | msr::MTRR_DEF_TYPE
    )
}
