//! A vCPU's thread in virtual time: sleeping jumps to the next deadline.

use crate::machine::Shared;
use host::{Doorbell, Request, VcpuThread};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};

/// No deadline.
const NEVER: u64 = u64::MAX;

/// One vCPU's thread.
pub struct SimThread {
    bell: Doorbell,
    deadline: AtomicU64,
    /// How often somebody kicked or woke it.
    pub kicks: AtomicUsize,
    asleep: Mutex<()>,
    wakeup: Condvar,
    shared: Arc<Shared>,
}

impl SimThread {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            bell: Doorbell::new(),
            deadline: AtomicU64::new(NEVER),
            kicks: AtomicUsize::new(0),
            asleep: Mutex::new(()),
            wakeup: Condvar::new(),
            shared,
        }
    }

    /// The armed deadline in virtual nanoseconds.
    pub fn deadline(&self) -> Option<u64> {
        Some(self.deadline.load(SeqCst)).filter(|d| *d != NEVER)
    }
}

impl VcpuThread for SimThread {
    fn bell(&self) -> &Doorbell {
        &self.bell
    }

    fn kick(&self) {
        if self.bell.needs_ipi() {
            self.kicks.fetch_add(1, SeqCst);
        }
    }

    fn wake(&self) {
        self.kicks.fetch_add(1, SeqCst);
        drop(self.asleep.lock());
        self.wakeup.notify_all();
    }

    fn block(&self) {
        if self.bell.pending() {
            return;
        }
        let deadline = self.deadline.swap(NEVER, SeqCst);
        if deadline != NEVER {
            self.shared.now.fetch_max(deadline, SeqCst);
            self.bell.ring(Request::Timer);
            return;
        }
        // Nothing will happen by itself: wait for another thread for a moment, then give up as if a signal came.
        let mut asleep = self.asleep.lock();
        if !self.bell.pending() {
            self.wakeup.wait_for(&mut asleep, std::time::Duration::from_millis(20));
        }
        if !self.bell.pending() {
            self.shared.signal.store(true, SeqCst);
        }
    }

    fn arm_timer(&self, deadline: u64) {
        if deadline <= self.shared.now.load(SeqCst) {
            self.bell.ring(Request::Timer);
        } else {
            self.deadline.store(deadline, SeqCst);
        }
    }

    fn cancel_timer(&self) {
        self.deadline.store(NEVER, SeqCst);
    }
}
