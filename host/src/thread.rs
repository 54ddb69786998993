//! The thread that runs a vCPU, as other threads see it.

use crate::{Errno, PageIns, VcpuRequests};
use arch::Hva;

/// One per vCPU, lives as long as the vCPU: its requests, its place to sleep and its one timer.
///
/// All methods may be called from any thread. `kick`, `wake` and `arm_timer`/`cancel_timer` never sleep.
pub trait VcpuThread: Sync {
    /// What is asked of the vCPU, and whether it is in the guest.
    fn requests(&self) -> &VcpuRequests;

    /// Makes the vCPU leave guest mode if it is there (an IPI only if it is). Ring first.
    fn kick(&self);

    /// As [`kick`](Self::kick), and ends [`block`](Self::block) if the thread sleeps there. Ring first.
    fn wake(&self);

    /// vCPU thread only: sleeps until a request or a signal is pending.
    fn block(&self);

    /// Does the thread sleep in [`block`](Self::block)?
    fn is_blocked(&self) -> bool;

    /// Gives the caller's CPU to this thread, if it is in KVM_RUN and waits for one. Some(true): it has got it;
    /// Some(false): it cannot use it; None: the scheduler has nobody to yield to.
    fn yield_to(&self) -> Option<bool>;

    /// From now on, when the thread loses its CPU while [`preemptible`](Self::preemptible) is set, bit 0 of the byte at
    /// this user address is set, once until this is called again. None: no more, and a write that is going on is over.
    fn note_preemption(&self, at: Option<Hva>);

    /// vCPU thread only: the guest is between two instructions, and nothing is cached on its behalf.
    fn preemptible(&self, yes: bool);

    /// Rings [`Request::Timer`](crate::Request::Timer) and wakes at the absolute monotonic time `deadline` in ns
    /// (a little later if it has passed). Replaces an earlier deadline.
    fn arm_timer(&self, deadline: u64);

    /// vCPU thread only: the deadline expires on this CPU from now on. False: it did already.
    fn migrate_timer(&self) -> bool {
        false
    }

    /// Forgets the deadline. A timer that is firing on another CPU may still make its request.
    fn cancel_timer(&self);

    /// vCPU thread only: writes back and invalidates the caches of each CPU that the thread has been on in KVM_RUN since
    /// this was last called.
    fn wbinvd(&self);

    /// How often the thread was in KVM_RUN and lost its CPU though it could have gone on: while
    /// [`preemptible`](Self::preemptible) was set, and otherwise.
    fn preemptions(&self) -> [u64; 2] {
        [0; 2]
    }

    /// Which of the page-ins that were started are over.
    fn page_ins(&self) -> &PageIns;

    /// vCPU thread only: begins to bring in the page at `hva` (page aligned) of the current task's memory, as if the
    /// task had read it, or written it with `write`. Does not sleep. When that is over, whether the page came or not,
    /// [`page_ins`](Self::page_ins) says so of `n` (below [`PageIns::LIMIT`]), [`Request::ApfReady`] is made and the
    /// thread is woken. The page is not kept: it may have gone again when the vCPU looks.
    ///
    /// Errors: ENOMEM (no memory at once, or too many under way on this machine); then nothing was begun.
    ///
    /// [`Request::ApfReady`]: crate::Request::ApfReady
    fn start_page_in(&self, hva: Hva, write: bool, n: u8) -> Result<(), Errno>;

    /// vCPU thread only: whatever was started is of no interest any more, and `page_ins` is empty. Does not wait: what is
    /// under way goes on, but says nothing when it is over.
    fn forget_page_ins(&self);
}
