//! What the kernel tells a VM: that its process's memory changes, and that an eventfd was signalled.

use crate::Linux;
use arch::Hva;

type Vm = vm::Vm<Linux>;

/// mmu notifier: `[start, end)` of the process is about to change.
///
/// # Safety
/// Here and below: `vm` is the one that the notifier or irqfd was made with; both are freed before it.
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

/// An eventfd raises an interrupt. Interrupts may be off.
///
/// # Safety
/// See [`hsave_invalidate_start`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_irqfd_raise(vm: *const Vm, gsi: u32, resample: bool) {
    // SAFETY: by contract.
    let vm = unsafe { &*vm };
    if resample {
        vm.raise_until_eoi(gsi);
    } else {
        vm.pulse_gsi(gsi);
    }
}
