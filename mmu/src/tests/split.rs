//! Large pages that are mapped read-only although their memory can be written: they stay for reads, and a write makes
//! the whole writable or splits it.

use super::fake::{Fake, PAGE, Point};
use super::{Vm, npf};
use crate::{LOG_DIRTY_PAGES, MANUAL_DIRTY_LOG_BITS, MemoryCache, RetPf::*};
use arch::{Gpa, Hva};
use host::MapLevel::{self, *};
use host::{Errno, Stop};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

const HVA: u64 = 0x7000_0000_0000;
const OUT: u64 = 0x6000_0000_0000;
const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;

/// A VM whose memory the host maps in pages of one size.
fn vm(host: Fake, pages: u64, writable: bool, level: MapLevel) -> Vm {
    let vm = Vm::on(host).checked();
    vm.host.map_as(HVA, pages, writable, level);
    vm.host.map(OUT, 8, true);
    vm
}

/// Level, and whether it may be written.
fn at(vm: &Vm, gpa: u64) -> Option<(u8, bool)> {
    vm.look(gpa).map(|f| (f.level, f.write))
}

/// Tables in use; whatever a fault has put aside goes back.
fn tables(vm: &mut Vm) -> usize {
    vm.cache = MemoryCache::new(&vm.host);
    vm.host.live_tables()
}

/// The frame and no other.
fn right(vm: &Vm, gpa: u64) {
    assert_eq!(vm.look(gpa).unwrap().pa >> 12, vm.host.pte(HVA + gpa).unwrap().pfn, "{gpa:#x}");
}

fn log(vm: &Vm) -> Vec<u64> {
    vm.mmu.get_dirty_log(0, Hva(OUT), &|| vm.flush()).unwrap();
    let mut bytes = [0; 64];
    vm.host.peek(OUT, &mut bytes);
    (0..512).filter(|n| bytes[n / 8] & 1 << (n % 8) != 0).map(|n| n as u64).collect()
}

/// As the log begins nothing goes away; each page is reported once for its first write, and reads of the others never
/// fault.
#[test]
fn a_log_that_begins() {
    for host in [Fake::new(), Fake::new().with_mapped_pages(), Fake::new().with_five_levels()] {
        let mut vm = vm(host, 512, true, Page2M);
        vm.set(0, 0, 512, HVA, 0).unwrap();
        vm.fault(0x5000, true).unwrap();
        let before = tables(&mut vm);
        vm.set(0, 0, 512, HVA, LOG_DIRTY_PAGES).unwrap();
        assert_eq!((at(&vm, 0x5000), vm.flush_count(), vm.host.live_tables()), (Some((2, false)), 1, before));
        // A read that faults all the same (another vCPU was faster) changes nothing.
        assert_eq!((vm.fault(0x5000, false), at(&vm, 0x5000)), (Ok(Fixed), Some((2, false))));
        assert_eq!((log(&vm), vm.flush_count()), (Vec::new(), 1));
        let mut written = Vec::new();
        for n in (0..512).step_by(7) {
            assert_eq!(at(&vm, n * PAGE).map(|f| f.1), Some(false));
            vm.fault(n * PAGE, true).unwrap();
            assert_eq!(at(&vm, n * PAGE), Some((1, true)));
            written.push(n);
        }
        assert_eq!(vm.host.live_tables(), before + 1, "one table, and none waits in vain");
        (0..512).for_each(|n| right(&vm, n * PAGE));
        assert_eq!((log(&vm), vm.flush_count()), (written, 2));
        assert_eq!((log(&vm), vm.flush_count()), (Vec::new(), 2));
        assert!((0..512).all(|n| at(&vm, n * PAGE) == Some((1, false))));
        // And back.
        vm.set(0, 0, 512, HVA, 0).unwrap();
        vm.fault(0x5000, false).unwrap();
        assert_eq!((at(&vm, 0x6000), tables(&mut vm)), (Some((2, true)), before));
        vm.end();
    }
}

/// Of a page of 1 GiB as much is split as a write needs, and clearing bits takes no more than the right to write.
#[test]
fn clearing_a_part_of_a_gigabyte() {
    let mut vm = vm(Fake::new(), 1 << 18, true, Page1G);
    vm.mmu.set_manual_dirty_log(MANUAL_DIRTY_LOG_BITS).unwrap();
    vm.set(0, 0, 1 << 18, HVA, 0).unwrap();
    vm.fault(0x1000, true).unwrap();
    let before = tables(&mut vm);
    vm.set(0, 0, 1 << 18, HVA, LOG_DIRTY_PAGES).unwrap();
    assert_eq!((at(&vm, 0), vm.flush_count()), (Some((3, true)), 0));
    vm.host.poke(OUT, &u64::MAX.to_le_bytes());
    vm.mmu.clear_dirty_log(0, 128, 64, Hva(OUT), &|| vm.flush()).unwrap();
    assert_eq!((at(&vm, 0), at(&vm, G1 - 1), vm.flush_count()), (Some((3, false)), Some((3, false)), 1));
    // Again: nothing is left to be taken.
    vm.mmu.clear_dirty_log(0, 192, 64, Hva(OUT), &|| vm.flush()).unwrap();
    assert_eq!((at(&vm, 0), vm.flush_count(), vm.host.live_tables()), (Some((3, false)), 1, before));
    vm.fault(130 * PAGE, true).unwrap();
    assert_eq!(at(&vm, 130 * PAGE), Some((1, true)));
    assert_eq!(
        (at(&vm, 131 * PAGE), at(&vm, M2), at(&vm, G1 - 1)),
        (Some((1, false)), Some((2, false)), Some((2, false)))
    );
    assert_eq!(vm.host.live_tables(), before + 2);
    vm.fault(5 * M2 + 0x3000, true).unwrap();
    assert_eq!((at(&vm, 5 * M2 + 0x3000), vm.host.live_tables()), (Some((1, true)), before + 3));
    for gpa in (0..G1).step_by(0x7_f000).chain([130 * PAGE, 5 * M2 + 0x3000, G1 - PAGE]) {
        right(&vm, gpa);
    }
    // Page 130 was written, the others of the 128 were not.
    let words: [u64; 4] = std::array::from_fn(|n| {
        let maps = vm.mmu.mmu_lock.read();
        maps.regions.all()[0].dirty_bitmap.as_ref().unwrap().word(n as u64)
    });
    assert_eq!(words, [u64::MAX, u64::MAX, 4, 0]);
    vm.end();
}

/// The host maps it read-only, and makes it writable for a write without a word.
#[test]
fn upgraded_as_a_whole() {
    for level in [Page2M, Page1G] {
        let mut vm = vm(Fake::new(), if level == Page2M { 512 } else { 1 << 18 }, false, level);
        let pages = if level == Page2M { 512 } else { 1 << 18 };
        vm.set(0, 0, pages, HVA, 0).unwrap();
        vm.fault(0x5000, false).unwrap();
        assert_eq!(at(&vm, 0), Some((level as u8, false)));
        assert_eq!((vm.fault(0x5000, true), at(&vm, 0)), (Err(Stop::Fault), Some((level as u8, false))));
        let before = tables(&mut vm);
        vm.host.0.exclusive.store(true, SeqCst);
        vm.fault(0x6000, true).unwrap();
        assert_eq!((at(&vm, 0x5000), at(&vm, 0x6000)), (Some((level as u8, true)), Some((level as u8, true))));
        right(&vm, 0x7000);
        assert_eq!((vm.host.live_tables(), vm.flush_count()), (before, 0), "no table, no flush");
        vm.end();
    }
}

/// By then the host maps small pages there, of which only one may be written.
#[test]
fn upgraded_in_part_where_the_host_s_level_fell() {
    for mapped in [false, true] {
        let mut vm = vm(if mapped { Fake::new().with_mapped_pages() } else { Fake::new() }, 1024, false, Page2M);
        vm.set(0, 0, 1024, HVA, 0).unwrap();
        vm.fault(0x5000, false).unwrap();
        vm.fault(M2, false).unwrap();
        for pte in vm.host.0.space.lock().unwrap().pages.range_mut(HVA..HVA + M2) {
            pte.1.level = Page4K;
        }
        vm.host.0.space.lock().unwrap().pages.get_mut(&(HVA + 0x6000)).unwrap().writable = true;
        let before = tables(&mut vm);
        vm.fault(0x6000, true).unwrap();
        assert_eq!((at(&vm, 0x6000), vm.host.live_tables(), vm.flush_count()), (Some((1, true)), before + 1, 0));
        for n in (0..512).filter(|n| *n != 6) {
            assert_eq!(at(&vm, n * PAGE), Some((1, false)));
            right(&vm, n * PAGE);
        }
        assert_eq!(vm.fault(0x5000, true), Err(Stop::Fault));
        assert_eq!(at(&vm, M2), Some((2, false)), "the neighbour stays");
        // All of it goes when the host says so.
        vm.invalidate(HVA + 0x6000, HVA + 0x7000);
        assert_eq!((at(&vm, 0x6000), at(&vm, 0x5000), vm.flush_count()), (None, Some((1, false)), 1));
        vm.invalidate_end(HVA + 0x6000, HVA + 0x7000);
        vm.end();
    }
}

/// A page of 1 GiB of which the host maps 2 MiB by then: so much becomes writable.
#[test]
fn upgraded_in_part_of_a_gigabyte() {
    let mut vm = vm(Fake::new(), 1 << 18, false, Page1G);
    vm.set(0, 0, 1 << 18, HVA, 0).unwrap();
    vm.fault(0x5000, false).unwrap();
    vm.host.0.space.lock().unwrap().pages.values_mut().for_each(|p| p.level = p.level.min(Page2M));
    vm.host.0.exclusive.store(true, SeqCst);
    vm.fault(3 * M2, true).unwrap();
    assert_eq!(
        (at(&vm, 3 * M2 + 0x1000), at(&vm, 4 * M2), at(&vm, 0)),
        (Some((2, true)), Some((2, false)), Some((2, false)))
    );
    for gpa in (0..G1).step_by(0xf_f000) {
        right(&vm, gpa);
    }
    vm.end();
}

/// A read-only large page goes with the notifier's call for any part of it, split or not.
#[test]
fn it_goes_when_the_host_says_so() {
    let mut vm = vm(Fake::new(), 512, false, Page2M);
    vm.set(0, 0, 512, HVA, 0).unwrap();
    vm.fault(0x5000, false).unwrap();
    vm.invalidate(HVA + 0x9000, HVA + 0xa000);
    assert_eq!((at(&vm, 0x5000), vm.flush_count()), (None, 1));
    vm.invalidate_end(HVA + 0x9000, HVA + 0xa000);
    // The page is being looked up for a write when the host takes the memory away and gives other.
    vm.fault(0x5000, false).unwrap();
    vm.host.0.exclusive.store(true, SeqCst);
    let (mmu, host, times) = (Arc::downgrade(&vm.mmu), vm.host.clone(), AtomicU64::new(0));
    vm.host.hook(move |p| {
        if matches!(p, Point::AfterPage(_)) && times.fetch_add(1, SeqCst) == 0 {
            let mmu = mmu.upgrade().unwrap();
            mmu.invalidate_range_start(Hva(HVA), Hva(HVA + M2), true, &|| {});
            host.map_as(HVA, 512, false, Page2M);
            mmu.invalidate_range_end(Hva(HVA), Hva(HVA + M2));
            // A reader maps it before the writer looks again.
            mmu.normal().page_fault(&mut MemoryCache::new(&host), Gpa(0x7000), npf(false)).unwrap();
        }
    });
    vm.fault(0x5000, true).unwrap();
    assert_eq!(at(&vm, 0x7000), Some((2, true)));
    right(&vm, 0x5000);
    vm.end();
}

/// A neighbour is about to change, and has not been unmapped yet: nothing of it becomes writable.
#[test]
fn a_neighbour_that_is_about_to_change() {
    let mut vm = vm(Fake::new(), 512, false, Page2M);
    vm.set(0, 0, 512, HVA, 0).unwrap();
    vm.fault(0x5000, false).unwrap();
    vm.host.0.exclusive.store(true, SeqCst);
    // As the first half of `invalidate_range_start` leaves it.
    vm.mmu.invalidations.lock().add(HVA + 0x9000, HVA + 0xa000);
    vm.mmu.invalidations_in_progress.store(1, SeqCst);
    vm.fault(0x5000, true).unwrap();
    assert_eq!(
        (at(&vm, 0x5000), at(&vm, 0x9000), at(&vm, 0xb000)),
        (Some((1, true)), Some((1, false)), Some((1, false)))
    );
    vm.invalidate_end(HVA + 0x9000, HVA + 0xa000);
    vm.end();
}

/// The host has replaced a page without saying so: as for small pages nothing is made writable.
#[test]
fn another_page_is_refused() {
    for level in [Page4K, Page2M] {
        let mut vm = vm(Fake::new(), 512, false, Page2M);
        vm.set(0, 0, 512, HVA, 0).unwrap();
        vm.fault(0x5000, false).unwrap();
        {
            let mut space = vm.host.0.space.lock().unwrap();
            let other = space.pages[&(HVA + 0x6000)].pfn;
            let pte = space.pages.get_mut(&(HVA + 0x5000)).unwrap();
            (pte.pfn, pte.writable, pte.level) = (other, true, level);
        }
        assert_eq!(vm.fault(0x5000, true), Err(Stop::Errno(Errno::EIO)));
        assert!((0..512).all(|n| at(&vm, n * PAGE).is_some_and(|f| !f.1)));
        vm.end();
    }
}

/// Tables run out at every point of a split: the fault fails, nothing is lost, and the next attempt works.
#[test]
fn no_memory_for_the_tables() {
    for n in 0..2 {
        let mut vm = vm(Fake::new(), 1 << 18, true, Page1G);
        vm.set(0, 0, 1 << 18, HVA, 0).unwrap();
        vm.fault(0, true).unwrap();
        vm.set(0, 0, 1 << 18, HVA, LOG_DIRTY_PAGES).unwrap();
        tables(&mut vm);
        vm.host.fail_after(n);
        assert_eq!(vm.fault(0x5000, true), Err(Stop::Errno(Errno::ENOMEM)));
        assert_eq!(at(&vm, 0x5000).map(|f| f.1), Some(false));
        vm.host.fail_after(i64::MAX);
        vm.fault(0x5000, true).unwrap();
        assert_eq!(at(&vm, 0x5000), Some((1, true)));
        vm.end();
    }
}

/// Whether it was used is not forgotten.
#[test]
fn parts_are_as_old_as_the_whole() {
    for old in [false, true] {
        let mut vm = vm(Fake::new(), 512, true, Page2M);
        vm.set(0, 0, 512, HVA, 0).unwrap();
        vm.fault(0, true).unwrap();
        vm.set(0, 0, 512, HVA, LOG_DIRTY_PAGES).unwrap();
        if old {
            assert!(vm.mmu.age(Hva(HVA), Hva(HVA + PAGE)));
        }
        vm.fault(0x5000, true).unwrap();
        assert!(vm.look(0x5000).unwrap().accessed);
        assert_eq!(vm.look(0x6000).map(|f| f.accessed), Some(!old));
        vm.end();
    }
}

/// Many vCPUs write to one large page at once.
#[test]
fn all_at_once() {
    for round in 0..20 {
        let vm = vm(Fake::new(), 512, true, Page2M);
        vm.host.hook(|_| {});
        vm.set(0, 0, 512, HVA, 0).unwrap();
        let mut cache = MemoryCache::new(&vm.host);
        vm.mmu.normal().page_fault(&mut cache, Gpa(0), npf(true)).unwrap();
        vm.set(0, 0, 512, HVA, LOG_DIRTY_PAGES).unwrap();
        let seen = Mutex::new(0);
        std::thread::scope(|s| {
            for n in 0..4 {
                let (vm, seen) = (&vm, &seen);
                s.spawn(move || {
                    let mut cache = MemoryCache::new(&vm.host);
                    for page in (0..128).map(|k| (k * 4 + n + round) % 512) {
                        assert_eq!(vm.mmu.normal().page_fault(&mut cache, Gpa(page * PAGE), npf(true)), Ok(Fixed));
                        assert_eq!(at(vm, page * PAGE), Some((1, true)));
                        vm.mmu.age(Hva(HVA), Hva(HVA + M2));
                        *seen.lock().unwrap() += 1;
                    }
                });
            }
        });
        assert_eq!(*seen.lock().unwrap(), 512);
        (0..512).for_each(|n| right(&vm, n * PAGE));
        assert_eq!(log(&vm), (0..512).collect::<Vec<_>>());
        drop(cache);
        vm.end();
    }
}
