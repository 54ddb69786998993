//! Faults: what gets mapped, how large, with which permission, and what happens when it cannot be.
//!
//! Long because: one test for each rule, and all share their helpers.

use super::fake::{Fake, PAGE, Point, Pte};
use super::{Vm, npf};
use crate::{LOG_DIRTY_PAGES, READONLY, RetPf::*};
use arch::{Gpa, NpfCode};
use host::MapLevel::*;
use host::{Errno, Stop};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const HVA: u64 = 0x7000_0000_0000;
const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;

#[test]
fn small_pages() {
    for host in [Fake::new(), Fake::new().with_five_levels()] {
        let mut vm = Vm::on(host).checked();
        let first = vm.host.map(HVA, 4, true);
        vm.set(0, 0x10_0000, 4, HVA, 0).unwrap();
        assert_eq!(vm.fault(0x10_2123, false), Ok(Fixed));
        let found = vm.look(0x10_2123).unwrap();
        // Writable at once: the host's page is.
        assert_eq!((found.pa, found.write, found.level), (((first + 2) << 12) + 0x123, true, 1));
        assert!(found.accessed);
        assert_eq!(vm.look(0x10_1000), None);
        assert_eq!(vm.fault(0x10_2123, true), Ok(Fixed)); // spurious
        assert_eq!(vm.fault(0xf_f000, false), Ok(Emulate));
        assert_eq!(vm.fault(0x10_4000, true), Ok(Emulate));
        assert_eq!(vm.fault(1 << 50, true), Ok(Emulate));
        assert_eq!(vm.flush_count(), 0);
        vm.end();
    }
}

/// What the host has mapped already is not asked for, and ends up the same.
#[test]
fn pages_that_are_mapped_already() {
    let asked = Arc::new(AtomicU64::new(0));
    let mut vm = Vm::on(Fake::new().with_mapped_pages());
    let count = asked.clone();
    vm.host.hook(move |p| {
        if matches!(p, Point::BeforePage(_)) {
            count.fetch_add(1, SeqCst);
        }
    });
    let first = vm.host.map(HVA, 600, true);
    vm.set(0, 0, 600, HVA, 0).unwrap();
    for n in 0..600 {
        assert_eq!(vm.fault(n * PAGE, n % 2 == 0), Ok(Fixed));
        let found = vm.look(n * PAGE).unwrap();
        assert_eq!((found.pa >> 12, found.write, found.level), (first + n, true, 1));
    }
    // Only to fill the cache of tables: at the start, and for each table of level 1 after the first.
    assert!(asked.load(SeqCst) <= 4, "{asked:?}");
    // While a page is being invalidated, or its slot logs, the rules are the same.
    vm.invalidate(HVA, HVA + PAGE);
    assert_eq!(vm.fault(0, true), Ok(Retry));
    assert_eq!(vm.look(0), None);
    vm.invalidate_end(HVA, HVA + PAGE);
    vm.set(0, 0, 600, HVA, LOG_DIRTY_PAGES).unwrap();
    assert_eq!(vm.fault(PAGE, false), Ok(Fixed));
    assert!(!vm.look(PAGE).unwrap().write);
    assert_eq!(vm.fault(PAGE, true), Ok(Fixed));
    assert!(vm.look(PAGE).unwrap().write);
    assert_eq!(vm.fault(601 * PAGE, true), Ok(Emulate));
    vm.end();
}

/// A page that somebody has to bring in first is not waited for where the caller does not want to, and nothing is mapped.
#[test]
fn pages_that_come_late() {
    for host in [Fake::new(), Fake::new().with_mapped_pages()] {
        let mut vm = Vm::on(host).checked();
        vm.host.map(HVA, 2, true);
        vm.host.0.space.lock().unwrap().late.insert(HVA + PAGE);
        vm.set(0, 0, 2, HVA, LOG_DIRTY_PAGES).unwrap();
        for _ in 0..2 {
            let late = vm.mmu.normal().page_fault_nowait(&mut vm.cache, Gpa(PAGE + 8), npf(true));
            assert_eq!((late, vm.look(PAGE)), (Ok(Late(arch::Hva(HVA + PAGE))), None));
            assert_eq!(vm.mmu.normal().page_fault_nowait(&mut vm.cache, Gpa(8), npf(true)), Ok(Fixed));
        }
        assert_eq!(vm.fault(PAGE, true), Ok(Fixed));
        assert_eq!(vm.mmu.normal().page_fault_nowait(&mut vm.cache, Gpa(PAGE), npf(true)), Ok(Fixed));
        vm.end();
    }
}

/// The table that the last fault ended in goes away with the range it maps; the next fault must not use it.
#[test]
fn a_table_that_is_remembered_may_be_gone() {
    for host in [Fake::new(), Fake::new().with_mapped_pages()] {
        let mut vm = Vm::on(host);
        vm.host.map(HVA, 512, true);
        vm.set(0, 0, 512, HVA, 0).unwrap();
        for _ in 0..3 {
            vm.fault(5 * PAGE, true).unwrap();
            vm.fault(6 * PAGE, true).unwrap();
            vm.invalidate(HVA, HVA + M2);
            vm.invalidate_end(HVA, HVA + M2);
            assert_eq!(vm.look(6 * PAGE), None);
            vm.fault(6 * PAGE, true).unwrap();
            assert!(vm.look(6 * PAGE).is_some());
        }
        vm.end();
    }
}

/// A fault puts no more tables aside than it needs: an idle vCPU keeps none.
#[test]
fn no_table_waits_in_vain() {
    for host in [Fake::new(), Fake::new().with_mapped_pages()] {
        let mut vm = Vm::on(host);
        vm.host.map(HVA, 1024, true);
        vm.set(0, 0, 1024, HVA, 0).unwrap();
        // The two roots, and one table of each level below the first.
        for gfn in [0, 1, 511] {
            vm.fault(gfn * PAGE, true).unwrap();
            assert_eq!(vm.host.live_tables(), 5);
        }
        // Only the last level is new.
        vm.fault(512 * PAGE, true).unwrap();
        assert_eq!(vm.host.live_tables(), 6);
        vm.host.fail_after(0);
        assert_eq!(vm.fault(513 * PAGE, true), Ok(Fixed), "no table is needed");
        vm.end();
    }
}

/// A large page is found, and mapped large where it fits.
#[test]
fn large_pages_that_are_mapped_already() {
    let mut vm = Vm::on(Fake::new().with_mapped_pages());
    let first = vm.host.map_as(HVA, 512, true, Page2M);
    vm.set(0, 0, 512, HVA, 0).unwrap();
    vm.set(1, M2 + PAGE, 512, HVA, 0).unwrap();
    for turn in 0..2 {
        vm.fault(7 * PAGE, true).unwrap();
        vm.fault(M2 + 8 * PAGE, turn == 0).unwrap();
    }
    assert_eq!((vm.look(0).unwrap().pa >> 12, vm.look(0).unwrap().level), (first, 2));
    assert_eq!(vm.look(M2 + 8 * PAGE).unwrap().level, 1);
    vm.end();
}

#[test]
fn read_only_memory_becomes_writable_when_written() {
    let mut vm = Vm::new().checked();
    vm.host.map(HVA, 1, false);
    vm.set(0, 0, 1, HVA, 0).unwrap();
    assert_eq!(vm.fault(0, false), Ok(Fixed));
    assert!(!vm.look(0).unwrap().write);
    assert_eq!(vm.fault(0, true), Err(Stop::Fault)); // not even by the host
    // Same page, now writable: the entry is upgraded in place.
    vm.host.0.space.lock().unwrap().pages.get_mut(&HVA).unwrap().writable = true;
    assert_eq!(vm.fault(0, true), Ok(Fixed));
    assert!(vm.look(0).unwrap().write);
    vm.end();
}

#[test]
fn a_page_replaced_behind_our_back_is_refused() {
    let mut vm = Vm::new().checked();
    vm.host.map(HVA, 1, true);
    vm.set(0, 0, 1, HVA, 0).unwrap();
    vm.fault(0, false).unwrap();
    vm.host.map(HVA, 1, true);
    assert_eq!(vm.fault(0, true), Err(Stop::Errno(Errno::EIO)));
    vm.end();
}

#[test]
fn read_only_slot() {
    let mut vm = Vm::new().checked();
    vm.host.map_as(HVA, 512, true, Page2M);
    vm.set(0, 0, 512, HVA, READONLY).unwrap();
    assert_eq!(vm.fault(0x5000, true), Ok(Emulate));
    assert_eq!(vm.look(0x5000), None);
    assert_eq!(vm.fault(0x5000, false), Ok(Fixed));
    let found = vm.look(0x5000).unwrap();
    assert_eq!((found.write, found.level), (false, 2));
    assert_eq!(vm.fault(0x5000, true), Ok(Emulate));
    assert!(!vm.look(0x5000).unwrap().write);
    vm.end();
}

#[test]
fn errors_of_the_host() {
    let mut vm = Vm::new().checked();
    vm.set(0, 0, 4, HVA, 0).unwrap();
    assert_eq!(vm.fault(0, false), Err(Stop::Fault));
    vm.host.map(HVA, 4, true);
    vm.host.0.space.lock().unwrap().poisoned.insert(HVA);
    assert_eq!(vm.fault(0, false), Err(Stop::Poison));
    assert_eq!(vm.fault(0x1000, false), Ok(Fixed));
    assert_eq!(
        vm.mmu.normal().page_fault(&mut vm.cache, Gpa(0x2000), NpfCode(npf(false).0 | 8 | 1)),
        Err(Stop::Errno(Errno::EIO))
    );
    vm.mmu.release(&|| vm.flush());
    assert_eq!((vm.look(0x1000), vm.flush_count()), (None, 1));
    assert_eq!(vm.fault(0x1000, false), Err(Stop::Errno(Errno::EIO)));
    vm.end();
}

/// The size of a mapping follows the host's, the slot's bounds and the alignment of all three addresses.
#[test]
fn large_pages() {
    // (guest address, host mapping, offset of the slot's memory, pages, 1 GiB pages exist) -> level at guest + 3 MiB
    for (gpa, level, offset, pages, page_1g, want) in [
        (0, Page2M, 0, 1024, true, 2),
        (0, Page4K, 0, 1024, true, 1),
        (M2, Page2M, 0, 1024, true, 2),
        (0x1000, Page2M, 0, 1024, true, 1),      // guest and user address disagree
        (0x1000, Page2M, 0x1000, 1023, true, 2), // they agree again
        (0, Page2M, 0, 1023, true, 1),           // the page reaches out of the slot at its end
        (M2 + 0x1000, Page2M, M2 + 0x1000, 511, true, 1), // and at its start
        (0, Page1G, 0, 1 << 18, true, 3),
        (0, Page1G, 0, 1 << 18, false, 2),
        (0, Page1G, 0, (1 << 18) - 1, true, 2),
        (M2, Page1G, 0, 1 << 18, true, 2),
        (G1, Page1G, 0, 1 << 18, true, 3),
    ] {
        let host = if page_1g { Fake::new() } else { Fake::new().without_1g() };
        let mut vm = Vm::on(host);
        // 3 MiB into the memory, or where the slot begins; no other page is asked for.
        let at = (3 << 20u64).max(offset) - offset;
        let first = 5 << 18;
        let pfn = first + ((offset + at) >> 12);
        vm.host.0.space.lock().unwrap().pages.insert(HVA + offset + at, Pte { pfn, writable: true, level });
        vm.set(0, gpa, pages, HVA + offset, 0).unwrap();
        assert_eq!(vm.fault(gpa + at, false), Ok(Fixed));
        let found = vm.look(gpa + at).unwrap();
        assert_eq!(found.level, want, "{gpa:#x} {level:?} {offset:#x} {pages:#x}");
        assert_eq!(found.pa, (first << 12) + offset + at);
        // Neighbours that the same entry maps are right too, and none is outside of the slot.
        for probe in [gpa, gpa + pages * PAGE - PAGE, gpa + at + PAGE] {
            if let Some(f) = vm.look(probe) {
                assert_eq!(f.pa, (first << 12) + offset + probe - gpa);
            }
        }
        assert_eq!(vm.look(gpa + pages * PAGE), None);
        if gpa > 0 {
            assert_eq!(vm.look(gpa - 1), None);
        }
        vm.end();
    }
}

#[test]
fn physically_misplaced_memory_stays_small() {
    let mut vm = Vm::new();
    vm.host.map_as(HVA, 512, true, Page2M);
    // The host claims a large mapping, but its frames are not aligned.
    for pte in vm.host.0.space.lock().unwrap().pages.values_mut() {
        pte.pfn += 1;
    }
    vm.set(0, 0, 512, HVA, 0).unwrap();
    vm.fault(0x1000, true).unwrap();
    assert_eq!(vm.look(0x1000).unwrap().level, 1);
    vm.end();
}

#[test]
fn memory_only_readable_so_far_is_mapped_read_only() {
    let mut vm = Vm::new();
    vm.host.map_as(HVA, 512, false, Page2M);
    vm.set(0, 0, 512, HVA, 0).unwrap();
    vm.fault(0x1000, false).unwrap();
    assert_eq!(vm.look(0x1000).map(|f| (f.level, f.write)), Some((2, false)));
    assert_eq!(vm.fault(0x1000, true), Err(Stop::Fault)); // not even by the host
    assert!(!vm.look(0x1000).unwrap().write);
    // The host breaks copy-on-write for all of it and tells; then the copy is mapped.
    vm.invalidate(HVA, HVA + M2);
    vm.host.map_as(HVA, 512, true, Page2M);
    vm.invalidate_end(HVA, HVA + M2);
    assert_eq!(vm.look(0x1000), None);
    vm.fault(0x1000, true).unwrap();
    assert_eq!(vm.look(0x1000).map(|f| (f.level, f.write)), Some((2, true)));
    vm.end();
}

#[test]
fn small_pages_in_the_way_of_a_large_one_are_kept() {
    let mut vm = Vm::new();
    let first = vm.host.map(HVA.next_multiple_of(M2), 0, true);
    vm.host.map_as(HVA, 512, true, Page2M);
    let pfn = vm.host.pte(HVA).unwrap().pfn;
    assert!(pfn >= first);
    let level = |vm: &Vm, level| {
        vm.host.0.space.lock().unwrap().pages.values_mut().for_each(|p| p.level = level);
    };
    level(&vm, Page4K);
    vm.set(0, 0, 512, HVA, 0).unwrap();
    vm.fault(0x1000, true).unwrap();
    level(&vm, Page2M);
    vm.fault(0x2000, true).unwrap();
    assert_eq!(vm.look(0x2000).unwrap().level, 1);
    assert_eq!(vm.look(0x2000).unwrap().pa, (pfn + 2) << 12);
    assert_eq!(vm.look(0x1000).unwrap().pa, (pfn + 1) << 12);
    vm.end();
}

#[test]
fn changes_of_a_slot_split_and_join() {
    let mut vm = Vm::new().checked();
    vm.host.map_as(HVA, 1024, true, Page2M);
    vm.set(0, 0, 1024, HVA, 0).unwrap();
    vm.fault(0x1000, true).unwrap();
    vm.fault(M2, true).unwrap();
    assert_eq!((vm.look(0x1000).unwrap().level, vm.look(M2).unwrap().level), (2, 2));
    // Logging: large pages are protected, and small ones come where something is written.
    vm.set(0, 0, 1024, HVA, LOG_DIRTY_PAGES).unwrap();
    assert_eq!(vm.flush_count(), 1);
    for gpa in [0x1000, M2] {
        assert_eq!(vm.look(gpa).map(|f| (f.level, f.write)), Some((2, false)));
    }
    vm.fault(0x2000, true).unwrap();
    assert_eq!(vm.look(0x2000).map(|f| (f.level, f.write)), Some((1, true)));
    for (gpa, level) in [(0x1000, 1), (0x3000, 1), (M2, 2)] {
        assert_eq!(vm.look(gpa).map(|f| (f.level, f.write)), Some((level, false)));
    }
    let small = vm.host.live_tables();
    // And back.
    vm.set(0, 0, 1024, HVA, 0).unwrap();
    assert_eq!((vm.look(0x1000), vm.flush_count()), (None, 2));
    assert!(vm.host.live_tables() < small, "emptied tables are freed");
    vm.fault(0x1000, false).unwrap();
    assert_eq!(vm.look(0x2000).map(|f| (f.level, f.write)), Some((2, true)));
    // Deletion and a new slot over half of it.
    vm.set(0, 0, 0, 0, 0).unwrap();
    assert_eq!((vm.look(0x1000), vm.flush_count()), (None, 3));
    assert_eq!(vm.fault(0x1000, false), Ok(Emulate));
    vm.set(0, 0, 100, HVA, 0).unwrap();
    vm.fault(0x1000, false).unwrap();
    assert_eq!(vm.look(0x1000).unwrap().level, 1);
    vm.end();
}

#[test]
fn moving_a_slot_moves_its_memory() {
    let mut vm = Vm::new().checked();
    let first = vm.host.map(HVA, 4, true);
    vm.set(0, 0x1000, 4, HVA, 0).unwrap();
    vm.fault(0x1000, true).unwrap();
    vm.set(0, 0x3000, 4, HVA, 0).unwrap();
    assert_eq!((vm.look(0x1000), vm.flush_count()), (None, 1));
    assert_eq!(vm.fault(0x1000, true), Ok(Emulate));
    vm.fault(0x3000, true).unwrap();
    assert_eq!(vm.look(0x3000).unwrap().pa, first << 12);
    vm.end();
}

/// Deleting everything at once unlinks the top of the tree only; the rest is freed after the flush.
#[test]
fn a_wide_tree_is_freed() {
    let mut vm = Vm::on(Fake::new().with_five_levels()).checked();
    vm.host.map(HVA, 1, true);
    for (n, gpa) in [0, 0x1000, M2, 511 * M2, G1, 3 * G1, 1 << 39, 7 << 39, 1 << 48, 1 << 50].into_iter().enumerate() {
        vm.set(n as u32, gpa, 1, HVA, 0).unwrap();
        vm.fault(gpa, true).unwrap();
    }
    let live = vm.host.live_tables();
    assert!(live > 20, "{live}");
    let mmu = vm.mmu.clone();
    let host = vm.host.clone();
    mmu.release(&move || assert_eq!(host.live_tables(), live, "freed before the flush"));
    assert!(vm.host.live_tables() <= 1 + 4);
    drop(mmu);
    vm.end();
}

/// Every allocation of a table fails once: the fault fails, nothing leaks, and the next attempt works.
#[test]
fn every_allocation_fails_once() {
    const AT: [u64; 4] = [0, M2, G1, 1 << 39];
    let run = |five: bool, n: i64| {
        let host = if five { Fake::new().with_five_levels() } else { Fake::new() };
        let mut vm = Vm::on(host);
        vm.host.map(HVA, 8, true);
        for (slot, gpa) in AT.into_iter().enumerate() {
            vm.set(slot as u32, gpa, 1, HVA + slot as u64 * PAGE, 0).unwrap();
        }
        vm.host.fail_after(n);
        let before = vm.host.0.allocs.load(SeqCst);
        let mut failed = 0;
        for gpa in AT {
            if vm.fault(gpa, true) == Err(Stop::Errno(Errno::ENOMEM)) {
                failed += 1;
                assert_eq!(vm.look(gpa), None);
                vm.host.fail_after(i64::MAX);
                assert_eq!(vm.fault(gpa, true), Ok(Fixed));
            }
            assert!(vm.look(gpa).is_some());
        }
        let allocs = vm.host.0.allocs.load(SeqCst) - before;
        vm.end();
        (failed, allocs as i64)
    };
    for five in [false, true] {
        let (_, all) = run(five, i64::MAX);
        assert!(all >= 9);
        for n in 0..all {
            assert_eq!(run(five, n).0, 1, "allocation {n}");
        }
    }
    // A top table for each address space.
    for n in 0..2 {
        let host = Fake::new();
        host.fail_after(n);
        assert!(crate::Mmu::new(host.clone()).is_err_and(|e| e == Errno::ENOMEM));
        assert_eq!(host.live_tables(), 0);
    }
}
