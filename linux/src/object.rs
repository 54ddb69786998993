//! The object behind the files of a VM, and who holds it: the VM's own file, those of its vCPUs, of its statistics and of its
//! VFIO device, and drivers of devices that its guest uses.

use crate::{Linux, irqfd::Irqfds, shim, shim::KMm, shim::KNotifier, vfio::Vfio};
use alloc::boxed::Box;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};
use host::{Errno, OneBox, try_box};

type Vm = vm::Vm<Linux>;

/// What the files of a VM share.
pub struct VmObject {
    references: AtomicUsize,
    /// Both null until the VM is at its final place.
    notifier: AtomicPtr<KNotifier>,
    /// The address space of the creator, the only one that may use the VM. Compared, never read through.
    mm: AtomicPtr<KMm>,
    /// Closed before the VM goes that it raises interrupts of.
    pub irqfds: Irqfds,
    pub vfio: Vfio,
    /// The process that made it.
    pub pid: u32,
    pub vm: OneBox<Vm>,
    /// Goes last: some processors run differently while there are VMs.
    _counted: Counted,
}

/// One VM, for the shim's count of them.
struct Counted;

impl Counted {
    fn new() -> Self {
        shim::hsave_vm_comes();
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // SAFETY: `new` counted it.
        unsafe { shim::hsave_vm_gone() }
    }
}

/// A counted reference to a VM.
pub struct VmRef(NonNull<VmObject>);

impl VmRef {
    /// A VM of the current process. Errors: ENOMEM.
    pub fn new() -> Result<Self, Errno> {
        let vm = Vm::new(Linux)?;
        let object = try_box(|| VmObject {
            references: AtomicUsize::new(1),
            notifier: AtomicPtr::new(null_mut()),
            mm: AtomicPtr::new(null_mut()),
            irqfds: Irqfds::default(),
            vfio: Vfio::default(),
            pid: shim::hsave_pid(),
            vm,
            _counted: Counted::new(),
        })?;
        let object = Box::into_raw(object.into_inner()).cast::<VmObject>();
        // SAFETY: the box's pointer.
        let this = Self(unsafe { NonNull::new_unchecked(object) });
        let vm: &Vm = &this.vm;
        // SAFETY: the VM stays where it is, and its hrtimers are the first of it to be dropped.
        unsafe { vm.hrtimers.bind(vm) };
        // SAFETY: the VM stays where it is and outlives the notifier (`drop`).
        let notifier = unsafe { shim::hsave_notifier_new((&raw const *vm).cast()) };
        if notifier.is_null() {
            return Err(Errno::ENOMEM);
        }
        this.notifier.store(notifier, Release);
        // SAFETY: the notifier was just made.
        this.mm.store(unsafe { shim::hsave_notifier_mm(notifier) }.cast_mut(), Release);
        Ok(this)
    }
}

impl VmObject {
    /// Is `mm` the address space of the creator?
    #[inline]
    pub fn belongs_to(&self, mm: *const KMm) -> bool {
        self.mm.load(Relaxed).cast_const() == mm
    }

    /// Devices of the host's that the guest uses do not keep the caches right ([`vm::Vm::set_noncoherent_dma`]).
    pub fn set_noncoherent_dma(&self, yes: bool) {
        self.vm.set_noncoherent_dma(yes);
    }
}

impl Clone for VmRef {
    fn clone(&self) -> Self {
        self.references.fetch_add(1, Relaxed);
        Self(self.0)
    }
}

// SAFETY: the object is only ever shared, and may be dropped by any thread.
unsafe impl Send for VmRef {}
// SAFETY: as above; a shared reference gives no more than a shared object.
unsafe impl Sync for VmRef {}

impl core::ops::Deref for VmRef {
    type Target = VmObject;

    fn deref(&self) -> &VmObject {
        // SAFETY: the reference keeps it alive; it is only ever shared.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for VmRef {
    /// The last reference goes in process context: a file's release, a system call, or a driver's close of a device, with
    /// VFIO's own locks held.
    fn drop(&mut self) {
        if self.references.fetch_sub(1, AcqRel) != 1 {
            return;
        }
        self.irqfds.close();
        let notifier = self.notifier.load(Acquire);
        // SAFETY: the last reference. First no notifier call comes any more, then the VM goes; it came from a box of
        // an array of one.
        unsafe {
            if !notifier.is_null() {
                shim::hsave_notifier_free(notifier);
            }
            drop(Box::from_raw(self.0.as_ptr().cast::<[VmObject; 1]>()));
        }
    }
}

/// A driver takes a reference to a VM that it was told of by `hsave_vfio_set_vm`. False: the VM is about to go.
///
/// # Safety
/// `vm` is what the driver was told and not yet told otherwise.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_get(vm: *const VmObject) -> bool {
    // SAFETY: by contract: it is taken back from the driver before the VM goes.
    let vm = unsafe { &*vm };
    vm.references.fetch_update(AcqRel, Relaxed, |n| (n != 0).then(|| n + 1)).is_ok()
}

/// It gives the reference back. Process context.
///
/// # Safety
/// `vm` is what `hsave_vm_get` was called with, once for each call of this.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_put(vm: *mut VmObject) {
    if let Some(vm) = NonNull::new(vm) {
        drop(VmRef(vm));
    }
}
