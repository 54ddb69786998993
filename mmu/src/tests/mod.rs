//! Tests of the mmu on a fake machine: an address space that tests rearrange, table pages that are counted and can run
//! out, and a hook at every point where the real kernel could let others in.

mod any_order;
mod dirty;
pub(crate) mod fake;
mod faults;
mod handover;
mod hva_tree;
mod memory;
mod model_tlb;
mod never;
mod notifier;
mod ring;
mod slots;
mod spaces;
mod split;
mod stress;
mod walk;
mod walk_model;

use crate::{MemoryCache, Mmu, RetPf, Space, UserRegion, View};
use arch::{Gpa, NpfCode};
use fake::{Fake, PAGE};
use host::Stop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A VM with one vCPU's cache on a fake machine.
struct Vm {
    host: Fake,
    mmu: Arc<Mmu<Fake>>,
    cache: MemoryCache<Fake>,
    flushes: AtomicU64,
}

impl Vm {
    fn new() -> Self {
        Self::on(Fake::new())
    }

    fn on(host: Fake) -> Self {
        let mmu = Arc::new(Mmu::new(host.clone()).unwrap());
        Self { cache: MemoryCache::new(&host), mmu, host, flushes: AtomicU64::new(0) }
    }

    /// The machine checks at each sleeping call that this thread holds no spin lock.
    fn checked(self) -> Self {
        let mmu = Arc::downgrade(&self.mmu);
        self.host.hook(move |_| {
            if let Some(mmu) = mmu.upgrade() {
                assert!(mmu.mmu_lock.try_write().is_some(), "slept with the spin lock held");
            }
        });
        self
    }

    /// A flush that checks that it may wait.
    fn flush(&self) {
        assert!(self.mmu.mmu_lock.try_write().is_some(), "flushed with the spin lock held");
        self.flushes.fetch_add(1, SeqCst);
    }

    fn set(&self, slot: u32, gpa: u64, pages: u64, hva: u64, flags: u32) -> Result<(), host::Errno> {
        let r = UserRegion { slot, flags, gpa, size: pages * PAGE, hva };
        self.mmu.set_memory_region(&r, &|| self.flush())
    }

    fn fault(&mut self, gpa: u64, write: bool) -> Result<RetPf, Stop> {
        self.mmu.normal().page_fault(&mut self.cache, Gpa(gpa), npf(write))
    }

    fn invalidate(&self, start: u64, end: u64) {
        self.mmu.invalidate_range_start(arch::Hva(start), arch::Hva(end), true, &|| self.flush());
    }

    fn invalidate_end(&self, start: u64, end: u64) {
        self.mmu.invalidate_range_end(arch::Hva(start), arch::Hva(end));
    }

    fn flush_count(&self) -> u64 {
        self.flushes.load(SeqCst)
    }

    /// How the nested tables map a guest address.
    fn look(&self, gpa: u64) -> Option<Found> {
        look(&self.host, self.mmu.root(Space::Normal).pa().0, if self.host.five_levels() { 5 } else { 4 }, gpa)
    }

    /// Ends the VM; all table pages have to be back.
    fn end(self) {
        let host = self.host.clone();
        host.hook(|_| {});
        drop(self);
        assert_eq!(host.live_tables(), 0, "table pages leaked");
    }
}

impl Mmu<Fake> {
    /// Guest memory outside of system management mode, with bitmaps or no log.
    fn normal(&self) -> View<'_, Fake> {
        self.view(Space::Normal, None)
    }
}

fn npf(write: bool) -> NpfCode {
    NpfCode(1 << 32 | 4 | u64::from(write) << 1)
}

/// A nested translation, found by a walk of the tables as the APM describes it, apart from the code under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    pa: u64,
    write: bool,
    level: u8,
    accessed: bool,
}

fn look(host: &Fake, root: u64, levels: u8, gpa: u64) -> Option<Found> {
    use host::Host;
    let (mut table, mut write) = (root, true);
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (u32::from(level) - 1);
        let cells = host.table(arch::HostPa(table)).expect("entry names a page that is no table");
        let e = cells.0[(gpa >> shift & 511) as usize].load(SeqCst);
        if e & 1 == 0 {
            assert_eq!(e, 0, "absent entries are zero");
            return None;
        }
        assert_ne!(e & 4, 0, "nested entries are user entries");
        assert_eq!(e & (1 << 63 | 0x7ff << 52), 0, "reserved or NX bits");
        write &= e & 2 != 0;
        let large = level > 1 && e & 0x80 != 0;
        if level == 1 || large {
            assert!(e & 2 == 0 || e & 0x40 != 0, "writable entries have D set");
            let offset = (1u64 << shift) - 1;
            assert_eq!(e & 0x000f_ffff_ffff_f000 & offset, 0, "large pages are aligned");
            return Some(Found { pa: e & 0x000f_ffff_ffff_f000 | gpa & offset, write, level, accessed: e & 0x20 != 0 });
        }
        table = e & 0x000f_ffff_ffff_f000;
    }
    unreachable!()
}
