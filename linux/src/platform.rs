//! The kernel under the world switch.

use crate::{cpuid, shim};
use arch::HostPa;
use core::arch::asm;
use core::ptr::NonNull;
use switch::{CpuData, Pages, Platform};

/// The leaf that says what SVM can do (APM appendix E).
const SVM_LEAF: u32 = 0x8000_000a;

/// Implements [`Platform`] over the shim.
pub enum Kernel {}

// SAFETY: each function does what the trait asks of it through the kernel's own function for it (linux/shim/kvm);
// pages are exclusive and physically contiguous, per-CPU data is at a fixed address.
unsafe impl Platform for Kernel {
    type Fast = vm::fast::Fast;

    fn alloc_pages(order: u32) -> Option<Pages> {
        let mut pa = 0;
        // SAFETY: `pa` is written on success.
        let va = unsafe { shim::hsave_pages_alloc(order, &mut pa) };
        Some(Pages { va: NonNull::new(va)?, pa: HostPa(pa) })
    }

    unsafe fn free_pages(pages: Pages, order: u32) {
        // SAFETY: by contract they came from `alloc_pages`.
        unsafe { shim::hsave_pages_free(pages.va.as_ptr(), order) }
    }

    fn new_token() -> u64 {
        shim::hsave_vcpu_token()
    }

    #[inline(always)]
    fn cpu_data() -> NonNull<CpuData> {
        let this: *mut CpuData;
        // SAFETY: offset 0 of the per-CPU variable holds its own address, written before SVM is used on the CPU.
        unsafe {
            #[cfg(target_os = "none")]
            asm!("mov {}, gs:[rip + hsave_cpu_data]", out(reg) this, options(nostack, preserves_flags, readonly));
            #[cfg(not(target_os = "none"))]
            asm!("xor {0:e}, {0:e}", out(reg) this);
            NonNull::new_unchecked(this)
        }
    }

    #[inline]
    fn may_enter() -> bool {
        shim::hsave_may_enter()
    }

    fn irq_enable() {
        // SAFETY: after `may_enter`, which found interrupts on; nothing is held that they take.
        unsafe { shim::hsave_irq_enable() }
    }

    #[inline]
    fn guest_enter() {
        // SAFETY: interrupts are off, GIF is clear; `guest_exit` follows.
        unsafe { shim::hsave_guest_enter() }
    }

    #[inline]
    fn guest_exit() {
        // SAFETY: as above, after `guest_enter`.
        unsafe { shim::hsave_guest_exit() }
    }

    #[inline]
    fn guest_interrupted(rip: u64, user: bool) {
        // SAFETY: interrupts are off; `guest_done` follows.
        unsafe { shim::hsave_guest_interrupted(rip, user) }
    }

    #[inline]
    fn guest_done(pending: bool) {
        // SAFETY: interrupts are off since `may_enter`, after `guest_exit`.
        unsafe { shim::hsave_guest_done(pending) }
    }

    fn guest_barrier() {
        shim::hsave_guest_barrier();
    }

    fn tell_entry(vcpu: u32, rip: u64, at_once: bool, event_inj: u64) {
        shim::hsave_trace_entry(vcpu, rip, at_once, event_inj);
    }

    fn interrupt_self() {
        shim::hsave_interrupt_self();
    }

    fn machine_check() {
        // SAFETY: interrupts are off, and a machine check ended the guest's run.
        unsafe { shim::hsave_machine_check() }
    }

    fn host_page_fault() -> bool {
        // SAFETY: interrupts are off, and a #PF ended the guest's run.
        unsafe { shim::hsave_host_page_fault() }
    }

    fn wait_for_host_page(token: u32) {
        shim::hsave_wait_for_host_page(token);
    }

    fn has_retbleed() -> bool {
        shim::hsave_has_retbleed()
    }

    fn has_virt_ssbd() -> bool {
        shim::hsave_has_virt_ssbd()
    }

    fn task_ssbd() -> bool {
        shim::hsave_task_ssbd()
    }

    fn virt_spec_ctrl(value: u64, enter: bool) {
        shim::hsave_virt_spec_ctrl(value, enter);
    }

    fn set_user_return_tsc_aux(value: u64) {
        shim::hsave_set_user_return_tsc_aux(value);
    }

    fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
        let [a, b, c, d] = cpuid::raw(leaf, subleaf);
        // What the world switch is not to use.
        let hidden = if leaf == SVM_LEAF { shim::hsave_hidden_svm_features() } else { 0 };
        [a, b, c, d & !hidden]
    }

    fn read_msr(msr: u32) -> Option<u64> {
        let mut value = 0;
        // SAFETY: reading an MSR that does not exist is caught; `value` is ours.
        (unsafe { shim::hsave_read_msr(msr, &mut value) } == 0).then_some(value)
    }
}
