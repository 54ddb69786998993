//! The slots go to another engine: each is looked at a few times, however many they are, and what cannot be is refused.

use super::Vm;
use super::fake::{Fake, PAGE, Point};
use crate::slot::Memslots;
use crate::{LOG_DIRTY_PAGES, Mmu, READONLY, Space, UserRegion};
use arch::{Gpa, Hva};
use host::MapLevel::Page2M;
use host::{Errno, Lent, Numbers};
use proptest::prelude::*;
use state::{Sections, Writer};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::vec::Vec;

const HVA: u64 = 0x7000_0000_0000;

/// The same in another engine; with how often another task could have had the CPU on the way out, and in.
fn handed_over(vm: &Vm) -> (Mmu<Fake>, [usize; 2]) {
    let pauses = Arc::new(AtomicUsize::new(0));
    let count = pauses.clone();
    let mmu = Arc::downgrade(&vm.mmu);
    vm.host.hook(move |point| {
        assert!(mmu.upgrade().is_none_or(|mmu| mmu.mmu_lock.try_write().is_some()), "slept with the spin lock held");
        count.fetch_add(usize::from(point == Point::Resched), SeqCst);
    });
    let (mut w, mut lent) = (Writer::new(4 << 20), Numbers::default());
    vm.mmu.save_state(&mut w);
    vm.mmu.lend(&mut lent).unwrap();
    let (state, lent) = (w.finish().unwrap(), lent.into_inner());
    let left = pauses.swap(0, SeqCst);
    let new = Mmu::load_state(vm.host.clone(), &mut Sections::new(&state).unwrap(), &mut Lent::new(&lent)).unwrap();
    vm.host.hook(|_| ());
    (new, [left, pauses.load(SeqCst)])
}

#[test]
fn each_slot_is_looked_at_a_few_times() {
    let vm = Vm::new();
    const MANY: u64 = 3000;
    let n = MANY as usize;
    for id in 0..MANY {
        // Neither ids nor the VMM's addresses are in the order of the guest's.
        let (gpa, hva) = (id * 7919 % MANY, id * 104_729 % MANY);
        vm.set(id as u32, gpa * PAGE, 1, HVA + hva * PAGE, 0).unwrap();
    }
    let (new, [left, arrived]) = handed_over(&vm);
    assert!(left >= 2 * n / 64 && arrived >= n / 64, "{left} {arrived}");
    assert!(new.mmu_lock.read().computed() <= 4 * n, "the tree is built once");
    for hva in (0..MANY).step_by(97) {
        let start = HVA + hva * PAGE;
        let gfns = |mmu: &Mmu<Fake>| mmu.mmu_lock.read().gfns(start, start + 3 * PAGE).collect::<Vec<_>>();
        assert_eq!(gfns(&new), gfns(&vm.mmu));
    }
    drop(new);
    vm.end();
}

/// Only who uses what came with version 2 of the section needs an engine that knows it.
#[test]
fn large_pages_that_are_protected() {
    let version = |vm: &Vm| {
        let mut w = Writer::new(1 << 20);
        vm.mmu.save_state(&mut w);
        let state = w.finish().unwrap();
        // After the frame: the section's name and number.
        assert_eq!(&state[12..16], b"mem ");
        state[20]
    };
    let mut vm = Vm::new();
    vm.host.map_as(HVA, 1024, true, Page2M);
    vm.host.map_as(HVA + 1024 * PAGE, 512, false, Page2M);
    vm.set(0, 0, 1024, HVA, 0).unwrap();
    vm.set(1, 4096 * PAGE, 512, HVA, READONLY).unwrap();
    vm.set(1 << 16, 0, 512, HVA + 1024 * PAGE, 0).unwrap();
    for gpa in [0, 512 * PAGE, 4096 * PAGE] {
        vm.fault(gpa, false).unwrap();
    }
    assert_eq!(version(&vm), 1);
    vm.set(0, 0, 1024, HVA, LOG_DIRTY_PAGES).unwrap();
    assert_eq!(version(&vm), 2);
    vm.fault(0, true).unwrap();
    assert_eq!(version(&vm), 2);
    vm.fault(512 * PAGE, true).unwrap();
    assert_eq!(version(&vm), 1, "all of them are split");
    vm.set(0, 0, 1024, HVA, 0).unwrap();
    vm.mmu.view(Space::Smm, None).page_fault(&mut vm.cache, Gpa(0), super::npf(false)).unwrap();
    assert_eq!(version(&vm), 2, "the host has it read-only");
    handed_over(&vm);
    vm.invalidate(HVA + 1030 * PAGE, HVA + 1031 * PAGE);
    assert_eq!(version(&vm), 1);
    vm.end();
}

#[test]
fn both_address_spaces() {
    let vm = Vm::new();
    vm.set(1 << 16, 0, 4, HVA, 0).unwrap();
    vm.set(7, 8 * PAGE, 4, HVA, 0).unwrap();
    vm.set(3, 0, 8, HVA + PAGE, 0).unwrap();
    let (new, _) = handed_over(&vm);
    let range = |hva: u64| new.mmu_lock.read().gfns(hva, hva + 1).collect::<Vec<_>>();
    assert_eq!(range(HVA), [(8, 9), (Space::Smm.gfn(0), Space::Smm.gfn(1))]);
    // Each is found by its id.
    for slot in [3, 7, 1 << 16] {
        let gone = |slot| new.set_memory_region(&UserRegion { slot, ..Default::default() }, &|| ());
        assert_eq!((gone(slot), gone(slot)), (Ok(()), Err(Errno::EINVAL)));
    }
    assert_eq!(range(HVA), []);
    drop(new);
    vm.end();
}

proptest! {
    /// What is taken in one go is what would be taken one by one, if it comes in order.
    #[test]
    fn in_order_and_apart(asked in prop::collection::vec((0..6u32, 0..2u32, 0..20u64, 0..5u64, 0..9u32), 0..6)) {
        let host = Fake::new();
        let (mut one_by_one, mut at_once) = (Memslots::default(), Memslots::default());
        at_once.reserve_all(asked.len()).unwrap();
        let mut taken = true;
        let mut expected = true;
        let mut last = 0;
        for (id, space, page, pages, flags) in asked {
            let r = UserRegion { slot: space << 16 | id, flags, gpa: page * PAGE, size: pages * PAGE, hva: HVA };
            let change = one_by_one.plan(&host, &r);
            expected &= matches!(change, Ok(crate::slot::Change::Create(s)) if s.base >= last);
            if let (true, Ok(change @ crate::slot::Change::Create(s))) = (expected, change) {
                one_by_one.reserve().unwrap();
                one_by_one.apply(&change);
                last = s.base;
            }
            taken = taken && at_once.append(&host, &r).is_ok();
        }
        taken = taken && at_once.put_in_order(|| ()).is_ok();
        prop_assert_eq!(taken, expected);
        if taken {
            for id in (0..6).chain((0..6).map(|id| 1 << 16 | id)) {
                prop_assert_eq!(at_once.by_id(id), one_by_one.by_id(id));
            }
            let find = |slots: &Memslots, gfn| slots.find(gfn).map(|(n, s)| (n, *s));
            for gfn in 0..30 {
                prop_assert_eq!(find(&at_once, gfn), find(&one_by_one, gfn));
            }
        }
    }
}

/// The notifier's view is the same by whichever way the slots have come.
#[test]
fn the_notifier_finds_the_same() {
    let vm = Vm::new();
    for id in 0..100u32 {
        let n = u64::from(id);
        vm.set(id, n * 5 * PAGE, 1 + n % 5, HVA + (n * 37 % 100) * PAGE, 0).unwrap();
    }
    let (new, _) = handed_over(&vm);
    for page in 0..110 {
        let start = HVA + page * PAGE - PAGE / 2;
        let gfns = |mmu: &Mmu<Fake>| {
            let mut all: Vec<_> = mmu.mmu_lock.read().gfns(start, start + 2 * PAGE).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(gfns(&new), gfns(&vm.mmu), "{page}");
        assert!(!new.test_young(Hva(start), Hva(start + PAGE)));
    }
    drop(new);
    vm.end();
}
