//! What the kernel may do to the VMM's memory while a fault, an access or another invalidation is under way.

use super::Vm;
use super::fake::{Fake, PAGE, Point};
use crate::RetPf::*;
use crate::{LOG_DIRTY_PAGES, UserRegion};
use arch::{Gpa, Hva};
use host::MapLevel::Page2M;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

const HVA: u64 = 0x7000_0000_0000;

/// Runs `f` the `n`th time the machine gets to the point; later times are quiet.
fn once(vm: &Vm, at: fn(Point) -> bool, f: impl Fn() + Send + Sync + 'static) {
    let times = AtomicU32::new(0);
    vm.host.hook(move |p| {
        if at(p) && times.fetch_add(1, SeqCst) == 0 {
            f();
        }
    });
}

fn after_page(p: Point) -> bool {
    matches!(p, Point::AfterPage(_))
}

#[test]
fn unmaps_and_flushes_once() {
    let mut vm = Vm::new().checked();
    vm.host.map(HVA, 8, true);
    vm.set(0, 0, 8, HVA, 0).unwrap();
    vm.set(1, 0x10_0000, 8, HVA, 0).unwrap(); // the same memory again
    for gpa in [0x1000, 0x2000, 0x3000, 0x10_2000] {
        vm.fault(gpa, true).unwrap();
    }
    vm.invalidate(HVA + 0x2000, HVA + 0x3000);
    assert_eq!((vm.look(0x2000), vm.look(0x10_2000), vm.flush_count()), (None, None, 1));
    assert!(vm.look(0x1000).is_some() && vm.look(0x3000).is_some());
    // Nothing mapped: no flush.
    vm.invalidate(HVA + 0x5000, HVA + 0x6000);
    vm.invalidate(HVA - 0x10000, HVA);
    assert_eq!(vm.flush_count(), 1);
    for (start, end) in [(0x2000, 0x3000), (0x5000, 0x6000)] {
        vm.invalidate_end(HVA + start, HVA + end);
    }
    vm.invalidate_end(HVA - 0x10000, HVA);
    vm.end();
}

#[test]
fn nothing_is_mapped_while_it_is_being_invalidated() {
    let mut vm = Vm::new().checked();
    vm.host.map(HVA, 8, true);
    vm.set(0, 0, 8, HVA, 0).unwrap();
    vm.invalidate(HVA + 0x2000, HVA + 0x4000);
    assert_eq!(vm.fault(0x2000, true), Ok(Retry));
    assert_eq!(vm.fault(0x3000, false), Ok(Retry));
    assert_eq!(vm.fault(0x4000, true), Ok(Fixed)); // outside of the range
    // A second one overlaps in time: each range stays closed until its own invalidation has ended.
    vm.invalidate(HVA, HVA + 0x1000);
    vm.invalidate_end(HVA + 0x2000, HVA + 0x4000);
    assert_eq!(vm.fault(0x2000, true), Ok(Fixed));
    assert_eq!(vm.fault(0, true), Ok(Retry));
    // A slot that appears now is closed as well.
    vm.set(1, 0x10_0000, 8, HVA, 0).unwrap();
    assert_eq!(vm.fault(0x10_0000, true), Ok(Retry));
    vm.invalidate_end(HVA, HVA + 0x1000);
    assert_eq!(vm.fault(0x2000, true), Ok(Fixed));
    assert_eq!(vm.fault(0x10_0000, true), Ok(Fixed));
    vm.end();
}

/// The host replaces the page between handing it out and our mapping it: the new one gets mapped.
#[test]
fn a_page_replaced_during_the_fault() {
    let mut vm = Vm::new();
    let old = vm.host.map(HVA, 1, true);
    vm.set(0, 0, 1, HVA, 0).unwrap();
    let (mmu, host, new) = (Arc::downgrade(&vm.mmu), vm.host.clone(), Arc::new(AtomicU64::new(0)));
    let told = new.clone();
    once(&vm, after_page, move || {
        let mmu = mmu.upgrade().unwrap();
        mmu.invalidate_range_start(Hva(HVA), Hva(HVA + PAGE), true, &|| {});
        told.store(host.map(HVA, 1, true), SeqCst);
        mmu.invalidate_range_end(Hva(HVA), Hva(HVA + PAGE));
    });
    assert_eq!(vm.fault(0, true), Ok(Fixed));
    let new = new.load(SeqCst);
    assert_ne!(old, new);
    assert_eq!(vm.look(0).unwrap().pa, new << 12);
    vm.end();
}

/// The invalidation has begun and not ended when the fault gets to mapping: nothing is mapped.
#[test]
fn an_invalidation_that_begins_during_the_fault() {
    let mut vm = Vm::new();
    vm.host.map(HVA, 1, true);
    vm.set(0, 0, 1, HVA, 0).unwrap();
    let mmu = Arc::downgrade(&vm.mmu);
    once(&vm, after_page, move || {
        mmu.upgrade().unwrap().invalidate_range_start(Hva(HVA), Hva(HVA + PAGE), true, &|| {});
    });
    assert_eq!(vm.fault(0, true), Ok(Retry));
    assert_eq!(vm.look(0), None);
    vm.invalidate_end(HVA, HVA + PAGE);
    assert_eq!(vm.fault(0, true), Ok(Fixed));
    vm.end();
}

/// Endless invalidations end in a retry, not in an endless loop.
#[test]
fn a_fault_gives_up_in_the_end() {
    let mut vm = Vm::new();
    vm.host.map(HVA, 1, true);
    vm.set(0, 0, 1, HVA, 0).unwrap();
    let mmu = Arc::downgrade(&vm.mmu);
    vm.host.hook(move |p| {
        if after_page(p) {
            let mmu = mmu.upgrade().unwrap();
            mmu.invalidate_range_start(Hva(HVA), Hva(HVA + PAGE), true, &|| {});
            mmu.invalidate_range_end(Hva(HVA), Hva(HVA + PAGE));
        }
    });
    assert_eq!(vm.fault(0, true), Ok(Retry));
    assert_eq!(vm.look(0), None);
    vm.end();
}

/// Slots change while the fault has no lock: what is mapped in the end is what the slots say then.
#[test]
fn slots_that_change_during_the_fault() {
    type Change = (UserRegion, fn(&mut Vm));
    let base = UserRegion { slot: 0, flags: 0, gpa: 0, size: 512 * PAGE, hva: HVA };
    let changes: [Change; 4] = [
        (UserRegion { size: 0, ..base }, |vm| {
            assert_eq!(vm.fault(0x1000, true), Ok(Emulate));
            assert_eq!(vm.look(0x1000), None);
        }),
        (UserRegion { gpa: 0x100_0000, ..base }, |vm| {
            assert_eq!(vm.fault(0x1000, true), Ok(Emulate));
            assert_eq!(vm.look(0x1000), None);
        }),
        (UserRegion { gpa: 0x1000, ..base }, |vm| {
            assert_eq!(vm.fault(0x1000, true), Ok(Fixed));
            assert_eq!(vm.look(0x1000).unwrap().pa >> 12, vm.host.pte(HVA).unwrap().pfn);
        }),
        (UserRegion { flags: LOG_DIRTY_PAGES, ..base }, |vm| {
            assert_eq!(vm.fault(0x1000, false), Ok(Fixed));
            // Neither large nor writable: a write has to be seen.
            let f = vm.look(0x1000).unwrap();
            assert_eq!((f.level, f.write), (1, false));
        }),
    ];
    for (change, then) in changes {
        let mut vm = Vm::new();
        vm.host.map_as(HVA, 512, true, Page2M);
        vm.mmu.set_memory_region(&base, &|| {}).unwrap();
        let mmu = Arc::downgrade(&vm.mmu);
        once(&vm, after_page, move || mmu.upgrade().unwrap().set_memory_region(&change, &|| {}).unwrap());
        then(&mut vm);
        vm.end();
    }
}

/// An access to guest memory faults, and the kernel calls the notifier from that fault: the sleeping lock is held, and
/// the notifier does without.
#[test]
fn notifier_inside_an_access() {
    let mut vm = Vm::new();
    vm.host.map(HVA, 2, true);
    vm.set(0, 0, 2, HVA, LOG_DIRTY_PAGES).unwrap();
    vm.fault(0, true).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let (mmu, count) = (Arc::downgrade(&vm.mmu), calls.clone());
    vm.host.hook(move |p| {
        if matches!(p, Point::ReadUser(_) | Point::WriteUser(_) | Point::Cmpxchg(_)) {
            let mmu = mmu.upgrade().unwrap();
            assert!(mmu.slots.try_write().is_none(), "accesses hold the lock of the slots");
            mmu.invalidate_range_start(Hva(HVA), Hva(HVA + PAGE), true, &|| {});
            mmu.age(Hva(HVA), Hva(HVA + PAGE));
            mmu.invalidate_range_end(Hva(HVA), Hva(HVA + PAGE));
            count.fetch_add(1, SeqCst);
        }
    });
    vm.mmu.normal().write_phys(Gpa(8), &[1, 2, 3]).unwrap();
    let mut b = [0; 3];
    vm.mmu.normal().read_phys(Gpa(8), &mut b).unwrap();
    assert_eq!(b, [1, 2, 3]);
    vm.mmu.normal().cmpxchg_phys(Gpa(8), 1, 1, 9).unwrap();
    assert_eq!(calls.load(SeqCst), 3);
    assert_eq!(vm.look(0), None);
    vm.end();
}

/// One thread removed an entry and has not flushed yet; another that finds nothing left to remove flushes itself
/// instead of relying on it.
#[test]
fn nobody_returns_before_the_flush() {
    let mut vm = Vm::new();
    vm.host.map(HVA, 1, true);
    vm.set(0, 0, 1, HVA, 0).unwrap();
    vm.fault(0, true).unwrap();
    let (outer, inner) = (AtomicU32::new(0), AtomicU32::new(0));
    vm.mmu.invalidate_range_start(Hva(HVA), Hva(HVA + PAGE), true, &|| {
        // The second thread comes here, before the first has flushed.
        outer.fetch_add(1, SeqCst);
        assert_eq!(vm.look(0), None);
        vm.mmu.invalidate_range_start(Hva(HVA), Hva(HVA + PAGE), true, &|| {
            inner.fetch_add(1, SeqCst);
        });
    });
    assert_eq!((outer.load(SeqCst), inner.load(SeqCst)), (1, 1));
    // All is flushed: a third has nothing to do.
    vm.invalidate(HVA, HVA + PAGE);
    assert_eq!(vm.flush_count(), 0);
    for _ in 0..3 {
        vm.invalidate_end(HVA, HVA + PAGE);
    }
    vm.end();
}

/// A slot is being deleted, its entries are gone and the flush is under way: the notifier still finds it, and a fault
/// maps nothing.
#[test]
fn a_slot_on_its_way_out() {
    let mut vm = Vm::new();
    vm.host.map(HVA, 2, true);
    vm.set(0, 0, 2, HVA, 0).unwrap();
    vm.fault(0, true).unwrap();
    let mmu = vm.mmu.clone();
    let cache = std::sync::Mutex::new(crate::MemoryCache::new(&vm.host));
    let flushed = AtomicU32::new(0);
    let gone = UserRegion { slot: 0, ..Default::default() };
    mmu.set_memory_region(&gone, &|| {
        if flushed.fetch_add(1, SeqCst) == 0 {
            let mut cache = cache.lock().unwrap();
            assert_eq!(mmu.normal().page_fault(&mut cache, Gpa(0x1000), super::npf(true)), Ok(Retry));
            mmu.invalidate_range_start(Hva(HVA), Hva(HVA + PAGE), true, &|| {
                flushed.fetch_add(1, SeqCst);
            });
            mmu.invalidate_range_end(Hva(HVA), Hva(HVA + PAGE));
        }
    })
    .unwrap();
    assert_eq!(flushed.load(SeqCst), 2);
    assert_eq!(vm.fault(0, true), Ok(Emulate));
    drop((mmu, cache));
    vm.end();
}

#[test]
fn aging() {
    let mut vm = Vm::new();
    vm.host.map_as(HVA, 512, true, Page2M);
    vm.host.map(HVA + (512 * PAGE), 4, true);
    vm.set(0, 0, 516, HVA, 0).unwrap();
    assert!(!vm.mmu.test_young(Hva(HVA), Hva(HVA + PAGE)));
    for gpa in [0x5000, 512 * PAGE] {
        vm.fault(gpa, true).unwrap();
        let at = Hva(HVA + gpa);
        let end = Hva(at.0 + PAGE);
        assert!(vm.mmu.test_young(at, end) && vm.mmu.test_young(at, end));
        assert!(vm.mmu.age(at, end));
        assert!(!vm.mmu.age(at, end) && !vm.mmu.test_young(at, end));
        assert!(!vm.look(gpa).unwrap().accessed);
        // A fault on an aged entry that is still good changes nothing.
        assert_eq!(vm.fault(gpa, true), Ok(Fixed));
    }
    vm.end();
}

/// Without leave to sleep nothing sleeps, however much there is to free.
#[test]
fn no_sleep_without_leave() {
    let mut vm = Vm::new();
    vm.host.map(HVA, 300, true);
    for n in 0..300u32 {
        vm.set(n, u64::from(n) << 30, 1, HVA + u64::from(n) * PAGE, 0).unwrap();
        vm.fault(u64::from(n) << 30, true).unwrap();
    }
    vm.host.hook(|p| panic!("slept at {p:?}"));
    vm.mmu.invalidate_range_start(Hva(HVA), Hva(HVA + 300 * PAGE), false, &|| vm.flush());
    assert_eq!(vm.flush_count(), 1);
    vm.invalidate_end(HVA, HVA + 300 * PAGE);
    vm.host.hook(|_| {});
    vm.end();
}

/// The range was in no slot when its invalidation began, and one that has it comes before the end: nothing is mapped
/// from there.
#[test]
fn a_slot_that_comes_during_an_invalidation() {
    let mut vm = Vm::new().checked();
    vm.host.map(HVA, 8, true);
    vm.set(0, 0, 4, HVA, 0).unwrap();
    for again in [false, true] {
        vm.invalidate(HVA + 4 * PAGE, HVA + 6 * PAGE);
        if again {
            vm.set(1, 0x10_0000, 0, 0, 0).unwrap();
        }
        vm.set(1, 0x10_0000, 4, HVA + 4 * PAGE, 0).unwrap();
        assert_eq!(vm.fault(0x10_1000, true), Ok(Retry));
        assert_eq!(vm.fault(0x10_2000, true), Ok(Fixed));
        assert_eq!(vm.fault(0, true), Ok(Fixed));
        vm.invalidate_end(HVA + 4 * PAGE, HVA + 6 * PAGE);
        assert_eq!(vm.fault(0x10_1000, true), Ok(Fixed));
    }
    vm.end();
}

/// More invalidations at once than are kept one by one, some of the same range, which end in another order.
#[test]
fn many_invalidations_at_once() {
    let mut vm = Vm::new().checked();
    vm.host.map(HVA, 64, true);
    vm.set(0, 0, 64, HVA, 0).unwrap();
    let range = |n: u64| (HVA + n % 30 * PAGE, HVA + (n % 30 + 1) * PAGE);
    for n in 0..40 {
        let (start, end) = range(n);
        vm.invalidate(start, end);
    }
    for n in 0..40 {
        for m in n..40 {
            assert_eq!(vm.fault(m % 30 * PAGE, true), Ok(Retry), "{n} {m}");
        }
        assert_eq!(vm.fault(50 * PAGE, true), Ok(Fixed));
        let (start, end) = range(n);
        vm.invalidate_end(start, end);
    }
    for n in 0..40 {
        assert_eq!(vm.fault(n % 30 * PAGE, true), Ok(Fixed));
    }
    vm.end();
}

/// The VMM works with memory that is in no slot: faults that are under way go on, and nothing is flushed, though there
/// is much to do for the guest's own memory.
#[test]
fn memory_outside_of_all_slots_holds_nobody_up() {
    let mut vm = Vm::new();
    vm.host.map(HVA, 2, true);
    vm.set(0, 0, 2, HVA, 0).unwrap();
    let (mmu, asked) = (Arc::downgrade(&vm.mmu), Arc::new(AtomicU32::new(0)));
    let count = asked.clone();
    vm.host.hook(move |p| {
        if after_page(p) {
            count.fetch_add(1, SeqCst);
            let mmu = mmu.upgrade().unwrap();
            // As the page is about to be mapped, and with a lock that any number of faults hold.
            let _fault = mmu.mmu_lock.read();
            mmu.invalidate_range_start(Hva(HVA + 2 * PAGE), Hva(HVA + 9 * PAGE), true, &|| panic!("nothing to flush"));
            assert!(!mmu.age(Hva(HVA + 2 * PAGE), Hva(HVA + 9 * PAGE)));
            assert!(!mmu.test_young(Hva(HVA), Hva(HVA + PAGE)));
            mmu.invalidate_range_end(Hva(HVA + 2 * PAGE), Hva(HVA + 9 * PAGE));
        }
    });
    assert_eq!(vm.fault(0, true), Ok(Fixed));
    assert_eq!(asked.load(SeqCst), 1, "asked for the page once");
    vm.end();
}

/// The host has a large page where a part is being changed: the rest is mapped in small ones.
#[test]
fn a_large_page_that_is_changed_in_part() {
    for host in [Fake::new(), Fake::new().with_mapped_pages()] {
        let mut vm = Vm::on(host);
        vm.host.map_as(HVA, 1024, true, Page2M);
        vm.set(0, 0, 1024, HVA, 0).unwrap();
        vm.invalidate(HVA + 7 * PAGE, HVA + 8 * PAGE);
        assert_eq!(vm.fault(7 * PAGE, true), Ok(Retry));
        assert_eq!((vm.fault(8 * PAGE, true), vm.fault(600 * PAGE, true)), (Ok(Fixed), Ok(Fixed)));
        let level = |gpa| vm.look(gpa).map(|f| f.level);
        assert_eq!((level(7 * PAGE), level(8 * PAGE), level(600 * PAGE)), (None, Some(1), Some(2)));
        vm.invalidate_end(HVA + 7 * PAGE, HVA + 8 * PAGE);
        vm.end();
    }
}

#[test]
fn what_is_under_way_crosses_as_numbers() {
    use crate::notifier::Invalidations;
    let mut all = Invalidations::default();
    // More than are kept one by one.
    for n in 1..=12 {
        assert_eq!(Invalidations::of_moved(&all.moved(true)), all);
        all.add(n << 12, (n + 1) << 12);
    }
    all.remove(3 << 12, 4 << 12);
    let (mut other, mut one) = (Invalidations::of_moved(&all.moved(false)), all);
    assert_eq!((other.count(), &other), (11, &one));
    for same in [&mut other, &mut one] {
        same.remove(12 << 12, 13 << 12);
    }
    assert_eq!(other, one);
}
