//! The thread of a vCPU.

use crate::{Linux, errno::check, lend::lend, shim, shim::KThread, shim::ThreadShared};
use arch::Hva;
use core::ffi::c_void;
use core::ptr::{NonNull, null, null_mut};
use core::sync::atomic::Ordering::*;
use host::{Errno, PageIns, VcpuRequests, VcpuThread};

type Vm = vm::Vm<Linux>;

/// Requests, sleeping place, timer: a counted reference to the base's.
pub struct Thread(NonNull<KThread>);

// SAFETY: the base's object is reached by shared reference only, and all in it may be used from any thread.
unsafe impl Send for Thread {}
// SAFETY: as above.
unsafe impl Sync for Thread {}

impl Thread {
    /// `sibling`: see [`Host::new_thread`](host::Host::new_thread). Errors: ENOMEM.
    pub fn new(sibling: Option<&Self>) -> Result<Self, Errno> {
        let sibling = sibling.map_or(null_mut(), Self::kernel);
        // SAFETY: the sibling lives.
        NonNull::new(unsafe { shim::hsave_thread_new(sibling) }).map(Self).ok_or(Errno::ENOMEM)
    }

    #[inline]
    fn kernel(&self) -> *mut KThread {
        self.0.as_ptr()
    }

    #[inline]
    fn shared(&self) -> &ThreadShared {
        // SAFETY: the base's object begins with it, and lives until the last reference is dropped.
        unsafe { self.0.cast().as_ref() }
    }

    /// The current task is in KVM_RUN until the guard is dropped: [`kick`](VcpuThread::kick) finds it. The base sees to it that it
    /// is the only one.
    #[inline]
    pub fn running<'a>(&'a self, vm: &'a Vm) -> Running<'a> {
        // SAFETY: no other is; the VM outlives the guard.
        unsafe { shim::hsave_thread_run(self.kernel(), (&raw const *vm).cast()) };
        Running(self)
    }
}

/// The VM's vCPUs run no more: one of its threads dies.
///
/// # Safety
/// `vm` is that of which the base says that this thread is in its KVM_RUN, or null.
pub unsafe fn abandon(vm: *const c_void) {
    // SAFETY: by contract it is what `running` was given, and its files are in use.
    if let Some(vm) = unsafe { vm.cast::<Vm>().as_ref() } {
        vm.kill();
    }
}

/// See [`Thread::running`].
pub struct Running<'a>(&'a Thread);

impl Drop for Running<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: begun by `running`, in the same task.
        unsafe { shim::hsave_thread_run(self.0.kernel(), null()) }
    }
}

impl VcpuThread for Thread {
    #[inline]
    fn requests(&self) -> &VcpuRequests {
        &self.shared().requests
    }

    #[inline]
    fn kick(&self) {
        if self.shared().requests.needs_ipi() {
            // SAFETY: the base's object lives as long as we do.
            unsafe { shim::hsave_thread_kick(self.kernel()) }
        }
    }

    fn wake(&self) {
        // SAFETY: as above.
        unsafe { shim::hsave_thread_wake(self.kernel()) };
        self.kick();
    }

    fn block(&self) {
        #[cfg(feature = "panics")]
        crate::on_purpose::in_the_loop();
        let kernel = self.kernel();
        self.shared().blocked.store(true, Relaxed);
        // SAFETY: the base's object lives as long as we do; begin and end pair up in the same task.
        unsafe { shim::hsave_thread_block_begin(kernel) };
        // A waker makes its request first and wakes then; this thread announces its sleep first and looks at the requests then.
        while shim::hsave_thread_block_prepare() && !self.requests().pending() {
            shim::hsave_thread_block_sleep();
        }
        // SAFETY: as above.
        unsafe { shim::hsave_thread_block_end(kernel) };
        self.shared().blocked.store(false, Relaxed);
    }

    fn is_blocked(&self) -> bool {
        self.shared().blocked.load(Relaxed)
    }

    fn yield_to(&self) -> Option<bool> {
        // SAFETY: the base's object lives as long as we do.
        let got = unsafe { shim::hsave_thread_yield_to(self.kernel()) };
        (got >= 0).then_some(got > 0)
    }

    fn note_preemption(&self, at: Option<Hva>) {
        // SAFETY: as above. The kernel writes through the user's address as user space may.
        unsafe { shim::hsave_thread_note(self.kernel(), at.map_or(0, |at| at.0)) }
    }

    #[inline]
    fn preemptible(&self, yes: bool) {
        // SAFETY: as above; the caller is the thread itself.
        unsafe { shim::hsave_thread_preemptible(self.kernel(), yes) }
    }

    fn arm_timer(&self, deadline: u64) {
        // SAFETY: as above.
        unsafe { shim::hsave_timer_arm(self.kernel(), deadline) }
    }

    fn migrate_timer(&self) -> bool {
        // SAFETY: as above; the caller is the thread itself, which alone arms and cancels it.
        unsafe { shim::hsave_timer_migrate(self.kernel()) }
    }

    fn cancel_timer(&self) {
        // SAFETY: as above.
        unsafe { shim::hsave_timer_cancel(self.kernel()) }
    }

    fn wbinvd(&self) {
        // SAFETY: the base's object lives as long as we do.
        unsafe { shim::hsave_thread_wbinvd(self.kernel()) }
    }

    fn preemptions(&self) -> [u64; 2] {
        let (mut reported, mut other) = (0, 0);
        // SAFETY: the base's object lives as long as we do; two numbers of ours.
        unsafe { shim::hsave_thread_preemptions(self.kernel(), &mut reported, &mut other) };
        [reported, other]
    }

    #[inline]
    fn page_ins(&self) -> &PageIns {
        &self.shared().page_ins
    }

    fn start_page_in(&self, hva: Hva, write: bool, n: u8) -> Result<(), Errno> {
        // SAFETY: the base's object lives as long as we do; any address may be asked for.
        check(unsafe { shim::hsave_page_in_start(self.kernel(), hva.0, write, n) }).map(|_| ())
    }

    fn forget_page_ins(&self) {
        // SAFETY: as above.
        unsafe { shim::hsave_page_ins_forget(self.kernel()) };
        self.shared().page_ins.clear();
    }
}

lend!(Thread, Thread, hsave_thread_get);

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: our reference.
        unsafe { shim::hsave_thread_put(self.kernel()) }
    }
}
