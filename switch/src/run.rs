//! One entry into the guest, from interrupts off to interrupts on.

use crate::{
    AsidGeneration, CpuData, Platform, Svm, entry::hsave_vcpu_run, fast::Link, insn, machine::TSC_RATIO_ONE,
    svm::NextEntry,
};
use arch::{
    CleanBits, Exit, cr,
    event::vector,
    exit::code,
    msr,
    vmcb::tlb_control::{DO_NOTHING, FLUSH_ALL_ASID, FLUSH_ASID},
};
use host::{Errno, FastExits, VcpuRequests};

/// Exit code of an intercepted #MC.
const MACHINE_CHECK: u64 = code::EXCP0 + vector::MC as u64;

/// That of #PF, which nobody here intercepts. Where the host is itself a guest of KVM's, the outer KVM reports its own asynchronous
/// page faults by it (MSR_KVM_ASYNC_PF_EN, bit 2).
const PAGE_FAULT: u64 = code::EXCP0 + vector::PF as u64;

/// SSBD in VIRT_SPEC_CTRL.
const VIRT_SPEC_CTRL_SSBD: u64 = 1 << 2;

/// What has to be given back to the host after #VMEXIT, because it was changed for the guest.
#[derive(Default)]
struct Changed {
    xcr0: bool,
    xss: bool,
    pkru: Option<u32>,
    debugctl: Option<u64>,
}

impl<P: Platform> Svm<P> {
    #[inline]
    pub(crate) fn run<F: FastExits>(&mut self, requests: &VcpuRequests, fast: &mut F) -> Exit {
        if !P::may_enter() {
            return Exit::None;
        }
        if !requests.try_enter() {
            P::irq_enable();
            return Exit::None;
        }
        // SAFETY: this CPU's own data; interrupts stay off until it was used for the last time.
        let cpu = unsafe { P::cpu_data().as_ref() };
        if !cpu.enabled.get() {
            return self.refuse(requests);
        }
        self.load(cpu);
        self.assign_asid(cpu);
        self.load_msrs(cpu);
        // DR6 and DR7 are in the VMCB; DR0 to DR3 are not.
        if self.extra.load_dr {
            // SAFETY: `guest_exit` gives the host its breakpoints back.
            unsafe { insn::set_debug_addresses(&self.extra.dr) };
        }
        self.spec_ctrl_in();
        // Few processors need it, and few guests there: outside of the critical region, as in the kernel's own KVM.
        let ssbd = self.machine.features.virt_ssbd && self.extra.virt_spec_ctrl != self.host_virt_spec_ctrl;
        if ssbd {
            P::virt_spec_ctrl(self.extra.virt_spec_ctrl, true);
        }
        if !self.next_entry.is_plain() {
            self.enter_specially();
        }
        let clean = self.clean.bits();
        let vmcb = self.vmcb_mut();
        vmcb.control.clean = clean;
        vmcb.save.efer |= cr::Efer::SVME.bits();

        let this: *mut Self = self;
        // SAFETY: this CPU is enabled and its host save area was filled by `load`; both VMCB addresses are of our
        // own page; GIF is clear and IF set around the assembly, as it wants.
        unsafe {
            insn::clgi();
            // With GIF clear, so that an NMI never finds the guest's values: perf writes DEBUGCTL there, and reads user memory
            // under PKRU.
            let changed = (*this).load_guest();
            P::guest_enter();
            insn::sti();
            (*this).ctx.link = Link::new(this, (*this).machine.fast, fast);
            hsave_vcpu_run(&raw mut (*this).ctx, (*this).flags);
            insn::cli();
            (*this).load_host(&changed);
            P::guest_exit();
            let vmcb = (*this).vmcb();
            if matches!(vmcb.control.exit_code, code::INTR | code::NMI) {
                // What waits is taken at STGI (an NMI) or in `guest_done`: it interrupted the guest, not what follows.
                P::guest_interrupted(vmcb.save.rip, vmcb.save.cpl == 3);
            }
            insn::stgi();
        }

        if ssbd {
            P::virt_spec_ctrl(self.extra.virt_spec_ctrl, false);
        }
        self.spec_ctrl_out();
        self.clean = if self.machine.features.vmcb_clean { CleanBits::all() } else { CleanBits::empty() };
        let faulted = self.ctx.faulted != 0;
        let c = &mut self.vmcb_mut().control;
        let (info, flush) = (c.exit_info(), c.tlb_control);
        c.tlb_control = DO_NOTHING;
        c.event_inj.0 = 0; // Injected, or reported in EXITINTINFO.
        if faulted || info.code as u32 == code::INVALID as u32 {
            self.not_entered(cpu, flush);
        }
        if info.code == MACHINE_CHECK {
            P::machine_check();
        }
        let host_waits = info.code == PAGE_FAULT && !faulted && P::host_page_fault();
        requests.leave();
        P::guest_done(info.code == code::INTR);
        if faulted {
            self.broken = Some(Errno::EIO);
            return Exit::None;
        }
        if host_waits {
            P::wait_for_host_page(info.info2 as u32);
            return Exit::Nmi; // As after an NMI there is nothing left to do.
        }
        Exit::decode(&info, self.machine.features.decode_assists)
    }

    #[cold]
    fn enter_specially(&mut self) {
        let how = core::mem::take(&mut self.next_entry);
        let at_once = how.has(NextEntry::EXITS_AT_ONCE);
        if how.has(NextEntry::TELLS) {
            let vmcb = self.vmcb();
            P::tell_entry(self.vcpu, vmcb.save.rip, at_once, vmcb.control.event_inj.0);
        }
        if at_once {
            // Interrupts are off: the IPI ends the run once the event is on its way (APM 15.13.1, 15.20).
            P::interrupt_self();
        }
    }

    /// VMRUN faulted or refused the VMCB: the processor flushes behind its checks (APM 15.5.1, 15.16), so whatever flush the
    /// entry carried was not done. Nor does it have anything of this VMCB.
    #[cold]
    fn not_entered(&mut self, cpu: &CpuData, flush: u8) {
        self.flush = true;
        self.clean = CleanBits::empty();
        if flush == FLUSH_ALL_ASID {
            // The whole generation rests on that flush, other guests' ASIDs too: the next one on this CPU opens another.
            self.asid_generation = AsidGeneration::default();
            cpu.asid_next.set(0);
        }
    }

    /// SVM is off on this CPU: it is going away, or the machine reboots.
    #[cold]
    fn refuse(&mut self, requests: &VcpuRequests) -> Exit {
        requests.leave();
        P::irq_enable();
        self.broken = Some(Errno::EIO);
        Exit::None
    }

    /// Sees to it that this CPU's host save area holds this thread's state. Once per KVM_RUN and CPU; but LDTR may
    /// change under a thread that is in KVM_RUN (another thread of its process may call modify_ldt), and VMLOAD
    /// would bring back a descriptor that points to freed memory: where there is a local table it is saved anew.
    #[inline]
    fn load(&mut self, cpu: &CpuData) {
        let here = self.loaded && self.last_cpu == cpu.number && cpu.last_vcpu.get() == self.id;
        let ldt = insn::sldt() != 0;
        if here && !ldt && !cpu.ldt_saved.get() {
            return;
        }
        if !here {
            self.arrive(cpu);
        }
        self.host_debugctl = insn::rdmsr(msr::DEBUGCTL);
        // SAFETY: the area is this CPU's page.
        unsafe { insn::vmsave(cpu.hsave_pa.get()) };
        cpu.ldt_saved.set(ldt);
    }

    /// First entry of a KVM_RUN, or on another CPU, or after another vCPU was here.
    #[cold]
    fn arrive(&mut self, cpu: &CpuData) {
        if self.last_cpu != cpu.number {
            // ASIDs and cached VMCB fields are per CPU.
            self.last_cpu = cpu.number;
            self.asid_generation = AsidGeneration::default();
            self.clean = CleanBits::empty();
        }
        if cpu.last_vcpu.get() != self.id {
            // Also if it is the first one here: before the module was loaded another hypervisor's guest may have run.
            P::guest_barrier();
            cpu.last_vcpu.set(self.id);
        }
        if self.machine.features.virt_ssbd {
            self.host_virt_spec_ctrl = if P::task_ssbd() { VIRT_SPEC_CTRL_SSBD } else { 0 };
        }
        self.loaded = true;
    }

    /// An ASID that is good on this CPU, and the flush that was asked for.
    #[inline]
    fn assign_asid(&mut self, cpu: &CpuData) {
        if !self.flush && cpu.asids().holds(self.asid_generation) {
            return;
        }
        self.flush_or_renew(cpu);
    }

    #[cold]
    fn flush_or_renew(&mut self, cpu: &CpuData) {
        self.flush = false;
        let mut how = FLUSH_ASID;
        let held = cpu.asids().holds(self.asid_generation);
        if !held {
            // The processor may have been off, and does not know the VMCB any more.
            self.clean = CleanBits::empty();
        }
        if !self.machine.features.flush_by_asid || !held {
            let mut asids = cpu.asids();
            let (asid_generation, all) = asids.take();
            cpu.set_asids(asids);
            self.asid_generation = asid_generation;
            self.clean = self.clean.difference(CleanBits::ASID);
            how = if all { FLUSH_ALL_ASID } else { DO_NOTHING };
        }
        let asid = self.asid_generation.asid;
        let c = &mut self.vmcb_mut().control;
        c.asid = asid;
        c.tlb_control = how;
    }

    /// MSRs that stay the guest's across exits: the host does not use them in the kernel.
    #[inline]
    fn load_msrs(&mut self, cpu: &CpuData) {
        if self.machine.features.tsc_aux && cpu.tsc_aux.get() != self.extra.tsc_aux {
            P::set_user_return_tsc_aux(self.extra.tsc_aux);
        }
        // Where the processor has it, it applies to every guest, also to one whose engine does without (tsc_scaling=0): another
        // engine's guest may have left another ratio.
        let now = cpu.tsc_ratio.get();
        if now != 0 {
            let scaled = self.machine.features.tsc_scaling && self.extra.tsc_ratio != 0;
            let ratio = if scaled { self.extra.tsc_ratio } else { TSC_RATIO_ONE };
            if now != ratio {
                // SAFETY: the base found the MSR, which applies to guests only.
                unsafe { insn::wrmsr(msr::TSC_RATIO, ratio) };
                cpu.tsc_ratio.set(ratio);
            }
        }
    }

    /// Registers that VMRUN does not switch and the host needs back right after #VMEXIT; written where they differ.
    #[inline(always)] // Nothing may be called with GIF clear.
    fn load_guest(&mut self) -> Changed {
        let mut changed = Changed::default();
        let m = self.machine;
        let (cr4, guest_debugctl) = (self.vmcb().save.cr4, self.vmcb().save.dbgctl);
        if cr4 & cr::Cr4::OSXSAVE.bits() != 0 && m.host_xcr0 != 0 {
            if self.extra.xcr0 != m.host_xcr0 {
                // SAFETY: the kernel uses XSAVE (`host_xcr0`); the host's value is back before the host's FPU is.
                unsafe { insn::xsetbv(self.extra.xcr0) };
                changed.xcr0 = true;
            }
            if m.host_xss.is_some_and(|host| host != self.extra.xss) {
                // SAFETY: as above.
                unsafe { insn::wrmsr(msr::XSS, self.extra.xss) };
                changed.xss = true;
            }
        }
        if m.pku && self.guest_has_pkru(cr4) {
            // SAFETY: CR4.PKE is set on the host (`pku`); the host's value is given back after the exit.
            unsafe {
                let host = insn::rdpkru();
                if host != self.extra.pkru {
                    insn::wrpkru(self.extra.pkru);
                }
                changed.pkru = Some(host);
            }
        }
        // VMRUN switches DEBUGCTL only with LBR virtualization, which is off (APM 15.23). The host's is read once per
        // KVM_RUN: it seldom has one, and then hardly ever another one meanwhile.
        if self.host_debugctl != guest_debugctl {
            let host = insn::rdmsr(msr::DEBUGCTL);
            // SAFETY: the value is what the run loop lets a guest have; the host's is given back after the exit.
            unsafe { insn::wrmsr(msr::DEBUGCTL, guest_debugctl) };
            changed.debugctl = Some(host);
        }
        changed
    }

    /// The assembly switches SPEC_CTRL where the guest's differs from the host's. Where the processor does it by
    /// itself (APM 15.35) they are made equal.
    #[inline]
    fn spec_ctrl_in(&mut self) {
        let f = &self.machine.features;
        if f.v_spec_ctrl {
            self.vmcb_mut().save.spec_ctrl = self.extra.spec_ctrl;
            self.ctx.spec_ctrl = insn::host_spec_ctrl();
        } else if f.spec_ctrl {
            self.ctx.spec_ctrl = self.extra.spec_ctrl;
        }
    }

    #[inline]
    fn spec_ctrl_out(&mut self) {
        let f = &self.machine.features;
        if f.v_spec_ctrl {
            self.extra.spec_ctrl = self.vmcb().save.spec_ctrl;
        } else if f.spec_ctrl {
            self.extra.spec_ctrl = self.ctx.spec_ctrl;
        }
    }

    /// PKRU counts for the guest's memory accesses (CR4.PKE), or at least for its XSAVE.
    #[inline(always)]
    fn guest_has_pkru(&self, cr4: u64) -> bool {
        cr4 & cr::Cr4::PKE.bits() != 0 || self.extra.xcr0 & cr::Xcr0::PKRU.bits() != 0
    }

    /// The reverse of [`load_guest`](Self::load_guest), keeping what the guest could change by itself.
    #[inline(always)] // As above.
    fn load_host(&mut self, changed: &Changed) {
        let m = self.machine;
        // SAFETY: these are the values that the host had.
        unsafe {
            if let Some(host) = changed.debugctl {
                insn::wrmsr(msr::DEBUGCTL, host);
            }
            if let Some(host) = changed.pkru {
                self.extra.pkru = insn::rdpkru();
                if self.extra.pkru != host {
                    insn::wrpkru(host);
                }
            }
            if changed.xss {
                insn::wrmsr(msr::XSS, m.host_xss.unwrap_or(0));
            }
            if changed.xcr0 {
                insn::xsetbv(m.host_xcr0);
            }
        }
    }
}
