//! Control registers with what follows from them, and the register ioctls.

use crate::state::{DebugRegs, Regs, Sregs};
use crate::vcpu::Core;
use crate::{Ctx, MpState};
use arch::cr::{Cr0, Cr4, Efer};
use arch::{CleanBits, Exception, Gpa, Segment, SegmentAttr};
use core::sync::atomic::Ordering::Relaxed;
use host::{Cpu, Errno, Host};

/// Writable bits of CR0 (APM 3.1.1). User space may set others of the lower half: it reads them back, and the processor
/// does not see them.
const CR0_BITS: u64 = 0xe005_003f;
/// Bits of CR0 that the hardware runs without, whatever the guest sets: caching is the host's business.
const CR0_MASKED: Cr0 = Cr0::CD.union(Cr0::NW);

impl<H: Host> Core<H> {
    /// CR0 as the guest sees it.
    pub(crate) fn cr0(&self) -> u64 {
        if self.fpu_use.trapping() {
            return self.guest_cr0;
        }
        // TS and MP change without an exit (only selective writes are intercepted).
        let live = (Cr0::TS | Cr0::MP).bits();
        self.guest_cr0 & !live | self.cpu.save().cr0 & live
    }

    /// Puts a CR0 that has been checked into the hardware.
    pub(crate) fn load_cr0(&mut self, value: u64) {
        self.guest_cr0 = value;
        let hw = (value | Cr0::ET.bits()) & CR0_BITS & !CR0_MASKED.bits() | self.fpu_use.forced();
        self.cpu.save_mut(CleanBits::CRX).cr0 = hw;
        // Reads must be answered with the guest's value only while it differs from the hardware's, and then every
        // write has to be seen as well.
        self.cr0_exits = hw != value || self.fpu_use.trapping();
        self.load_cr_intercepts();
    }

    /// Puts a CR4 that has been checked into the hardware. MCE stays on: a machine check is the host's. OSXSAVE is off while the
    /// guest is kept away from the FPU state.
    pub(crate) fn load_cr4(&mut self, value: u64) {
        self.guest_cr4 = value;
        let hw = value & !self.fpu_use.hidden() | Cr4::MCE.bits();
        self.cpu.save_mut(CleanBits::CRX).cr4 = hw;
        // As for CR0; its writes exit in any case.
        self.cr4_read_exits = hw != value;
        self.load_cr_intercepts();
    }

    /// A guest's MOV to CR0 with its checks and consequences (APM 3.1.1, 14.6). Err: #GP(0).
    pub(crate) fn write_cr0(&mut self, value: u64) -> Result<(), Exception> {
        let gp = Err(Exception::gp(0));
        let old = self.cr0();
        let new = Cr0::from_bits_retain(value & CR0_BITS | Cr0::ET.bits());
        if value >> 32 != 0
            || new.contains(Cr0::PG) && !new.contains(Cr0::PE)
            || new.contains(Cr0::NW) && !new.contains(Cr0::CD)
        {
            return gp;
        }
        let was_paging = old & Cr0::PG.bits() != 0;
        let paging = new.contains(Cr0::PG);
        let efer = Efer::from_bits_retain(self.cpu.save().efer);
        if paging != was_paging {
            self.fast.forget_msrs();
            if paging && efer.contains(Efer::LME) {
                let long_code = self.cpu.save().cs.attrib.has(SegmentAttr::L);
                if self.guest_cr4 & Cr4::PAE.bits() == 0 || long_code {
                    return gp;
                }
                self.cpu.save_mut(CleanBits::CRX).efer = (efer | Efer::LMA).bits();
            } else if !paging {
                if self.guest_cr4 & Cr4::PCIDE.bits() != 0
                    || self.cpu.save().cs.attrib.has(SegmentAttr::L) && efer.contains(Efer::LMA)
                {
                    return gp;
                }
                self.cpu.save_mut(CleanBits::CRX).efer = (efer - Efer::LMA).bits();
            }
        }
        self.load_cr0(new.bits());
        if (old ^ new.bits()) & (Cr0::PG | Cr0::WP | Cr0::PE).bits() != 0 {
            self.cpu.flush_tlb();
        }
        Ok(())
    }

    /// A guest's MOV to CR4 (APM 3.1.3). Err: #GP(0).
    pub(crate) fn write_cr4(&mut self, value: u64) -> Result<(), Exception> {
        let gp = Err(Exception::gp(0));
        let old = self.guest_cr4;
        if !self.cpuid.cr4_valid(value) {
            return gp;
        }
        let (old_bits, new) = (Cr4::from_bits_retain(old), Cr4::from_bits_retain(value));
        let long = self.cpu.save().efer & Efer::LMA.bits() != 0;
        if long && (!new.contains(Cr4::PAE) || (old_bits ^ new).contains(Cr4::LA57)) {
            return gp;
        }
        if new.contains(Cr4::PCIDE) && !old_bits.contains(Cr4::PCIDE) && (!long || self.cpu.save().cr3 & 0xfff != 0) {
            return gp;
        }
        self.load_cr4(value);
        let translating = Cr4::PSE | Cr4::PAE | Cr4::PGE | Cr4::LA57 | Cr4::PCIDE | Cr4::SMEP | Cr4::SMAP | Cr4::PKE;
        if (old_bits ^ new).intersects(translating) {
            self.cpu.flush_tlb();
        }
        Ok(())
    }

    /// A guest's MOV to CR3, met only by the emulator. Err: #GP(0).
    pub(crate) fn write_cr3(&mut self, value: u64) -> Result<(), Exception> {
        let long = self.cpu.save().efer & Efer::LMA.bits() != 0;
        let reserved = if long { !0u64 << self.cpuid.flags().phys_bits & !(1 << 63) } else { !0u64 << 32 };
        if value & reserved != 0 {
            return Err(Exception::gp(0));
        }
        let no_flush = value >> 63 != 0 && self.guest_cr4 & Cr4::PCIDE.bits() != 0;
        self.cpu.save_mut(CleanBits::CRX).cr3 = value & !(1 << 63);
        if !no_flush {
            self.cpu.flush_tlb();
        }
        Ok(())
    }

    /// The general registers, RIP and RFLAGS, as the processor has them.
    pub(crate) fn regs(&self) -> Regs {
        let save = self.cpu.save();
        Regs { gpr: core::array::from_fn(|n| self.cpu.gpr(n as u8)), rip: save.rip, rflags: save.rflags }
    }

    /// Loads them.
    pub(crate) fn load_regs(&mut self, r: &Regs) {
        for (n, v) in r.gpr.iter().enumerate() {
            self.cpu.set_gpr(n as u8, *v);
        }
        let save = self.cpu.save_mut(CleanBits::empty());
        (save.rip, save.rflags) = (r.rip, r.rflags);
    }

    /// A segment register by the number that ModRM.reg uses (0 ES .. 5 GS), 6 LDTR, 7 TR. The reverse of [`Core::set_segment`]:
    /// SS has the CPL, which its own attributes need not have (SYSRET leaves those alone), and no size where it is not present.
    pub(crate) fn segment(&self, n: u8) -> Segment {
        let save = self.cpu.save();
        match n {
            0 => save.es,
            1 => save.cs,
            2 => {
                let size = if save.ss.attrib.has(SegmentAttr::P) { 0 } else { SegmentAttr::DB };
                let attrib =
                    save.ss.attrib.0 & !(SegmentAttr::DPL | size) | u16::from(save.cpl) << 5 & SegmentAttr::DPL;
                Segment { attrib: SegmentAttr(attrib), ..save.ss }
            }
            3 => save.ds,
            4 => save.fs,
            5 => save.gs,
            6 => save.ldtr,
            _ => save.tr,
        }
    }

    /// Loads a segment register; the CPL follows SS.
    pub(crate) fn set_segment(&mut self, n: u8, value: Segment) {
        let save = self.cpu.save_mut(CleanBits::SEG);
        match n {
            0 => save.es = value,
            1 => save.cs = value,
            2 => {
                save.ss = value;
                save.cpl = value.attrib.dpl();
            }
            3 => save.ds = value,
            4 => save.fs = value,
            5 => save.gs = value,
            6 => save.ldtr = value,
            _ => save.tr = value,
        }
    }
}

impl<H: Host> Ctx<'_, H> {
    /// KVM_GET_REGS.
    pub fn get_regs(&self) -> Regs {
        Regs { rflags: self.core.visible_rflags(), ..self.core.regs() }
    }

    /// KVM_SET_REGS. Forgets an exception that waits, as an instruction that has not begun cannot have caused it; not one whose
    /// delivery has begun.
    pub fn set_regs(&mut self, r: &Regs) {
        if self.core.pending.resumes_instruction() && self.core.mmio_fragments.begun.is_none() {
            self.core.mmio_fragments.begun = Some(self.core.regs());
        }
        self.core.load_regs(&Regs { rflags: r.rflags | 2, ..*r });
        self.core.arm_single_step();
        if !self.core.inject.exception_reinjected {
            self.core.inject.exception = None;
        }
    }

    /// KVM_GET_SREGS(2).
    pub fn get_sregs(&mut self) -> Sregs {
        self.deliver_payload_early();
        let save = self.core.cpu.save();
        Sregs {
            seg: core::array::from_fn(|n| self.core.segment(n as u8)),
            tr: save.tr,
            ldtr: save.ldtr,
            gdt: (save.gdtr.base, save.gdtr.limit as u16),
            idt: (save.idtr.base, save.idtr.limit as u16),
            cr0: self.core.cr0(),
            cr2: save.cr2,
            cr3: save.cr3,
            cr4: self.core.guest_cr4,
            cr8: self.cr8(),
            efer: save.efer & !Efer::SVME.bits(),
            apic_base: self.apic_base(),
            interrupt: self.hard_interrupt(),
        }
    }

    /// KVM_GET_SREGS2: the PDPTEs of a guest with PAE paging, as they are in its memory: with nested paging the processor takes them
    /// from there (APM 15.25.10). Zeros if no memory is there.
    pub fn pdptrs(&self) -> Option<[u64; 4]> {
        let save = self.core.cpu.save();
        let paging = self.core.cr0() & Cr0::PG.bits() != 0 && self.core.guest_cr4 & Cr4::PAE.bits() != 0;
        if !paging || save.efer & Efer::LMA.bits() != 0 {
            return None;
        }
        let mut bytes = [0; 32];
        if self.memory_view().read_phys(Gpa(save.cr3 & 0xffff_ffe0), &mut bytes).is_err() {
            return Some([0; 4]);
        }
        let mut words = bytes.chunks_exact(8).map(|b| b.try_into().map_or(0, u64::from_le_bytes));
        Some(core::array::from_fn(|_| words.next().unwrap_or(0)))
    }

    /// KVM_SET_SREGS(2). Errors: EINVAL (a control register, EFER or APIC base that no processor holds); nothing is
    /// changed then.
    pub fn set_sregs(&mut self, s: &Sregs) -> Result<(), Errno> {
        self.check_sregs(s)?;
        self.set_apic_base(s.apic_base, true)?;
        let save = self.core.cpu.save_mut(CleanBits::all());
        let [es, cs, ss, ds, fs, gs] = s.seg;
        (save.es, save.cs, save.ss, save.ds, save.fs, save.gs) = (es, cs, ss, ds, fs, gs);
        save.cpl = ss.attrib.dpl();
        (save.tr, save.ldtr) = (s.tr, s.ldtr);
        (save.gdtr.base, save.gdtr.limit) = (s.gdt.0, s.gdt.1.into());
        (save.idtr.base, save.idtr.limit) = (s.idt.0, s.idt.1.into());
        (save.cr2, save.cr3, save.efer) = (s.cr2, s.cr3, s.efer | Efer::SVME.bits());
        self.core.load_cr0(s.cr0);
        self.core.load_cr4(s.cr4);
        self.update_cpuid();
        self.set_cr8(s.cr8);
        self.core.cpu.flush_tlb();
        if s.interrupt.is_some() {
            self.queue_interrupt(s.interrupt);
        }
        // Older user space starts the bootstrap processor by its registers alone.
        if self.is_bootstrap() && (cs.selector, cs.base) == (0xf000, 0xffff_0000) && save_is_reset(self.core) {
            self.core.mp_state = MpState::Runnable;
        }
        Ok(())
    }

    fn check_sregs(&self, s: &Sregs) -> Result<(), Errno> {
        let cr0 = Cr0::from_bits_retain(s.cr0);
        let efer = Efer::from_bits_retain(s.efer);
        let paging = cr0.contains(Cr0::PG);
        let bad = s.cr0 >> 32 != 0
            || paging && !cr0.contains(Cr0::PE)
            || cr0.contains(Cr0::NW) && !cr0.contains(Cr0::CD)
            || !self.core.cpuid.cr4_valid(s.cr4)
            || !self.core.cpuid.efer_valid(s.efer);
        let long_bad = if efer.contains(Efer::LME) && paging {
            s.cr4 & Cr4::PAE.bits() == 0 || !efer.contains(Efer::LMA) || s.cr3 >> self.core.cpuid.phys_bits() != 0
        } else {
            efer.contains(Efer::LMA) || s.seg.get(1).is_some_and(|cs| cs.attrib.has(SegmentAttr::L))
        };
        if bad || long_bad { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// CR8 of the guest (the local APIC's task priority class); a value above 15 changes nothing.
    pub(crate) fn set_cr8(&mut self, value: u64) {
        match &mut self.core.fast.lapic {
            _ if value > 15 => {}
            Some(lapic) => lapic.set_cr8(value as u8),
            None => self.core.cr8 = value,
        }
    }

    /// KVM_GET_DEBUGREGS.
    pub fn get_debugregs(&mut self) -> DebugRegs {
        self.deliver_payload_early();
        DebugRegs { db: self.core.debug.dr, dr6: self.core.debug.dr6, dr7: self.core.debug.dr7 }
    }

    /// KVM_SET_DEBUGREGS. They are kept as they are given, fixed bits included, as on stock. Errors: EINVAL (DR6 or DR7 beyond 32 bits).
    pub fn set_debugregs(&mut self, d: &DebugRegs) -> Result<(), Errno> {
        if d.dr6 >> 32 != 0 || d.dr7 >> 32 != 0 {
            return Err(Errno::EINVAL);
        }
        (self.core.debug.dr, self.core.debug.dr6, self.core.debug.dr7) = (d.db, d.dr6, d.dr7);
        self.core.load_debug();
        Ok(())
    }

    /// KVM_GET_MP_STATE. A processor that was kicked out of HLT runs, though it has not been entered yet.
    pub fn get_mp_state(&mut self) -> MpState {
        self.process_pending_events();
        let state = self.core.mp_state;
        if state.sleeps() && self.me.pending_events.pv_unhalted.load(Relaxed) { MpState::Runnable } else { state }
    }

    /// KVM_SET_MP_STATE. SIPI_RECEIVED is INIT_RECEIVED with a SIPI on its way, whose vector KVM_SET_VCPU_EVENTS has
    /// set. Errors: EINVAL (a state that needs an in-kernel local APIC; one after INIT in system management mode, where INIT is
    /// latched: KVM_SET_VCPU_EVENTS says so).
    pub fn set_mp_state(&mut self, state: MpState) -> Result<(), Errno> {
        if self.core.fast.lapic.is_none() && state != MpState::Runnable {
            return Err(Errno::EINVAL);
        }
        self.latch_smi();
        let waits = matches!(state, MpState::InitReceived | MpState::SipiReceived);
        if waits && (self.in_smm() || self.core.inject.smi_pending) {
            return Err(Errno::EINVAL);
        }
        self.core.mp_state = state;
        if state == MpState::SipiReceived {
            self.core.mp_state = MpState::InitReceived;
            self.me.pending_events.init_sipi.sipi(self.core.sipi_vector);
        }
        self.me.thread_ring_event();
        Ok(())
    }

    /// KVM_GET_XCRS: XCR0.
    pub fn get_xcr0(&self) -> u64 {
        self.core.cpu.extra().xcr0
    }

    /// XCR0 from the guest (XSETBV) or user space. Errors: EINVAL (components that the guest was not offered, or in a
    /// combination that the processor refuses; APM 11.5.2).
    pub fn set_xcr0(&mut self, value: u64) -> Result<(), Errno> {
        if !self.core.cpuid.xcr0_valid(value) {
            return Err(Errno::EINVAL);
        }
        self.core.cpu.extra_mut().xcr0 = value;
        self.update_cpuid();
        Ok(())
    }
}

/// Do the registers look like those after reset (RIP 0xfff0, protection off)?
fn save_is_reset<H: Host>(core: &Core<H>) -> bool {
    core.cpu.save().rip == 0xfff0 && core.guest_cr0 & Cr0::PE.bits() == 0
}
