//! The thread of a vCPU.

use crate::{Linux, errno::check, lock::SleepMutex, lock::UntilKilled, shim, shim::KPageIns, shim::KThread};
use arch::Hva;
use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::*};
use host::{Errno, PageIns, Request, VcpuRequests, VcpuThread, try_box};
use lock_api::{RawMutex, RawMutexTimed};

type Vm = vm::Vm<Linux>;

/// Requests, sleeping place, timer.
pub struct Thread(NonNull<Shared>);

/// At a fixed place, because the timer refers to it.
struct Shared {
    /// How many handles there are.
    handles: AtomicUsize,
    requests: VcpuRequests,
    /// Set once, before the timer can be armed.
    kernel: AtomicPtr<KThread>,
    /// Page-ins that are over.
    page_ins: PageIns,
    /// Set once, before any can be started.
    kernel_page_ins: AtomicPtr<KPageIns>,
    /// Sleeps in [`block`](VcpuThread::block).
    blocked: AtomicBool,
    /// Who is in KVM_RUN.
    run: SleepMutex,
    /// The VM of whoever is.
    vm: AtomicPtr<Vm>,
}

// SAFETY: `Shared` is reached by shared reference only, and all in it may be used from any thread.
unsafe impl Send for Thread {}
// SAFETY: as above.
unsafe impl Sync for Thread {}

impl Thread {
    /// `sibling`: see [`Host::new_thread`](host::Host::new_thread). Errors: ENOMEM.
    pub fn new(sibling: Option<&Self>) -> Result<Self, Errno> {
        let shared = Shared {
            handles: AtomicUsize::new(1),
            requests: VcpuRequests::new(),
            kernel: AtomicPtr::new(null_mut()),
            page_ins: PageIns::new(),
            kernel_page_ins: AtomicPtr::new(null_mut()),
            blocked: AtomicBool::new(false),
            run: SleepMutex::INIT,
            vm: AtomicPtr::default(),
        };
        let shared = alloc::boxed::Box::into_raw(try_box(|| shared)?.into_inner()).cast::<Shared>();
        // SAFETY: the box's pointer.
        let this = Self(unsafe { NonNull::new_unchecked(shared) });
        // SAFETY: the owner outlives the kernel's object (`drop`).
        let kernel = unsafe { shim::hsave_thread_new(shared.cast::<c_void>()) };
        this.shared().kernel.store(kernel, Release);
        let sibling = sibling.map_or(null_mut(), |s| s.shared().kernel_page_ins.load(Acquire));
        // SAFETY: as above; the sibling lives.
        let page_ins = unsafe { shim::hsave_page_ins_new(shared.cast::<c_void>(), sibling) };
        this.shared().kernel_page_ins.store(page_ins, Release);
        if kernel.is_null() || page_ins.is_null() { Err(Errno::ENOMEM) } else { Ok(this) }
    }

    #[inline]
    fn shared(&self) -> &Shared {
        // SAFETY: lives until the last handle is dropped.
        unsafe { self.0.as_ref() }
    }

    /// The current task is in KVM_RUN until the guard is dropped: [`kick`](VcpuThread::kick) finds it. Waits for
    /// another thread that is in KVM_RUN of the same vCPU. Errors: EINTR (killed while it waits).
    #[inline]
    pub fn running<'a>(&'a self, vm: &'a Vm) -> Result<Running<'a>, Errno> {
        let shared = self.shared();
        if !shared.run.try_lock_for(UntilKilled) {
            return Err(Errno::EINTR);
        }
        shared.vm.store((&raw const *vm).cast_mut(), Relaxed);
        // SAFETY: the lock makes us the only one.
        unsafe { shim::hsave_thread_run(shared.kernel(), true) };
        Ok(Running(shared))
    }
}

/// The VM's vCPUs run no more: one of its threads dies.
///
/// # Safety
/// `owner` is what the shim says this thread is in KVM_RUN of, or null.
pub unsafe fn abandon(owner: *const c_void) {
    // SAFETY: by contract it is the `Shared` of a vCPU whose file is in use; so is its VM, which `running` noted.
    if let Some(vm) = unsafe { owner.cast::<Shared>().as_ref().and_then(|shared| shared.vm.load(Relaxed).as_ref()) } {
        vm.kill();
    }
}

/// See [`Thread::running`].
pub struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: locked by `running`, in the same task.
        unsafe {
            shim::hsave_thread_run(self.0.kernel(), false);
            self.0.run.unlock();
        }
    }
}

impl Shared {
    #[inline]
    fn kernel(&self) -> *mut KThread {
        self.kernel.load(Relaxed)
    }

    #[inline]
    fn kick(&self) {
        if self.requests.needs_ipi() {
            // SAFETY: the kernel's object lives as long as we do.
            unsafe { shim::hsave_thread_kick(self.kernel()) }
        }
    }

    fn wake(&self) {
        // SAFETY: as above.
        unsafe { shim::hsave_thread_wake(self.kernel()) };
        self.kick();
    }
}

impl VcpuThread for Thread {
    #[inline]
    fn requests(&self) -> &VcpuRequests {
        &self.shared().requests
    }

    #[inline]
    fn kick(&self) {
        self.shared().kick();
    }

    fn wake(&self) {
        self.shared().wake();
    }

    fn block(&self) {
        #[cfg(feature = "panics")]
        crate::on_purpose::in_the_loop();
        let kernel = self.shared().kernel();
        self.shared().blocked.store(true, Relaxed);
        // SAFETY: the kernel's object lives as long as we do; begin and end pair up in the same task.
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
        // SAFETY: the kernel's object lives as long as we do.
        let got = unsafe { shim::hsave_thread_yield_to(self.shared().kernel()) };
        (got >= 0).then_some(got > 0)
    }

    fn note_preemption(&self, at: Option<Hva>) {
        // SAFETY: as above. The kernel writes through the user's address as user space may.
        unsafe { shim::hsave_thread_note(self.shared().kernel(), at.map_or(0, |at| at.0)) }
    }

    #[inline]
    fn preemptible(&self, yes: bool) {
        // SAFETY: as above; the caller is the thread itself.
        unsafe { shim::hsave_thread_preemptible(self.shared().kernel(), yes) }
    }

    fn arm_timer(&self, deadline: u64) {
        // SAFETY: as above.
        unsafe { shim::hsave_timer_arm(self.shared().kernel(), deadline) }
    }

    fn migrate_timer(&self) {
        // SAFETY: as above; the caller is the thread itself, which alone arms and cancels it.
        unsafe { shim::hsave_timer_migrate(self.shared().kernel()) }
    }

    fn cancel_timer(&self) {
        // SAFETY: as above.
        unsafe { shim::hsave_timer_cancel(self.shared().kernel()) }
    }

    fn wbinvd(&self) {
        // SAFETY: the kernel's object lives as long as we do.
        unsafe { shim::hsave_thread_wbinvd(self.shared().kernel()) }
    }

    fn preemptions(&self) -> [u64; 2] {
        let (mut reported, mut other) = (0, 0);
        // SAFETY: the kernel's object lives as long as we do; two numbers of ours.
        unsafe { shim::hsave_thread_preemptions(self.shared().kernel(), &mut reported, &mut other) };
        [reported, other]
    }

    #[inline]
    fn page_ins(&self) -> &PageIns {
        &self.shared().page_ins
    }

    fn start_page_in(&self, hva: Hva, write: bool, n: u8) -> Result<(), Errno> {
        let kernel = self.shared().kernel_page_ins.load(Relaxed);
        // SAFETY: the kernel's object lives as long as we do; any address may be asked for.
        check(unsafe { shim::hsave_page_in_start(kernel, hva.0, write, n) }).map(|_| ())
    }

    fn forget_page_ins(&self) {
        // SAFETY: as above.
        unsafe { shim::hsave_page_ins_forget(self.shared().kernel_page_ins.load(Relaxed)) };
        self.shared().page_ins.clear();
    }
}

impl Clone for Thread {
    fn clone(&self) -> Self {
        self.shared().handles.fetch_add(1, Relaxed);
        Self(self.0)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if self.shared().handles.fetch_sub(1, AcqRel) != 1 {
            return;
        }
        let kernel = self.shared().kernel();
        let page_ins = self.shared().kernel_page_ins.load(Relaxed);
        // SAFETY: nobody else has the thread any more. The kernel's objects go first: page-ins that are under way say
        // nothing from then on, and the timer, which is waited for, is the last to look at `Shared`; that came from a box
        // of an array of one.
        unsafe {
            if !page_ins.is_null() {
                shim::hsave_page_ins_free(page_ins);
            }
            if !kernel.is_null() {
                shim::hsave_thread_free(kernel);
            }
            drop(alloc::boxed::Box::from_raw(self.0.as_ptr().cast::<[Shared; 1]>()));
        }
    }
}

/// The timer of a vCPU expired; hard interrupt context.
///
/// # Safety
/// `owner` is the `Shared` that the timer was made with, and alive: freeing it waits for this call.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_timer_expired(owner: *const c_void) {
    // SAFETY: by contract.
    let shared = unsafe { &*owner.cast::<Shared>() };
    shared.requests.make_request(Request::Timer);
    shared.wake();
}

/// A vCPU's thread got a CPU again, or another one. Preemption is off.
///
/// # Safety
/// As [`hsave_timer_expired`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_scheduled(owner: *const c_void) {
    // SAFETY: by contract.
    let shared = unsafe { &*owner.cast::<Shared>() };
    shared.requests.make_request(Request::StealUpdate);
}

/// A page-in is over; process context, with a spin lock held that orders it before the thread's end.
///
/// # Safety
/// `owner` is the `Shared` that the page-in was started for, and alive: freeing it takes the lock.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_page_in_done(owner: *const c_void, number: u8) {
    // SAFETY: by contract.
    let shared = unsafe { &*owner.cast::<Shared>() };
    if shared.page_ins.finish(number) {
        shared.requests.make_request(Request::ApfReady);
        shared.wake();
    }
}
