//! A vCPU's thread in virtual time: sleeping jumps to the next deadline.

use crate::alloc::{fails, uncounted};
use crate::lock::one_is_told;
use crate::machine::Shared;
use arch::Hva;
use host::{Errno, PageIns, Request, VcpuRequests, VcpuThread};
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
#[derive(Clone)]
pub struct SimThread(Arc<Inner>);

crate::lent::lend!(SimThread = Thread);

/// What the machine's clock reaches as well.
pub(crate) struct Inner {
    pub(crate) requests: VcpuRequests,
    deadline: AtomicU64,
    kicks: AtomicUsize,
    blocked: AtomicBool,
    /// The VM was handed over when it was about to sleep.
    handed_over: AtomicBool,
    yields: AtomicUsize,
    migrations: AtomicUsize,
    wbinvds: AtomicUsize,
    note: AtomicU64,
    page_ins: PageIns,
    /// Those that are under way.
    under_way: Mutex<Vec<PageIn>>,
    asleep: Mutex<()>,
    wakeup: Condvar,
    shared: Arc<Shared>,
}

/// A page that is brought in beside the vCPU.
struct PageIn {
    /// When it will be there.
    at: u64,
    hva: Hva,
    /// Its number; None once nobody wants to know.
    number: Option<u8>,
}

impl Inner {
    /// When the next page will be there.
    fn next_page(&self) -> u64 {
        self.under_way.lock().iter().map(|p| p.at).min().unwrap_or(NEVER)
    }

    /// Pages whose time has come are there.
    fn bring_in(&self, now: u64) {
        let mut all = self.under_way.lock();
        let over: Vec<_> = uncounted(|| {
            let over = all.iter().filter(|p| p.at <= now).map(|p| (p.hva, p.number)).collect();
            all.retain(|p| p.at > now);
            over
        });
        drop(all);
        for (hva, number) in &over {
            self.shared.memory.bring_in(hva.0);
            if number.is_some_and(|n| self.page_ins.finish(n)) {
                self.requests.make_request(Request::ApfReady);
                self.wake();
            }
        }
        uncounted(|| drop(over));
    }

    /// The clock stands at `now`: requests the timer's work if the deadline has come.
    pub(crate) fn tick(&self, now: u64) {
        self.bring_in(now);
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
                handed_over: AtomicBool::new(false),
                yields: AtomicUsize::new(0),
                migrations: AtomicUsize::new(0),
                wbinvds: AtomicUsize::new(0),
                note: AtomicU64::new(0),
                page_ins: PageIns::new(),
                under_way: Mutex::new(Vec::new()),
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

    /// How often caches were written back for the guest.
    pub fn wbinvds(&self) -> usize {
        self.0.wbinvds.load(SeqCst)
    }

    /// How often its timer was to follow it to another CPU.
    pub fn migrations(&self) -> usize {
        self.0.migrations.load(SeqCst)
    }

    /// Makes it look asleep to others, or awake.
    pub fn set_blocked(&self, on: bool) {
        self.0.blocked.store(on, SeqCst);
    }

    /// Where the loss of its CPU would be noted; 0: nowhere.
    pub fn note(&self) -> u64 {
        self.0.note.load(SeqCst)
    }

    /// Pages that are being brought in beside it.
    pub fn pages_under_way(&self) -> usize {
        self.0.under_way.lock().len()
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
        one_is_told();
        self.0.shared.during_kick.fire();
        if self.0.requests.needs_ipi() {
            self.0.kicks.fetch_add(1, SeqCst);
        }
    }

    fn wake(&self) {
        one_is_told();
        self.0.shared.during_wake.fire();
        self.0.wake();
    }

    fn block(&self) {
        let me = &*self.0;
        if me.requests.pending() {
            return;
        }
        if me.shared.hand_over.load(SeqCst) && !me.handed_over.fetch_xor(true, SeqCst) {
            return me.requests.make_request(Request::HandOver);
        }
        let page = me.next_page();
        if page != NEVER && page <= me.deadline.load(SeqCst) {
            me.shared.now.fetch_max(page, SeqCst);
            return me.bring_in(page);
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

    fn migrate_timer(&self) -> bool {
        self.0.migrations.fetch_add(1, SeqCst);
        true
    }

    fn cancel_timer(&self) {
        self.0.deadline.store(NEVER, SeqCst);
    }

    fn wbinvd(&self) {
        self.0.wbinvds.fetch_add(1, SeqCst);
    }

    fn page_ins(&self) -> &PageIns {
        &self.0.page_ins
    }

    fn start_page_in(&self, hva: Hva, _write: bool, n: u8) -> Result<(), Errno> {
        let mut all = self.0.under_way.lock();
        if fails() || all.len() >= PageIns::LIMIT {
            return Err(Errno::ENOMEM);
        }
        let (now, ns) = (self.0.shared.now.load(SeqCst), self.0.shared.page_latency.load(SeqCst));
        uncounted(|| all.push(PageIn { at: now.saturating_add(ns), hva, number: Some(n) }));
        Ok(())
    }

    fn forget_page_ins(&self) {
        self.0.under_way.lock().iter_mut().for_each(|p| p.number = None);
        self.0.page_ins.clear();
    }
}
