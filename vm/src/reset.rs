//! The state of a processor after power-on, INIT and SIPI (APM 14.1.3, table 14-1).

use crate::msr::PAT_RESET;
use crate::run::Next;
use crate::user::Pending;
use crate::vcpu::Core;
use crate::{Ctx, MpState};
use arch::cr::{Cr0, DR6_RESET, DR7_RESET, Efer};
use arch::{CleanBits, Segment, SegmentAttr};
use core::sync::atomic::Ordering::Relaxed;
use host::{Cpu, Host};

const CODE: u16 = SegmentAttr::P | SegmentAttr::S | 0xa;
const DATA: u16 = SegmentAttr::P | SegmentAttr::S | 0x2;
const LDT: u16 = SegmentAttr::P | 0x2;
/// Busy, of 16 bits.
const TSS: u16 = SegmentAttr::P | 0x3;

/// What a segment register holds after reset: 64 KiB at zero.
const fn segment(attrib: u16) -> Segment {
    Segment { selector: 0, attrib: SegmentAttr(attrib), limit: 0xffff, base: 0 }
}

impl<H: Host> Core<H> {
    /// Puts the registers into their reset state; INIT leaves CR0.CD and NW, the FPU and most MSRs alone.
    pub(crate) fn reset_registers(&mut self, init: bool) {
        // RDX holds the processor's signature (APM 14.1.3): CPUID Fn1 EAX, or a family 6 processor's before KVM_SET_CPUID2.
        let signature = self.cpuid.leaf(1).map_or(0x600, |e| e.regs[0]);
        for n in 0..16 {
            self.cpu.set_gpr(n, 0);
        }
        self.cpu.set_gpr(2, signature.into());
        let kept = if init { self.guest_cr0 & (Cr0::CD | Cr0::NW).bits() } else { (Cr0::CD | Cr0::NW).bits() };
        let save = self.cpu.save_mut(CleanBits::all());
        save.cs = Segment { selector: 0xf000, base: 0xffff_0000, ..segment(CODE) };
        for s in [&mut save.ds, &mut save.es, &mut save.fs, &mut save.gs, &mut save.ss] {
            *s = segment(DATA);
        }
        save.gdtr = segment(0);
        save.idtr = segment(0);
        save.ldtr = segment(LDT);
        save.tr = segment(TSS);
        save.cpl = 0;
        save.rip = 0xfff0;
        save.rflags = 2;
        save.cr2 = 0;
        save.cr3 = 0;
        save.dr6 = DR6_RESET;
        save.efer = Efer::SVME.bits();
        if !init {
            save.g_pat = PAT_RESET;
            (save.star, save.lstar, save.cstar, save.sfmask) = (0, 0, 0, 0);
            (save.kernel_gs_base, save.sysenter_cs, save.sysenter_esp, save.sysenter_eip) = (0, 0, 0, 0);
            self.cpu.extra_mut().xcr0 = 1;
            self.cpu.extra_mut().xss = 0;
        }
        let extra = self.cpu.extra_mut();
        (extra.spec_ctrl, extra.virt_spec_ctrl) = (0, 0);
        (self.debug.dr, self.debug.dr6, self.debug.dr7) = ([0; 4], DR6_RESET, DR7_RESET);
        self.load_debug();
        self.cpu.set_interrupt_shadow(false);
        self.load_cr0(Cr0::ET.bits() | kept);
        self.load_cr4(0);
        self.clock.reset();
        self.fast.forget_msrs();
        self.reset_pv();
        self.set_smm(false);
        self.msr.smi_count = 0;
        if !init {
            self.msr.reset();
        }
        // One that waits at LINT0 is still there: who acknowledged it at the PIC counts on it.
        let external = self.inject.external.filter(|_| self.fast.lapic.is_some());
        self.inject.clear();
        self.inject.external = external;
        self.fast.armed = None;
        // What an exit to user space waits for is no concern of the processor any more.
        self.pending = Pending::None;
        self.mmio_fragments.clear();
        self.device_exit = Next::Resume;
        self.cpu.set_event_inj(arch::EventInj::NONE);
        self.cpu.clear_virq();
        self.vtpr = 0;
        self.cpu.set_vtpr(0);
        self.cpu.set_intercept(arch::Intercepts::VINTR | arch::Intercepts::IRET, false);
        self.cpu.flush_tlb();
    }
}

impl<H: Host> Ctx<'_, H> {
    /// INIT: application processors wait for SIPI, the bootstrap processor starts over. Which it is IA32_APIC_BASE says, in which
    /// user space may have made another one the bootstrap processor.
    pub(crate) fn init(&mut self) {
        self.start_over();
        self.core.mp_state = if self.is_bootstrap() { MpState::Runnable } else { MpState::InitReceived };
    }

    /// What INIT does to the processor and its local APIC; events that wait are lost, but for one at LINT0.
    pub(crate) fn start_over(&mut self) {
        self.core.reset_registers(true);
        self.me.pending_events.nmi_queued.store(0, Relaxed);
        self.forget_pages();
        self.update_cpuid();
        let Some(lapic) = &mut self.core.fast.lapic else { return };
        lapic.config_mut().lint0_reenabled = self.vm.config.has_quirk(crate::quirks::LINT0_REENABLED);
        let effect = lapic.init();
        self.me.pir.clear();
        self.publish_address();
        self.apply_timer(effect);
    }

    /// Is it the bootstrap processor, as IA32_APIC_BASE has it?
    pub(crate) fn is_bootstrap(&self) -> bool {
        self.apic_base() & irqchip::APIC_BASE_BSP != 0
    }

    /// SIPI: real mode at `vector << 12`.
    pub(crate) fn start_at(&mut self, vector: u8) {
        let save = self.core.cpu.save_mut(CleanBits::SEG);
        save.cs.selector = u16::from(vector) << 8;
        save.cs.base = u64::from(vector) << 12;
        save.rip = 0;
        self.core.mp_state = MpState::Runnable;
    }
}
