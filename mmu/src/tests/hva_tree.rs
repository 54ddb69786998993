//! The interval tree of the VMM's addresses: what it finds, and how much it looks at.

use super::Vm;
use super::fake::{PAGE, Point};
use crate::RetPf::*;
use crate::hva_tree::HvaTree;
use crate::slot::Memslot;
use crate::{USER_SLOTS, UserRegion};
use arch::{Gpa, Hva};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::vec::Vec;

const HVA: u64 = 0x7000_0000_0000;

fn slot(base: u64, pages: u64, hva: u64) -> Memslot {
    Memslot { id: 0, flags: 0, base, pages, hva }
}

/// Touched pages are included, and touching ranges do not overlap.
#[test]
fn frames_behind_user_memory() {
    let mut tree = HvaTree::with_room(1).unwrap();
    assert!(tree.insert(&slot(0x100, 4, 0x8000)));
    assert!(!tree.insert(&slot(0x200, 4, 0x8000)), "no room");
    let find = |start, end| tree.gfns(start, end).collect::<Vec<_>>();
    assert_eq!(find(0, 0x8000), []);
    assert_eq!(find(0xc000, 0xd000), []);
    assert_eq!(find(0x7fff, 0x8001), [(0x100, 0x101)]);
    assert_eq!(find(0x9001, 0xa001), [(0x101, 0x103)]);
    assert_eq!(find(0, u64::MAX), [(0x100, 0x104)]);
    assert_eq!(find(0x9000, 0x9000), []);
    assert_eq!(find(0x9000, 0x8000), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Slots that share memory, come, go and move to a larger place: found are those that overlap, and no others.
    #[test]
    fn finds_what_overlaps(ops in prop::collection::vec((0..24u64, 0..40u64, 1..20u64, 0..50u64, 0..9u64), 1..80)) {
        let (mut tree, mut model) = (HvaTree::with_room(3).unwrap(), BTreeMap::new());
        for (n, at, pages, from, len) in ops {
            let s = slot(n << 20, pages, at * PAGE);
            match model.remove(&s.base) {
                Some(old) => tree.remove(&old),
                None => {
                    if !tree.insert(&s) {
                        let mut roomier = HvaTree::with_room(2 * model.len()).unwrap();
                        roomier.take_over(&mut tree);
                        tree = roomier;
                        prop_assert!(tree.insert(&s));
                    }
                    model.insert(s.base, s);
                }
            }
            // Off the page borders as well.
            let (start, end) = (from * PAGE / 2, (from + len) * PAGE / 2);
            let mut found: Vec<_> = tree.gfns(start, end).collect();
            found.sort_unstable();
            let overlap = |s: &Memslot| {
                let frames = |n: &u64| s.hva + n * PAGE < end && s.hva + (n + 1) * PAGE > start && start < end;
                let first = (0..s.pages).find(frames)?;
                let last = (0..s.pages).rfind(frames)?;
                Some((s.base + first, s.base + last + 1))
            };
            prop_assert_eq!(found, model.values().filter_map(overlap).collect::<Vec<_>>());
        }
    }
}

/// With as many slots as a VM can have, the notifier looks at as few as with one: by count, not by time.
#[test]
fn cost_follows_the_slots_that_are_touched() {
    let vm = Vm::new();
    // Each page in two slots, and one slot around them all: order by start alone would not do.
    let half = u64::from(USER_SLOTS) / 2;
    vm.set(0, 1 << 40, half, HVA, 0).unwrap();
    for id in 1..USER_SLOTS {
        let n = u64::from(id);
        vm.set(id.into(), n * 2 * PAGE, 1, HVA + n / 2 * PAGE, 0).unwrap();
    }
    let looked = || vm.mmu.mmu_lock.read().looked().swap(0, SeqCst);
    let log = u64::from(USER_SLOTS).ilog2() as usize + 2;
    let outside = [HVA - 8 * PAGE, HVA + half * PAGE, 0x1000, 0x7fff_0000_0000];
    looked();
    for hva in outside {
        let (start, end) = (Hva(hva), Hva(hva + 4 * PAGE));
        vm.mmu.invalidate_range_start(start, end, true, &|| panic!("nothing to flush"));
        vm.mmu.invalidate_range_end(start, end);
        vm.mmu.age(start, end);
        vm.mmu.test_young(start, Hva(hva + 1));
        assert!(looked() <= 3 * 2 * log, "{hva:#x}");
    }
    // One page in three slots.
    let page = Hva(HVA + 77 * PAGE);
    assert!(!vm.mmu.age(page, Hva(page.0 + PAGE)));
    assert!(looked() <= 4 * 2 * log);
    vm.end();
}

/// The same memory in many slots: the lock is let go of in between, and whatever happens to the slots then, nothing is left.
#[test]
fn many_slots_of_the_same_memory() {
    const SLOTS: u64 = 300;
    let at = |n: u64| (n + 1) << 30;
    let mut vm = Vm::new();
    vm.host.map(HVA, 2, true);
    vm.host.map(HVA + 8 * PAGE, 1, true);
    vm.set(1000, 0, 1, HVA + 8 * PAGE, 0).unwrap();
    for n in 0..SLOTS {
        vm.set(n as u32, at(n), 2, HVA, 0).unwrap();
        vm.fault(at(n), true).unwrap();
    }
    let (mmu, host, root) = (Arc::downgrade(&vm.mmu), vm.host.clone(), vm.mmu.root(crate::Space::Normal).pa().0);
    let (offers, cache) = (Arc::new(AtomicU64::new(0)), std::sync::Mutex::new(crate::MemoryCache::new(&vm.host)));
    let count = offers.clone();
    vm.host.hook(move |p| {
        let (Point::Resched, Some(mmu)) = (p, mmu.upgrade()) else { return };
        let n = count.fetch_add(1, SeqCst);
        if n > 3 {
            return;
        }
        let mapped = |gpa| super::look(&host, root, 4, gpa).is_some();
        let fault = |gpa| mmu.normal().page_fault(&mut cache.lock().unwrap(), Gpa(gpa), super::npf(true));
        assert_eq!(fault(0), Ok(Fixed), "other memory");
        assert!(!mapped(at(20)) && mapped(at(SLOTS - 1)), "done, and not yet");
        assert_eq!(fault(at(20)), Ok(Retry), "nothing new");
        let set = |slot, gpa, size| {
            mmu.set_memory_region(&UserRegion { slot, flags: 0, gpa, size, hva: HVA }, &|| {}).unwrap();
        };
        // One that is done and the next one go, one comes before both, one moves behind all.
        set(n as u32, 0, 0);
        set(64 * (n as u32 + 1), 0, 0);
        set(2000 + n as u32, at(0) - (n + 1) * 4 * PAGE, 2 * PAGE);
        set(290 - n as u32, at(SLOTS + n), 2 * PAGE);
    });
    vm.mmu.invalidate_range_start(Hva(HVA), Hva(HVA + PAGE), true, &|| vm.flush());
    vm.host.hook(|_| {});
    assert!(offers.load(SeqCst) >= 4, "the lock is let go of");
    assert!(vm.look(0).is_some());
    for n in 0..SLOTS + 4 {
        assert_eq!(vm.look(at(n)), None, "{n}");
    }
    vm.invalidate_end(HVA, HVA + PAGE);
    assert_eq!(vm.fault(at(100), true), Ok(Fixed));
    vm.end();
}
