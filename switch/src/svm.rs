//! One virtual processor: its VMCB and everything around it.

use crate::{
    AsidGeneration, Machine, Platform,
    ctx::{SPEC_CTRL_NOT_INTERCEPTED, VcpuCtx},
    msrpm::Msrpm,
    pages::Block,
};
use ::state::{Reader, Refused, Writer};
use arch::{CleanBits, ControlArea, EventInj, Exit, Intercepts, NestedRoot, SaveArea, Vmcb, cr, msr, vmcb::*};
use host::{Cpu, CpuConfig, Errno, ExtraRegs, FastExits, VcpuRequests};

/// Intercepts that are set whatever the run loop asks for: without one of them the guest could reach the host
/// (APM 15.9), or see instructions that a guest does not have.
pub const MANDATORY: Intercepts = Intercepts::INTR
    .union(Intercepts::NMI)
    .union(Intercepts::SMI)
    .union(Intercepts::INIT)
    .union(Intercepts::CR0_SEL_WRITE)
    .union(Intercepts::RDPMC)
    .union(Intercepts::CPUID)
    .union(Intercepts::RSM)
    .union(Intercepts::INVD)
    .union(Intercepts::INVLPGA)
    .union(Intercepts::IOIO_PROT)
    .union(Intercepts::MSR_PROT)
    .union(Intercepts::TASK_SWITCH)
    .union(Intercepts::SHUTDOWN)
    .union(Intercepts::VMRUN)
    .union(Intercepts::VMMCALL)
    .union(Intercepts::VMLOAD)
    .union(Intercepts::VMSAVE)
    .union(Intercepts::STGI)
    .union(Intercepts::CLGI)
    .union(Intercepts::SKINIT)
    .union(Intercepts::WBINVD)
    .union(Intercepts::XSETBV)
    .union(Intercepts::RDPRU);

/// Set at the start; the run loop may clear them for a VM that is allowed to idle by itself.
pub const INITIAL: Intercepts =
    Intercepts::HLT.union(Intercepts::MONITOR).union(Intercepts::MWAIT).union(Intercepts::MWAIT_COND);

/// Exceptions that are always intercepted: #MC is the host's business; #DB and #AC can be made to recur for ever
/// inside of their own delivery, which only an intercept ends.
pub const MANDATORY_EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// Writes of CR4: the run loop has to see every change, and some of its bits are the host's.
const MANDATORY_CR_WRITES: u16 = 1 << 4;

/// What is special about an entry, as bits; nearly always nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NextEntry(u8);

impl NextEntry {
    /// It only injects.
    pub const EXITS_AT_ONCE: Self = Self(1);
    /// Somebody is told.
    pub const TELLS: Self = Self(2);

    #[inline(always)]
    pub fn is_plain(self) -> bool {
        self.0 == 0
    }
    pub fn has(self, what: Self) -> bool {
        self.0 & what.0 != 0
    }
    pub fn remove(&mut self, what: Self) {
        self.0 &= !what.0;
    }
    pub fn add(&mut self, what: Self) {
        self.0 |= what.0;
    }
}

/// One virtual processor on the hardware.
pub struct Svm<P: Platform> {
    pub(crate) machine: &'static Machine<P>,
    pub(crate) vmcb: Block<P, 0>,
    pub(crate) msrpm: Msrpm<P>,
    pub(crate) ctx: VcpuCtx,
    pub(crate) extra: ExtraRegs,
    /// Its token.
    pub(crate) id: u64,
    /// Argument of the assembly.
    pub(crate) flags: u32,
    /// Clean bits for the next entry.
    pub(crate) clean: CleanBits,
    pub(crate) asid_generation: AsidGeneration,
    /// The CPU that `asid_generation` and `clean` are about.
    pub(crate) last_cpu: u32,
    /// The host state of this KVM_RUN is in the save area of `last_cpu`, unless another vCPU ran there since.
    pub(crate) loaded: bool,
    /// DEBUGCTL of the host when `loaded` was set.
    pub(crate) host_debugctl: u64,
    /// VIRT_SPEC_CTRL as the task of this KVM_RUN has it, as of `loaded`; 0 where the kernel has no such thing.
    pub(crate) host_virt_spec_ctrl: u64,
    /// The next entry flushes.
    pub(crate) flush: bool,
    /// What is special about the next entry.
    pub(crate) next_entry: NextEntry,
    /// As who it is told.
    pub(crate) vcpu: u32,
    /// SVM is off on the CPU of the last entry.
    pub(crate) broken: Option<Errno>,
}

// SAFETY: the pages belong to this value alone; nothing in it is tied to a thread.
unsafe impl<P: Platform> Send for Svm<P> {}

impl<P: Platform> Svm<P> {
    /// A processor whose registers are all zero but for what VMRUN insists on; the owner resets it.
    /// Errors: ENOMEM.
    pub fn new(machine: &'static Machine<P>, config: &CpuConfig) -> Result<Self, Errno> {
        let vmcb = Block::new()?;
        let msrpm = Msrpm::new()?;
        let ctx = VcpuCtx { vmcb01: vmcb.pa(), vmcb: vmcb.pa(), ..Default::default() };
        let mut svm = Self {
            machine,
            vmcb,
            msrpm,
            ctx,
            extra: ExtraRegs { xcr0: cr::Xcr0::X87.bits(), xss: 0, ..Default::default() },
            id: P::new_token(),
            flags: 0,
            clean: CleanBits::empty(),
            asid_generation: AsidGeneration::default(),
            last_cpu: u32::MAX,
            loaded: false,
            host_debugctl: 0,
            host_virt_spec_ctrl: 0,
            flush: false,
            next_entry: NextEntry::default(),
            vcpu: 0,
            broken: None,
        };
        let (iopm, msrpm) = (machine.iopm_pa(), svm.msrpm.pa());
        let c = svm.vmcb_mut();
        c.save.efer = cr::Efer::SVME.bits();
        let c = &mut c.control;
        c.iopm_base_pa = iopm.0;
        c.msrpm_base_pa = msrpm.0;
        c.intercept_cr_write = MANDATORY_CR_WRITES;
        c.intercept_dr_read = u16::MAX;
        c.intercept_dr_write = u16::MAX;
        c.intercept_exceptions = MANDATORY_EXCEPTIONS;
        // Physical interrupts are governed by the host's IF, the guest's CR8 is V_TPR (APM 15.21.1).
        c.int_ctl = int_ctl::V_INTR_MASKING;
        c.np_control = NP_ENABLE;
        if machine.features.pause_filter_threshold {
            c.pause_filter_threshold = config.pause_threshold;
        }
        svm.set_intercept(INITIAL, true);
        svm.set_root(config.root);
        Ok(svm)
    }

    #[inline(always)]
    pub(crate) fn vmcb(&self) -> &Vmcb {
        // SAFETY: a page of our own, zeroed at birth; every bit pattern is a Vmcb. The processor writes it only
        // inside of `enter`, which has `&mut self`.
        unsafe { self.vmcb.va().cast().as_ref() }
    }

    #[inline(always)]
    pub(crate) fn vmcb_mut(&mut self) -> &mut Vmcb {
        // SAFETY: as above.
        unsafe { self.vmcb.va().cast().as_mut() }
    }

    /// The general registers and the VMCB, apart.
    #[inline(always)]
    pub(crate) fn parts_mut(&mut self) -> (&mut [u64; 16], &mut Vmcb) {
        // SAFETY: as for `vmcb`; the registers lie elsewhere.
        (&mut self.ctx.regs, unsafe { self.vmcb.va().cast().as_mut() })
    }

    /// Where the VMCB is.
    pub(crate) fn vmcb_page(&self) -> core::ptr::NonNull<u8> {
        self.vmcb.va()
    }

    fn dirty(&mut self, touched: CleanBits) {
        self.clean = self.clean.difference(touched);
    }
}

impl<P: Platform> Cpu for Svm<P> {
    #[inline]
    fn gpr(&self, n: u8) -> u64 {
        match n & 15 {
            0 => self.vmcb().save.rax,
            4 => self.vmcb().save.rsp,
            n => self.ctx.regs.get(n as usize).copied().unwrap_or(0),
        }
    }

    #[inline]
    fn set_gpr(&mut self, n: u8, v: u64) {
        match n & 15 {
            0 => self.vmcb_mut().save.rax = v,
            4 => self.vmcb_mut().save.rsp = v,
            n => {
                if let Some(r) = self.ctx.regs.get_mut(n as usize) {
                    *r = v;
                }
            }
        }
    }

    #[inline]
    fn save(&self) -> &SaveArea {
        &self.vmcb().save
    }

    #[inline]
    fn save_mut(&mut self, touched: CleanBits) -> &mut SaveArea {
        self.dirty(touched);
        &mut self.vmcb_mut().save
    }

    #[inline]
    fn control(&self) -> &ControlArea {
        &self.vmcb().control
    }

    #[inline]
    fn set_event_inj(&mut self, e: EventInj) {
        self.vmcb_mut().control.event_inj = e;
    }

    fn set_next_rip(&mut self, rip: u64) {
        self.vmcb_mut().control.next_rip = rip;
    }

    fn set_virq(&mut self, vector: u8, priority: u8, ignore_tpr: bool) {
        self.dirty(CleanBits::TPR);
        let c = &mut self.vmcb_mut().control;
        c.int_ctl &= !(int_ctl::V_INTR_PRIO | int_ctl::V_IGN_TPR);
        c.int_ctl |= int_ctl::V_IRQ | (priority as u32 & 0xf) << 16;
        if ignore_tpr {
            c.int_ctl |= int_ctl::V_IGN_TPR;
        }
        c.int_vector = vector as u32;
    }

    fn clear_virq(&mut self) {
        self.dirty(CleanBits::TPR);
        self.vmcb_mut().control.int_ctl &= !(int_ctl::V_IRQ | int_ctl::V_INTR_PRIO | int_ctl::V_IGN_TPR);
    }

    fn set_vtpr(&mut self, tpr: u8) {
        let c = &mut self.vmcb_mut().control;
        let new = c.int_ctl & !int_ctl::V_TPR | tpr as u32 & 0xf;
        if c.int_ctl != new {
            c.int_ctl = new;
            self.dirty(CleanBits::TPR);
        }
    }

    fn set_interrupt_shadow(&mut self, on: bool) {
        let c = &mut self.vmcb_mut().control;
        c.int_state = c.int_state & !INT_SHADOW | if on { INT_SHADOW } else { 0 };
    }

    fn set_intercept(&mut self, which: Intercepts, on: bool) {
        self.dirty(CleanBits::I);
        let c = &mut self.vmcb_mut().control;
        let now = c.intercept_3 as u64 | (c.intercept_4 as u64) << 32;
        let new = if on { now | which.bits() } else { now & !which.bits() } | MANDATORY.bits();
        c.intercept_3 = new as u32;
        c.intercept_4 = (new >> 32) as u32;
    }

    fn set_invpcid_intercept(&mut self, on: bool) {
        self.dirty(CleanBits::I);
        self.vmcb_mut().control.intercept_5 = if on { INTERCEPT_INVPCID } else { 0 };
    }

    fn set_cr_intercepts(&mut self, read: u16, write: u16) {
        self.dirty(CleanBits::I);
        let c = &mut self.vmcb_mut().control;
        c.intercept_cr_read = read;
        c.intercept_cr_write = write | MANDATORY_CR_WRITES;
    }

    fn set_exception_intercepts(&mut self, mask: u32) {
        self.dirty(CleanBits::I);
        self.vmcb_mut().control.intercept_exceptions = mask | MANDATORY_EXCEPTIONS;
    }

    fn set_msr_intercept(&mut self, msr: u32, read: bool, write: bool) {
        self.dirty(CleanBits::IOPM);
        self.msrpm.set(msr, read, write);
        // The map's only writer keeps the flag in step with it. A virtualised SPEC_CTRL is in the save area.
        let written = !self.msrpm.write_intercepted(msr::SPEC_CTRL);
        let switched = self.machine.features.spec_ctrl && !self.machine.features.v_spec_ctrl;
        self.flags = if written && switched { SPEC_CTRL_NOT_INTERCEPTED } else { 0 };
    }

    fn set_pause_filter(&mut self, count: u16) {
        self.dirty(CleanBits::I);
        self.vmcb_mut().control.pause_filter_count = count;
    }

    fn exit_after_injection(&mut self) {
        self.next_entry.add(NextEntry::EXITS_AT_ONCE);
    }

    fn tell_entry(&mut self, vcpu: Option<u32>) {
        self.next_entry.remove(NextEntry::TELLS);
        if let Some(vcpu) = vcpu {
            self.vcpu = vcpu;
            self.next_entry.add(NextEntry::TELLS);
        }
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.dirty(CleanBits::I);
        self.vmcb_mut().control.tsc_offset = offset;
    }

    fn set_root(&mut self, root: NestedRoot) {
        self.dirty(CleanBits::NP);
        self.vmcb_mut().control.nested_cr3 = root.pa().0;
        self.flush_tlb();
    }

    #[inline]
    fn flush_tlb(&mut self) {
        self.flush = true;
    }

    #[inline]
    fn extra(&self) -> &ExtraRegs {
        &self.extra
    }

    #[inline]
    fn extra_mut(&mut self) -> &mut ExtraRegs {
        &mut self.extra
    }

    fn begin(&mut self) {
        self.loaded = false;
        if self.ctx.faulted == 0 {
            self.broken = None; // The thread may be on another CPU by now.
        }
    }

    fn end(&mut self) {
        self.loaded = false;
    }

    #[inline]
    fn enter<F: FastExits>(&mut self, requests: &VcpuRequests, fast: &mut F) -> Exit {
        self.run(requests, fast)
    }

    fn save_state(&mut self, w: &mut Writer) {
        self.save_section(w);
    }

    fn load_state(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        self.load_section(r)
    }

    fn last_cpu(&self) -> u32 {
        self.last_cpu
    }

    fn broken(&self) -> Option<Errno> {
        self.broken
    }
}
