//! The interval tree of the VMM's addresses: what it finds, and how much it looks at.

use super::Vm;
use super::fake::PAGE;
use crate::USER_SLOTS;
use crate::hva_tree::HvaTree;
use crate::slot::Memslot;
use arch::Hva;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
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
