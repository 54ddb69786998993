//! What the world switch needs of the kernel under it.
//!
//! Everything that an instruction can do by itself (CLGI, VMSAVE, WRMSR, XSETBV, debug registers) the switch does
//! itself; here is only what the kernel has a say in. The module implements the trait over its C shim, tests over a
//! scripted double.

use crate::CpuData;
use arch::HostPa;
use core::ptr::NonNull;
use host::FastExits;

/// A run of physically contiguous, zeroed pages.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// Kernel address of the first byte.
    pub va: NonNull<u8>,
    /// Physical address of the first byte.
    pub pa: HostPa,
}

/// The kernel as the world switch sees it. No values: the implementing type is a name, all functions are static.
///
/// # Safety
/// The switch dereferences what [`cpu_data`](Self::cpu_data) and [`alloc_pages`](Self::alloc_pages) return, and lets
/// the processor write there: the implementation keeps to the contract of each function.
pub unsafe trait Platform: 'static {
    /// The handlers that the program's `hsave_fast` was made for.
    type Fast: FastExits;

    /// `1 << order` zeroed contiguous pages, accounted to the caller's memory cgroup. May sleep. None: no memory.
    fn alloc_pages(order: u32) -> Option<Pages>;
    /// Frees what [`alloc_pages`](Self::alloc_pages) returned for the same `order`.
    ///
    /// # Safety
    /// `pages` came from there, is freed once and nobody, no processor either, uses it any more.
    unsafe fn free_pages(pages: Pages, order: u32);

    /// A number other than 0 that no vCPU of any engine had before: by it a CPU's data names who ran there last.
    fn new_token() -> u64;
    /// This CPU's data: [`CpuData`] in the shim's per-CPU variable `hsave_cpu_data`. Interrupts or preemption are
    /// off. The same CPU always gives the same address.
    fn cpu_data() -> NonNull<CpuData>;

    /// Switches interrupts off (`local_irq_disable`) and takes a last look: true if the guest may be entered, false, with
    /// interrupts on again, if the kernel wants work done first (`xfer_to_guest_mode_work_pending`). If true, the FPU
    /// registers are this task's (`switch_fpu_return` where TIF_NEED_FPU_LOAD is set).
    fn may_enter() -> bool;
    /// Interrupts on again after [`may_enter`](Self::may_enter), when the guest was not entered.
    fn irq_enable();
    /// Interrupts off: the CPU goes to the guest (`guest_timing_enter_irqoff`, `guest_state_enter_irqoff`). From
    /// here to [`guest_exit`](Self::guest_exit) nothing of the kernel is called.
    fn guest_enter();
    /// Interrupts off: the CPU is back (`guest_state_exit_irqoff`); gives the host its hardware breakpoints back if
    /// it uses any (`hw_breakpoint_active`, `hw_breakpoint_restore`).
    fn guest_exit();
    /// Interrupts off, after [`guest_exit`](Self::guest_exit): what ended the run is an interrupt or NMI that has not been
    /// taken yet. Until [`guest_done`](Self::guest_done) the kernel's profiler is told that the guest was at `rip`, in
    /// `user` mode or not.
    fn guest_interrupted(rip: u64, user: bool);
    /// Ends the time of the guest (`guest_timing_exit_irqoff`) and switches interrupts on. With `pending` an
    /// interrupt ended the run: it is taken first, with preemption off, so that the tick is accounted to the guest.
    fn guest_done(pending: bool);

    /// Interrupts off: another guest is about to run on this CPU than before: indirect branch prediction barrier, if
    /// the kernel's policy asks for one between guests (`indirect_branch_prediction_barrier`).
    fn guest_barrier();
    /// Interrupts off: sends this CPU an IPI that does nothing (`smp_send_reschedule`), which ends the guest's run.
    fn interrupt_self();
    /// Interrupts off: tells who wants to know that this vCPU's guest is entered at `rip`, with this event injected, and whether
    /// it leaves at once.
    fn tell_entry(vcpu: u32, rip: u64, at_once: bool, event_inj: u64);
    /// Interrupts off, right after #VMEXIT: the guest was interrupted by a machine check; runs the kernel's handler.
    fn machine_check();
    /// Interrupts off, right after #VMEXIT with the code of a #PF that was not intercepted: true if it is an asynchronous page fault
    /// of the hypervisor that the host runs on, for memory of the host's; the note of it is taken
    /// (`kvm_read_and_reset_apf_flags`), so that the next #PF on this CPU is not held for it.
    fn host_page_fault() -> bool;
    /// Sleeps until the outer hypervisor has brought the page of this `token` (`kvm_async_pf_task_wait_schedule`).
    fn wait_for_host_page(token: u32);

    /// Does the processor speculate at direct and conditional branches as if they were indirect ones (Branch Type Confusion,
    /// `X86_BUG_RETBLEED`)?
    fn has_retbleed() -> bool;
    /// Can the kernel switch SSBD for a guest other than by SPEC_CTRL (LS_CFG, or VIRT_SPEC_CTRL)?
    fn has_virt_ssbd() -> bool;
    /// Does the current task run with SSBD?
    fn task_ssbd() -> bool;
    /// Interrupts off: SSBD as the guest's `value` wants it (`enter`), or as the task wants it again
    /// (`x86_virt_spec_ctrl`).
    fn virt_spec_ctrl(value: u64, enter: bool);

    /// Interrupts off: writes TSC_AUX for the guest and sees to it that the host's value is back before this CPU
    /// returns to user mode (`user_return_notifier_register`). Keeps [`CpuData::tsc_aux`] equal to the register.
    fn set_user_return_tsc_aux(value: u64);

    /// CPUID of the host: `[eax, ebx, ecx, edx]`.
    fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4];
    /// Reads an MSR that may not exist (`rdmsr_safe`); None if it faults.
    fn read_msr(msr: u32) -> Option<u64>;
}
