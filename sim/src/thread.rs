//! A vCPU's thread in virtual time: sleeping jumps to the next deadline.

use crate::alloc::uncounted;
use crate::machine::Shared;
use arch::Hva;
use host::{Request, VcpuRequests, VcpuThread};
use parking_lot::{Condvar, Mutex};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::time::Duration;

/// No deadline.
const NEVER: u64 = u64::MAX;
/// So many deadlines in a row without anything else to do are the end: a guest that sleeps through a periodic timer
/// would do it for ever.
const MOST_NAPS: u32 = 1000;

thread_local! {
    static SIGNAL: Cell<bool> = const { Cell::new(false) };
    static NAPS: Cell<u32> = const { Cell::new(0) };
}

/// A signal is pending for the calling thread: its vCPU has nothing left to do.
pub(crate) fn raise() {
    SIGNAL.set(true);
}

/// Takes it back.
pub(crate) fn clear() {
    SIGNAL.set(false);
    NAPS.set(0);
}

/// Is one pending?
pub(crate) fn raised() -> bool {
    SIGNAL.get()
}

/// One vCPU's thread.
pub struct SimThread(Arc<Inner>);

/// What the machine's clock reaches as well.
pub(crate) struct Inner {
    requests: VcpuRequests,
    deadline: AtomicU64,
    kicks: AtomicUsize,
    blocked: AtomicBool,
    yields: AtomicUsize,
    note: AtomicU64,
    asleep: Mutex<()>,
    wakeup: Condvar,
    shared: Arc<Shared>,
}

impl Inner {
    /// The clock stands at `now`: requests the timer's work if the deadline has come.
    pub(crate) fn tick(&self, now: u64) {
        if self.deadline.fetch_update(SeqCst, SeqCst, |d| (d <= now).then_some(NEVER)).is_ok() {
            self.requests.make_request(Request::Timer);
            self.wake();
        }
    }

    pub(crate) fn wake(&self) {
        self.kicks.fetch_add(1, SeqCst);
        drop(self.asleep.lock());
        self.wakeup.notify_all();
    }
}

impl SimThread {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        uncounted(|| {
            let inner = Arc::new(Inner {
                requests: VcpuRequests::new(),
                deadline: AtomicU64::new(NEVER),
                kicks: AtomicUsize::new(0),
                blocked: AtomicBool::new(false),
                yields: AtomicUsize::new(0),
                note: AtomicU64::new(0),
                asleep: Mutex::new(()),
                wakeup: Condvar::new(),
                shared: shared.clone(),
            });
            shared.threads.lock().push(Arc::downgrade(&inner));
            Self(inner)
        })
    }

    /// The armed deadline in virtual nanoseconds.
    pub fn deadline(&self) -> Option<u64> {
        Some(self.0.deadline.load(SeqCst)).filter(|d| *d != NEVER)
    }

    /// How often another vCPU gave it its processor.
    pub fn yields(&self) -> usize {
        self.0.yields.load(SeqCst)
    }

    /// Makes it look asleep to others, or awake.
    pub fn set_blocked(&self, on: bool) {
        self.0.blocked.store(on, SeqCst);
    }

    /// Where the loss of its CPU would be noted; 0: nowhere.
    pub fn note(&self) -> u64 {
        self.0.note.load(SeqCst)
    }

    /// How often somebody woke it, or kicked it out of the guest.
    pub fn kicks(&self) -> usize {
        self.0.kicks.load(SeqCst)
    }
}

impl VcpuThread for SimThread {
    fn requests(&self) -> &VcpuRequests {
        &self.0.requests
    }

    fn kick(&self) {
        self.0.shared.during_kick.fire();
        if self.0.requests.needs_ipi() {
            self.0.kicks.fetch_add(1, SeqCst);
        }
    }

    fn wake(&self) {
        self.0.wake();
    }

    fn block(&self) {
        let me = &*self.0;
        if me.requests.pending() {
            return;
        }
        let deadline = me.deadline.swap(NEVER, SeqCst);
        if deadline != NEVER {
            if NAPS.replace(NAPS.get() + 1) >= MOST_NAPS {
                return raise();
            }
            me.shared.now.fetch_max(deadline, SeqCst);
            me.requests.make_request(Request::Timer);
            return;
        }
        // Nothing happens by itself: wait for another thread, then leave as if a signal came.
        let patience = Duration::from_millis(me.shared.patience.load(SeqCst));
        let mut asleep = me.asleep.lock();
        while !me.requests.pending() && !me.shared.signal.load(SeqCst) {
            if patience.is_zero() || me.wakeup.wait_for(&mut asleep, patience).timed_out() {
                raise();
                return;
            }
        }
    }

    fn is_blocked(&self) -> bool {
        self.0.blocked.load(SeqCst)
    }

    fn yield_to(&self) -> Option<bool> {
        self.0.yields.fetch_add(1, SeqCst);
        Some(true)
    }

    fn note_preemption(&self, at: Option<Hva>) {
        self.0.note.store(at.map_or(0, |at| at.0), SeqCst);
    }

    // Nobody takes a CPU away here; tests write the note themselves.
    fn preemptible(&self, _yes: bool) {}

    // One that has passed fires when time goes on: the host's interrupt takes some.
    fn arm_timer(&self, deadline: u64) {
        self.0.deadline.store(deadline, SeqCst);
    }

    fn cancel_timer(&self) {
        self.0.deadline.store(NEVER, SeqCst);
    }
}
