//! vCPUs that fault and use what they mapped, while another thread takes pages away, ages them, and changes slots: no
//! vCPU may ever reach a page that was given to somebody else, or write one that the host has read-only.
//!
//! A vCPU here is a thread with a TLB of its own and the requests of `host`; "the guest" is the stretch between
//! `try_enter` and `leave`, in which it only uses its TLB and the nested tables.

use super::fake::{Fake, PAGE, Pte};
use super::{look, npf};
use crate::{LOG_DIRTY_PAGES, MemoryCache, Mmu, Space, UserRegion};
use arch::{Gpa, Hva};
use host::MapLevel::{Page2M, Page4K};
use host::{Request, VcpuRequests};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use std::vec::Vec;

const HVA: u64 = 0x7000_0000_0000;
/// Where user space keeps its bitmap.
const OUT: u64 = 0x6000_0000_0000;
const PAGES: u64 = 24;
/// Pages of a large one.
const LARGE: u64 = 512;
const VCPUS: usize = 3;
/// Least number of invalidations by each of two threads, and of entries into the guest.
const ROUNDS: u32 = 150;
const ENTRIES: u64 = 300;

struct Machine {
    host: Fake,
    mmu: Arc<Mmu<Fake>>,
    all_requests: Vec<VcpuRequests>,
    /// Frames that the host took back: nobody may use them any more.
    gone: Mutex<Vec<u64>>,
    /// Frames that the host has read-only: nobody may write them.
    read_only: Mutex<BTreeSet<u64>>,
    /// Pages of the slot.
    pages: u64,
    stop: AtomicBool,
    entries: AtomicU64,
}

impl Machine {
    fn flush(&self) {
        for requests in &self.all_requests {
            requests.make_request(Request::TlbFlush);
        }
        for requests in &self.all_requests {
            while requests.test_request(Request::TlbFlush) && requests.needs_ipi() {
                std::thread::yield_now();
            }
        }
    }

    fn vcpu(&self, n: usize, mut seed: u64) {
        let mut cache = MemoryCache::new(&self.host);
        let mut tlb = BTreeMap::<u64, (u64, bool)>::new();
        while !self.stop.load(SeqCst) {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (gpa, write) = ((seed >> 33) % (2 * self.pages) * PAGE, seed >> 60 & 1 == 1);
            if self.all_requests[n].take_all().has(Request::TlbFlush) {
                tlb.clear();
            }
            if !self.all_requests[n].try_enter() {
                continue;
            }
            let hit = tlb.get(&gpa).copied().filter(|t| t.1 || !write);
            // The hardware walker; a table that was freed under it fails in the fake machine.
            let found = hit.or_else(|| {
                look(&self.host, self.mmu.root(Space::Normal).pa().0, 4, gpa)
                    .map(|f| (f.pa >> 12, f.write))
                    .filter(|t| t.1 || !write)
            });
            if let Some((pfn, writable)) = found {
                tlb.insert(gpa, (pfn, writable));
                std::thread::yield_now();
                let gone = self.gone.lock().unwrap().binary_search(&pfn);
                assert!(gone.is_err(), "the guest uses frame {pfn:#x}, which is not its own any more");
                let read_only = write && self.read_only.lock().unwrap().contains(&pfn);
                assert!(!read_only, "the guest writes frame {pfn:#x}, which is read-only");
                self.entries.fetch_add(1, SeqCst);
            }
            self.all_requests[n].leave();
            if found.is_none() {
                let _ = self.mmu.normal().page_fault(&mut cache, Gpa(gpa), npf(write));
            }
        }
    }

    fn take_back(&self, old: impl IntoIterator<Item = u64>) {
        let mut gone = self.gone.lock().unwrap();
        gone.extend(old);
        gone.sort_unstable();
    }

    /// Takes pages away as the kernel does, and gives others.
    fn kernel(&self, mut seed: u64) {
        let mut round = 0;
        while round < ROUNDS || round < 100 * ROUNDS && self.entries.load(SeqCst) < ENTRIES {
            round += 1;
            // Both ways to find a page.
            self.host.0.mapped.store(seed >> 20 & 1 == 0, SeqCst);
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (first, count) = ((seed >> 33) % PAGES, 1 + (seed >> 50) % 4);
            let count = count.min(PAGES - first);
            let (start, end) = (Hva(HVA + first * PAGE), Hva(HVA + (first + count) * PAGE));
            if seed >> 61 == 0 {
                self.mmu.age(start, end);
                continue;
            }
            self.mmu.invalidate_range_start(start, end, true, &|| self.flush());
            let old: Vec<u64> = (0..count).filter_map(|n| Some(self.host.pte(start.0 + n * PAGE)?.pfn)).collect();
            self.host.map(start.0, count, true);
            self.take_back(old);
            self.mmu.invalidate_range_end(start, end);
        }
    }

    /// What the kernel does to memory that it maps in a large page: gives other, shares it, and finds without a word to
    /// anybody that it may be written again, as a whole or, in small pages from then on, in part.
    fn kernel_large(&self, mut seed: u64) {
        let (start, end) = (Hva(HVA), Hva(HVA + LARGE * PAGE));
        let each = |f: &mut dyn FnMut(&mut Pte)| {
            self.host.0.space.lock().unwrap().pages.range_mut(start.0..end.0).for_each(|(_, p)| f(p));
        };
        // Whoever may write again may do so before the host's tables say it, and not after they say that nobody may.
        let upgrade = |p: &mut Pte| {
            self.read_only.lock().unwrap().remove(&p.pfn);
            p.writable = true;
        };
        let mut round = 0;
        while round < ROUNDS || round < 100 * ROUNDS && self.entries.load(SeqCst) < ENTRIES {
            round += 1;
            self.host.0.mapped.store(seed >> 20 & 1 == 0, SeqCst);
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            match seed >> 33 & 7 {
                0 | 6 => {
                    self.mmu.invalidate_range_start(start, end, true, &|| self.flush());
                    let mut old = Vec::new();
                    each(&mut |p| old.push(p.pfn));
                    self.take_back(old);
                    self.host.map_as(HVA, LARGE, seed >> 40 & 1 == 0, Page2M);
                    each(&mut |p| self.read_only.lock().unwrap().extend((!p.writable).then_some(p.pfn)));
                    self.mmu.invalidate_range_end(start, end);
                }
                1 | 2 => {
                    self.mmu.invalidate_range_start(start, end, true, &|| self.flush());
                    each(&mut |p| {
                        self.read_only.lock().unwrap().insert(p.pfn);
                        p.writable = false;
                    });
                    self.mmu.invalidate_range_end(start, end);
                }
                3 => each(&mut |p| upgrade(p)),
                4 => {
                    let one = HVA + (seed >> 40) % LARGE * PAGE;
                    each(&mut |p| p.level = Page4K);
                    self.host.0.space.lock().unwrap().pages.entry(one).and_modify(upgrade);
                }
                5 => {
                    // One page of it.
                    let one = Hva(HVA + (seed >> 40) % LARGE * PAGE);
                    each(&mut |p| p.level = Page4K);
                    self.mmu.invalidate_range_start(one, Hva(one.0 + PAGE), true, &|| self.flush());
                    self.take_back(self.host.pte(one.0).map(|p| p.pfn));
                    self.host.map(one.0, 1, true);
                    self.mmu.invalidate_range_end(one, Hva(one.0 + PAGE));
                }
                _ => drop(self.mmu.age(start, end)),
            }
            std::thread::yield_now();
        }
    }

    /// The log begins, is read, and ends.
    fn logger(&self) {
        let mut n = 0u64;
        while !self.stop.load(SeqCst) {
            n += 1;
            let flags = if n % 8 == 0 { 0 } else { LOG_DIRTY_PAGES };
            let r = UserRegion { slot: 0, flags, gpa: 0, size: self.pages * PAGE, hva: HVA };
            let _ = self.mmu.set_memory_region(&r, &|| self.flush());
            let _ = self.mmu.get_dirty_log(0, Hva(OUT), &|| self.flush());
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Creates, deletes, moves slots and switches logging.
    fn vmm(&self) {
        let mut n = 0u64;
        while !self.stop.load(SeqCst) {
            n += 1;
            let (gpa, flags) = (n % 3 * 8 * PAGE, if n % 5 < 2 { LOG_DIRTY_PAGES } else { 0 });
            let size = if n % 7 == 0 { 0 } else { PAGES * PAGE };
            let r = UserRegion { slot: 0, flags, gpa, size, hva: HVA };
            let _ = self.mmu.set_memory_region(&r, &|| self.flush());
            let _ = self.mmu.normal().write_phys(Gpa(gpa + 123), &[1; 5000]);
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// What happens beside the guest.
#[derive(Clone, Copy, PartialEq)]
enum Beside {
    /// Small pages go.
    Pages,
    /// Slots change as well; the guest makes less progress.
    Slots,
    /// It is a large page, whose writes are logged now and then.
    LargePage,
}

fn run(beside: Beside) {
    let host = Fake::new();
    let pages = if beside == Beside::LargePage { LARGE } else { PAGES };
    match beside {
        Beside::LargePage => drop(host.map_as(HVA, LARGE, true, Page2M)),
        _ => drop(host.map(HVA, PAGES, true)),
    }
    host.map(OUT, 1, true);
    let mmu = Arc::new(Mmu::new(host.clone()).unwrap());
    let m = Machine {
        mmu,
        all_requests: (0..VCPUS).map(|_| VcpuRequests::new()).collect(),
        gone: Mutex::default(),
        read_only: Mutex::default(),
        pages,
        stop: AtomicBool::new(false),
        entries: AtomicU64::new(0),
        host: host.clone(),
    };
    let all = UserRegion { slot: 0, flags: 0, gpa: 0, size: pages * PAGE, hva: HVA };
    m.mmu.set_memory_region(&all, &|| {}).unwrap();
    std::thread::scope(|s| {
        let m = &m;
        let vcpus: Vec<_> = (0..VCPUS).map(|n| s.spawn(move || m.vcpu(n, n as u64 + 1))).collect();
        let vmm = match beside {
            Beside::Pages => None,
            Beside::Slots => Some(s.spawn(move || m.vmm())),
            Beside::LargePage => Some(s.spawn(move || m.logger())),
        };
        let kernels: Vec<_> = match beside {
            // One at a time changes the large page.
            Beside::LargePage => Vec::from([s.spawn(move || m.kernel_large(99))]),
            _ => (0..2).map(|n| s.spawn(move || m.kernel(n + 99))).collect(),
        };
        let ends: Vec<_> = kernels.into_iter().map(|k| k.join()).collect();
        m.stop.store(true, SeqCst);
        for end in ends.into_iter().chain(vcpus.into_iter().map(|v| v.join())).chain(vmm.map(|v| v.join())) {
            end.unwrap();
        }
    });
    assert!(m.entries.load(SeqCst) >= ENTRIES, "the guest made progress");
    assert_eq!(host.0.warnings.load(SeqCst), 0);
    drop(m);
    assert_eq!(host.live_tables(), 0);
}

#[test]
fn nobody_uses_a_page_that_is_gone() {
    run(Beside::Pages);
}

#[test]
fn nor_while_slots_change() {
    run(Beside::Slots);
}

#[test]
fn nor_a_part_of_a_large_one() {
    run(Beside::LargePage);
}
