//! The machine: `host::Host` in user space.
//!
//! Long because: one trait, and what stands behind its functions.

use crate::alloc::{fails, uncounted};
use crate::cpu::Script;
use crate::lock::{self, Ranked};
use crate::memory::{Arena, Page, SimPage, SimUserPage, zeroed_page};
use crate::thread::Inner;
use crate::{Outcome, SimCpu, SimFpu, SimThread, SimVcpu, thread};
use arch::{HostPa, Hva};
use host::{
    Command, CpuConfig, CpuFeatures, Errno, EventFd, Host, Hrtimer, Hrtimers, LastExit, MapLevel, PollParameters,
    Request, Stop, TableCells, TablePage, TimePoint, Trace, TraceSet, Work,
};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// Page-table pages that a machine has.
const TABLES: usize = 4096;
/// Physical address of the first page-table page.
const TABLE_BASE: u64 = 0x10_0000;

struct TableSlot {
    cells: OnceLock<Box<TableCells>>,
    live: AtomicBool,
}

/// What all handles of a machine share.
pub struct Shared {
    /// Virtual nanoseconds.
    pub now: AtomicU64,
    /// A signal is pending for every vCPU's thread.
    pub signal: AtomicBool,
    /// How long, in real milliseconds, a thread that sleeps without a deadline waits for others.
    pub(crate) patience: AtomicU64,
    /// How long, in virtual nanoseconds, it takes to bring a page in; u64::MAX: for ever.
    pub(crate) page_latency: AtomicU64,
    halt_poll: AtomicU64,
    linux_version: AtomicU32,
    /// How often a halted vCPU looked around.
    pub polls: AtomicUsize,
    /// Events of the run loop that are wanted, and all that were told.
    traced: AtomicU32,
    told: parking_lot::Mutex<Vec<Trace>>,
    ends: parking_lot::Mutex<Vec<LastExit>>,
    pub(crate) threads: parking_lot::Mutex<Vec<Weak<Inner>>>,
    pub(crate) memory: Arena,
    tables: Vec<TableSlot>,
    tables_live: AtomicUsize,
    scripts: parking_lot::Mutex<Vec<Script>>,
    /// Numbers of processors that exist.
    pub(crate) cpus: parking_lot::Mutex<Vec<bool>>,
    events: Vec<Arc<AtomicU64>>,
    during_fault: Hook,
    pub(crate) during_kick: Hook,
    pub(crate) during_wake: Hook,
    during_wait: Hook,
    during_poll: Hook,
    before_exchange: Hook,
    /// How often a thread would have given its CPU away.
    offers: AtomicUsize,
    /// How often the machine slept.
    suspends: AtomicU64,
    /// Nanoseconds that it slept, and cycles that its TSC lost with it.
    slept: AtomicU64,
    tsc_lost: AtomicU64,
    /// The host keeps time by something else than the TSC.
    tsc_unstable: AtomicBool,
    /// Addresses of pages for which a thread was sent SIGBUS.
    pub sigbus: parking_lot::Mutex<Vec<u64>>,
    /// The pages that a thread has slept for although it had a signal pending.
    pub awaited: parking_lot::Mutex<Vec<u64>>,
    features: CpuFeatures,
    assembly: AtomicBool,
    /// Each exit, and each sleep, is one at which the VM is handed over.
    pub(crate) hand_over: AtomicBool,
    /// Nanoseconds that every thread has waited for a CPU.
    pub run_delay: AtomicU64,
    /// Nanoseconds that every thread has run.
    pub runtime: AtomicU64,
    /// Commands that guests gave.
    pub commands: parking_lot::Mutex<Vec<Command>>,
    /// Warnings that the hypervisor gave.
    pub warnings: parking_lot::Mutex<Vec<(&'static str, u64)>>,
}

/// Something that happens once, in the middle of something else: a race that always comes out the same way.
#[derive(Default)]
pub(crate) struct Hook(parking_lot::Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Hook {
    pub(crate) fn fire(&self) {
        let f = self.0.lock().take();
        if let Some(f) = f {
            lock::as_another_thread(f);
        }
    }
}

impl Shared {
    /// The lowest number that no processor has.
    fn free_number(&self) -> usize {
        let mut cpus = self.cpus.lock();
        let n = cpus.iter().position(|used| !used).unwrap_or(cpus.len());
        match cpus.get_mut(n) {
            Some(used) => *used = true,
            None => cpus.push(true),
        }
        n
    }

    /// The page-table page at `pa`.
    pub(crate) fn table(&self, pa: HostPa) -> Option<&TableCells> {
        let slot = self.tables.get((pa.0.checked_sub(TABLE_BASE)? / 4096) as usize)?;
        assert!(slot.live.load(SeqCst), "a freed page table is used");
        slot.cells.get().map(|c| &**c)
    }
}

/// A handle to a machine.
#[derive(Clone)]
pub struct Sim(pub Arc<Shared>);

impl Sim {
    /// A machine whose VMM has `pages` pages of memory. `features` are the processor's.
    pub fn new(pages: usize, features: CpuFeatures) -> Self {
        let slot = |_| TableSlot { cells: OnceLock::new(), live: AtomicBool::new(false) };
        Self(Arc::new(Shared {
            now: AtomicU64::new(1_000_000),
            signal: AtomicBool::new(false),
            patience: AtomicU64::new(0),
            page_latency: AtomicU64::new(1_000_000),
            halt_poll: AtomicU64::new(0),
            linux_version: AtomicU32::new(host::linux_version(6, 12)),
            traced: AtomicU32::new(0),
            told: parking_lot::Mutex::default(),
            ends: parking_lot::Mutex::default(),
            polls: AtomicUsize::new(0),
            threads: Default::default(),
            memory: Arena::new(pages),
            tables: (0..TABLES).map(slot).collect(),
            tables_live: AtomicUsize::new(0),
            scripts: Default::default(),
            cpus: Default::default(),
            events: (0..8).map(|_| Arc::default()).collect(),
            during_fault: Hook::default(),
            during_kick: Hook::default(),
            during_wake: Hook::default(),
            during_wait: Hook::default(),
            during_poll: Hook::default(),
            before_exchange: Hook::default(),
            offers: AtomicUsize::new(0),
            suspends: AtomicU64::new(0),
            slept: AtomicU64::new(0),
            tsc_lost: AtomicU64::new(0),
            tsc_unstable: AtomicBool::new(false),
            sigbus: Default::default(),
            awaited: Default::default(),
            features,
            assembly: AtomicBool::new(false),
            hand_over: AtomicBool::new(false),
            run_delay: AtomicU64::new(0),
            runtime: AtomicU64::new(0),
            commands: Default::default(),
            warnings: Default::default(),
        }))
    }

    /// Adds a step to the script of the vCPU with the number `cpu` (processors are numbered in the order in which
    /// they are made; a step may be added before that): it ends in an exit (code, EXITINFO1, EXITINFO2).
    pub fn step(&self, cpu: usize, f: impl FnOnce(&mut SimCpu) -> (u64, u64, u64) + Send + 'static) {
        let mut once = Some(f);
        self.act(cpu, move |c| {
            let (code, info1, info2) = once.take().expect("a step is done once")(c);
            Outcome::Exit(code, info1, info2)
        });
    }

    /// Adds a step that need not end in an exit, or is done again after a fault.
    pub fn act(&self, cpu: usize, f: impl FnMut(&mut SimCpu) -> Outcome + Send + 'static) {
        self.script(cpu).lock().push_back(Box::new(f));
    }

    /// Forgets the steps that are still to be done.
    pub fn drop_script(&self, cpu: usize) {
        self.script(cpu).lock().clear();
    }

    /// Steps that are still to be done.
    pub fn steps_left(&self, cpu: usize) -> usize {
        self.script(cpu).lock().len()
    }

    fn script(&self, cpu: usize) -> Script {
        let mut scripts = self.0.scripts.lock();
        while scripts.len() <= cpu {
            scripts.push(Arc::default());
        }
        scripts[cpu].clone()
    }

    /// Guests of processors that are made from now on are entered and left by the world switch of the module, assembly
    /// included, on a model of the hardware ([`switch::model`]).
    pub fn through_the_assembly(&self) {
        self.0.assembly.store(true, SeqCst);
    }

    /// From now on [`Request::HandOver`](host::Request::HandOver) is made at each exit, and when a vCPU goes to sleep.
    pub fn hand_over_everywhere(&self) {
        self.0.hand_over.store(true, SeqCst);
    }

    /// Sends a signal to all vCPUs' threads.
    pub fn signal(&self) {
        self.0.signal.store(true, SeqCst);
        self.each_thread(Inner::wake);
    }

    /// The signal that ended the last KVM_RUN is no longer pending.
    pub fn clear_signal(&self) {
        self.0.signal.store(false, SeqCst);
        thread::clear();
    }

    /// From now on a vCPU that sleeps without a deadline waits that long (real time) for another thread before it
    /// gives up as if a signal came. 0, the default, suits scenarios of one thread.
    pub fn set_patience(&self, milliseconds: u64) {
        self.0.patience.store(milliseconds, SeqCst);
    }

    /// Every thread has run for so many nanoseconds more.
    pub fn runs(&self, ns: u64) {
        self.0.runtime.fetch_add(ns, SeqCst);
    }

    /// Virtual time passes; timers whose time has come fire.
    pub fn advance(&self, ns: u64) {
        let now = self.0.now.fetch_add(ns, SeqCst) + ns;
        self.each_thread(|t| t.tick(now));
    }

    /// Does this the next time that the hypervisor has got a user page and not yet mapped it.
    pub fn during_fault(&self, f: impl FnOnce() + Send + 'static) {
        *self.0.during_fault.0.lock() = Some(Box::new(f));
    }

    /// The machine sleeps for `ns`: the TSC begins at 0 again.
    pub fn sleeps(&self, ns: u64) {
        let lost = self.tsc();
        self.0.suspends.fetch_add(1, SeqCst);
        self.0.now.fetch_add(ns, SeqCst);
        self.0.slept.fetch_add(ns, SeqCst);
        self.0.tsc_lost.fetch_add(lost, SeqCst);
    }

    /// The host keeps time by another clock than the TSC from now on; the base tells each vCPU.
    pub fn loses_its_tsc(&self) {
        self.0.tsc_unstable.store(true, SeqCst);
        self.each_thread(|t| t.requests.make_request(Request::StealUpdate));
    }

    /// Does this the next time that a thread gives its CPU away because it cannot go on.
    pub fn during_wait(&self, f: impl FnOnce() + Send + 'static) {
        *self.0.during_wait.0.lock() = Some(Box::new(f));
    }

    /// Does this the next time that a halted vCPU looks around.
    pub fn during_poll(&self, f: impl FnOnce() + Send + 'static) {
        *self.0.during_poll.0.lock() = Some(Box::new(f));
    }

    /// Does this right before memory is compared and exchanged the next time.
    pub fn before_exchange(&self, f: impl FnOnce() + Send + 'static) {
        *self.0.before_exchange.0.lock() = Some(Box::new(f));
    }

    /// How often a thread would have given its CPU away, had somebody else waited for it.
    pub fn offers(&self) -> usize {
        self.0.offers.load(SeqCst)
    }

    /// What becomes of an access of the guest's to the page at `hva`: the signals that it ends with are sent.
    fn guest_access<T>(&self, hva: Hva, result: Result<T, Stop>) -> Result<T, Stop> {
        match result {
            Err(Stop::Poison) => uncounted(|| self.0.sigbus.lock().push(hva.0 & !0xfff)),
            Err(Stop::Errno(Errno::EINTR)) => {}
            _ => return result,
        }
        thread::raise();
        result
    }

    /// Does this the next time that a vCPU's thread is kicked.
    pub fn during_kick(&self, f: impl FnOnce() + Send + 'static) {
        *self.0.during_kick.0.lock() = Some(Box::new(f));
    }

    /// Does this the next time that a vCPU's thread is woken for something that was posted to it.
    pub fn during_wake(&self, f: impl FnOnce() + Send + 'static) {
        *self.0.during_wake.0.lock() = Some(Box::new(f));
    }

    /// What becomes of an access of the host's own: it sleeps on when a signal comes, until somebody brings the page.
    fn host_access<T>(&self, mut access: impl FnMut() -> Result<T, Stop>) -> Result<T, Stop> {
        match access() {
            Err(Stop::Errno(Errno::EINTR)) => {
                uncounted(|| self.0.during_wait.fire());
                // If nobody has, the thread is killed.
                access().map_err(|_| Stop::Fault)
            }
            other => other.map_err(|_| Stop::Fault),
        }
    }

    fn copy_in(&self, from: Hva, buf: &mut [u8]) -> Result<(), Stop> {
        lock::may_sleep();
        let len = buf.len();
        self.wait_for(from.0, len as u64);
        self.0.memory.each(from.0, len, false, |cells, at, n, k| cells.read(at, &mut buf[n..n + k]))
    }

    fn copy_out(&self, to: Hva, buf: &[u8]) -> Result<(), Stop> {
        lock::may_sleep();
        self.wait_for(to.0, buf.len() as u64);
        self.0.memory.each(to.0, buf.len(), true, |cells, at, n, k| cells.write(at, &buf[n..n + k]))
    }

    fn exchange(&self, at: Hva, old: u64, new: u64, size: u8) -> Result<bool, Stop> {
        uncounted(|| self.0.before_exchange.fire());
        let _one_at_a_time = self.0.memory.exchange.lock();
        let (mut now, size) = ([0; 8], usize::from(size));
        self.copy_in(at, &mut now[..size])?;
        let same = now[..size] == old.to_le_bytes()[..size];
        if same {
            self.copy_out(at, &new.to_le_bytes()[..size])?;
        }
        Ok(same)
    }

    /// Whoever touches these bytes waits for the pages that are paged out.
    fn wait_for(&self, hva: u64, len: u64) {
        for page in (hva & !4095..hva.saturating_add(len)).step_by(4096) {
            if self.0.memory.is_late(page) {
                let ns = self.0.page_latency.load(SeqCst);
                uncounted(|| self.advance(if ns == u64::MAX { 0 } else { ns }));
                self.0.memory.bring_in(page);
            }
        }
    }

    fn each_thread(&self, f: impl Fn(&Inner)) {
        let threads: Vec<_> = self.0.threads.lock().iter().filter_map(Weak::upgrade).collect();
        threads.iter().for_each(|t| f(t));
    }

    /// Changes how the host maps a page of the VMM's memory. Whoever does it for a mapped page calls the notifier.
    pub fn set_page(&self, hva: u64, how: Page) {
        self.0.memory.set(hva, how);
    }

    /// Bringing in a page that is [`Page::Late`] takes so many virtual nanoseconds from now on, a millisecond before; with
    /// u64::MAX only those that wait themselves get it.
    pub fn set_page_latency(&self, ns: u64) {
        self.0.page_latency.store(ns, SeqCst);
    }

    /// Size of the host's mappings.
    pub fn set_level(&self, level: MapLevel) {
        self.0.memory.set_level(level);
    }

    /// Who traces wants these events of the run loop from now on.
    pub fn trace(&self, set: TraceSet) {
        self.0.traced.store(set.0, SeqCst);
        for thread in self.0.threads.lock().iter().filter_map(Weak::upgrade) {
            thread.requests.make_request(Request::Trace);
        }
    }

    /// What was told since the last call.
    pub fn take_told(&self) -> Vec<Trace> {
        uncounted(|| std::mem::take(&mut *self.0.told.lock()))
    }

    /// Last exits of vCPUs that could not go on, since the last call.
    pub fn take_ends(&self) -> Vec<LastExit> {
        uncounted(|| std::mem::take(&mut *self.0.ends.lock()))
    }

    /// The kernel is the first of this series.
    pub fn set_linux_version(&self, major: u32, minor: u32) {
        self.0.linux_version.store(host::linux_version(major, minor), SeqCst);
    }

    /// Halted vCPUs look around before they sleep: each look takes a virtual microsecond, for at most `max` ns.
    pub fn set_halt_poll(&self, max: u32) {
        self.0.halt_poll.store(max.into(), SeqCst);
    }

    /// Page-table pages in use: 0 once every VM is gone.
    pub fn tables_live(&self) -> usize {
        self.0.tables_live.load(SeqCst)
    }

    /// References to user pages that are held.
    pub fn page_references(&self) -> usize {
        self.0.memory.references.load(SeqCst)
    }

    /// References to eventfds that are held.
    pub fn event_references(&self) -> usize {
        self.0.events.iter().map(|e| Arc::strong_count(e) - 1).sum()
    }

    /// How often the eventfd with this descriptor (0 to 7) was signalled.
    pub fn event_count(&self, fd: usize) -> u64 {
        self.0.events[fd].load(SeqCst)
    }
}

/// The timers of a VM's devices: deadlines in virtual time, which whoever has the VM asks for.
pub struct SimHrtimers(Arc<[AtomicU64; Hrtimer::ALL.len()]>);

impl SimHrtimers {
    /// One whose time has come at `now`; it is not set any more.
    pub fn due(&self, now: u64) -> Option<Hrtimer> {
        let take = |which: &&Hrtimer| {
            self.0[**which as usize].fetch_update(SeqCst, SeqCst, |d| (d <= now).then_some(u64::MAX)).is_ok()
        };
        Hrtimer::ALL.iter().find(take).copied()
    }
}

impl Hrtimers for SimHrtimers {
    fn arm(&self, which: Hrtimer, deadline: u64) {
        self.0[which as usize].store(deadline, SeqCst);
    }
    fn cancel(&self, which: Hrtimer) {
        self.0[which as usize].store(u64::MAX, SeqCst);
    }
}

/// A reference to an eventfd: only its count.
pub struct Event(Arc<AtomicU64>);

/// Words of memory.
pub struct SimWords(Arc<Vec<AtomicU64>>);

impl AsRef<[AtomicU64]> for SimWords {
    fn as_ref(&self) -> &[AtomicU64] {
        &self.0
    }
}

crate::lent::lend!(SimHrtimers = Hrtimers Event = EventFd SimWords = Words);

impl EventFd for Event {
    fn signal(&self) {
        // The kernel's lock of an eventfd sleeps on PREEMPT_RT.
        lock::may_sleep();
        self.0.fetch_add(1, SeqCst);
    }
    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

thread_local! {
    static DYING: Cell<bool> = const { Cell::new(false) };
}

/// Does what a thread does that has been killed.
pub fn as_dying_thread(f: impl FnOnce()) {
    DYING.set(true);
    f();
    DYING.set(false);
}

fn may_fail() -> Result<(), Errno> {
    lock::may_sleep();
    if fails() { Err(Errno::ENOMEM) } else { Ok(()) }
}

impl Shared {
    /// An event of a trace.
    pub(crate) fn told(&self, what: Trace) {
        uncounted(|| self.told.lock().push(what));
    }
}

impl Host for Sim {
    type Patience = Duration;
    type RawMutex<const RANK: u8> = Ranked<parking_lot::RawMutex, RANK>;
    type RawSpin<const RANK: u8> = Ranked<parking_lot::RawMutex, RANK>;
    type RawSpinIrq<const RANK: u8> = Ranked<parking_lot::RawMutex, RANK>;
    type RawRwSpin<const RANK: u8> = Ranked<parking_lot::RawRwLock, RANK>;
    type RawRwSem<const RANK: u8> = Ranked<parking_lot::RawRwLock, RANK>;
    type Snapshot<T: Send + Sync> = lock::LockedSnapshot<T>;
    type Cpu = SimVcpu;
    type Thread = SimThread;
    type UserPage = SimUserPage;
    type SharedPage = SimPage;
    type EventFd = Event;
    type Hrtimers = SimHrtimers;
    type Fpu = SimFpu;
    type Words = SimWords;

    fn new_cpu(&self, config: &CpuConfig) -> Result<SimVcpu, Errno> {
        may_fail()?;
        let make = || {
            let n = self.0.free_number();
            SimCpu::new(n, self.0.clone(), self.script(n), config.root, self.0.features)
        };
        match self.0.assembly.load(SeqCst) {
            false => Ok(SimVcpu::direct(uncounted(make))),
            true => SimVcpu::switched(config, self.0.features, make),
        }
    }
    fn new_thread(&self, _sibling: Option<&SimThread>) -> Result<SimThread, Errno> {
        may_fail()?;
        Ok(SimThread::new(self.0.clone()))
    }
    fn new_fpu(&self) -> Result<SimFpu, Errno> {
        may_fail()?;
        Ok(uncounted(SimFpu::new))
    }
    fn new_hrtimers(&self) -> Result<SimHrtimers, Errno> {
        may_fail()?;
        Ok(uncounted(|| SimHrtimers(Arc::new([const { AtomicU64::new(u64::MAX) }; Hrtimer::ALL.len()]))))
    }
    fn new_words(&self, n: usize) -> Result<SimWords, Errno> {
        may_fail()?;
        Ok(uncounted(|| SimWords(Arc::new((0..n).map(|_| AtomicU64::new(0)).collect()))))
    }
    fn new_shared_page(&self) -> Result<SimPage, Errno> {
        may_fail()?;
        Ok(uncounted(|| SimPage(zeroed_page().into())))
    }

    fn alloc_table(&self) -> Result<TablePage, Errno> {
        may_fail()?;
        uncounted(|| {
            for (n, slot) in self.0.tables.iter().enumerate() {
                if !slot.live.swap(true, SeqCst) {
                    let cells = slot.cells.get_or_init(|| Box::new(TableCells([const { AtomicU64::new(0) }; 512])));
                    cells.0.iter().for_each(|e| e.store(0, SeqCst));
                    self.0.tables_live.fetch_add(1, SeqCst);
                    return Ok(TablePage::from_host(HostPa(TABLE_BASE + n as u64 * 4096)));
                }
            }
            Err(Errno::ENOMEM)
        })
    }
    fn table(&self, pa: HostPa) -> Option<&TableCells> {
        self.0.table(pa)
    }
    fn free_table(&self, page: TablePage) {
        // On PREEMPT_RT the page allocator's own locks sleep.
        lock::may_sleep();
        let slot = &self.0.tables[((page.pa().0 - TABLE_BASE) / 4096) as usize];
        assert!(slot.live.swap(false, SeqCst), "a page table is freed twice");
        self.0.tables_live.fetch_sub(1, SeqCst);
    }

    fn user_page_now(&self, hva: Hva, write: bool) -> Result<Option<SimUserPage>, Stop> {
        if self.0.memory.is_late(hva.0) { Ok(None) } else { self.user_page(hva, write).map(Some) }
    }
    fn user_page(&self, hva: Hva, write: bool) -> Result<SimUserPage, Stop> {
        lock::may_sleep();
        self.wait_for(hva.0, 1);
        let page = self.guest_access(hva, self.0.memory.take(hva, write));
        uncounted(|| self.0.during_fault.fire());
        page
    }
    fn user_level(&self, _hva: Hva) -> MapLevel {
        self.0.memory.level()
    }
    fn read_user(&self, from: Hva, buf: &mut [u8]) -> Result<(), Stop> {
        self.host_access(|| self.copy_in(from, buf))
    }
    fn write_user(&self, to: Hva, buf: &[u8]) -> Result<(), Stop> {
        self.host_access(|| self.copy_out(to, buf))
    }
    fn cmpxchg_user(&self, at: Hva, old: u64, new: u64, size: u8) -> Result<bool, Stop> {
        self.host_access(|| self.exchange(at, old, new, size))
    }
    fn read_guest(&self, from: Hva, buf: &mut [u8]) -> Result<(), Stop> {
        self.guest_access(from, self.copy_in(from, buf))
    }
    fn write_guest(&self, to: Hva, buf: &[u8]) -> Result<(), Stop> {
        self.guest_access(to, self.copy_out(to, buf))
    }
    fn cmpxchg_guest(&self, at: Hva, old: u64, new: u64, size: u8) -> Result<bool, Stop> {
        self.guest_access(at, self.exchange(at, old, new, size))
    }
    fn wait_for_page(&self, hva: Hva, _write: bool) {
        lock::may_sleep();
        uncounted(|| self.0.awaited.lock().push(hva.0 & !0xfff));
        uncounted(|| self.0.during_wait.fire());
        // Who should have brought it is gone.
        self.0.memory.give_up(hva.0);
    }
    fn killed(&self) -> bool {
        DYING.get()
    }

    fn until_killed(&self) -> Duration {
        if DYING.get() { Duration::ZERO } else { Duration::MAX }
    }

    fn user_range_ok(&self, hva: Hva, len: u64) -> bool {
        self.0.memory.contains(hva.0, len)
    }

    fn now_ns(&self) -> u64 {
        self.0.now.load(SeqCst)
    }
    fn tsc(&self) -> u64 {
        // Two cycles per nanosecond that the machine did not sleep.
        let awake = self.now_ns().wrapping_sub(self.0.slept.load(SeqCst));
        awake.wrapping_mul(2).wrapping_sub(self.0.tsc_lost.load(SeqCst))
    }
    fn time_point(&self) -> TimePoint {
        TimePoint {
            tsc: self.tsc(),
            boot_ns: self.now_ns(),
            real_ns: self.now_ns() + 1_700_000_000_000_000_000,
            tsc_lost: self.0.tsc_lost.load(SeqCst),
        }
    }
    fn suspends(&self) -> u64 {
        self.0.suspends.load(SeqCst)
    }
    fn tsc_khz(&self) -> u32 {
        2_000_000
    }
    fn tsc_is_stable(&self) -> bool {
        !self.0.tsc_unstable.load(SeqCst)
    }

    fn do_work(&self) -> Work {
        lock::may_sleep();
        if self.0.signal.load(SeqCst) || thread::raised() { Work::Signal } else { Work::None }
    }
    fn cond_resched(&self) {
        lock::may_sleep();
        self.0.offers.fetch_add(1, SeqCst);
        uncounted(|| self.0.during_wait.fire());
    }

    fn poll_parameters(&self) -> PollParameters {
        let max = self.0.halt_poll.load(SeqCst) as u32;
        PollParameters { max, grow: 2, grow_start: 10_000, shrink: 2 }
    }
    fn may_poll(&self) -> bool {
        self.0.polls.fetch_add(1, SeqCst);
        uncounted(|| self.0.during_poll.fire());
        self.advance(1000);
        true
    }
    fn linux_version(&self) -> u32 {
        self.0.linux_version.load(SeqCst)
    }
    fn idle_exits(&self) -> u32 {
        0xe
    }

    fn eventfd(&self, fd: i32) -> Result<Event, Errno> {
        let n = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        self.0.events.get(n).cloned().map(Event).ok_or(Errno::EBADF)
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        match (leaf, subleaf) {
            (0, _) => [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
            // Without MOVBE, which is emulated then.
            (1, _) => [0x0080_0f12, 0x0001_0800, 0x7e98_320b, 0x178b_fbff],
            (7, 0) => [0, 0x209c_05a9, 0, 0],
            (0xd, 0) => [7, 0x340, 0x340, 0],
            (0xd, 1) => [0, 0x340, 0, 0],
            (0xd, 2) => [0x100, 0x240, 0, 0],
            (0x8000_0000, _) => [0x8000_0008, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
            (0x8000_0001, _) => [0x0080_0f12, 0, 0x0000_01f3, 0x2fd3_fbff],
            // IBPB, so that a guest has a barrier to ask for. IBRS and SSBD.
            (0x8000_0008, _) if self.0.features.spec_ctrl => [0x3028, 1 << 12 | 1 << 14 | 1 << 24, 0, 0],
            (0x8000_0008, _) => [0x3028, 1 << 12, 0, 0],
            _ => [0; 4],
        }
    }
    fn online_cpus(&self) -> u32 {
        2
    }
    fn features(&self) -> CpuFeatures {
        self.0.features
    }
    fn host_xcr0(&self) -> u64 {
        7
    }
    fn read_host_msr(&self, _msr: u32) -> Option<u64> {
        None
    }
    fn run_delay_ns(&self) -> Option<u64> {
        Some(self.0.run_delay.load(SeqCst))
    }
    fn task_runtime_ns(&self) -> u64 {
        self.0.runtime.load(SeqCst)
    }
    fn smt_possible(&self) -> bool {
        true
    }
    fn command(&self, what: Command) {
        uncounted(|| self.0.commands.lock().push(what));
    }
    fn traced(&self) -> TraceSet {
        TraceSet(self.0.traced.load(SeqCst))
    }
    fn trace(&self, what: Trace) {
        self.0.told(what);
    }
    fn listens(&self) -> bool {
        true
    }
    fn ended(&self, what: LastExit) {
        uncounted(|| self.0.ends.lock().push(what));
    }
    fn warn(&self, what: &'static str, value: u64) {
        uncounted(|| self.0.warnings.lock().push((what, value)));
    }
}
