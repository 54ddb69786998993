//! One virtual processor, as the world switch offers it to the run loop.

use crate::{Errno, FastExits, VcpuRequests};
use arch::{CleanBits, ControlArea, EventInj, Exit, Intercepts, NestedRoot, SaveArea};
use state::{Reader, Refused, Writer};

/// What the processor under us can do beyond what every SVM processor with nested paging can (APM 15, CPUID
/// Fn8000_000A_EDX), after the module's own parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures {
    /// Next RIP is saved on #VMEXIT.
    pub nrips: bool,
    /// Decode assists: instruction bytes on NPF, operands of CR/DR/INVLPG/INTn.
    pub decode_assists: bool,
    /// TLB_CONTROL can flush one ASID.
    pub flush_by_asid: bool,
    /// VMCB clean bits are looked at.
    pub vmcb_clean: bool,
    /// Virtual GIF.
    pub vgif: bool,
    /// SPEC_CTRL is virtualised in the VMCB.
    pub v_spec_ctrl: bool,
    /// The kernel can disable speculative store bypass for a guest other than by SPEC_CTRL: by LS_CFG, or by the
    /// VIRT_SPEC_CTRL of a hypervisor below.
    pub virt_ssbd: bool,
    /// Whatever touches the FPU state is #NM while CR0.TS is set, as the APM says (volume 2, 11.3, 11.5). Not so in QEMU's
    /// emulation, where XSAVE, XRSTOR and the SHA instructions do not look.
    pub ts_guards_fpu: bool,
    /// TSC ratio MSR.
    pub tsc_scaling: bool,
    /// Pause filter count.
    pub pause_filter: bool,
    /// Pause filter threshold.
    pub pause_filter_threshold: bool,
    /// SPEC_CTRL exists on the host (the guest may be offered it).
    pub spec_ctrl: bool,
    /// RDTSCP or RDPID exists: TSC_AUX has to be switched.
    pub tsc_aux: bool,
    /// 1 GiB nested pages.
    pub page_1g: bool,
    /// NX in nested page tables.
    pub nx: bool,
    /// Number of physical address bits.
    pub phys_bits: u8,
}

/// What a processor is made with.
#[derive(Clone, Copy, Debug)]
pub struct CpuConfig {
    /// Where the guest's nested page tables begin.
    pub root: NestedRoot,
    /// Most cycles between two PAUSEs of a loop ([`PauseParameters`](crate::PauseParameters)).
    pub pause_threshold: u16,
}

/// One virtual processor. The world switch owns the VMCB: nested CR3, ASID, permission maps and the mandatory
/// intercepts are written there from typed handles; the run loop gets the guest's save area, injection and the
/// optional intercepts.
///
/// Used by the vCPU's thread only.
pub trait Cpu {
    /// The guest's general register `n` (0 RAX, 1 RCX, 2 RDX, 3 RBX, 4 RSP, 5 RBP, 6 RSI, 7 RDI, 8..15); `n` is
    /// taken modulo 16.
    fn gpr(&self, n: u8) -> u64;
    /// Writes a general register.
    fn set_gpr(&mut self, n: u8, v: u64);
    /// The guest's save area (APM table B-2).
    fn save(&self) -> &SaveArea;
    /// The save area for writing; `touched` names the clean bits of the fields about to change (empty for RIP, RSP,
    /// RAX, RFLAGS, which are never cached).
    fn save_mut(&mut self, touched: CleanBits) -> &mut SaveArea;
    /// The control area (APM table B-1), to look at: exit information, interrupt state.
    fn control(&self) -> &ControlArea;

    /// Sets the event that the next entry injects (EVENTINJ, APM 15.20).
    fn set_event_inj(&mut self, e: EventInj);
    /// Sets the return address of a software interrupt or of #BP or #OF that the next entry injects (VMCB offset C8h, APM
    /// 15.20). It has a meaning only where the processor saves the next RIP (CPUID Fn8000_000A_EDX\[NRIPS\]).
    fn set_next_rip(&mut self, rip: u64);
    /// Sets the virtual interrupt fields: V_IRQ with vector, priority and V_IGN_TPR (APM 15.21.4).
    fn set_virq(&mut self, vector: u8, priority: u8, ignore_tpr: bool);
    /// Takes the virtual interrupt request back.
    fn clear_virq(&mut self);
    /// V_TPR (bits 3:0), the guest's CR8.
    fn set_vtpr(&mut self, tpr: u8);
    /// Interrupt shadow (after STI or MOV SS).
    fn set_interrupt_shadow(&mut self, on: bool);
    /// Sets or clears one optional intercept. Mandatory ones stay set whatever is asked.
    fn set_intercept(&mut self, which: Intercepts, on: bool);
    /// Sets or clears the intercept of INVPCID, on a processor that has it.
    fn set_invpcid_intercept(&mut self, on: bool);
    /// Control registers whose reads or writes are intercepted beyond the mandatory ones (CR4 writes, CR0 writes that
    /// change more than TS and MP), a bit per register.
    fn set_cr_intercepts(&mut self, read: u16, write: u16);
    /// Exceptions to intercept, a bit per vector (#MC and the mandatory ones stay set).
    fn set_exception_intercepts(&mut self, mask: u32);
    /// Intercepts (true) or passes through accesses to one MSR. MSRs outside of the permission map are always
    /// intercepted; so are those that the world switch switches itself until this passes them
    /// through.
    fn set_msr_intercept(&mut self, msr: u32, read: bool, write: bool);
    /// PAUSEs before an exit (APM 15.14.4), where the processor counts them.
    fn set_pause_filter(&mut self, count: u16);
    /// The next entry ends right after the event of [`set_event_inj`](Self::set_event_inj) was injected.
    fn exit_after_injection(&mut self);
    /// The next entry is told as one of this vCPU's ([`Trace::Entry`](crate::Trace::Entry)), once it is certain to come; or not.
    fn tell_entry(&mut self, vcpu: Option<u32>);
    /// TSC offset (added to the host's TSC on the guest's reads).
    fn set_tsc_offset(&mut self, offset: u64);
    /// Replaces the nested root; implies a flush.
    fn set_root(&mut self, root: NestedRoot);
    /// The next entry flushes this guest's translations (its ASID, APM 15.16).
    fn flush_tlb(&mut self);
    /// Guest values of registers that the world switch swaps outside of the VMCB, to be read and written freely
    /// between entries.
    fn extra(&self) -> &ExtraRegs;
    /// The same for writing.
    fn extra_mut(&mut self) -> &mut ExtraRegs;

    /// Forgets where the guest state is loaded: called once at the start of each KVM_RUN, so that host state that
    /// user space may have changed (FS, GS, LDT) is saved anew.
    fn begin(&mut self);
    /// Called when KVM_RUN goes back to user space.
    fn end(&mut self);

    /// Enters the guest once. Interrupts are off from the last look at the requests to #VMEXIT, and on again on return.
    /// [`Exit::None`] if it did not enter because something is asked of the vCPU, a signal is pending or the kernel wants work done.
    ///
    /// An exit that `fast` handles is not seen: the guest goes on.
    fn enter<F: FastExits>(&mut self, requests: &VcpuRequests, fast: &mut F) -> Exit;

    /// Writes the guest's state, and what of this processor's own goes on with the next engine. Outside of
    /// [`begin`](Self::begin) and [`end`](Self::end). ([`GuestState`](crate::GuestState) is most of it.)
    fn save_state(&mut self, w: &mut Writer);
    /// A processor that was just made becomes that one, but for its intercepts, which the run loop sets anew.
    fn load_state(&mut self, r: &mut Reader<'_>) -> Result<(), Refused>;
    /// The physical CPU that the guest last ran on.
    fn last_cpu(&self) -> u32;

    /// Errors that made the last [`enter`](Self::enter) impossible for good (the processor lost SVM): EIO.
    fn broken(&self) -> Option<Errno>;
}

/// Guest registers that neither VMRUN nor VMLOAD switches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ExtraRegs {
    /// XCR0; written when it differs from the host's and CR4.OSXSAVE is set.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// PKRU, when CR4.PKE is set or XCR0 has the bit.
    pub pkru: u32,
    /// TSC_AUX. Loaded wherever the processor has it: RDPID cannot be intercepted, and would show a guest that has no such
    /// instruction what was there before.
    pub tsc_aux: u64,
    /// IA32_SPEC_CTRL (also VMCB field where virtualised).
    pub spec_ctrl: u64,
    /// VIRT_SPEC_CTRL: 0 or SSBD (bit 2). Without [`CpuFeatures::virt_ssbd`] it has no effect.
    pub virt_spec_ctrl: u64,
    /// DR0..DR3, loaded when [`load_dr`](Self::load_dr) is set.
    pub dr: [u64; 4],
    /// Load DR0..DR3 on entry and give the host's back afterwards.
    pub load_dr: bool,
    /// TSC ratio (APM 15.30.5: 8.32 fixed point), where the processor has it; 0 stands for 1.0.
    pub tsc_ratio: u64,
}
