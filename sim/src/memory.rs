//! The VMM's memory: an arena of pages from [`HVA_BASE`] that tests map, unmap and protect.

use crate::alloc::uncounted;
use arch::{HostPa, Hva};
use host::{Errno, MapLevel, PageCells, Pfn, SharedPage, Stop, UserPage};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::*};
use std::sync::{Arc, OnceLock};

/// Host virtual address of the first page of the arena.
pub const HVA_BASE: u64 = 0x7f00_0000_0000;
/// Physical addresses of user pages begin here.
const PA_BASE: u64 = 0x1_0000_0000;

/// How the host maps a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Page {
    /// Not at all: EFAULT.
    Absent = 0,
    /// Read-only.
    ReadOnly = 1,
    /// Readable and writable.
    Writable = 2,
    /// Broken hardware: SIGBUS for the guest's accesses.
    Poisoned = 3,
    /// Paged out: somebody has to bring it in, which takes a while.
    Late = 4,
    /// Somebody else (userfaultfd) has to bring it, and a signal comes before: EINTR.
    Missing = 5,
    /// A device's memory, which the host may only read.
    ReadOnlyDevice = 6,
}

/// A page of zeros.
pub(crate) fn zeroed_page() -> Box<PageCells> {
    Box::new(PageCells([const { AtomicU8::new(0) }; 4096]))
}

/// The arena.
pub struct Arena {
    pages: Vec<(AtomicU8, OnceLock<Box<PageCells>>)>,
    level: AtomicU8,
    /// Held for a compare-exchange.
    pub exchange: parking_lot::Mutex<()>,
    /// Page references that were taken and not given back.
    pub references: Arc<AtomicUsize>,
}

impl Arena {
    pub fn new(pages: usize) -> Self {
        let page = |_| (AtomicU8::new(Page::Writable as u8), OnceLock::new());
        Self {
            pages: (0..pages).map(page).collect(),
            level: AtomicU8::new(1),
            exchange: Default::default(),
            references: Arc::default(),
        }
    }

    fn page(&self, at: u64) -> Option<(usize, &AtomicU8)> {
        let n = (at.checked_sub(HVA_BASE)? / 4096) as usize;
        Some((n, &self.pages.get(n)?.0))
    }

    /// Pages come into being when they are looked at.
    fn cells(&self, n: usize) -> &PageCells {
        self.pages[n].1.get_or_init(|| uncounted(zeroed_page))
    }

    pub fn contains(&self, hva: u64, len: u64) -> bool {
        hva.checked_add(len).is_some_and(|end| end <= 1 << 47)
    }

    pub fn set(&self, hva: u64, how: Page) {
        let (_, state) = self.page(hva).expect("a page of the arena");
        state.store(how as u8, SeqCst);
    }

    /// Is it paged out?
    pub fn is_late(&self, hva: u64) -> bool {
        self.page(hva).is_some_and(|(_, state)| state.load(SeqCst) == Page::Late as u8)
    }

    /// It comes in, if it is paged out.
    pub fn bring_in(&self, hva: u64) {
        if let Some((_, state)) = self.page(hva) {
            let _ = state.compare_exchange(Page::Late as u8, Page::Writable as u8, SeqCst, SeqCst);
        }
    }

    /// Nobody will bring it, if it is still missing.
    pub fn give_up(&self, hva: u64) {
        if let Some((_, state)) = self.page(hva) {
            let _ = state.compare_exchange(Page::Missing as u8, Page::Absent as u8, SeqCst, SeqCst);
        }
    }

    pub fn set_level(&self, level: MapLevel) {
        self.level.store(level as u8, SeqCst);
    }

    pub fn level(&self) -> MapLevel {
        match self.level.load(SeqCst) {
            1 => MapLevel::Page4K,
            2 => MapLevel::Page2M,
            _ => MapLevel::Page1G,
        }
    }

    fn check(&self, at: u64, write: bool) -> Result<(usize, &PageCells), Stop> {
        let (n, state) = self.page(at).ok_or(Stop::Fault)?;
        let cells = self.cells(n);
        match state.load(SeqCst) {
            2 => Ok((n, cells)),
            1 | 6 if !write => Ok((n, cells)),
            6 => Err(Stop::ReadOnly),
            3 => Err(Stop::Poison),
            5 => Err(Stop::Errno(Errno::EINTR)),
            _ => Err(Stop::Fault),
        }
    }

    /// The page that a nested translation leads to.
    pub fn guest_cells(&self, pa: HostPa, write: bool) -> &PageCells {
        let n = pa.0.checked_sub(PA_BASE).expect("a page of the arena") / 4096;
        let (_, cells) = self.check(HVA_BASE + n * 4096, write).expect("the guest reaches a page that the host took");
        cells
    }

    pub fn take(&self, hva: Hva, write: bool) -> Result<SimUserPage, Stop> {
        let (n, _) = self.check(hva.0, write)?;
        self.references.fetch_add(1, SeqCst);
        let writable = self.check(hva.0, true).is_ok();
        Ok(SimUserPage { pa: HostPa(PA_BASE + n as u64 * 4096), writable, references: self.references.clone() })
    }

    /// Both directions, page by page, after every page has been checked.
    pub fn each(
        &self,
        at: u64,
        len: usize,
        write: bool,
        mut f: impl FnMut(&PageCells, usize, usize, usize),
    ) -> Result<(), Stop> {
        let end = at.checked_add(len as u64).ok_or(Stop::Fault)?;
        let pieces = || {
            let mut now = at;
            std::iter::from_fn(move || {
                (now < end).then(|| {
                    let next = (now | 4095).saturating_add(1).min(end);
                    (std::mem::replace(&mut now, next), next)
                })
            })
        };
        for (from, _) in pieces() {
            self.check(from, write)?;
        }
        for (from, to) in pieces() {
            let (_, cells) = self.check(from, write)?;
            f(cells, (from & 4095) as usize, (from - at) as usize, (to - from) as usize);
        }
        Ok(())
    }
}

/// A referenced user page.
pub struct SimUserPage {
    pa: HostPa,
    writable: bool,
    references: Arc<AtomicUsize>,
}

impl UserPage for SimUserPage {
    fn pfn(&self) -> Pfn {
        Pfn::from_host(self.pa)
    }
    fn writable(&self) -> bool {
        self.writable
    }
}

impl Drop for SimUserPage {
    fn drop(&mut self) {
        self.references.fetch_sub(1, SeqCst);
    }
}

/// A page shared with user space.
#[derive(Clone)]
pub struct SimPage(pub Arc<PageCells>);

crate::lent::lend!(SimPage = SharedPage);

impl std::ops::Deref for SimPage {
    type Target = PageCells;
    fn deref(&self) -> &PageCells {
        &self.0
    }
}

impl SharedPage for SimPage {
    fn cells(&self) -> &PageCells {
        &self.0
    }
    fn pa(&self) -> HostPa {
        HostPa(0)
    }
}
