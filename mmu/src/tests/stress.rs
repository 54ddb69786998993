//! vCPUs that fault and use what they mapped, while another thread takes pages away, ages them, and changes slots: no
//! vCPU may ever reach a page that was given to somebody else.
//!
//! A vCPU here is a thread with a TLB of its own and the requests of `host`; "the guest" is the stretch between
//! `try_enter` and `leave`, in which it only uses its TLB and the nested tables.

use super::fake::{Fake, PAGE};
use super::{look, npf};
use crate::{LOG_DIRTY_PAGES, MemoryCache, Mmu, Space, UserRegion};
use arch::{Gpa, Hva};
use host::{Request, VcpuRequests};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use std::vec::Vec;

const HVA: u64 = 0x7000_0000_0000;
const PAGES: u64 = 24;
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
            let (gpa, write) = ((seed >> 33) % (2 * PAGES) * PAGE, seed >> 60 & 1 == 1);
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
                let gone = self.gone.lock().unwrap();
                assert!(
                    gone.binary_search(&pfn).is_err(),
                    "the guest uses frame {pfn:#x}, which is not its own any more"
                );
                self.entries.fetch_add(1, SeqCst);
            }
            self.all_requests[n].leave();
            if found.is_none() {
                let _ = self.mmu.normal().page_fault(&mut cache, Gpa(gpa), npf(write));
            }
        }
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
            let mut gone = self.gone.lock().unwrap();
            gone.extend(old);
            gone.sort_unstable();
            drop(gone);
            self.mmu.invalidate_range_end(start, end);
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

/// `slots`: change slots as well. Without it the guest makes more progress.
fn run(slots: bool) {
    let host = Fake::new();
    host.map(HVA, PAGES, true);
    let mmu = Arc::new(Mmu::new(host.clone()).unwrap());
    let m = Machine {
        mmu,
        all_requests: (0..VCPUS).map(|_| VcpuRequests::new()).collect(),
        gone: Mutex::default(),
        stop: AtomicBool::new(false),
        entries: AtomicU64::new(0),
        host: host.clone(),
    };
    let all = UserRegion { slot: 0, flags: 0, gpa: 0, size: PAGES * PAGE, hva: HVA };
    m.mmu.set_memory_region(&all, &|| {}).unwrap();
    std::thread::scope(|s| {
        let m = &m;
        let vcpus: Vec<_> = (0..VCPUS).map(|n| s.spawn(move || m.vcpu(n, n as u64 + 1))).collect();
        let vmm = slots.then(|| s.spawn(move || m.vmm()));
        let kernels: Vec<_> = (0..2).map(|n| s.spawn(move || m.kernel(n + 99))).collect();
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
    run(false);
}

#[test]
fn nor_while_slots_change() {
    run(true);
}
