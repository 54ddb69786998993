//! What the kernel tells a VM: that its process's memory changes, and that an eventfd was signalled.

use crate::{Linux, errno::status, event::KernelEventFd, shim::KEventFd};
use arch::Hva;
use vm::Context;

type Vm = vm::Vm<Linux>;

/// mmu notifier: `[start, end)` of the process is about to change.
///
/// # Safety
/// Here and below: `vm` is what `hsave_vm_new` returned, and not freed.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_invalidate_start(vm: *const Vm, start: u64, end: u64, may_block: bool) {
    // SAFETY: by contract.
    unsafe { &*vm }.mmu_invalidate_start(Hva(start), Hva(end), may_block);
}

/// mmu notifier: it has changed.
///
/// # Safety
/// See [`hsave_invalidate_start`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_invalidate_end(vm: *const Vm, start: u64, end: u64) {
    // SAFETY: by contract.
    unsafe { &*vm }.mmu_invalidate_end(Hva(start), Hva(end));
}

/// mmu notifier: was it used? Forgets it.
///
/// # Safety
/// See [`hsave_invalidate_start`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_age(vm: *const Vm, start: u64, end: u64) -> bool {
    // SAFETY: by contract.
    unsafe { &*vm }.mmu_age(Hva(start), Hva(end))
}

/// mmu notifier: was it used?
///
/// # Safety
/// See [`hsave_invalidate_start`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_test_young(vm: *const Vm, start: u64, end: u64) -> bool {
    // SAFETY: by contract.
    unsafe { &*vm }.mmu_test_young(Hva(start), Hva(end))
}

/// mmu notifier: the process is gone.
///
/// # Safety
/// See [`hsave_invalidate_start`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_mm_release(vm: *const Vm) {
    // SAFETY: by contract.
    unsafe { &*vm }.mmu_release();
}

/// An eventfd raises an interrupt. With `in_task` interrupts are on, and it is done; else they may be off, and false says that
/// nothing has happened, because it would take too long there.
///
/// # Safety
/// See [`hsave_invalidate_start`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_irqfd_raise(vm: *const Vm, gsi: u32, resample: bool, in_task: bool) -> bool {
    // SAFETY: by contract.
    let vm = unsafe { &*vm };
    let context = if in_task { Context::Task } else { Context::Any };
    let raised = if resample { vm.raise_until_eoi(context, gsi) } else { vm.pulse_gsi(context, gsi) };
    raised.is_ok()
}

/// The eventfd is signalled at the end of the interrupt `gsi` from now on. 0 or a negative errno: ENOMEM.
///
/// # Safety
/// See [`hsave_invalidate_start`]; `event` lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_add_resampler(vm: *const Vm, gsi: u32, event: *mut KEventFd) -> i32 {
    // SAFETY: by contract.
    let (vm, event) = unsafe { (&*vm, KernelEventFd::of_base(event)) };
    status(vm.add_resampler(gsi, event))
}

/// It is not any more.
///
/// # Safety
/// See [`hsave_add_resampler`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_remove_resampler(vm: *const Vm, gsi: u32, event: *mut KEventFd) {
    // SAFETY: by contract.
    let (vm, event) = unsafe { (&*vm, KernelEventFd::of_base(event)) };
    vm.remove_resampler(gsi, &event);
}
