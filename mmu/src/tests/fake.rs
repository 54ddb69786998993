//! The machine under the tests.
//!
//! Long because: one trait, and what stands behind its functions.

use super::never::Never;
use arch::{HostPa, Hva};
use host::{
    CpuConfig, CpuFeatures, Errno, Host, Lend, LentKind, MapLevel, PageCells, Pfn, SharedPage, Stop, TableCells,
    TablePage, TimePoint, UserPage, Work,
};
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::vec::Vec;

pub const PAGE: u64 = 4096;
/// End of the user half.
pub const USER_END: u64 = 0x7fff_ffff_f000;
/// Physical page numbers of user memory start here; those below are table pages.
const FIRST_FRAME: u64 = 1 << 20;
const TABLES: usize = 2048;

/// Where the machine could let somebody else in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    BeforePage(u64),
    AfterPage(u64),
    ReadUser(u64),
    WriteUser(u64),
    Cmpxchg(u64),
    Resched,
    Alloc,
}

type Hook = Arc<dyn Fn(Point) + Send + Sync>;

/// A page of the VMM's memory.
#[derive(Clone, Copy, Debug)]
pub struct Pte {
    pub pfn: u64,
    pub writable: bool,
    pub level: MapLevel,
}

pub struct Machine {
    tables: Vec<OnceLock<Box<TableCells>>>,
    used: Vec<AtomicBool>,
    live: AtomicUsize,
    next_table: AtomicUsize,
    fail_in: AtomicI64,
    pub allocs: AtomicU64,
    five: AtomicBool,
    page_1g: AtomicBool,
    pub mapped: AtomicBool,
    /// A write to a page that is read-only makes it writable, without a call of the notifier: nobody else has it.
    pub exclusive: AtomicBool,
    hook: RwLock<Option<Hook>>,
    pub space: Mutex<Space>,
    pub warnings: AtomicU64,
    /// Tables that a processor may be walking: they must not be freed.
    pub walked: Mutex<BTreeSet<u64>>,
}

#[derive(Default)]
pub struct Space {
    pub pages: BTreeMap<u64, Pte>,
    pub poisoned: BTreeSet<u64>,
    /// Pages that somebody has to bring in first, as from swap.
    pub late: BTreeSet<u64>,
    frames: BTreeMap<u64, Box<[u8; 4096]>>,
    next: u64,
}

impl Space {
    pub fn bytes(&mut self, pfn: u64) -> &mut [u8; 4096] {
        self.frames.entry(pfn).or_insert_with(|| Box::new([0; 4096]))
    }
    /// The host's mapping of a page becomes writable, all of it.
    pub fn upgrade(&mut self, hva: u64) {
        if let Some(level) = self.pages.get(&hva).map(|p| p.level) {
            let size = PAGE << (9 * (level as u32 - 1));
            let first = hva & !(size - 1);
            self.pages.range_mut(first..first + size).for_each(|(_, p)| p.writable = true);
        }
    }
    fn access(&mut self, hva: u64, len: usize, write: bool, mut f: impl FnMut(&mut [u8], usize)) -> Result<(), Stop> {
        let mut done = 0;
        while done < len {
            let at = hva + done as u64;
            let page = at & !0xfff;
            if self.poisoned.contains(&page) {
                return Err(Stop::Poison);
            }
            let pte = *self.pages.get(&page).filter(|p| p.writable || !write).ok_or(Stop::Fault)?;
            let offset = (at & 0xfff) as usize;
            let n = (4096 - offset).min(len - done);
            f(&mut self.bytes(pte.pfn)[offset..offset + n], done);
            done += n;
        }
        Ok(())
    }
}

#[derive(Clone)]
pub struct Fake(pub Arc<Machine>);

impl Fake {
    pub fn new() -> Self {
        Self(Arc::new(Machine {
            tables: (0..TABLES).map(|_| OnceLock::new()).collect(),
            used: (0..TABLES).map(|_| AtomicBool::new(false)).collect(),
            live: AtomicUsize::new(0),
            next_table: AtomicUsize::new(0),
            fail_in: AtomicI64::new(i64::MAX),
            allocs: AtomicU64::new(0),
            five: AtomicBool::new(false),
            page_1g: AtomicBool::new(true),
            mapped: AtomicBool::new(false),
            exclusive: AtomicBool::new(false),
            hook: RwLock::new(None),
            space: Mutex::new(Space::default()),
            warnings: AtomicU64::new(0),
            walked: Mutex::default(),
        }))
    }

    pub fn with_five_levels(self) -> Self {
        self.0.five.store(true, SeqCst);
        self
    }
    pub fn five_levels(&self) -> bool {
        self.0.five.load(SeqCst)
    }
    /// Pages that are mapped writable are found without being asked for.
    pub fn with_mapped_pages(self) -> Self {
        self.0.mapped.store(true, SeqCst);
        self
    }
    pub fn without_1g(self) -> Self {
        self.0.page_1g.store(false, SeqCst);
        self
    }

    /// Calls `f` at every [`Point`] from now on.
    pub fn hook(&self, f: impl Fn(Point) + Send + Sync + 'static) {
        *self.0.hook.write().unwrap() = Some(Arc::new(f));
    }
    fn at(&self, p: Point) {
        let hook = self.0.hook.read().unwrap().clone();
        if let Some(hook) = hook {
            hook(p);
        }
    }

    /// The table allocation after `n` more fails, and all that follow.
    pub fn fail_after(&self, n: i64) {
        self.0.fail_in.store(n, SeqCst);
    }
    pub fn live_tables(&self) -> usize {
        self.0.live.load(SeqCst)
    }

    /// Maps `count` fresh pages at `hva`, one by one. Returns the first frame.
    pub fn map(&self, hva: u64, count: u64, writable: bool) -> u64 {
        self.map_as(hva, count, writable, MapLevel::Page4K)
    }

    /// Maps fresh memory with the host's own mappings of a size; `hva` and `count` are multiples of it.
    pub fn map_as(&self, hva: u64, count: u64, writable: bool, level: MapLevel) -> u64 {
        let size = 1u64 << (9 * (level as u32 - 1));
        assert_eq!((hva >> 12 | count) % size, 0);
        let mut space = self.0.space.lock().unwrap();
        let first = (FIRST_FRAME + space.next).next_multiple_of(size);
        space.next = first - FIRST_FRAME + count;
        for n in 0..count {
            space.pages.insert(hva + n * PAGE, Pte { pfn: first + n, writable, level });
        }
        first
    }

    pub fn unmap(&self, hva: u64, count: u64) {
        let mut space = self.0.space.lock().unwrap();
        for n in 0..count {
            space.pages.remove(&(hva + n * PAGE));
        }
    }

    pub fn pte(&self, hva: u64) -> Option<Pte> {
        self.0.space.lock().unwrap().pages.get(&(hva & !0xfff)).copied()
    }

    /// Bytes of the VMM's memory, whatever its permissions.
    pub fn peek(&self, hva: u64, buf: &mut [u8]) {
        self.0
            .space
            .lock()
            .unwrap()
            .access(hva, buf.len(), false, |b, at| buf[at..at + b.len()].copy_from_slice(b))
            .unwrap();
    }
    pub fn poke(&self, hva: u64, data: &[u8]) {
        self.0
            .space
            .lock()
            .unwrap()
            .access(hva, data.len(), false, |b, at| b.copy_from_slice(&data[at..at + b.len()]))
            .unwrap();
    }
}

pub struct FakePage(Pte);

impl UserPage for FakePage {
    fn pfn(&self) -> Pfn {
        Pfn::from_host(HostPa(self.0.pfn << 12))
    }
    fn writable(&self) -> bool {
        self.0.writable
    }
}

fn number(pa: HostPa) -> Option<usize> {
    (pa.0 % PAGE == 0 && pa.0 != 0).then(|| (pa.0 >> 12) as usize - 1)
}

/// A page of a dirty ring.
#[derive(Clone)]
pub struct Shared(Arc<PageCells>);

impl Lend for Shared {
    const KIND: LentKind = LentKind::SharedPage;

    fn number(&self) -> u64 {
        unreachable!()
    }
    fn of_number(_: u64) -> Option<Self> {
        unreachable!()
    }
}

/// Words of a bitmap, which are never freed: whoever has the number has them.
pub struct Words(&'static [AtomicU64]);

impl AsRef<[AtomicU64]> for Words {
    fn as_ref(&self) -> &[AtomicU64] {
        self.0
    }
}

impl Lend for Words {
    const KIND: LentKind = LentKind::Words;

    fn number(&self) -> u64 {
        1
    }
    fn of_number(_: u64) -> Option<Self> {
        None
    }
}

impl SharedPage for Shared {
    fn cells(&self) -> &PageCells {
        &self.0
    }
    fn pa(&self) -> HostPa {
        unreachable!()
    }
}

impl Host for Fake {
    type Patience = std::time::Duration;
    type RawMutex<const RANK: u8> = parking_lot::RawMutex;
    type RawSpin<const RANK: u8> = parking_lot::RawMutex;
    type RawSpinIrq<const RANK: u8> = parking_lot::RawMutex;
    type RawRwSpin<const RANK: u8> = parking_lot::RawRwLock;
    type RawRwSem<const RANK: u8> = parking_lot::RawRwLock;
    type Snapshot<T: Send + Sync> = Never;
    type Cpu = Never;
    type Thread = Never;
    type UserPage = FakePage;
    type SharedPage = Shared;
    type EventFd = Never;
    type Hrtimers = Never;
    type Fpu = Never;
    type Words = Words;

    fn new_words(&self, n: usize) -> Result<Words, Errno> {
        Ok(Words(Box::leak((0..n).map(|_| AtomicU64::new(0)).collect())))
    }

    fn until_killed(&self) -> std::time::Duration {
        std::time::Duration::MAX
    }

    fn alloc_table(&self) -> Result<TablePage, Errno> {
        self.at(Point::Alloc);
        self.0.allocs.fetch_add(1, SeqCst);
        if self.0.fail_in.fetch_sub(1, SeqCst) <= 0 {
            return Err(Errno::ENOMEM);
        }
        let start = self.0.next_table.fetch_add(1, SeqCst);
        for n in (0..TABLES).map(|n| (start + n) % TABLES) {
            if !self.0.used[n].swap(true, SeqCst) {
                let table = self.0.tables[n].get_or_init(|| Box::new(TableCells([const { AtomicU64::new(0) }; 512])));
                table.0.iter().for_each(|c| c.store(0, SeqCst));
                self.0.live.fetch_add(1, SeqCst);
                return Ok(TablePage::from_host(HostPa((n as u64 + 1) << 12)));
            }
        }
        panic!("the tests use more than {TABLES} tables");
    }
    fn table(&self, pa: HostPa) -> Option<&TableCells> {
        let n = number(pa)?;
        assert!(self.0.used[n].load(SeqCst), "use of a freed table");
        self.0.tables.get(n)?.get().map(|t| &**t)
    }
    fn free_table(&self, page: TablePage) {
        let pa = page.pa();
        let n = number(pa).unwrap();
        let walked = !std::thread::panicking() && self.0.walked.lock().unwrap().contains(&pa.0);
        assert!(!walked, "freed while a processor may be walking it");
        assert!(self.0.used[n].swap(false, SeqCst), "freed twice");
        self.0.live.fetch_sub(1, SeqCst);
    }
    fn nested_levels(&self) -> u8 {
        if self.five_levels() { 5 } else { 4 }
    }

    fn user_page(&self, hva: Hva, write: bool) -> Result<FakePage, Stop> {
        assert_eq!(hva.0 % PAGE, 0);
        self.at(Point::BeforePage(hva.0));
        let page = {
            let mut space = self.0.space.lock().unwrap();
            space.late.remove(&hva.0);
            if space.poisoned.contains(&hva.0) {
                return Err(Stop::Poison);
            }
            if write && self.0.exclusive.load(SeqCst) {
                space.upgrade(hva.0);
            }
            space.pages.get(&hva.0).copied().filter(|p| p.writable || !write)
        };
        self.at(Point::AfterPage(hva.0));
        page.map(FakePage).ok_or(Stop::Fault)
    }
    fn user_page_now(&self, hva: Hva, write: bool) -> Result<Option<FakePage>, Stop> {
        let late = self.0.space.lock().unwrap().late.contains(&hva.0);
        if late { Ok(None) } else { self.user_page(hva, write).map(Some) }
    }
    fn mapped_page(&self, hva: Hva) -> Option<(Pfn, MapLevel)> {
        assert_eq!(hva.0 % PAGE, 0);
        if !self.0.mapped.load(SeqCst) {
            return None;
        }
        let space = self.0.space.lock().unwrap();
        let there = !space.poisoned.contains(&hva.0) && !space.late.contains(&hva.0);
        let pte = space.pages.get(&hva.0).filter(|p| p.writable && there)?;
        Some((Pfn::from_host(HostPa(pte.pfn << 12)), pte.level))
    }
    fn user_level(&self, hva: Hva) -> MapLevel {
        self.pte(hva.0).map_or(MapLevel::Page4K, |p| p.level)
    }
    fn read_user(&self, from: Hva, buf: &mut [u8]) -> Result<(), Stop> {
        self.at(Point::ReadUser(from.0));
        let mut space = self.0.space.lock().unwrap();
        space.access(from.0, buf.len(), false, |b, at| buf[at..at + b.len()].copy_from_slice(b))
    }
    fn write_user(&self, to: Hva, buf: &[u8]) -> Result<(), Stop> {
        self.at(Point::WriteUser(to.0));
        let mut space = self.0.space.lock().unwrap();
        space.access(to.0, buf.len(), true, |b, at| b.copy_from_slice(&buf[at..at + b.len()]))
    }
    fn cmpxchg_user(&self, at: Hva, old: u64, new: u64, size: u8) -> Result<bool, Stop> {
        assert_eq!(at.0 % u64::from(size), 0);
        self.at(Point::Cmpxchg(at.0));
        let mut done = false;
        self.0.space.lock().unwrap().access(at.0, size.into(), true, |b, _| {
            done = *b == old.to_le_bytes()[..b.len()];
            if done {
                b.copy_from_slice(&new.to_le_bytes()[..b.len()]);
            }
        })?;
        Ok(done)
    }
    fn user_range_ok(&self, hva: Hva, len: u64) -> bool {
        hva.0.checked_add(len).is_some_and(|end| end <= USER_END)
    }
    fn cond_resched(&self) {
        self.at(Point::Resched);
    }
    fn online_cpus(&self) -> u32 {
        2
    }
    fn features(&self) -> CpuFeatures {
        CpuFeatures {
            page_1g: self.0.page_1g.load(SeqCst),
            phys_bits: if self.five_levels() { 52 } else { 48 },
            ..Default::default()
        }
    }
    fn run_delay_ns(&self) -> Option<u64> {
        None
    }
    fn task_runtime_ns(&self) -> u64 {
        0
    }
    fn smt_possible(&self) -> bool {
        false
    }
    fn command(&self, _: host::Command) {}
    fn warn(&self, _: &'static str, _: u64) {
        self.0.warnings.fetch_add(1, SeqCst);
    }

    fn new_cpu(&self, _: &CpuConfig) -> Result<Never, Errno> {
        unreachable!()
    }
    fn new_thread(&self, _sibling: Option<&Never>) -> Result<Never, Errno> {
        unreachable!()
    }
    fn new_fpu(&self) -> Result<Never, Errno> {
        unreachable!()
    }
    fn new_hrtimers(&self) -> Result<Never, Errno> {
        unreachable!()
    }
    fn new_shared_page(&self) -> Result<Shared, Errno> {
        Ok(Shared(Arc::new(PageCells([const { AtomicU8::new(0) }; PAGE as usize]))))
    }
    fn now_ns(&self) -> u64 {
        unreachable!()
    }
    fn tsc(&self) -> u64 {
        unreachable!()
    }
    fn time_point(&self) -> TimePoint {
        unreachable!()
    }
    fn tsc_khz(&self) -> u32 {
        unreachable!()
    }
    fn tsc_is_stable(&self) -> bool {
        unreachable!()
    }
    fn do_work(&self) -> Work {
        unreachable!()
    }
    fn eventfd(&self, _: i32) -> Result<Never, Errno> {
        unreachable!()
    }
    fn cpuid(&self, _: u32, _: u32) -> [u32; 4] {
        unreachable!()
    }
    fn host_xcr0(&self) -> u64 {
        unreachable!()
    }
    fn read_host_msr(&self, _: u32) -> Option<u64> {
        unreachable!()
    }
}
