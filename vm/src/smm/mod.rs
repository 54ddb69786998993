//! System management mode (APM volume 2, chapter 10): an SMI interrupts the guest whatever RFLAGS.IF says, saves its state in
//! memory and goes on in another address space, until RSM puts the state back.
//!
//! The processor under us has it for the host alone, so all of it is done here, between two entries. An SMI goes before
//! NMIs and interrupts, and after what is being delivered or was caused by the last instruction. Inside, SMIs, INIT and NMIs
//! wait; SIPI is lost. As on stock, an SMI in HLT returns behind it, and I/O instructions are not restarted.
//!
//! Long because: an SMI and RSM are one subject, and each of their steps is one of the other's.

mod area;

use crate::run::Next;
use crate::vcpu::Core;
use crate::{Ctx, MpState};
use arch::cr::{Cr0, Cr4, DR7_RESET, Efer, Rflags};
use arch::smram::{REVISION_32, REVISION_64, SMM_ENTRY, SMRAM_OFFSET, Smram32, Smram64};
use arch::vmcb::INT_SHADOW;
use arch::{CleanBits, Gpa, Intercepts, NestedRoot, Segment, SegmentAttr};
use area::{Area, TR, place64, places32};
use core::mem::offset_of;
use core::sync::atomic::Ordering::AcqRel;
use host::{Cpu, Host, Request, Trace, VcpuThread};
use mmu::Space;

/// Bits of KVM_GET_VCPU_EVENTS and of the save area for an interrupt shadow: MOV SS and STI, which the processor does not
/// tell apart.
const SHADOW: u8 = 3;
/// A segment of 4 GiB for reading and writing, from which the handler's code comes as well.
const FLAT: SegmentAttr = SegmentAttr(SegmentAttr::P | SegmentAttr::S | SegmentAttr::G | 3);
/// 32-bit code, which is needed to leave long mode.
const CODE: SegmentAttr = SegmentAttr(SegmentAttr::P | SegmentAttr::S | SegmentAttr::G | 0xb);

/// Whether a vCPU is in system management mode, and where it finds its memory.
pub struct Smm {
    /// What it sees now; [`Space::Smm`] inside of system management mode.
    space: Space,
    /// NMIs were masked when it was entered: RSM does not end that.
    inside_nmi: bool,
    /// The nested tables of each address space, in the order of [`Space::ALL`].
    roots: [NestedRoot; 2],
}

/// `kvm_vcpu_events.smi` but for INIT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SmiEvents {
    /// The vCPU is in system management mode.
    pub smm: bool,
    /// An SMI waits.
    pub pending: bool,
    /// NMIs were masked before it was entered.
    pub smm_inside_nmi: bool,
}

::state::state! {
    place Smm { space, inside_nmi; not roots }
}

impl Smm {
    /// The nested tables are others from now on. Those of the address space that the vCPU is in.
    pub(crate) fn set_roots(&mut self, roots: [NestedRoot; 2]) -> NestedRoot {
        self.roots = roots;
        let [normal, smm] = roots;
        if self.active() { smm } else { normal }
    }

    /// Outside.
    pub fn new(roots: [NestedRoot; 2]) -> Self {
        Self { space: Space::Normal, inside_nmi: false, roots }
    }

    /// The address space.
    #[inline]
    pub fn space(&self) -> Space {
        self.space
    }

    /// Is the vCPU inside?
    #[inline]
    pub fn active(&self) -> bool {
        self.space == Space::Smm
    }
}

/// The saved state is none that the processor could have.
struct Bad;

impl<H: Host> Core<H> {
    /// Enters or leaves system management mode as far as memory is concerned.
    pub(crate) fn set_smm(&mut self, active: bool) {
        let [normal, smm] = self.smm.roots;
        let (space, root) = if active { (Space::Smm, smm) } else { (Space::Normal, normal) };
        if self.smm.space == space {
            return;
        }
        self.smm.space = space;
        if !active {
            self.smm.inside_nmi = false;
        }
        // Implies a flush.
        self.cpu.set_root(root);
    }

    /// A segment register as it is saved: as user space would see it (G follows the limit, a present data segment is accessed,
    /// the task is busy).
    fn saved_segment(&self, n: u8) -> Segment {
        let mut s = self.segment(n);
        let g = if s.limit > 0xf_ffff { SegmentAttr::G } else { 0 };
        let kind = match n {
            TR => 2,
            0 | 3..=5 if s.attrib.has(SegmentAttr::P) => 1,
            _ => 0,
        };
        s.attrib = SegmentAttr(s.attrib.0 & !SegmentAttr::G | g | kind);
        s
    }

    fn shadow(&self) -> u8 {
        if self.cpu.control().int_state & INT_SHADOW != 0 { SHADOW } else { 0 }
    }

    fn save_64(&self, area: &mut Area) {
        let save = self.cpu.save();
        for n in 0..16u8 {
            area.put64(offset_of!(Smram64, gprs) + 8 * usize::from(15 - n), self.cpu.gpr(n));
        }
        for n in 0..=TR {
            area.put_segment64(place64(n), &self.saved_segment(n));
        }
        for (at, table) in [(offset_of!(Smram64, gdtr), &save.gdtr), (offset_of!(Smram64, idtr), &save.idtr)] {
            area.put32(at + 4, table.limit.into());
            area.put64(at + 8, table.base);
        }
        area.put(offset_of!(Smram64, int_shadow), &[self.shadow()]);
        area.put32(offset_of!(Smram64, revision), REVISION_64.into());
        area.put32(offset_of!(Smram64, smbase), self.msr.smbase);
        for (at, value) in [
            (offset_of!(Smram64, efer), save.efer & !Efer::SVME.bits()),
            (offset_of!(Smram64, cr4), self.guest_cr4),
            (offset_of!(Smram64, cr3), save.cr3),
            (offset_of!(Smram64, cr0), self.cr0()),
            (offset_of!(Smram64, dr7), self.debug.dr7),
            (offset_of!(Smram64, dr6), self.debug.dr6),
            (offset_of!(Smram64, rflags), self.visible_rflags()),
            (offset_of!(Smram64, rip), save.rip),
        ] {
            area.put64(at, value);
        }
    }

    fn save_32(&self, area: &mut Area) {
        let save = self.cpu.save();
        for n in 0..8u8 {
            area.put32(offset_of!(Smram32, gprs) + 4 * usize::from(n), self.cpu.gpr(n));
        }
        for n in 0..=TR {
            let (words, selector) = places32(n);
            area.put_segment32(words, selector, &self.saved_segment(n));
        }
        for (at, table) in [(offset_of!(Smram32, gdtr), &save.gdtr), (offset_of!(Smram32, idtr), &save.idtr)] {
            area.put32(at + 4, table.limit.into());
            area.put32(at + 8, table.base);
        }
        area.put(offset_of!(Smram32, int_shadow), &[self.shadow()]);
        for (at, value) in [
            (offset_of!(Smram32, smbase), self.msr.smbase),
            (offset_of!(Smram32, revision), REVISION_32.into()),
            (offset_of!(Smram32, cr4), self.guest_cr4),
            (offset_of!(Smram32, dr7), self.debug.dr7),
            (offset_of!(Smram32, dr6), self.debug.dr6),
            (offset_of!(Smram32, eip), save.rip),
            (offset_of!(Smram32, eflags), self.visible_rflags()),
            (offset_of!(Smram32, cr3), save.cr3),
            (offset_of!(Smram32, cr0), self.cr0()),
        ] {
            area.put32(at, value);
        }
    }

    /// The state in which the handler begins (APM 10.3.1).
    fn load_smm_entry(&mut self) {
        let smbase = self.msr.smbase;
        let cr0 = self.cr0() & !(Cr0::PE | Cr0::EM | Cr0::TS | Cr0::PG).bits();
        self.load_cr0(cr0);
        self.load_cr4(0);
        let long = self.cpuid.flags().lm;
        let save = self.cpu.save_mut(CleanBits::all());
        let flat = Segment { selector: 0, attrib: FLAT, limit: u32::MAX, base: 0 };
        save.cs = Segment { selector: (smbase >> 4) as u16, base: smbase, ..flat };
        (save.ds, save.es, save.fs, save.gs, save.ss) = (flat, flat, flat, flat, flat);
        save.cpl = 0;
        (save.idtr.base, save.idtr.limit) = (0, 0);
        if long {
            save.efer = Efer::SVME.bits();
        }
        save.rflags = Rflags::FIXED.bits();
        save.rip = SMM_ENTRY;
        self.fast.forget_msrs();
        self.cpu.set_interrupt_shadow(false);
        self.debug.set_dr7(DR7_RESET);
        self.load_debug();
        self.arm_single_step();
    }

    /// Out of long mode and paging, so that any state can be loaded.
    fn load_plain_mode(&mut self) {
        let long = self.cpuid.flags().lm;
        let cr0 = self.cr0() & !(Cr0::PG | Cr0::PE).bits();
        self.load_cr0(cr0);
        self.fast.forget_msrs();
        if long {
            let cr4 = self.guest_cr4 & !(Cr4::PCIDE | Cr4::PAE).bits();
            self.load_cr4(cr4);
            let save = self.cpu.save_mut(CleanBits::all());
            save.cs = Segment { selector: 0, attrib: CODE, limit: 0, base: 0 };
            save.efer = Efer::SVME.bits();
        }
    }
}

impl<H: Host> Ctx<'_, H> {
    /// Is the vCPU in system management mode (KVM_RUN_X86_SMM)?
    #[inline]
    pub fn in_smm(&self) -> bool {
        self.core.smm.active()
    }

    /// KVM_SMI.
    pub fn smi(&self) {
        self.me.deliver(irqchip::Accept::Smi);
    }

    /// Takes an SMI that others posted.
    pub(crate) fn latch_smi(&mut self) {
        if self.me.pending_events.smi.swap(false, AcqRel) {
            self.core.inject.smi_pending = true;
        }
    }

    /// What user space is told of it.
    pub(crate) fn smi_events(&self) -> SmiEvents {
        let Smm { inside_nmi, .. } = self.core.smm;
        SmiEvents { smm: self.in_smm(), pending: self.core.inject.smi_pending, smm_inside_nmi: inside_nmi }
    }

    /// User space brings it back.
    pub(crate) fn set_smi_events(&mut self, e: SmiEvents) {
        if e.smm != self.in_smm() {
            self.change_smm(e.smm);
        }
        self.core.smm.inside_nmi = e.smm && e.smm_inside_nmi;
        self.core.inject.smi_pending = e.pending;
    }

    /// An SMI waits: takes it, if nothing goes first. What is being delivered ends with an exit, after which it is looked at
    /// again ([`Core::inject_pending`]); so it is after RSM, and when a debugger lets events through again.
    #[cold]
    pub(crate) fn take_smi(&mut self) {
        let blocked = self.core.debug.control & crate::debug::BLOCKIRQ != 0;
        if self.in_smm() || blocked || self.core.inject.busy() {
            return;
        }
        if self.core.mp_state.sleeps() {
            self.core.mp_state = MpState::Runnable;
        }
        if self.core.mp_state != MpState::Runnable {
            return;
        }
        self.core.inject.smi_pending = false;
        self.core.msr.smi_count = self.core.msr.smi_count.wrapping_add(1);
        self.core.end_page_halt();
        self.enter_smm();
    }

    /// Enters or leaves system management mode as far as memory is concerned; told with the address that held until now.
    fn change_smm(&mut self, entering: bool) {
        let (vcpu, smbase) = (self.me.id, self.core.msr.smbase);
        self.vm.host.tell(|| Trace::SmmTransition { vcpu, smbase, entering });
        self.core.set_smm(entering);
    }

    fn enter_smm(&mut self) {
        let mut area = Area::new();
        if self.core.cpuid.flags().lm {
            self.core.save_64(&mut area);
        } else {
            self.core.save_32(&mut area);
        }
        self.change_smm(true);
        let at = Gpa(self.core.msr.smbase.wrapping_add(SMRAM_OFFSET));
        if self.memory_view().memory().write(at, area.bytes()).is_err() {
            // The state is nowhere: nobody could go on from here.
            return self.vm.kill();
        }
        let inject = &mut self.core.inject;
        self.core.smm.inside_nmi = inject.nmi_masked;
        // An IRET that was met has not run; it is met again behind RSM.
        (inject.nmi_masked, inject.iret_rip) = (true, None);
        self.core.cpu.set_intercept(Intercepts::IRET, true);
        self.core.load_smm_entry();
        self.update_cpuid();
    }

    /// RSM (APM 10.3.3). #UD outside of system management mode; a state that no processor can have is a shutdown.
    #[cold]
    pub(crate) fn rsm(&mut self) -> Next {
        if !self.in_smm() {
            return self.fault(arch::Exception::UD);
        }
        let traps = self.core.cpu.save().rflags & Rflags::TF.bits() != 0;
        let mut area = Area::new();
        let at = Gpa(self.core.msr.smbase.wrapping_add(SMRAM_OFFSET));
        let read = self.memory_view().memory().read(at, area.bytes_mut());
        let loaded = read.map_err(|_| Bad).and_then(|()| self.leave_smm(&area));
        // What was held back may come now.
        self.me.thread.requests().make_request(Request::Event);
        match loaded {
            Err(Bad) => {
                self.core.inject.triple_fault = true;
                Next::Resume
            }
            Ok(()) if traps => self.single_step(),
            Ok(()) => Next::Resume,
        }
    }

    fn leave_smm(&mut self, area: &Area) -> Result<(), Bad> {
        if !self.core.smm.inside_nmi {
            (self.core.inject.nmi_masked, self.core.inject.iret_rip) = (false, None);
            self.core.cpu.set_intercept(Intercepts::IRET, false);
        }
        self.change_smm(false);
        self.core.load_plain_mode();
        let loaded = if self.core.cpuid.flags().lm { self.load_64(area) } else { self.load_32(area) };
        self.update_cpuid();
        self.core.cpu.flush_tlb();
        self.core.arm_single_step();
        loaded
    }

    fn load_64(&mut self, area: &Area) -> Result<(), Bad> {
        for n in 0..16u8 {
            self.core.cpu.set_gpr(n, area.u64(offset_of!(Smram64, gprs) + 8 * usize::from(15 - n)));
        }
        let rip = area.u64(offset_of!(Smram64, rip));
        let rflags = area.u32(offset_of!(Smram64, rflags));
        self.load_flow(rip, rflags, area.get(offset_of!(Smram64, int_shadow)));
        self.load_debug_registers(area.u64(offset_of!(Smram64, dr6)), area.u64(offset_of!(Smram64, dr7)))?;
        self.core.msr.smbase = area.u32(offset_of!(Smram64, smbase)).into();
        let efer = area.u64(offset_of!(Smram64, efer)) & !Efer::LMA.bits();
        self.write_msr(arch::msr::EFER, efer, false).map_err(|_| Bad)?;
        let table = |at| (area.u64(at + 8), area.u32(at + 4));
        self.load_tables(table(offset_of!(Smram64, gdtr)), table(offset_of!(Smram64, idtr)));
        let at = |at| area.u64(at);
        let [cr0, cr3, cr4] = [offset_of!(Smram64, cr0), offset_of!(Smram64, cr3), offset_of!(Smram64, cr4)].map(at);
        self.load_control_registers(cr0, cr3, cr4)?;
        // Only now: 64-bit code could not have been left for long mode to be set up.
        for n in 0..=TR {
            self.core.set_segment(n, area.segment64(place64(n)));
        }
        Ok(())
    }

    fn load_32(&mut self, area: &Area) -> Result<(), Bad> {
        for n in 0..8u8 {
            self.core.cpu.set_gpr(n, area.u32(offset_of!(Smram32, gprs) + 4 * usize::from(n)).into());
        }
        let at = |at| u64::from(area.u32(at));
        let eflags = area.u32(offset_of!(Smram32, eflags));
        self.load_flow(at(offset_of!(Smram32, eip)), eflags, area.get(offset_of!(Smram32, int_shadow)));
        self.load_debug_registers(at(offset_of!(Smram32, dr6)), at(offset_of!(Smram32, dr7)))?;
        for n in 0..=TR {
            let (words, selector) = places32(n);
            self.core.set_segment(n, area.segment32(words, selector));
        }
        let table = |at| (u64::from(area.u32(at + 8)), area.u32(at + 4));
        self.load_tables(table(offset_of!(Smram32, gdtr)), table(offset_of!(Smram32, idtr)));
        self.core.msr.smbase = at(offset_of!(Smram32, smbase));
        let [cr0, cr3, cr4] = [offset_of!(Smram32, cr0), offset_of!(Smram32, cr3), offset_of!(Smram32, cr4)].map(at);
        self.load_control_registers(cr0, cr3, cr4)
    }

    /// Where the guest goes on.
    fn load_flow(&mut self, rip: u64, rflags: u32, [shadow]: [u8; 1]) {
        let save = self.core.cpu.save_mut(CleanBits::empty());
        (save.rip, save.rflags) = (rip, u64::from(rflags) | Rflags::FIXED.bits());
        self.core.cpu.set_interrupt_shadow(shadow & SHADOW != 0);
    }

    fn load_debug_registers(&mut self, dr6: u64, dr7: u64) -> Result<(), Bad> {
        self.write_dr(6, dr6).and_then(|()| self.write_dr(7, dr7)).map_err(|_| Bad)
    }

    fn load_tables(&mut self, (gdt, gdt_limit): (u64, u32), (idt, idt_limit): (u64, u32)) {
        let save = self.core.cpu.save_mut(CleanBits::DT);
        // Two bytes of the limit count.
        (save.gdtr.base, save.gdtr.limit) = (gdt, gdt_limit & 0xffff);
        (save.idtr.base, save.idtr.limit) = (idt, idt_limit & 0xffff);
    }

    /// With the checks of the instructions that would load them, in the order in which they can be loaded.
    fn load_control_registers(&mut self, cr0: u64, cr3: u64, cr4: u64) -> Result<(), Bad> {
        // PCIDE can be set only in long mode, and with no PCID in CR3.
        let pcide = cr4 & Cr4::PCIDE.bits() != 0;
        let pcid = if pcide { cr3 & 0xfff } else { 0 };
        self.core.cpu.save_mut(CleanBits::CRX).cr3 = cr3 & !pcid;
        self.write_cr(4, cr4 & !Cr4::PCIDE.bits()).map_err(|_| Bad)?;
        self.write_cr(0, cr0).map_err(|_| Bad)?;
        if pcide {
            self.write_cr(4, cr4).map_err(|_| Bad)?;
        }
        let long = self.core.cpu.save().efer & Efer::LMA.bits() != 0;
        if long && cr3 >> self.core.cpuid.flags().phys_bits != 0 {
            return Err(Bad);
        }
        self.core.cpu.save_mut(CleanBits::CRX).cr3 = cr3;
        Ok(())
    }
}
