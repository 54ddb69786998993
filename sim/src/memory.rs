//! The VMM's memory: an arena of pages from [`HVA_BASE`] that tests map, unmap and protect.

use arch::{HostPa, Hva};
use host::{MapLevel, PageCells, SharedPage, Stop, UserPage};
use std::array;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::*};

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
    /// Broken hardware: EHWPOISON.
    Poisoned = 3,
}

/// The arena.
pub struct Arena {
    pages: Vec<(AtomicU8, PageCells)>,
    level: AtomicU8,
    /// Page references that were taken and not given back.
    pub references: Arc<AtomicUsize>,
}

impl Arena {
    pub fn new(pages: usize) -> Self {
        let page = |_| (AtomicU8::new(Page::Writable as u8), PageCells(array::from_fn(|_| AtomicU8::new(0))));
        Self { pages: (0..pages).map(page).collect(), level: AtomicU8::new(1), references: Arc::default() }
    }

    fn page(&self, at: u64) -> Option<(usize, &(AtomicU8, PageCells))> {
        let n = (at.checked_sub(HVA_BASE)? / 4096) as usize;
        Some((n, self.pages.get(n)?))
    }

    pub fn contains(&self, hva: u64, len: u64) -> bool {
        hva.checked_add(len).is_some_and(|end| end <= 1 << 47)
    }

    pub fn set(&self, hva: u64, how: Page) {
        let (_, (state, _)) = self.page(hva).expect("a page of the arena");
        state.store(how as u8, SeqCst);
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
        let (n, (state, cells)) = self.page(at).ok_or(Stop::Fault)?;
        match state.load(SeqCst) {
            2 => Ok((n, cells)),
            1 if !write => Ok((n, cells)),
            3 => Err(Stop::Poison),
            _ => Err(Stop::Fault),
        }
    }

    pub fn take(&self, hva: Hva, write: bool) -> Result<SimUserPage, Stop> {
        let (n, _) = self.check(hva.0, write)?;
        self.references.fetch_add(1, SeqCst);
        let writable = self.check(hva.0, true).is_ok();
        Ok(SimUserPage { pa: HostPa(PA_BASE + n as u64 * 4096), writable, references: self.references.clone() })
    }

    /// Both directions, page by page, after every page has been checked.
    pub fn each(&self, at: u64, len: usize, write: bool, mut f: impl FnMut(&PageCells, usize, usize, usize)) -> Result<(), Stop> {
        let end = at.checked_add(len as u64).ok_or(Stop::Fault)?;
        let pieces = || {
            let mut now = at;
            std::iter::from_fn(move || {
                (now < end).then(|| {
                    let next = ((now | 4095) + 1).min(end);
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
    fn pa(&self) -> HostPa {
        self.pa
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
pub struct SimPage(pub Box<PageCells>);

impl SharedPage for SimPage {
    fn cells(&self) -> &PageCells {
        &self.0
    }
    fn pa(&self) -> HostPa {
        HostPa(0)
    }
}
